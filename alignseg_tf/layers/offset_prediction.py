"""The convolutions that say where to sample: shared by both alignment layers."""

from typing import Any

import keras
from keras import ops

from alignseg_tf.layers.batch_normalization import BatchNormalization
from alignseg_tf.layers.conv_blocks import BATCH_NORM, conv2d, leaky_relu, narrow_convolutions
from alignseg_tf.layers.sampling import resize_align_corners

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

    Input shape:
        `fine`: [B, H, W, C]; `coarse`: [B, h, w, C], resized with aligned corners.

    Output shape:
        A list of `num_fields` maps [B, H, W, 2], (x, y), in the unit of the sampling convention.

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
        """Return the offset fields."""
        projected = resize_align_corners(self.coarse_projection(coarse), ops.shape(fine)[1:3])
        hidden = self.norm(self.fine_projection(fine) + projected, training=training)
        return narrow_convolutions(leaky_relu(hidden), [field.kernel for field in self.fields])

    def compute_output_shape(self, fine_shape: Shape, coarse_shape: Shape) -> list[Shape]:
        """Return one [B, H, W, 2] a field."""
        return [(*fine_shape[:-1], 2)] * self.num_fields

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "num_fields": self.num_fields}
