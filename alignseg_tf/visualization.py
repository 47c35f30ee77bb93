"""Class maps as pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alignseg_tf.data.catalog import IGNORE, LabelSpace

Palette = Sequence[Sequence[int]]


def colorize(class_map: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint a class map.

    Args:
        class_map: uint8 [H, W]; `IGNORE` is black.
        palette: an RGB colour a class.

    Returns:
        uint8 [H, W, 3].
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[class_map]


def overlay(image: np.ndarray, class_map: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint a class map over its picture, with a bright line where classes meet.

    Args:
        image: uint8 RGB [H, W, 3].
        class_map: uint8 [H, W]; the picture shows where it is `IGNORE`.
        palette: an RGB colour a class.

    Returns:
        uint8 [H, W, 3].
    """
    colors = colorize(class_map, palette).astype(np.float32)
    mixed = 0.5 * image + 0.5 * colors
    mixed[_edges(class_map)] = 0.25 * colors[_edges(class_map)] + 0.75 * 255
    ignored = class_map == IGNORE
    mixed[ignored] = image[ignored]
    return mixed.round().astype(np.uint8)


def _edges(class_map: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another class."""
    edges = np.zeros(class_map.shape, bool)
    edges[:, :-1] |= class_map[:, :-1] != class_map[:, 1:]
    edges[:-1] |= class_map[:-1] != class_map[1:]
    return edges


def legend(label_space: LabelSpace, width: int, row_height: int = 22) -> np.ndarray:
    """Draw the names of the classes beside their colours, as many in a row as fit.

    Returns:
        uint8 [any, width, 3].
    """
    font = ImageFont.load_default(size=0.6 * row_height)
    places, x, y = [], 0, 0
    for name in label_space.classes:
        length = int(font.getlength(name)) + 2 * row_height
        if x and x + length > width:
            x, y = 0, y + row_height
        places.append((x, y))
        x += length
    picture = Image.new("RGB", (width, y + row_height), "white")
    draw = ImageDraw.Draw(picture)
    for (left, top), name, color in zip(
        places, label_space.classes, label_space.palette, strict=True
    ):
        box = (left + 4, top + 4, left + row_height - 4, top + row_height - 4)
        draw.rectangle(box, fill=tuple(color), outline="grey")
        draw.text((left + row_height, top + row_height // 2), name, "black", font, anchor="lm")
    return np.asarray(picture)


def side_by_side(*images: np.ndarray, gap: int = 4) -> np.ndarray:
    """Put pictures of one height beside each other, with a white gap.

    Args:
        images: uint8 [H, any, 3].
        gap: pixels between two pictures.

    Returns:
        uint8 [H, sum of widths and gaps, 3].
    """
    space = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    parts = [images[0]]
    for image in images[1:]:
        parts += [space, image]
    return np.concatenate(parts, 1)
