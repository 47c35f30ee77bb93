"""A trained AlignSeg as an equal graph of plain layers that does less work.

The parts become::

    convolution, batch norm             one convolution with a bias
    y + residual, then batch norm       the norm's scale goes into the convolutions of both terms
    gathers, resizing by matrices       the fastest operations of the runtime, without gradients
    sampling of the 3x3 context         one matrix product with hat weights
    normalisation of the pixels         a 1x1 convolution
    auxiliary head, dropout             gone

With `fused` operations, XLA compiles the operations between two convolutions into one loop.
"""

from typing import Any

import keras
import numpy as np

from alignseg_tf.inference.batch_norm_folding import fold_batch_norms, norm_scale_and_shift
from alignseg_tf.inference.layers import (
    OPERATIONS,
    ActivatedSum,
    AdaptivePooling,
    ContextSampling,
    FlatLeakyReLU,
    MovedSum,
    Resizing,
    Sampling,
)
from alignseg_tf.layers import AlignedContextModeling, AlignedFeatureAggregation
from alignseg_tf.layers.aligned_context_modeling import CONTEXT_BINS
from alignseg_tf.layers.aligned_feature_aggregation import MOVED_MAPS
from alignseg_tf.layers.conv_blocks import LEAKY_RELU_SLOPE
from alignseg_tf.layers.offset_prediction import products_kernel, shifts_kernel
from alignseg_tf.model import AlignSeg
from alignseg_tf.system.choices import check_choice

Tensor = Any

# A norm's scale goes into a shortcut by dividing the residual's kernel by it; below this it is
# multiplied apart, since in half precision or 8 bits the quotient would be too large.
SMALLEST_FOLDED_SCALE = 1e-3
# The layer of the model that chooses contexts, and its offset field.
CONTEXT_FIELD = "context_modeling"


def inference_model(model: AlignSeg, operations: str | None = None) -> keras.Model:
    """Return an equal model for inference that does less work.

    It is a functional model of Keras' layers and those of `inference.layers`. It differs from the
    original only by rounding: floating-point sums in another order.

    Args:
        model: a trained model; it is not changed and shares no weights with the result.
        operations: one of `inference.layers.OPERATIONS`; by default `tensorflow` on that backend
            and `keras` on others.

    Returns:
        A `keras.Model` from RGB 0..255 [B, H, W, 3] to `{"segmentation": logits}`, of the same
        size as the model's own. The layer `segmentation_head` has the logits at stride 4.

    Raises:
        ValueError: `model` is no AlignSeg, or unknown `operations`.

    Example:
        >>> from alignseg_tf import AlignSeg, backbones
        >>> model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=8), num_classes=7, channels=16)
        >>> fast = inference_model(model)
        >>> tuple(fast(keras.ops.ones((1, 64, 96, 3)))["segmentation"].shape)
        (1, 64, 96, 7)
        >>> any(isinstance(layer, keras.layers.BatchNormalization) for layer in fast.layers)
        False
    """
    if not isinstance(model, AlignSeg):
        raise ValueError(f"Expected an AlignSeg. Received: a {type(model).__name__}")
    if operations is None:
        operations = "tensorflow" if keras.backend.backend() == "tensorflow" else "keras"
    check_choice("operations", operations, OPERATIONS)
    graph = _Decoder(model, operations)

    images = keras.Input((None, None, 3), name="images")
    pixels = images
    if model.normalization is not None:
        pixels = graph.normalize(images, **model.normalization)
    p2, p3, p4, p5 = fold_batch_norms(model.backbone)(pixels)
    d = graph.refine(p2, "refinement_p2")
    for level, features in (("p3", p3), ("p4", p4), ("p5", p5)):
        coarse = graph.refine(features, f"refinement_{level}")
        d = graph.aggregate(d, coarse, f"aggregation_{level}")
        d = graph.refine(d, f"refinement_d{int(level[1]) - 1}")
    pooled = graph.refine(graph.context(p5), "refinement_context")
    d = graph.refine(graph.aggregate(d, pooled, "aggregation_context"), "refinement_d5")
    logits = graph.head(d)
    last = {"dtype": "float32", "name": "segmentation"}
    if model.upsample_logits:
        logits = Resizing(operations, **last)(logits, images)
    else:
        logits = keras.layers.Activation("linear", **last)(logits)
    result = keras.Model(images, {"segmentation": logits}, name=f"{model.name}_inference")
    # Prediction reads these attributes; a saved copy loses them.
    result.num_classes = model.num_classes
    result.upsample_logits = model.upsample_logits
    result.label_space = model.label_space
    return result


