"""Look into a model while it aligns: offset fields, chosen context, moved feature maps.

`trace_alignment` runs a model on an image up to its alignment layers and keeps what they do as
NumPy arrays; `alignment_figures` draws it.

Shape legend
    h, w   height and width of the image, in pixels
    H, W   height and width of a feature map, in cells
    C      channels of the decoder

Vectors and positions are (x, y), x to the right, y down. Cell (0, 0) of a map stands on the centre
of the image's first pixel and the last cell on that of its last pixel, as the model resizes.
"""

from collections.abc import Callable, Sequence
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
from alignseg_tf.layers.sampling import (
    offsets_in_pixels,
    sampling_positions,
)
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg

Tensor = Any
Size = Any  # an int, or a scalar tensor inside of a graph

# The number of no cell.
OUTSIDE = -1


@dataclass(frozen=True, eq=False)
class AggregationTrace:
    """What an `AlignedFeatureAggregation` does with its two maps, in one image.

    Attributes:
        name: the layer's.
        mode: the layer's: which maps it moves.
        offsets: for `coarse` and `fine`, if moved: how far from itself each cell is read, float32
            [H, W, 2], in pixels of the image.
        before: both maps before they are moved, float32 [H, W, C]; `coarse` is resized.
        after: both maps as they are added; one that is not moved is the one before.
    """

    name: str
    mode: str
    offsets: dict[str, np.ndarray]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    @property
    def unaligned(self) -> np.ndarray:
        """The sum of both maps before they are moved, [H, W, C]: what `bilinear` would return."""
        return self.before["fine"] + self.before["coarse"]

    @property
    def aligned(self) -> np.ndarray:
        """The sum of both maps after they are moved, [H, W, C]: what the layer returns."""
        return self.after["fine"] + self.after["coarse"]


@dataclass(frozen=True, eq=False)
class ContextTrace:
    """Where an `AlignedContextModeling` reads its 3x3 context map, in one image.

    Attributes:
        name: the layer's.
        offsets: from each pixel to the part of the context that it reads, float32 [H, W, 2], in
            pixels of the image.
        positions: where each pixel reads, float32 [H, W, 2], in cells: 0 is the centre of the
            first cell, 2 of the last, and there are zeros outside.
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
    """What the alignment layers of a model do in one image.

    Attributes:
        image: the image, uint8 RGB [h, w, 3].
        steps: one for each AlignFA, in the order of the decoder.
        context: of AlignCM; None where the model's context is not `align`.
    """

    image: np.ndarray
    steps: tuple[AggregationTrace, ...]
    context: ContextTrace | None


def _nearest_cell(positions: np.ndarray) -> np.ndarray:
    """Number the context cells in which positions lie; a cell reaches half a cell around."""
    inside = ((positions >= -0.5) & (positions <= CONTEXT_BINS - 0.5)).all(-1)
    x, y = np.moveaxis(np.clip(np.floor(positions + 0.5), 0, CONTEXT_BINS - 1).astype(int), -1, 0)
    return np.where(inside, CONTEXT_BINS * y + x, OUTSIDE)


def trace_alignment(model: AlignSeg, image: np.ndarray) -> AlignmentTrace:
    """Run a model on an image up to its alignment layers and keep what these do.

    The model runs in inference mode and is left as it is. Its maps are kept, 16 of [h / 4, w / 4,
    C] floats: 2 GB for an image of 2048 x 1024 pixels and 256 channels.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.

    Returns:
        The trace. A model that aligns nothing has one too: without offsets.

    Raises:
        ValueError: the array is no such image, or the model gives values that are not finite.

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
    for layer, inputs in _run_up_to(model, image, _is_fusing):
        offsets, read_size = _offsets(layer, inputs)
        in_pixels = {
            name: _in_pixels(field, layer.sampling, read_size, image.shape[:2])
            for name, field in offsets.items()
        }
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
        steps.append(
            AggregationTrace(
                layer.name,
                layer.mode,
                in_pixels,
                {name: _to_numpy(x) for name, x in before.items()},
                {name: _to_numpy(x) for name, x in after.items()},
            )
        )
    array = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return AlignmentTrace(array, tuple(steps), context)


def offset_fields(model: AlignSeg, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the offset fields of a model's alignment layers for an image, in inference mode.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.

    Returns:
        Fields float32 [H, W, 2] of the size of the layer's result, (x, y) in pixels of the image,
        x to the right, y down: `LAYER/coarse` and `LAYER/fine` of an `AlignedFeatureAggregation`,
        `LAYER` of an `AlignedContextModeling`, whose vectors point from a pixel to the part of
        the context that it reads. Empty for a model that aligns nothing.

    Raises:
        ValueError: the array is no such image, or the model gives values that are not finite.
    """
    fields = {}
    for layer, inputs in _run_up_to(model, image, _is_aligning):
        offsets, read_size = _offsets(layer, inputs)
        for name, field in offsets.items():
            key = layer.name if name == "context" else f"{layer.name}/{name}"
            fields[key] = _in_pixels(field, layer.sampling, read_size, image.shape[:2])
    return fields


def _is_aligning(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, AlignedContextModeling):
        return layer.context == "align"
    return isinstance(layer, AlignedFeatureAggregation) and layer.mode != "bilinear"


def _is_fusing(layer: keras.layers.Layer) -> bool:
    return _is_aligning(layer) or isinstance(layer, AlignedFeatureAggregation)


def _run_up_to(
    model: AlignSeg, image: np.ndarray, wanted: Callable[[keras.layers.Layer], bool]
) -> list[tuple[Any, Any]]:
    """Return the layers that are wanted, in the model's order, and their inputs in an image."""
    if not isinstance(model, AlignSeg):
        raise ValueError(f"Expected an AlignSeg. Received: a {type(model).__name__}")
    if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape[:2]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"Expected an RGB image [h, w, 3] of at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} "
            f"pixels. Received: shape {image.shape}"
        )
    layers = [layer for layer in model.layers if wanted(layer)]
    if not layers:
        return []
    inputs = keras.Model(model.inputs, {layer.name: layer.input for layer in layers})(
        ops.convert_to_tensor(image[None], "float32"), training=False
    )
    return [(layer, inputs[layer.name]) for layer in layers]


def _offsets(layer: Any, inputs: Any) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return a layer's offset fields by the map that they move, and the size of that map."""
    if isinstance(layer, AlignedContextModeling):
        local, context = layer.branches(inputs, training=False)
        offsets = layer.offsets(local, context, training=False)
        return {"context": offsets}, (CONTEXT_BINS, CONTEXT_BINS)
    fine, coarse = inputs
    height, width = fine.shape[1:3]
    return layer.offsets(fine, coarse, training=False), (height, width)


def _to_numpy(x: Tensor) -> np.ndarray:
    """Return the values of the one image in a batch.

    Raises:
        ValueError: they are not finite.
    """
    values = ops.convert_to_numpy(ops.cast(x, "float32"))[0]
    if not np.isfinite(values).all():
        raise ValueError(
            "expected finite features and offsets from the model's alignment layers. "
            "Received: NaN or infinity"
        )
    return values


def _in_pixels(
    offsets: Tensor, sampling: str, read_size: Sequence[int], image_size: Sequence[int]
) -> np.ndarray:
    return _to_numpy(offsets_in_pixels(offsets, sampling, read_size, image_size))
