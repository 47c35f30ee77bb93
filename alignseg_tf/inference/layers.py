"""Sampling, resizing and pooling as layers of the inference graph, which needs no gradient.

What is computed is defined in `sampling.py`; here are faster forms of it. Which one is fastest
depends on what runs the graph:

    `keras`        any backend, and XLA: gathers, and resizing by two matrix products
    `tensorflow`   TensorFlow's own kernels, on a CPU or GPU: `crop_and_resize` and
                   `ResizeBilinear`, which read four cells and write one
    `fused`        XLA makes a loop of what lies between two convolutions, anew for each size of
                   images; what is outside of these loops is as for `tensorflow`
    `tflite`       built-in operations of TFLite and ONNX: gathers and `ResizeBilinear`
"""

from typing import Any

import keras
from keras import ops

from alignseg_tf.layers.conv_blocks import leaky_relu
from alignseg_tf.layers.sampling import (
    adaptive_average_pool,
    bilinear_sample,
    check_sampling,
    offset_scale,
    resize_align_corners,
    resize_axis_by_axis,
    sampling_positions,
)
from alignseg_tf.layers.tensorflow_kernels import compiled

Tensor = Any
Shape = tuple[int | None, ...]
OPERATIONS = ("keras", "tensorflow", "fused", "tflite")


def check_operations(operations: str) -> str:
    """Return `operations`, or raise `ValueError` when it names no set of operations."""
    if operations not in OPERATIONS:
        raise ValueError(
            f"`operations` must be one of {OPERATIONS}. Received: operations={operations!r}"
        )
    return operations


def sample_by_cropping(features: Tensor, offsets: Tensor, sampling: str = "standard") -> Tensor:
    """Equal `bilinear_sample`, by `tf.image.crop_and_resize` with crops of one pixel.

    At whole positions the gradient for the offsets is zero, so this is for inference only. A ring
    of zeros around the map makes the border fade out as `bilinear_sample` does.

    Args:
        features: floating [B, h, w, C].
        offsets: floating [B, H, W, 2], (x, y).
        sampling: one of `SAMPLING_CONVENTIONS`.

    Returns:
        [B, H, W, C] in the dtype of `features`.
    """
    import tensorflow as tf

    batch, height, width, channels = ops.shape(features)
    out_height, out_width = ops.shape(offsets)[1:3]
    # In cells of the padded map over its last cell; the grid is a constant where sizes are.
    last = tf.cast(tf.stack([width + 1, height + 1]), tf.float32)
    still = sampling_positions(ops.zeros((1, out_height, out_width, 2)), (height, width), sampling)
    unit = tf.stack(offset_scale(sampling, height, width, out_height, out_width))
    positions = (still + tf.cast(offsets, tf.float32) * unit + 1.0) / last
    # What is not inside, NaN too, reads nothing.
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
    """Equal `resize_align_corners`, by TensorFlow's operation `ResizeBilinear`.

    Args:
        x: floating [B, h, w, C].
        size: (H, W), ints or scalar int32 tensors.

    Returns:
        [B, H, W, C] in the dtype of `x`.
    """
    import tensorflow as tf

    resized = tf.raw_ops.ResizeBilinear(images=x, size=tf.stack(size), align_corners=True)
    return tf.cast(resized, x.dtype)


