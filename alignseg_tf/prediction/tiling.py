"""Segment an image of any size without holding scores of its size.

Shape legend
    H, W   height and width of the image, in pixels
    t      height or width of a tile, in pixels of the scaled image
    l      height or width of a tile's logits, in cells
    C      classes

One bilinear interpolation reads the scores of an image's pixel from a tile's stride-4 logits:
half-pixel centres between scales, aligned corners between a tile and its logits, as in the network.
Tiles are computed row by row, and each finished band of rows is returned, so that memory grows with
the width of the image and the height of a tile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from alignseg_tf.prediction.protocol import Protocol, Window, axis_windows, scaled_sizes

# Size of the scores of a band of rows, in bytes.
BAND_BYTES = 2**26


@dataclass(frozen=True)
class Band:
    """The result for some rows of an image.

    Attributes:
        first: number of the first row.
        class_map: class ids, uint8 [rows, W].
        confidence: probability of the chosen class, float32 [rows, W] in 0..1, or None.
        probabilities: float32 [rows, W, C], or None.
    """

    first: int
    class_map: np.ndarray
    confidence: np.ndarray | None = None
    probabilities: np.ndarray | None = None


class _Scale:
    """The tiles of an image at one scale, computed row by row on demand.

    Args:
        logits: uint8 [B, t, t, 3] -> float32 [B, l, l, C].
        scaled: the scaled image, uint8 [any, any, 3].
        size: H and W of the image.
        protocol: tile, overlap, blending, batch size.
        flip: whether to mirror the image.
    """

    def __init__(
        self,
        logits: Callable[[Any], Any],
        scaled: np.ndarray,
        size: tuple[int, int],
        protocol: Protocol,
        flip: bool,
    ):
        self.logits, self.image, self.flip = logits, scaled, flip
        self.batch_size = protocol.batch_size
        height, width = scaled.shape[:2]
        tile = protocol.tile or (height, width)
        self.tile = min(tile[0], height), min(tile[1], width)
        self.rows, self.columns = (
            axis_windows(n, m, t, protocol.overlap, protocol.blending)
            for n, m, t in zip(size, (height, width), tile, strict=True)
        )
        self.computed: dict[int, list[Any]] = {}

    @property
    def is_one_tile(self) -> bool:
        return len(self.rows) == len(self.columns) == 1

    def _compute(self, row: Window) -> list[Any]:
        """Return the logits [l, l, C] of the tiles in a row."""
        height, width = self.tile
        strip = self.image[row.start : row.start + height]
        tiles = [strip[:, column.start : column.start + width] for column in self.columns]
        if self.flip:
            tiles = [tile[:, ::-1] for tile in tiles]
        computed: list[Any] = []
        for first in range(0, len(tiles), self.batch_size):
            batch = self.logits(np.stack(tiles[first : first + self.batch_size]))
            computed += tf.unstack(batch[:, :, ::-1] if self.flip else batch)
        return computed

    def parts(self, first: int, end: int) -> Iterator[tuple[Any, slice, Window, Window]]:
        """Yield the tiles that cover the rows `first` to `end`, which never decrease.

        Yields:
            Logits [l, l, C], the rows of the window within `first` to `end`, and the windows of
            the tile on the two axes.
        """
        for number, row in enumerate(self.rows):
            if row.end <= first:
                self.computed.pop(number, None)
                continue
            if row.first >= end:
                return
            if number not in self.computed:
                self.computed[number] = self._compute(row)
            wanted = slice(max(first - row.first, 0), min(end, row.end) - row.first)
            for logits, column in zip(self.computed[number], self.columns, strict=True):
                yield logits, wanted, row, column

    def scores(self, logits: Any, wanted: slice, row: Window, column: Window) -> Any:
        """Interpolate a tile's logits at pixels of the image, float32 [rows, columns, C]."""
        height, width = logits.shape[:2]
        steps = [max(1, t - 1) for t in self.tile]
        logits = _interpolate(logits, row.position[wanted] * ((height - 1) / steps[0]), 0)
        return _interpolate(logits, column.position * ((width - 1) / steps[1]), 1)


def _interpolate(x: Any, position: np.ndarray, axis: int) -> Any:
    """Interpolate a map [l, l, C] at positions in cells along one of its first two axes."""
    lower = np.minimum(position.astype(np.int32), x.shape[axis] - 1)
    upper = np.minimum(lower + 1, x.shape[axis] - 1)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    fraction = (position - lower).astype(np.float32).reshape(shape)
    below = tf.gather(x, lower, axis=axis)
    return below + fraction * (tf.gather(x, upper, axis=axis) - below)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image, uint8 [H, W, 3], to (height, width): bilinear, averaging when reducing."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def segment_in_bands(
    logits: Callable[[Any], Any],
    image: np.ndarray,
    num_classes: int,
    protocol: Protocol,
    input_size: tuple[int, int] | None = None,
    with_confidence: bool = False,
    with_probabilities: bool = False,
) -> Iterator[Band]:
    """Segment an image of any size, a band of rows at a time, from the top.

    Args:
        logits: the network: uint8 RGB [B, h, w, 3] -> float32 logits [B, l, l, C], whose outer
            cells lie on the outer pixels.
        image: uint8 RGB [H, W, 3].
        num_classes: C.
        protocol: how it goes through the network; see also `Protocol.for_image`.
        input_size: the only size that the network takes, or None for any.
        with_confidence: whether to compute the probability of the chosen class.
        with_probabilities: whether to compute those of all classes.

    Raises:
        ValueError: the image is too small, or does not fit the protocol.
    """
    height, width = image.shape[:2]
    sizes = scaled_sizes(height, width, protocol, input_size)
    mirrored = (False, True) if protocol.flip else (False,)
    views = []
    for scaled in (resized(image, size) for size in sizes):
        views += [_Scale(logits, scaled, (height, width), protocol, flip) for flip in mirrored]
    of_probabilities = protocol.average == "probabilities"
    one_part = len(views) == 1 and views[0].is_one_tile
    rows = max(1, BAND_BYTES // (4 * width * num_classes))
    for first in range(0, height, rows):
        end = min(height, first + rows)
        scores: Any = None if one_part else np.zeros((end - first, width, num_classes), np.float32)
        for view in views:
            for tile_logits, wanted, row, column in view.parts(first, end):
                part = view.scores(tile_logits, wanted, row, column)
                if one_part:
                    scores = part
                    continue
                if of_probabilities:
                    part = tf.nn.softmax(part)
                weight = row.weight[wanted, None, None] * column.weight[:, None] / len(views)
                top = row.first + wanted.start - first
                place = slice(top, top + part.shape[0]), slice(column.first, column.end)
                scores[place] += (part * weight).numpy()
        yield _band(
            first, tf.convert_to_tensor(scores), of_probabilities and not one_part,
            with_confidence, with_probabilities,
        )  # fmt: skip


def _band(
    first: int, scores: Any, are_probabilities: bool, confidence: bool, probabilities: bool
) -> Band:
    """Choose the likeliest classes from logits or probabilities [rows, W, C]."""
    class_map = tf.cast(tf.argmax(scores, -1, output_type=tf.int32), tf.uint8).numpy()
    if not (confidence or probabilities):
        return Band(first, class_map)
    if not are_probabilities:
        scores = tf.nn.softmax(scores)
    return Band(
        first,
        class_map,
        tf.reduce_max(scores, -1).numpy() if confidence else None,
        scores.numpy() if probabilities else None,
    )
