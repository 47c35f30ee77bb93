"""One random draw applied to a picture and its label, in tf.data.

Scaling, cropping, padding and mirroring are one sampling of the picture: a window of the size
that the crop will have is laid over it, and the picture is read bilinearly and the label by
nearest neighbour at the same points. Points outside get a colour, or the ignore label.
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from alignseg_tf.data.catalog import IGNORE

Tensor = Any


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each sample.

    Attributes:
        crop_size: (height, width) of the result, in pixels.
        scale: range of the factor by which the picture is resized, drawn log-uniformly.
        flip: whether half of the samples are mirrored, left to right.
        color: strength of brightness, contrast and saturation changes, 0 for none: each factor
            is drawn from 1 - color .. 1 + color.
        fill: RGB colour outside the picture, 0..255.
    """

    crop_size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    color: float = 0.0
    fill: tuple[float, float, float] = (124.0, 117.0, 104.0)

    def __post_init__(self) -> None:
        if min(self.crop_size) < 32:
            raise ValueError(
                f"`crop_size` must be at least 32 x 32. Received: crop_size={self.crop_size}"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"`scale` must be 0 < low <= high. Received: scale={self.scale}")
        if not 0 <= self.color < 1:
            raise ValueError(f"`color` must be in [0, 1). Received: color={self.color}")

    def __call__(self, image: Tensor, label: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a sample; the same seed gives the same result.

        Args:
            image: uint8 or float [H, W, 3], RGB 0..255.
            label: integer [H, W].
            seed: int [2].

        Returns:
            float32 [crop height, crop width, 3] in 0..255, and int32 [crop height, crop width].
        """
        draw = tf.random.stateless_uniform([7], seed)
        window = self._window(tf.shape(label), draw[:4])
        image = tf.cast(image, tf.float32) - self.fill
        image = _read(image, window, self.crop_size, "bilinear") + self.fill
        label = tf.cast(label[..., None], tf.float32) - IGNORE
        label = _read(label, window, self.crop_size, "nearest")[..., 0] + IGNORE
        if self.color:
            image = _jitter(image, 1.0 + self.color * (2.0 * draw[4:] - 1.0))
        return image, tf.cast(label, tf.int32)

    def _window(self, size: Tensor, draw: Tensor) -> Tensor:
        """Top, left, bottom, right of the crop, as positions of pixel centres in the picture."""
        size = tf.cast(size, tf.float32)
        low, high = self.scale
        scale = low * (high / low) ** draw[0]
        span = (tf.constant(self.crop_size, tf.float32) - 1.0) / scale
        # A window larger than the picture slides over it as far as the picture stays inside.
        start = (size - 1.0 - span) * draw[1:3]
        end = start + span
        if not self.flip:
            return tf.concat([start, end], 0)
        mirrored = tf.stack([start[0], end[1], end[0], start[1]])
        return tf.where(draw[3] < 0.5, mirrored, tf.concat([start, end], 0))


def _read(x: Tensor, window: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """Read [H, W, C] at `size` points between the corners of a window; 0 outside."""
    last = tf.cast(tf.tile(tf.shape(x)[:2], [2]) - 1, tf.float32)
    boxes = (window / tf.maximum(last, 1.0))[None]
    return tf.image.crop_and_resize(x[None], boxes, [0], size, method=method)[0]


def _jitter(image: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation by three factors."""
    brightness, contrast, saturation = tf.unstack(factors)
    image = image * brightness
    mean = tf.reduce_mean(image)
    image = (image - mean) * contrast + mean
    grey = tf.image.rgb_to_grayscale(image)
    return tf.clip_by_value((image - grey) * saturation + grey, 0.0, 255.0)
