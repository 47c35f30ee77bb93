"""The convolutions that say where to sample: shared by both alignment layers."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from alignseg_tf.layers.conv_blocks import BATCH_NORM, conv2d, leaky_relu
from alignseg_tf.layers.sampling import resize_align_corners
from alignseg_tf.layers.tensorflow_kernels import BatchNormalization

Tensor = Any
Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="alignseg_tf")
class OffsetPrediction(keras.layers.Layer):
    """Predict fields of sampling offsets from a fine map and a coarse one.

    Each field is conv3x3(leaky_relu(norm(conv1x1([fine, resized coarse])))), with the last
    kernel initialised to zero so that training starts from plain bilinear resizing. Three exact
    rewrites save work: a 1x1 convolution commutes with a bilinear resize, so the coarse half of
    conv1x1 runs at the coarse size; the conv1x1 of all fields is one convolution; and so are their
    narrow conv3x3 (`narrow_convolutions`).

    Args:
        num_fields: number of offset fields.

    Shape:
        `fine`: [B, H, W, C]; `coarse`: [B, h, w, C], resized with aligned corners -> a list of
        `num_fields` maps [B, H, W, 2], (x, y), in the unit of the sampling convention.

    Reference:
        "delta_gen" in the official code.
    """

    def __init__(self, num_fields: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_fields = num_fields

    def build(self, fine_shape: Shape, coarse_shape: Shape) -> None:
        """Create the convolutions, whose width is the inputs' number of channels."""
        channels = fine_shape[-1]
        if channels is None or coarse_shape[-1] != channels:
            raise ValueError(
                "The fine and the coarse map must have the same number of channels. "
                f"Received: fine shape {tuple(fine_shape)}, coarse shape {tuple(coarse_shape)}"
            )
        dtype = self.dtype_policy
        width = self.num_fields * channels
        self.fine_projection = conv2d(width, 1, dtype=dtype, name="fine_projection")
        self.coarse_projection = conv2d(width, 1, dtype=dtype, name="coarse_projection")
        self.norm = BatchNormalization(**BATCH_NORM, dtype=dtype, name="norm")
        self.fields = [
            conv2d(2, 3, kernel_initializer="zeros", dtype=dtype, name=f"field_{i}")
            for i in range(self.num_fields)
        ]
        self.fine_projection.build(fine_shape)
        self.coarse_projection.build(coarse_shape)
        self.norm.build((*fine_shape[:-1], width))
        for field in self.fields:
            field.build(fine_shape)

    def call(self, fine: Tensor, coarse: Tensor, training: bool | None = None) -> list[Tensor]:
        projected = resize_align_corners(self.coarse_projection(coarse), ops.shape(fine)[1:3])
        hidden = self.norm(self.fine_projection(fine) + projected, training=training)
        return narrow_convolutions(leaky_relu(hidden), [field.kernel for field in self.fields])

    def compute_output_shape(self, fine_shape: Shape, coarse_shape: Shape) -> list[Shape]:
        return [(*fine_shape[:-1], 2)] * self.num_fields

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_fields": self.num_fields}


def products_kernel(kernels: Sequence[Tensor]) -> Tensor:
    """Return the 1x1 kernel with which `narrow_convolutions` starts.

    Args:
        kernels: of G 3x3 convolutions, each [3, 3, C, f].

    Returns:
        [1, 1, G C, 9 G f]: for each of the nine cells of a 3x3 kernel, row by row, the products of
        every group.
    """
    groups = len(kernels)
    rows = []
    for number, kernel in enumerate(kernels):
        _, _, channels, filters = kernel.shape
        kernel = ops.transpose(kernel, (2, 0, 1, 3))
        around = (number * filters, (groups - 1 - number) * filters)
        kernel = ops.pad(kernel, ((0, 0), (0, 0), (0, 0), around))
        rows.append(ops.reshape(kernel, (1, 1, channels, 9 * groups * filters)))
    return ops.concatenate(rows, axis=2)


def shifts_kernel(filters: int) -> np.ndarray:
    """Return the 3x3 kernel with which `narrow_convolutions` ends, float32 [3, 3, 9 f, f].

    It adds up the products of the nine cells, each from where its cell lies.
    """
    return (
        np.eye(9 * filters, dtype="float32")
        .reshape(3, 3, filters, 9 * filters)
        .transpose(0, 1, 3, 2)
    )


def narrow_convolutions(x: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """Convolve each part of a map by a 3x3 kernel of few filters.

    A 3x3 convolution to two filters leaves most of a processor's vector units idle. Here a 1x1
    convolution makes all products at once, and a fixed 3x3 one over these few channels shifts and
    adds them. The sums are the same, in another order.

    Args:
        x: [B, H, W, G C].
        kernels: of the G convolutions, each [3, 3, C, f]; the first C channels are the first's.

    Returns:
        G maps [B, H, W, f]: `keras.ops.conv(part, kernel, padding="same")`.
    """
    filters = sum(kernel.shape[-1] for kernel in kernels)
    products = ops.conv(x, products_kernel(kernels), padding="valid", data_format="channels_last")
    shifts = ops.cast(ops.convert_to_tensor(shifts_kernel(filters)), x.dtype)
    sums = ops.conv(products, shifts, padding="same", data_format="channels_last")
    return ops.split(sums, len(kernels), axis=-1)
