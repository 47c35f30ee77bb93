"""Many small images with their labels on one sheet, to see at a glance that they fit."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from alignseg_tf import visualization
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.data.readers import load_sample
from alignseg_tf.system.fonts import draw_text, text_length

# Number of rows over all splits, and of pairs of image and label in a row.
ROWS, PAIRS = 5, 4
# Pixels.
THUMBNAIL, GAP, MARGIN = 208, 16, 24
CAPTION, HEADING = 20, 40
CAPTION_SIZE, HEADING_SIZE = 12, 18
INK, FAINT_INK, PAPER, EMPTY = "#222222", "#777777", "white", "#eeeeee"


def draw_contact_sheet(
    splits: Mapping[str, Sequence[Sample]], label_space: LabelSpace
) -> Image.Image:
    """Draw evenly chosen images of each split beside their labels, and the classes below.

    Returns:
        An RGB image, 1,768 pixels wide.

    Raises:
        DataError: a file is not readable any more.
    """
    pair_width = 2 * THUMBNAIL + 2
    width = PAIRS * pair_width + (PAIRS - 1) * GAP
    filled = {name: samples for name, samples in splits.items() if samples}
    parts: list[Image.Image] = []
    for number, (name, all_samples) in enumerate(filled.items()):
        rows = len(range(number, ROWS, len(filled)))  # dealt out alternately
        samples = _evenly(all_samples, PAIRS * max(1, rows))
        parts.append(_heading(f"{name}: {len(samples)} of {len(all_samples)} images", width))
        for start in range(0, len(samples), PAIRS):
            pairs = []
            for sample in samples[start : start + PAIRS]:
                image, label = _small(*load_sample(sample, label_space))
                painted = visualization.overlay(image, label, label_space.palette)
                pairs.append((sample.image.name, image, painted))
            parts.append(_row(pairs, width, pair_width))
    parts.append(_heading("classes; without a colour: void", width))
    parts.append(Image.fromarray(visualization.legend(label_space, width)))
    height = sum(part.height for part in parts)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height
    return sheet


def _evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    count = min(count, len(samples))
    return [samples[int((i + 0.5) * len(samples) / count)] for i in range(count)]


def _small(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image and its label to the width or height of a thumbnail."""
    scale = THUMBNAIL / max(label.shape)
    size = max(1, round(scale * label.shape[1])), max(1, round(scale * label.shape[0]))
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    small_label = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(small_label)


def _row(
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], width: int, pair_width: int
) -> Image.Image:
    """Draw pairs beside each other, each with its name below."""
    height = max(image.shape[0] for _, image, _ in pairs)
    row = Image.new("RGB", (width, height + CAPTION + GAP // 2), PAPER)
    draw = ImageDraw.Draw(row)
    for index, (name, *images) in enumerate(pairs):
        left = index * (pair_width + GAP)
        for place, image in enumerate(images):
            box = left + place * (THUMBNAIL + 2)
            draw.rectangle((box, 0, box + THUMBNAIL - 1, height - 1), EMPTY)
            corner = box + (THUMBNAIL - image.shape[1]) // 2, (height - image.shape[0]) // 2
            row.paste(Image.fromarray(image), corner)
        while text_length(name, CAPTION_SIZE) > pair_width:
            name = f"{name[: len(name) // 2 - 2]}…{name[len(name) // 2 + 2 :]}"
        draw_text(draw, (left, height + CAPTION // 2), name, CAPTION_SIZE, FAINT_INK)
    return row


def _heading(text: str, width: int) -> Image.Image:
    heading = Image.new("RGB", (width, HEADING), PAPER)
    draw_text(ImageDraw.Draw(heading), (0, HEADING // 2), text, HEADING_SIZE, INK)
    return heading