def offset_fields(model: AlignSeg, inference: keras.Model) -> dict[str, Tensor]:
    """Return the offset fields within an inference graph, symbolic [B, H, W, 2] each.

    Args:
        model: the model from which the graph was made.
        inference: what `inference_model` returned.

    Returns:
        For each aggregation `NAME_coarse` and `NAME_fine`, as far as it moves these maps, and
        `CONTEXT_FIELD` for an aligned context; in the unit of `model.sampling`.
    """
    fields = {}
    for layer in model.layers:
        if isinstance(layer, AlignedFeatureAggregation):
            for number, key in enumerate(MOVED_MAPS[layer.mode]):
                fields[f"{layer.name}_{key}"] = f"{layer.name}_offsets_field_{number}"
        elif isinstance(layer, AlignedContextModeling) and layer.context == "align":
            fields[CONTEXT_FIELD] = f"{layer.name}_offsets_field_0"
    return {name: inference.get_layer(source).output for name, source in fields.items()}


class _Decoder:
    """Builds the blocks of the decoder from those of a trained model."""

    def __init__(self, model: AlignSeg, operations: str):
        self.model = model
        self.operations = operations
        self.dtype = model.get_layer("segmentation_head").dtype_policy

    def conv(
        self, x: Tensor, kernel: np.ndarray, bias: np.ndarray | None, name: str, dtype: Any = None
    ) -> Tensor:
        layer = keras.layers.Conv2D(
            kernel.shape[-1],
            kernel.shape[0],
            padding="same",
            use_bias=bias is not None,
            data_format="channels_last",
            dtype=dtype or self.dtype,
            name=name,
        )
        x = layer(x)
        layer.set_weights([kernel] if bias is None else [kernel, bias])
        return x

    def normalize(self, images: Tensor, mean: Any, std: Any, channel_order: str) -> Tensor:
        """Pixels as the backbone wants them, by a 1x1 convolution.

        In 8 bits the reversal of the channels lost their values, a convolution does not.
        """
        kernel = np.diag(1.0 / np.array(std))
        if channel_order == "bgr":
            kernel = kernel[::-1]
        bias = -np.array(mean) / np.array(std)
        return self.conv(images, kernel[None, None], bias, "normalization", "float32")

    def leaky_relu(self, x: Tensor, name: str) -> Tensor:
        return keras.layers.LeakyReLU(LEAKY_RELU_SLOPE, dtype=self.dtype, name=name)(x)

    def activated_sum(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        """leaky_relu(x + y)."""
        x = self.add(x, y, f"{name}_add")
        if self.operations == "tflite":  # fuses it right, as does ONNX
            return self.leaky_relu(x, f"{name}_relu")
        return FlatLeakyReLU(LEAKY_RELU_SLOPE, dtype=self.dtype, name=f"{name}_relu")(x)

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        return keras.layers.Add(dtype=self.dtype, name=name)([x, y])

    def resize(self, x: Tensor, reference: Tensor, name: str) -> Tensor:
        return Resizing(self.operations, dtype=self.dtype, name=name)(x, reference)

    def block(self, x: Tensor, block: Any, name: str) -> Tensor:
        """Convolution, norm, leaky ReLU."""
        scale, shift = norm_scale_and_shift(block.norm)
        bias = shift + (_array(block.conv.bias) * scale if block.use_bias else 0.0)
        x = self.conv(x, _array(block.conv.kernel) * scale, bias, f"{name}_conv")
        return self.leaky_relu(x, f"{name}_relu")

    def refine(self, x: Tensor, name: str) -> Tensor:
        """leaky_relu(norm(y + expand(reduce(y)))) with y = unify(x)."""
        layer = self.model.get_layer(name)
        scale, shift = norm_scale_and_shift(layer.norm)
        inner_scale, inner_shift = norm_scale_and_shift(layer.reduce.norm)
        unify, reduce = _array(layer.unify.kernel), _array(layer.reduce.conv.kernel) * inner_scale
        scaled_apart = bool(np.abs(scale).min() < SMALLEST_FOLDED_SCALE)
        if not scaled_apart:
            unify, reduce = unify * scale, reduce / scale[:, None]
        y = self.conv(x, unify, None, f"{name}_unify")
        residual = self.conv(y, reduce, inner_shift, f"{name}_reduce")
        residual = self.leaky_relu(residual, f"{name}_reduce_relu")
        residual = self.conv(residual, _array(layer.expand.kernel) * scale, shift, f"{name}_expand")
        if scaled_apart:
            by_channel = keras.layers.DepthwiseConv2D(
                1, use_bias=False, data_format="channels_last", dtype=self.dtype,
                name=f"{name}_scale",
            )  # fmt: skip
            y = by_channel(y)
            by_channel.set_weights([scale.reshape(1, 1, -1, 1)])
        # In float32 oneDNN makes the sum a part of the convolution before it.
        if self.operations == "fused" and self.dtype.compute_dtype != "float32":
            return ActivatedSum(dtype=self.dtype, name=f"{name}_relu")(residual, y)
        return self.activated_sum(residual, y, name)

    def offsets(self, layer: Any, fine: Tensor, coarse: Tensor, name: str) -> list[Tensor]:
        """Return the offset fields, each [B, H, W, 2]."""
        scale, shift = norm_scale_and_shift(layer.norm)
        coarse_kernel = _array(layer.coarse_projection.kernel) * scale
        projected = self.conv(coarse, coarse_kernel, None, f"{name}_coarse")
        own = self.conv(fine, _array(layer.fine_projection.kernel) * scale, shift, f"{name}_fine")
        if self.operations == "fused":
            hidden = ActivatedSum(dtype=self.dtype, name=f"{name}_relu")(own, projected)
        else:
            projected = self.resize(projected, fine, f"{name}_resize")
            hidden = self.activated_sum(own, projected, name)
        # As in `narrow_convolutions`; each field picks its own sums.
        kernels = [field.kernel for field in layer.fields]
        products = self.conv(hidden, _array(products_kernel(kernels)), None, f"{name}_products")
        shifts = np.split(shifts_kernel(2 * len(kernels)), len(kernels), axis=-1)
        return [
            self.conv(products, kernel, None, f"{name}_field_{number}")
            for number, kernel in enumerate(shifts)
        ]

    def aggregate(self, fine: Tensor, coarse: Tensor, name: str) -> Tensor:
        """Move both maps to where they belong and add them."""
        layer = self.model.get_layer(name)
        fields = {}
        if moved := MOVED_MAPS[layer.mode]:
            found = self.offsets(layer.offset_prediction, fine, coarse, f"{name}_offsets")
            fields = dict(zip(moved, found, strict=True))
        if self.operations == "fused":
            moved_sum = MovedSum(layer.sampling, dtype=self.dtype, name=f"{name}_add")
            return moved_sum(fine, coarse, fields.get("fine"), fields.get("coarse"))
        maps = {"coarse": self.resize(coarse, fine, f"{name}_resize"), "fine": fine}
        for key, field in fields.items():
            sample = Sampling(
                layer.sampling, self.operations, dtype=self.dtype, name=f"{name}_sample_{key}"
            )
            maps[key] = sample(maps[key], field)
        return self.add(maps["fine"], maps["coarse"], f"{name}_add")

    def context(self, x: Tensor) -> Tensor:
        """Local features plus the context that each pixel chose."""
        name = CONTEXT_FIELD
        layer = self.model.get_layer(name)

        def branch(x: Tensor, key: str) -> Tensor:
            x = self.block(x, getattr(layer, f"{key}_transform"), f"{name}_{key}_1")
            return self.block(x, getattr(layer, f"{key}_projection"), f"{name}_{key}_2")

        local = branch(x, "local")
        if layer.context is None:
            return local
        bins = CONTEXT_BINS if layer.context == "align" else 1
        pool = AdaptivePooling(bins, dtype=self.dtype, name=f"{name}_pool")
        context = branch(pool(x), "context")
        if layer.context == "align":
            (field,) = self.offsets(layer.offset_prediction, local, context, f"{name}_offsets")
            sample = ContextSampling(layer.sampling, dtype=self.dtype, name=f"{name}_sample")
            context = sample(context, field)
        return self.add(local, context, f"{name}_add")

    def head(self, x: Tensor) -> Tensor:
        """Logits at stride 4."""
        layer = self.model.get_layer("segmentation_head")
        x = self.block(x, layer.block, "segmentation_head_block")
        kernel, bias = layer.classifier.kernel, layer.classifier.bias
        return self.conv(x, _array(kernel), _array(bias), "segmentation_head")


def _array(variable: Any) -> np.ndarray:
    """Return a variable in float64: weights are multiplied before they are rounded."""
    return keras.ops.convert_to_numpy(variable).astype(np.float64)
