"""Bilinear sampling, resizing and adaptive pooling of feature maps, in pure `keras.ops`.

Shape legend
    B      batch
    h, w   height and width of the map that is read, in cells
    H, W   height and width of the result, in cells
    C      channels; maps are NHWC throughout

Coordinates are in cells of the map that is read: the centre of its first cell is 0, of its last
n - 1. Vectors are (x, y), x to the right, y down. All coordinates are float32 whatever the dtype
of the map, and the integer part of a regular grid is kept apart from the fraction, so a position
loses no precision at any width.
"""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from alignseg_tf.system.choices import check_choice

Tensor = Any
Size = Any  # an int, or a scalar tensor where the backend has dynamic shapes
SAMPLING_CONVENTIONS = ("standard", "fixed", "released", "released_align_corners")


def aligns_corners(sampling: str) -> bool:
    """Return whether -1 and 1 are the centres of a map's outer cells, or else their outer edges."""
    check_choice("sampling", sampling, SAMPLING_CONVENTIONS)
    return sampling in ("standard", "released_align_corners")


def _regular_grid(out_size: Size, in_size: Size, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Return `linspace(-1, 1, out_size)` in cells: whole part (int32), fraction in [0, 1).

    -1 and 1 are the centres of the outer cells, or their outer edges, as in torch. `linspace` of
    one value is -1.
    """
    index = ops.arange(out_size, dtype="int32")
    steps = ops.maximum(ops.cast(out_size, "int32") - 1, 1)
    if align_corners:
        numerator, denominator = index * (in_size - 1), steps
    else:
        numerator, denominator = index * (2 * in_size) - steps, 2 * steps
    whole = ops.floor_divide(numerator, denominator)
    remainder = numerator - whole * denominator
    fraction = ops.cast(remainder, "float32") / ops.cast(denominator, "float32")
    return whole, fraction


def _corners(
    offset: Tensor, grid: tuple[Tensor, Tensor], size: Size
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split positions on one axis into ((index0, weight0), (index1, weight1)).

    `offset`, float32 [B, H, W], is the distance from the grid in cells. Indices are clipped into
    the axis; a cell outside has weight 0.
    """
    whole, fraction = grid
    # Beyond this nothing is inside the map; the bound keeps the cast to int32 defined.
    limit = ops.cast(size, "float32") + ops.cast(ops.max(ops.abs(whole)), "float32") + 2.0
    moved = ops.clip(fraction + offset, -limit, limit)
    floor = ops.floor(moved)
    upper_weight = moved - floor
    index0 = whole + ops.cast(floor, "int32")
    corners = []
    for index, weight in ((index0, 1.0 - upper_weight), (index0 + 1, upper_weight)):
        inside = ops.logical_and(index >= 0, index < size)
        corners.append((ops.clip(index, 0, size - 1), weight * ops.cast(inside, "float32")))
    return corners[0], corners[1]


def offset_scale(
    sampling: str, height: Size, width: Size, out_height: Size, out_width: Size
) -> tuple[Tensor, Tensor]:
    """Return the cells of the map that is read per unit of offset, along x and along y."""
    h, w = ops.cast(height, "float32"), ops.cast(width, "float32")
    if sampling == "standard":
        steps_x, steps_y = (
            ops.cast(ops.maximum(n - 1, 1), "float32") for n in (out_width, out_height)
        )
        return (w - 1.0) / steps_x, (h - 1.0) / steps_y
    if sampling == "fixed":
        return ops.full((), 0.5, "float32"), ops.full((), 0.5, "float32")
    last = 1.0 if aligns_corners(sampling) else 0.0
    return (w - last) / (2.0 * h), (h - last) / (2.0 * w)


def _axes(
    offsets: Tensor, read_size: tuple[Size, Size], sampling: str
) -> tuple[tuple[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Return for x and y: distance from the grid in cells, float32 [B, H, W], and the grid."""
    height, width = read_size
    out_height, out_width = ops.shape(offsets)[1:3]
    align_corners = aligns_corners(sampling)
    offsets = ops.cast(offsets, "float32")
    scale_x, scale_y = offset_scale(sampling, height, width, out_height, out_width)
    grid_x = _regular_grid(out_width, width, align_corners)
    whole_y, fraction_y = _regular_grid(out_height, height, align_corners)
    grid_y = (ops.expand_dims(whole_y, 1), ops.expand_dims(fraction_y, 1))
    return (offsets[..., 0] * scale_x, grid_x), (offsets[..., 1] * scale_y, grid_y)


def sampling_positions(
    offsets: Tensor, read_size: tuple[Size, Size], sampling: str = "standard"
) -> Tensor:
    """Return where `bilinear_sample` reads a map.

    Args:
        offsets: floating [B, H, W, 2], (x, y).
        read_size: (h, w) of the map that is read.
        sampling: one of `SAMPLING_CONVENTIONS`.

    Returns:
        float32 [B, H, W, 2], (x, y) in cells of the map that is read.

    Example:
        >>> still = sampling_positions(ops.zeros((1, 1, 5, 2)), (3, 3))
        >>> ops.convert_to_numpy(still)[0, 0, :, 0].tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    along_x, along_y = _axes(offsets, read_size, sampling)
    positions = [
        ops.cast(whole, "float32") + (fraction + distance)
        for distance, (whole, fraction) in (along_x, along_y)
    ]
    return ops.stack(positions, -1)


def bilinear_sample(features: Tensor, offsets: Tensor, sampling: str = "standard") -> Tensor:
    """Sample a map at a regular grid that is moved by an offset a cell.

    The grid is `linspace(-1, 1)` per axis over the result; the offset is divided by a size that
    depends on the convention and added to it; the map is read there bilinearly, with zeros
    outside. Equivalent to `torch.nn.functional.grid_sample(mode="bilinear", padding_mode="zeros")`.

    ========================  ==========================================  ===============
    `sampling`                offset is divided by                        `align_corners`
    ========================  ==========================================  ===============
    `standard`                x: (W - 1) / 2, y: (H - 1) / 2; with this   True
                              1 is one cell of the result (a side of
                              one cell: by 1 / 2)
    `fixed`                   x: w, y: h                                  False
    `released`                x: h, y: w (swapped)                        False
    `released_align_corners`  x: h, y: w (swapped)                        True
    ========================  ==========================================  ===============

    Gradients flow to the map and to the offsets and equal torch's, also at offset 0, where
    products of hat functions have none.

    Args:
        features: floating [B, h, w, C], the map to read.
        offsets: floating [B, H, W, 2], (x, y).
        sampling: one of `SAMPLING_CONVENTIONS`.

    Returns:
        [B, H, W, C] in the dtype of `features`.

    Example:
        >>> row = ops.reshape(ops.convert_to_tensor([0.0, 10.0, 20.0]), (1, 1, 3, 1))
        >>> half_a_cell_right = ops.stack([ops.full((1, 1, 3), 0.5), ops.zeros((1, 1, 3))], -1)
        >>> ops.convert_to_numpy(bilinear_sample(row, half_a_cell_right)).ravel().tolist()
        [5.0, 15.0, 10.0]

    Reference:
        AlignSeg, section 3.2; the conventions are those of the official code's versions.
    """
    batch, height, width, channels = ops.shape(features)
    (distance_x, grid_x), (distance_y, grid_y) = _axes(offsets, (height, width), sampling)
    corners_x = _corners(distance_x, grid_x, width)
    corners_y = _corners(distance_y, grid_y, height)

    # Four gathers of whole rows of C values are the fastest form with a right gradient.
    cells = ops.reshape(features, (-1, channels))
    first_row = ops.reshape(ops.arange(batch, dtype="int32") * height, (-1, 1, 1))
    result = None
    for index_y, weight_y in corners_y:
        row_start = (first_row + index_y) * width
        for index_x, weight_x in corners_x:
            weight = ops.expand_dims(ops.cast(weight_y * weight_x, features.dtype), -1)
            term = weight * ops.take(cells, row_start + index_x, axis=0)
            result = term if result is None else result + term
    return result


def _apply_along_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply an NHWC map by `columns` [W, w] along its width and `rows` [H, h] along its height.

    Width goes first: for a larger result that leaves the wide product to the height, which is
    one efficient product of [H, h] with [h, W * C].
    """
    batch, height, _, channels = ops.shape(x)
    out_height, out_width = ops.shape(rows)[0], ops.shape(columns)[0]
    x = ops.matmul(ops.cast(columns, x.dtype), x)
    x = ops.reshape(x, (batch, height, out_width * channels))
    x = ops.matmul(ops.cast(rows, x.dtype), x)
    return ops.reshape(x, (batch, out_height, out_width, channels))


def interpolation_matrix(out_size: Size, in_size: Size) -> Tensor:
    """Return the weights [out_size, in_size] of linear interpolation with aligned corners."""
    whole, fraction = _regular_grid(out_size, in_size, align_corners=True)
    distance = ops.arange(in_size, dtype="int32") - ops.expand_dims(whole, 1)
    fraction = ops.expand_dims(fraction, 1)
    at_floor = ops.cast(distance == 0, "float32") * (1.0 - fraction)
    return at_floor + ops.cast(distance == 1, "float32") * fraction


def resize_align_corners(x: Tensor, size: tuple[Size, Size]) -> Tensor:
    """Resize a map bilinearly with aligned corners: the centres of the outer cells stay in place.

    Equivalent to `torch.nn.functional.interpolate(mode="bilinear", align_corners=True)`;
    `keras.ops.image.resize` lacks this mode.

    Args:
        x: floating [B, h, w, C].
        size: (H, W), ints or scalar int32 tensors.

    Returns:
        [B, H, W, C] in the dtype of `x`.

    Example:
        >>> row = ops.reshape(ops.convert_to_tensor([0.0, 10.0]), (1, 1, 2, 1))
        >>> ops.convert_to_numpy(resize_align_corners(row, (1, 5))).ravel().tolist()
        [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    height, width = ops.shape(x)[1:3]
    if all(isinstance(n, int) for n in (height, width, *size)) and (height, width) == tuple(size):
        return x
    rows = interpolation_matrix(size[0], height)
    columns = interpolation_matrix(size[1], width)
    return _apply_along_axes(x, rows, columns)


class AlignedAxis:
    """Linear interpolation of an axis of `cells` to `pixels`, with aligned corners."""

    def __init__(self, pixels: int, cells: int):
        position = np.arange(pixels) * (cells - 1)
        steps = max(pixels - 1, 1)
        self.lower = np.minimum(position // steps, max(cells - 2, 0)).astype(np.int32)
        self.upper = np.minimum(self.lower + 1, cells - 1).astype(np.int32)
        self.fraction = ((position - self.lower * steps) / steps).astype(np.float32)
        # The pixels that read each cell, padded to the largest number of readers.
        weights = np.zeros((pixels, cells), np.float32)
        np.add.at(weights, (np.arange(pixels), self.lower), 1.0 - self.fraction)
        np.add.at(weights, (np.arange(pixels), self.upper), self.fraction)
        places = int((weights > 0).sum(0).max())
        self.readers = np.argsort(weights == 0, axis=0, kind="stable")[:places].astype(np.int32)
        self.reader_weights = np.take_along_axis(weights, self.readers, axis=0)

    def resized(self, x: Tensor, axis: int) -> Tensor:
        """Interpolate axis 1 or 2 of a map [B, any, any, C]."""
        lower, upper = (ops.take(x, index, axis=axis) for index in (self.lower, self.upper))
        return lower + self._along(self.fraction, axis) * (upper - lower)

    def to_cells(self, gradient: Tensor, axis: int) -> Tensor:
        """Turn a gradient of `resized` [B, any, any, C] into that of the map."""
        terms = (
            ops.take(gradient, index, axis=axis) * self._along(weight, axis)
            for index, weight in zip(self.readers, self.reader_weights, strict=True)
        )
        return functools.reduce(ops.add, terms)

    @staticmethod
    def _along(values: np.ndarray, axis: int) -> Tensor:
        return ops.convert_to_tensor(values.reshape((-1, 1, 1) if axis == 1 else (1, -1, 1)))


def _pooling_matrix(bins: int, in_size: Size) -> Tensor:
    """Weights [bins, in_size] that average each of torch's adaptive windows."""
    index = ops.arange(bins, dtype="int32")
    start = ops.expand_dims(ops.floor_divide(index * in_size, bins), 1)
    end = ops.expand_dims(ops.floor_divide((index + 1) * in_size + (bins - 1), bins), 1)
    cell = ops.arange(in_size, dtype="int32")
    inside = ops.cast(ops.logical_and(cell >= start, cell < end), "float32")
    return inside / ops.cast(end - start, "float32")


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """Average a map [B, h, w, C] over `bins` x `bins` windows that cover it: [B, bins, bins, C].

    Equivalent to `torch.nn.functional.adaptive_avg_pool2d`: window i of n cells is
    [floor(i n / bins), ceil((i + 1) n / bins)). Windows overlap where n is no multiple of `bins`.
    Unlike `keras.layers.AdaptiveAveragePooling2D` it takes dynamic sizes. Sums are in float32.
    """
    height, width = ops.shape(x)[1:3]
    pooled = _apply_along_axes(
        ops.cast(x, "float32"), _pooling_matrix(bins, height), _pooling_matrix(bins, width)
    )
    return ops.cast(pooled, x.dtype)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ResizeLike(keras.layers.Layer):
    """Resize one map to the height and width of another, with aligned corners.

    Shape:
        `x`: [B, h, w, C]; `reference`: [B, H, W, any] -> [B, H, W, C].
    """

    def call(self, x: Tensor, reference: Tensor) -> Tensor:
        """Return `x` at the size of `reference`."""
        return resize_align_corners(x, ops.shape(reference)[1:3])

    def compute_output_shape(
        self, x_shape: tuple[int | None, ...], reference_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (*x_shape[:1], *reference_shape[1:3], x_shape[-1])


def offsets_in_pixels(
    offsets: Tensor, sampling: str, read_size: Sequence[Size], image_size: Sequence[Size]
) -> Tensor:
    """Convert offsets [B, H, W, 2], (x, y), to pixels of the image, float32.

    Args:
        offsets: in the unit of the convention.
        sampling: one of `SAMPLING_CONVENTIONS`.
        read_size: (h, w) of the sampled map, which covers the image. Ints or scalar tensors.
        image_size: height and width of the image. Ints or scalar tensors.
    """
    cells_x, cells_y = offset_scale(sampling, *read_size, *ops.shape(offsets)[1:3])
    (height, width), (rows, columns) = (
        [ops.cast(n, "float32") for n in size] for size in (image_size, read_size)
    )
    if aligns_corners(sampling):
        # The centres of the outer cells lie on those of the outer pixels.
        height, width = height - 1.0, width - 1.0
        rows, columns = ops.maximum(rows - 1.0, 1.0), ops.maximum(columns - 1.0, 1.0)
    pixels = ops.stack([cells_x * width / columns, cells_y * height / rows])
    return ops.cast(offsets, "float32") * pixels
