"""Class maps and fields of vectors as images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw

from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.system.fonts import draw_text, text_length

Palette = Sequence[Sequence[int]]

MISTAKE = (230, 40, 40)
# Colour-blind people tell blue from orange.
FIRST_RIGHT, SECOND_RIGHT = (30, 110, 230), (255, 140, 0)


def colorize(class_map: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint a class map, uint8 [H, W], in RGB colours, uint8 [H, W, 3]. `IGNORE` is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[class_map]


def overlay(image: np.ndarray, class_map: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint a class map over its image, with a bright line where classes meet.

    Args:
        image: uint8 RGB [H, W, 3].
        class_map: uint8 [H, W]; the image shows where it is `IGNORE`.
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


def mistakes(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Paint wrong pixels red and unlabelled ones dark over a grey image, uint8 [H, W, 3].

    `truth` and `predicted` are class ids, uint8 [H, W]; `IGNORE` in `truth` means no label.
    """
    return _marked(image, truth, [(predicted != truth, MISTAKE)])


def disagreements(
    image: np.ndarray, truth: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Paint over a grey image where only one of two predictions is right, uint8 [H, W, 3].

    Blue: only the first is right; orange: only the second; dark: no label. `truth`, `first` and
    `second` are class ids, uint8 [H, W]; `IGNORE` in `truth` means no label.
    """
    first_right, second_right = first == truth, second == truth
    return _marked(
        image,
        truth,
        [(first_right & ~second_right, FIRST_RIGHT), (second_right & ~first_right, SECOND_RIGHT)],
    )


def _marked(
    image: np.ndarray, truth: np.ndarray, marks: Sequence[tuple[np.ndarray, Sequence[int]]]
) -> np.ndarray:
    grey = np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, -1)
    painted = 90 + 0.5 * grey
    for mask, color in marks:
        painted[mask] = 0.25 * grey[mask] + 0.75 * np.array(color)
    unlabelled = truth == IGNORE
    painted[unlabelled] = 0.25 * grey[unlabelled]
    return painted.round().astype(np.uint8)


def _edges(class_map: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another class."""
    edges = np.zeros(class_map.shape, bool)
    edges[:, :-1] |= class_map[:, :-1] != class_map[:, 1:]
    edges[:-1] |= class_map[:-1] != class_map[1:]
    return edges


def legend(label_space: LabelSpace, width: int, row_height: int = 22) -> np.ndarray:
    """Draw the names of the classes next to their colours, in rows: uint8 [any, width, 3]."""
    size = 0.55 * row_height
    places, x, y = [], 0, 0
    for name in label_space.classes:
        length = int(text_length(name, size)) + 2 * row_height
        if x and x + length > width:
            x, y = 0, y + row_height
        places.append((x, y))
        x += length
    image = Image.new("RGB", (width, y + row_height), "white")
    draw = ImageDraw.Draw(image)
    for (left, top), name, color in zip(
        places, label_space.classes, label_space.palette, strict=True
    ):
        box = (left + 4, top + 4, left + row_height - 4, top + row_height - 4)
        draw.rectangle(box, fill=tuple(color), outline="grey")
        draw_text(draw, (left + row_height, top + row_height // 2), name, size)
    return np.asarray(image)


def side_by_side(*images: np.ndarray, gap: int = 4) -> np.ndarray:
    """Join images, uint8 [H, any, 3], in a row with white gaps of `gap` pixels."""
    space = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    parts = [images[0]]
    for image in images[1:]:
        parts += [space, image]
    return np.concatenate(parts, 1)


def grid(images: Sequence[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Lay out images of one size row by row, with white gaps between columns.

    Args:
        images: uint8 [H, W, 3].
        columns: images in a row.
        gap: pixels between two columns.

    Returns:
        uint8 [rows * H, any, 3]; free places in the last row are white.
    """
    images = [*images, *[np.full_like(images[0], 255)] * (-len(images) % columns)]
    rows = [
        side_by_side(*images[first : first + columns], gap=gap)
        for first in range(0, len(images), columns)
    ]
    return np.concatenate(rows)


def titled(image: np.ndarray, text: str, height: int = 18) -> np.ndarray:
    """Put a line of text, `height` pixels high, above an image: uint8 [height + H, W, 3].

    Text that does not fit into the width is cut off.
    """
    line = Image.new("RGB", (image.shape[1], height), "white")
    draw_text(ImageDraw.Draw(line), (2, height // 2), text, 0.6 * height)
    return np.concatenate([np.asarray(line), image])


def offset_field(offsets: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Paint a field of vectors: hue is direction, brightness is length.

    Red points right; then, clockwise, yellow and green down, cyan left, blue and magenta up.
    Black is no offset.

    Args:
        offsets: floating [H, W, 2], (x, y), x to the right, y down.
        limit: smallest length in full colour, in the unit of `offsets`; None for the largest of
            this field.

    Returns:
        uint8 [H, W, 3]; white where a vector is not finite.

    Raises:
        ValueError: `offsets` has another shape, or `limit` is not positive.

    Example:
        >>> offset_field(np.array([[[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]]])).tolist()
        [[[255, 0, 0], [0, 255, 255], [0, 0, 0]]]
    """
    offsets = np.asarray(offsets, np.float64)
    if offsets.ndim != 3 or offsets.shape[-1] != 2:
        raise ValueError(f"`offsets` must be [H, W, 2]. Received: shape {offsets.shape}")
    if limit is not None and not limit > 0:
        raise ValueError(f"`limit` must be positive. Received: limit={limit}")
    finite = np.isfinite(offsets).all(-1)
    x, y = np.moveaxis(np.where(finite[..., None], offsets, 0.0), -1, 0)
    length = np.hypot(x, y)
    if limit is None:
        limit = float(length.max(initial=0.0)) or 1.0
    hue, brightness = np.arctan2(y, x) / (2 * np.pi) % 1.0, np.minimum(length / limit, 1.0)
    painted = hsv_to_rgb(np.stack([hue, np.ones_like(hue), brightness], -1))
    painted = np.where(finite[..., None], painted, 1.0)
    return (255 * painted).round().astype(np.uint8)


def offset_legend(limit: float, size: int = 96, unit: str = "px") -> np.ndarray:
    """Draw the colour wheel of `offset_field`, with the length at its rim below.

    Args:
        limit: the length at the rim.
        size: width of the result, in pixels.
        unit: unit of the length.

    Returns:
        uint8 [size + a line of text, size, 3].
    """
    radius = (size - 1) / 2
    y, x = np.mgrid[0:size, 0:size] - radius
    wheel = offset_field(np.stack([x, y], -1) * (limit / radius), limit)
    wheel[np.hypot(x, y) > radius] = 255
    height = max(12, size // 6)
    line = Image.new("RGB", (size, height), "white")
    text = f"{limit:.3g} {unit}"
    draw_text(ImageDraw.Draw(line), (size / 2, height / 2), text, 0.7 * height, centred=True)
    return np.concatenate([wheel, np.asarray(line)])
