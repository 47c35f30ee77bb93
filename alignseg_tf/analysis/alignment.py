"""Record how a model aligns: offset fields, chosen context, moved feature maps.

`trace_alignment` runs a model on an image up to its alignment layers and keeps their maps as NumPy
arrays; `alignment_figures` draws them.

Shape legend
    h, w   height and width of the image, in pixels
    H, W   height and width of a feature map, in cells
    C      channels of the decoder

Vectors and positions are (x, y), x to the right, y down. The first and the last cell of a map lie
on the centres of the image's first and last pixel, as the model resizes.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from alignseg_tf.layers import (
    AlignedContextModeling,
    AlignedFeatureAggregation,
    bilinear_sample,
    resize_align_corners,
)
from alignseg_tf.layers.aligned_context_modeling import CONTEXT_BINS
from alignseg_tf.layers.sampling import offsets_in_pixels, sampling_positions
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg

# Cell number of a position outside the context map.
OUTSIDE = -1


@dataclass(frozen=True, eq=False)
class AggregationTrace:
    """The two maps of an `AlignedFeatureAggregation` in one image, before and after it moves them.

    Attributes:
        name: the layer's.
        mode: the layer's: which maps it moves.
        offsets: for `coarse` and `fine`, if moved: from each cell to where it is read, float32
            [H, W, 2], in pixels of the image.
        before: both maps before they are moved, float32 [H, W, C]; `coarse` is resized.
        after: both maps before they are added.
    """

    name: str
    mode: str
    offsets: dict[str, np.ndarray]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    @property
    def unaligned(self) -> np.ndarray:
        """The sum of `before`, [H, W, C], which the mode `bilinear` would return."""
        return self.before["fine"] + self.before["coarse"]

    @property
    def aligned(self) -> np.ndarray:
        """The sum of `after`, [H, W, C], which the layer returns."""
        return self.after["fine"] + self.after["coarse"]


@dataclass(frozen=True, eq=False)
class ContextTrace:
    """The positions at which an `AlignedContextModeling` reads its 3x3 context map, in one image.

    Attributes:
        name: the layer's.
        offsets: from each pixel to where it reads, float32 [H, W, 2], in pixels of the image.
        positions: where each pixel reads, float32 [H, W, 2], in cells: 0 is the centre of the
            first cell, 2 of the last. Positions outside the map read zeros.
        regular_positions: the same without offsets.
    """

    name: str
    offsets: np.ndarray
    positions: np.ndarray
    regular_positions: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """The nearest cell to each position, int [H, W]: 0..8 in reading order, or `OUTSIDE`."""
        return _nearest_cell(self.positions)

    @property
    def regular(self) -> np.ndarray:
        """The nearest cells without offsets."""
        return _nearest_cell(self.regular_positions)


@dataclass(frozen=True, eq=False)
class AlignmentTrace:
    """The maps and offsets of a model's alignment layers in one image.

    Attributes:
        image: the image, uint8 RGB [h, w, 3].
        steps: one for each AlignFA, in the order of the decoder.
        context: of AlignCM; None where the model's context is not `align`.
    """

    image: np.ndarray
    steps: tuple[AggregationTrace, ...]
    context: ContextTrace | None


def _nearest_cell(positions: np.ndarray) -> np.ndarray:
    """Return the number of the context cell nearest to each position."""
    inside = ((positions >= -0.5) & (positions <= CONTEXT_BINS - 0.5)).all(-1)
    x, y = np.moveaxis(np.clip(np.floor(positions + 0.5), 0, CONTEXT_BINS - 1).astype(int), -1, 0)
    return np.where(inside, CONTEXT_BINS * y + x, OUTSIDE)


def trace_alignment(model: AlignSeg, image: np.ndarray) -> AlignmentTrace:
    """Run a model on an image up to its alignment layers and keep their maps and offsets.

    The trace holds 16 maps of [h / 4, w / 4, C] floats: 2 GB for an image of 2048 x 1024 pixels and
    256 channels. It has no offsets where the model aligns nothing.

    Args:
        model: an `AlignSeg`; it is not changed.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.

    Raises:
        ValueError: the array is not such an image, or features or offsets are not finite.

    Example:
        >>> from alignseg_tf import backbones
        >>> model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), num_classes=3, channels=8)
        >>> trace = trace_alignment(model, np.zeros((64, 96, 3), np.uint8))
        >>> [step.name for step in trace.steps]
        ['aggregation_p3', 'aggregation_p4', 'aggregation_p5', 'aggregation_context']
        >>> trace.steps[0].offsets["coarse"].shape, trace.context.positions.shape
        ((17, 25, 2), (3, 4, 2))
    """
    steps, context = [], None
    for layer, inputs in _inputs_of_layers(model, image):
        offsets, read_size, in_pixels = _offsets(layer, inputs, image)
        if isinstance(layer, AlignedContextModeling):
            positions, regular_positions = (
                _to_numpy(sampling_positions(field, read_size, layer.sampling))
                for field in (offsets["context"], ops.zeros_like(offsets["context"]))
            )
            context = ContextTrace(layer.name, in_pixels["context"], positions, regular_positions)
            continue
        fine, coarse = inputs
        before = {"coarse": resize_align_corners(coarse, fine.shape[1:3]), "fine": fine}
        after = {
            name: bilinear_sample(x, offsets[name], layer.sampling) if name in offsets else x
            for name, x in before.items()
        }
        before, after = (
            {name: _to_numpy(x) for name, x in maps.items()} for maps in (before, after)
        )
        steps.append(AggregationTrace(layer.name, layer.mode, in_pixels, before, after))
    array = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return AlignmentTrace(array, tuple(steps), context)


def offset_fields(model: AlignSeg, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the offset fields of a model's alignment layers for an image, in inference mode.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.

    Returns:
        Fields, float32 [H, W, 2], (x, y) in pixels of the image: `LAYER/coarse` and `LAYER/fine` of
        an `AlignedFeatureAggregation`, `LAYER` of an `AlignedContextModeling`. Vectors point from
        a cell to where it is read. Empty for a model that aligns nothing.

    Raises:
        ValueError: the array is not such an image, or features or offsets are not finite.
    """
    fields = {}
    for layer, inputs in _inputs_of_layers(model, image):
        for name, field in _offsets(layer, inputs, image)[2].items():
            fields[layer.name if name == "context" else f"{layer.name}/{name}"] = field
    return fields


