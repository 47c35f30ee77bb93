"""Sampling, resizing and pooling as layers of the inference graph, which needs no gradient.

`layers/sampling.py` defines what they compute. `operations` selects the fastest form:

    `keras`        any backend, and XLA: gathers, and resizing by two matrix products
    `tensorflow`   TensorFlow's CPU and GPU kernels: `crop_and_resize` and `ResizeBilinear`
    `fused`        XLA compiles the operations between two convolutions into one loop for each
                   image size; the rest is as for `tensorflow`
    `tflite`       built-in operations of TFLite and ONNX: gathers and `ResizeBilinear`
"""

from typing import Any

import keras
from keras import ops

from alignseg_tf.layers.conv_blocks import leaky_relu
from alignseg_tf.layers.sampling import (
    SAMPLING_CONVENTIONS,
    AlignedAxis,
    adaptive_average_pool,
    bilinear_sample,
    offset_scale,
    resize_align_corners,
    sampling_positions,
)
from alignseg_tf.layers.tensorflow_kernels import compiled
from alignseg_tf.system.choices import check_choice

Tensor = Any
Shape = tuple[int | None, ...]
OPERATIONS = ("keras", "tensorflow", "fused", "tflite")


def sample_by_cropping(features: Tensor, offsets: Tensor, sampling: str = "standard") -> Tensor:
    """Equivalent to `bilinear_sample`, implemented with 1x1 `tf.image.crop_and_resize` crops.

    For inference only: at whole positions the gradient for the offsets is zero. A ring of zeros
    around the map fades the border as `bilinear_sample` does.
    """
    import tensorflow as tf

    batch, height, width, channels = ops.shape(features)
    out_height, out_width = ops.shape(offsets)[1:3]
    # In cells of the padded map over its last cell; the grid is a constant where sizes are.
    last = tf.cast(tf.stack([width + 1, height + 1]), tf.float32)
    still = sampling_positions(ops.zeros((1, out_height, out_width, 2)), (height, width), sampling)
    unit = tf.stack(offset_scale(sampling, height, width, out_height, out_width))
    positions = (still + tf.cast(offsets, tf.float32) * unit + 1.0) / last
    # Positions outside the map, and NaN, sample zero.
    positions = tf.where(tf.abs(positions - 0.5) <= 0.5, positions, -1.0)
    cells = tf.cast(out_height * out_width, tf.int32)
    sampled = tf.image.crop_and_resize(
        tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]]),
        tf.gather(tf.reshape(positions, (-1, 2)), (1, 0, 1, 0), axis=1),  # y, x, y, x
        tf.repeat(tf.range(batch), cells),
        (1, 1),
    )
    sampled = tf.reshape(sampled, (batch, out_height, out_width, channels))
    return tf.cast(sampled, features.dtype)


def resize_by_kernel(x: Tensor, size: tuple[Any, Any]) -> Tensor:
    """Equivalent to `resize_align_corners`, by TensorFlow's operation `ResizeBilinear`."""
    import tensorflow as tf

    resized = tf.raw_ops.ResizeBilinear(images=x, size=tf.stack(size), align_corners=True)
    return tf.cast(resized, x.dtype)


def sample_context(context: Tensor, offsets: Tensor, sampling: str = "standard") -> Tensor:
    """Equivalent to `bilinear_sample` for a map of few cells, as one matrix product.

    A cell's weight is a product of two hat functions, max(0, 1 - |distance|). The product has
    h * w columns for a context [B, h, w, C].
    """
    batch, height, width, channels = ops.shape(context)
    out_height, out_width = ops.shape(offsets)[1:3]
    positions = sampling_positions(offsets, (height, width), sampling)

    def hats(position: Tensor, cells: int) -> Tensor:
        distance = ops.expand_dims(position, -1) - ops.arange(cells, dtype="float32")
        return ops.relu(1.0 - ops.abs(distance))

    rows, columns = hats(positions[..., 1], height), hats(positions[..., 0], width)
    weights = ops.expand_dims(rows, -1) * ops.expand_dims(columns, -2)
    weights = ops.reshape(weights, (batch, out_height * out_width, height * width))
    cells = ops.reshape(context, (batch, height * width, channels))
    sampled = ops.matmul(ops.cast(weights, context.dtype), cells)
    return ops.reshape(sampled, (batch, out_height, out_width, channels))


@compiled
def _activated_sum(x: Tensor, y: Tensor) -> Tensor:
    total = ops.cast(x, "float32") + _resized_within_loop(y, x)
    return ops.cast(leaky_relu(total), x.dtype)


@compiled
def _moved_sum(
    fine: Tensor, coarse: Tensor, fine_field: Tensor, coarse_field: Tensor, sampling: str
) -> Tensor:
    maps = (
        (ops.cast(fine, "float32"), fine_field),
        (_resized_within_loop(coarse, fine), coarse_field),
    )
    moved = [x if field is None else bilinear_sample(x, field, sampling) for x, field in maps]
    return ops.cast(moved[0] + moved[1], fine.dtype)