def sample_context(context: Tensor, offsets: Tensor, sampling: str = "standard") -> Tensor:
    """Equal `bilinear_sample` for a map of few cells, as one matrix product.

    A cell's weight is a product of two hat functions, max(0, 1 - |distance|).

    Args:
        context: floating [B, h, w, C]; the product has h * w columns.
        offsets: floating [B, H, W, 2], (x, y).
        sampling: one of `SAMPLING_CONVENTIONS`.

    Returns:
        [B, H, W, C] in the dtype of `context`.
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
    """Return a float32 map at the size of another."""
    x, size = ops.cast(x, "float32"), tuple(reference.shape[1:3])
    if None in size + tuple(x.shape[1:3]):
        return resize_align_corners(x, ops.shape(reference)[1:3])
    return resize_axis_by_axis(x, size)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ActivatedSum(keras.layers.Layer):
    """Leaky ReLU of the sum of a map and another one, which is resized to it, in one loop.

    Sums are in float32 under any dtype policy.

    Input shape:
        `x`: [B, H, W, C]; `y`: [B, h, w, C].

    Output shape:
        [B, H, W, C].
    """

    def call(self, x: Tensor, y: Tensor) -> Tensor:
        """Return leaky_relu(x + resized y)."""
        return _activated_sum(x, y)

    def compute_output_spec(self, x: Any, y: Any) -> keras.KerasTensor:
        """Return the shape of `x`."""
        return keras.KerasTensor(x.shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class MovedSum(keras.layers.Layer):
    """The sum of two maps, each read where its offsets point to, in one loop.

    Sums are in float32 under any dtype policy.

    Args:
        sampling: unit of the offsets, see `bilinear_sample`.

    Input shape:
        `fine`: [B, H, W, C]; `coarse`: [B, h, w, C], which is resized to it first; `fine_field` and
        `coarse_field`: [B, H, W, 2], or None for a map that stays where it is.

    Output shape:
        [B, H, W, C].

    Raises:
        ValueError: an unknown `sampling`.
    """

    def __init__(self, sampling: str = "standard", **kwargs: Any):
        super().__init__(**kwargs)
        self.sampling = check_sampling(sampling)

    def call(
        self, fine: Tensor, coarse: Tensor, fine_field: Tensor = None, coarse_field: Tensor = None
    ) -> Tensor:
        """Return what lies there, added."""
        return _moved_sum(fine, coarse, fine_field, coarse_field, self.sampling)

    def compute_output_spec(self, fine: Any, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        """Return the shape of `fine`."""
        return keras.KerasTensor(fine.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "sampling": self.sampling}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class Resizing(keras.layers.Layer):
    """`ResizeLike` with a choice of operations.

    Args:
        operations: one of `OPERATIONS`.

    Input shape:
        `x`: [B, h, w, C]; `reference`: [B, H, W, any].

    Output shape:
        [B, H, W, C].

    Raises:
        ValueError: unknown `operations`.
    """

    def __init__(self, operations: str = "keras", **kwargs: Any):
        super().__init__(**kwargs)
        self.operations = check_operations(operations)

    def call(self, x: Tensor, reference: Tensor) -> Tensor:
        """Return `x` at the size of `reference`."""
        size = ops.shape(reference)[1:3]
        if self.operations == "keras":
            return resize_align_corners(x, size)
        return resize_by_kernel(x, size)

    def compute_output_spec(self, x: Any, reference: Any) -> keras.KerasTensor:
        """Return the shape of `x` with the height and width of `reference`."""
        shape = (*x.shape[:1], *reference.shape[1:3], x.shape[-1])
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "operations": self.operations}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class Sampling(keras.layers.Layer):
    """Read a map where offsets point to.

    Args:
        sampling: unit of the offsets, see `bilinear_sample`.
        operations: one of `OPERATIONS`.

    Input shape:
        `features`: [B, h, w, C]; `offsets`: [B, H, W, 2].

    Output shape:
        [B, H, W, C].

    Raises:
        ValueError: an unknown `sampling` or `operations`.
    """

    def __init__(self, sampling: str = "standard", operations: str = "keras", **kwargs: Any):
        super().__init__(**kwargs)
        self.sampling = check_sampling(sampling)
        self.operations = check_operations(operations)

    def call(self, features: Tensor, offsets: Tensor) -> Tensor:
        """Return what lies there."""
        if self.operations in ("tensorflow", "fused"):
            return sample_by_cropping(features, offsets, self.sampling)
        return bilinear_sample(features, offsets, self.sampling)

    def compute_output_spec(self, features: Any, offsets: Any) -> keras.KerasTensor:
        """Return the size of the offsets with the channels of the features."""
        return keras.KerasTensor((*offsets.shape[:-1], features.shape[-1]), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "sampling": self.sampling,
            "operations": self.operations,
        }


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ContextSampling(keras.layers.Layer):
    """Read a context map of few cells where offsets point to, as one matrix product.

    Args:
        sampling: unit of the offsets, see `bilinear_sample`.

    Input shape:
        `context`: [B, h, w, C]; `offsets`: [B, H, W, 2].

    Output shape:
        [B, H, W, C].

    Raises:
        ValueError: an unknown `sampling`.
    """

    def __init__(self, sampling: str = "standard", **kwargs: Any):
        super().__init__(**kwargs)
        self.sampling = check_sampling(sampling)

    def call(self, context: Tensor, offsets: Tensor) -> Tensor:
        """Return what lies there."""
        return sample_context(context, offsets, self.sampling)

    def compute_output_shape(self, context_shape: Shape, offsets_shape: Shape) -> Shape:
        """Return the size of the offsets with the channels of the context."""
        return (*offsets_shape[:-1], context_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "sampling": self.sampling}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class AdaptivePooling(keras.layers.Layer):
    """`adaptive_average_pool` as a layer.

    Args:
        bins: windows per axis.

    Input shape:
        [B, H, W, C].

    Output shape:
        [B, bins, bins, C].
    """

    def __init__(self, bins: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.bins = bins

    def call(self, x: Tensor) -> Tensor:
        """Return the averages."""
        return adaptive_average_pool(x, self.bins)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return [B, bins, bins, C]."""
        return (input_shape[0], self.bins, self.bins, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "bins": self.bins}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class FlatLeakyReLU(keras.layers.LeakyReLU):
    """`keras.layers.LeakyReLU` over a map that is flat meanwhile, which costs nothing.

    With oneDNN, TensorFlow 2.21 makes one operation of convolution, bias, sum and leaky ReLU, and
    its slope is then 0.2 whatever was asked for. It does not look through a change of shape.

    Args:
        kwargs: those of `keras.layers.LeakyReLU`.

    Input shape:
        [..., C].

    Output shape:
        That of the input.
    """

    def call(self, inputs: Tensor) -> Tensor:
        """Return leaky_relu(inputs)."""
        flat = ops.reshape(inputs, (-1, inputs.shape[-1]))
        return ops.reshape(super().call(flat), ops.shape(inputs))
