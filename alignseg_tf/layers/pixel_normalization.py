"""The step between pixels and the values that a backbone was trained on."""

from typing import Any

import keras
from keras import ops

from alignseg_tf.system.choices import check_choice

Tensor = Any
Shape = tuple[int | None, ...]

CHANNEL_ORDERS = ("rgb", "bgr")


@keras.saving.register_keras_serializable(package="alignseg_tf")
class PixelNormalization(keras.layers.Layer):
    """Turn RGB pixels into (pixel - mean) / std, in the channel order of the backbone.

    Args:
        mean: three values in 0..255, in `channel_order`.
        std: three positive values in 0..255, in `channel_order`.
        channel_order: `rgb`, or `bgr` to reverse the channels first.

    Shape:
        [B, H, W, 3], RGB, 0..255 -> [B, H, W, 3], in `channel_order`.

    Raises:
        ValueError: not three values, a std that is not positive, or an unknown order.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        channel_order: str = "rgb",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"`{name}` must have three values. Received: {name}={values!r}")
        if min(std) <= 0:
            raise ValueError(f"`std` must be positive. Received: std={std!r}")
        check_choice("channel_order", channel_order, CHANNEL_ORDERS)
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]
        self.channel_order = channel_order

    def call(self, images: Tensor) -> Tensor:
        if self.channel_order == "bgr":
            images = ops.flip(images, axis=-1)
        mean = ops.convert_to_tensor(self.mean, dtype=images.dtype)
        std = ops.convert_to_tensor(self.std, dtype=images.dtype)
        return (images - mean) / std

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.normalization()}

    def normalization(self) -> dict[str, Any]:
        """Return mean, std and channel order as `AlignSeg(normalization=...)` takes them."""
        return {"mean": self.mean, "std": self.std, "channel_order": self.channel_order}