def _resized_within_loop(x: Tensor, reference: Tensor) -> Tensor:
    """Return a float32 map at the size of another; of known sizes two cells are read a pixel."""
    x, size = ops.cast(x, "float32"), tuple(reference.shape[1:3])
    if None in size + tuple(x.shape[1:3]):
        return resize_align_corners(x, ops.shape(reference)[1:3])
    for axis, pixels in enumerate(size, start=1):
        if x.shape[axis] != pixels:
            x = AlignedAxis(pixels, x.shape[axis]).resized(x, axis)
    return x


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ActivatedSum(keras.layers.Layer):
    """Compute leaky_relu(x + resized y) in one loop, in float32 under any dtype policy.

    Shape:
        `x`: [B, H, W, C]; `y`: [B, h, w, C] -> [B, H, W, C].
    """

    def call(self, x: Tensor, y: Tensor) -> Tensor:
        return _activated_sum(x, y)

    def compute_output_spec(self, x: Any, y: Any) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class MovedSum(keras.layers.Layer):
    """Add two maps, each sampled at its offsets, in one float32 loop.

    Args:
        sampling: unit of the offsets, see `bilinear_sample`.

    Shape:
        `fine`: [B, H, W, C]; `coarse`: [B, h, w, C], resized to it first; `fine_field` and
        `coarse_field`: [B, H, W, 2], or None for a map that is not moved -> [B, H, W, C].
    """

    def __init__(self, sampling: str = "standard", **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("sampling", sampling, SAMPLING_CONVENTIONS)
        self.sampling = sampling

    def call(
        self, fine: Tensor, coarse: Tensor, fine_field: Tensor = None, coarse_field: Tensor = None
    ) -> Tensor:
        return _moved_sum(fine, coarse, fine_field, coarse_field, self.sampling)

    def compute_output_spec(self, fine: Any, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(fine.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sampling": self.sampling}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class Resizing(keras.layers.Layer):
    """`ResizeLike` with a choice of operations.

    Args:
        operations: one of `OPERATIONS`.

    Shape:
        `x`: [B, h, w, C]; `reference`: [B, H, W, any] -> [B, H, W, C].
    """

    def __init__(self, operations: str = "keras", **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("operations", operations, OPERATIONS)
        self.operations = operations

    def call(self, x: Tensor, reference: Tensor) -> Tensor:
        """Return `x` at the size of `reference`."""
        size = ops.shape(reference)[1:3]
        if self.operations == "keras":
            return resize_align_corners(x, size)
        return resize_by_kernel(x, size)

    def compute_output_spec(self, x: Any, reference: Any) -> keras.KerasTensor:
        shape = (*x.shape[:1], *reference.shape[1:3], x.shape[-1])
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "operations": self.operations}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class Sampling(keras.layers.Layer):
    """Sample a map at offsets.

    Args:
        sampling: unit of the offsets, see `bilinear_sample`.
        operations: one of `OPERATIONS`.

    Shape:
        `features`: [B, h, w, C]; `offsets`: [B, H, W, 2] -> [B, H, W, C].
    """

    def __init__(self, sampling: str = "standard", operations: str = "keras", **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("sampling", sampling, SAMPLING_CONVENTIONS)
        check_choice("operations", operations, OPERATIONS)
        self.sampling, self.operations = sampling, operations

    def call(self, features: Tensor, offsets: Tensor) -> Tensor:
        if self.operations in ("tensorflow", "fused"):
            return sample_by_cropping(features, offsets, self.sampling)
        return bilinear_sample(features, offsets, self.sampling)

    def compute_output_spec(self, features: Any, offsets: Any) -> keras.KerasTensor:
        return keras.KerasTensor((*offsets.shape[:-1], features.shape[-1]), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "sampling": self.sampling, "operations": self.operations}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ContextSampling(keras.layers.Layer):
    """Sample a context map of few cells at offsets, as one matrix product.

    Args:
        sampling: unit of the offsets, see `bilinear_sample`.

    Shape:
        `context`: [B, h, w, C]; `offsets`: [B, H, W, 2] -> [B, H, W, C].
    """

    def __init__(self, sampling: str = "standard", **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("sampling", sampling, SAMPLING_CONVENTIONS)
        self.sampling = sampling

    def call(self, context: Tensor, offsets: Tensor) -> Tensor:
        return sample_context(context, offsets, self.sampling)

    def compute_output_shape(self, context_shape: Shape, offsets_shape: Shape) -> Shape:
        return (*offsets_shape[:-1], context_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sampling": self.sampling}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class AdaptivePooling(keras.layers.Layer):
    """`adaptive_average_pool` as a layer.

    Args:
        bins: windows per axis.

    It maps [B, H, W, C] to [B, bins, bins, C].
    """

    def __init__(self, bins: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.bins = bins

    def call(self, x: Tensor) -> Tensor:
        return adaptive_average_pool(x, self.bins)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], self.bins, self.bins, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bins": self.bins}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class FlatLeakyReLU(keras.layers.LeakyReLU):
    """`keras.layers.LeakyReLU` over a flattened map.

    With oneDNN, TensorFlow 2.21 fuses convolution, bias, sum and leaky ReLU, and then uses slope
    0.2 whatever was set. The fusion does not see through a change of shape, which costs nothing.
    """

    def call(self, inputs: Tensor) -> Tensor:
        flat = ops.reshape(inputs, (-1, inputs.shape[-1]))
        return ops.reshape(super().call(flat), ops.shape(inputs))