def _is_fusing(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, AlignedContextModeling):
        return layer.context == "align"
    return isinstance(layer, AlignedFeatureAggregation)


def _inputs_of_layers(model: AlignSeg, image: np.ndarray) -> list[tuple[Any, Any]]:
    """Return the alignment layers, in the model's order, and their inputs for an image."""
    if not isinstance(model, AlignSeg):
        raise ValueError(f"Expected an AlignSeg. Received: a {type(model).__name__}")
    if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape[:2]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"Expected an RGB image [h, w, 3] of at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} "
            f"pixels. Received: shape {image.shape}"
        )
    layers = [layer for layer in model.layers if _is_fusing(layer)]
    inputs = keras.Model(model.inputs, {layer.name: layer.input for layer in layers})(
        ops.convert_to_tensor(image[None], "float32"), training=False
    )
    return [(layer, inputs[layer.name]) for layer in layers]


def _offsets(
    layer: Any, inputs: Any, image: np.ndarray
) -> tuple[dict[str, Any], tuple[int, int], dict[str, np.ndarray]]:
    """Return a layer's offset fields by the map that they move, its size, and fields in pixels."""
    if isinstance(layer, AlignedContextModeling):
        local, context = layer.branches(inputs, training=False)
        offsets = {"context": layer.offsets(local, context, training=False)}
        size = CONTEXT_BINS, CONTEXT_BINS
    else:
        fine, coarse = inputs
        height, width = fine.shape[1:3]
        offsets, size = layer.offsets(fine, coarse, training=False), (height, width)
    in_pixels = {
        name: _to_numpy(offsets_in_pixels(field, layer.sampling, size, image.shape[:2]))
        for name, field in offsets.items()
    }
    return offsets, size, in_pixels


def _to_numpy(x: Any) -> np.ndarray:
    """Return the values of the one image in a batch; raise if they are not finite."""
    values = ops.convert_to_numpy(ops.cast(x, "float32"))[0]
    if not np.isfinite(values).all():
        raise ValueError(
            "expected finite features and offsets from the model's alignment layers. "
            "Received: NaN or infinity"
        )
    return values
