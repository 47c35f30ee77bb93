"""One random draw applied to an image and its label, in tf.data.

The result equals resizing, cropping, padding and mirroring, but samples each image only once, at
the points of the crop: the image bilinearly, the label by nearest neighbour.

Lengths are pixels, y before x. Pixel r of an image that is resized by the factor s lies at
(r + 1/2) / s - 1/2 of the original, as in OpenCV, Pillow and PyTorch (align_corners=False).
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from alignseg_tf.data.label_space import IGNORE
from alignseg_tf.data.listing import expect

Tensor = Any

SCALE_DISTRIBUTIONS = ("log_uniform", "uniform", "tenths")
PLACEMENTS = ("random", "top_left")

# Windows from which the first fit one is taken: a draw and, as in mmsegmentation, ten more.
CANDIDATES = 11
# Rows and columns at which a candidate's label is sampled: class shares are known to 1 %, in a
# tenth of the time that the crop takes.
GRID = (64, 64)
# A wanted class must have 1/1000 of a crop: a person 30 pixels tall in a crop of 512 x 512.
WANTED_POINTS = 4
# Weights of red, green and blue in a grey value (ITU-R BT.601).
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each sample.

    Attributes:
        crop_size: (height, width) of the result, in pixels.
        scale: range of the factor by which the image is resized.
        scale_distribution: "log_uniform" (half and double size are as likely), "uniform"
            (mmsegmentation), or "tenths": low, low + 0.1, ..., high (AlignSeg's official code).
        placement: "random", or "top_left" for all padding at the bottom and right. A larger image
            is cropped at a random pixel.
        max_class_share: the window is drawn again, up to ten times, while a class has this share
            of its labelled pixels or more; 1 for no limit (mmsegmentation: `cat_max_ratio`).
        flip: whether half of the samples are mirrored, left to right, padding included.
        color: strength of `color_jitter`: each factor is drawn from 1 - color .. 1 + color.
        photometric: `photometric_distortion`, in place of `color`.
        fill: RGB colour of the padding, 0..255; colour changes leave it.
    """

    crop_size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    scale_distribution: str = "log_uniform"
    placement: str = "random"
    max_class_share: float = 1.0
    flip: bool = True
    color: float = 0.0
    photometric: bool = False
    fill: tuple[float, float, float] = (124.0, 117.0, 104.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        expect(min(self.crop_size) >= 32, "`crop_size`", "at least 32 x 32", self.crop_size)
        expect(0 < low <= high, "`scale`", "0 < low <= high", self.scale)
        distribution, placement = self.scale_distribution, self.placement
        for name, value, choices in (
            ("`scale_distribution`", distribution, SCALE_DISTRIBUTIONS),
            ("`placement`", placement, PLACEMENTS),
        ):
            expect(value in choices, name, f"one of {', '.join(choices)}", value)
        fits = distribution != "tenths" or abs((high - low) * 10 % 1 - 0.5) >= 0.499
        expect(fits, "`scale` in tenths", "ends that are tenths apart", self.scale)
        share = self.max_class_share
        expect(0 < share <= 1, "`max_class_share`", "a number in (0, 1]", share)
        expect(0 <= self.color < 1, "`color`", "a number in [0, 1)", self.color)

    def __call__(
        self, image: Tensor, label: Tensor, seed: Tensor, wanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment a sample; the same seed gives the same result.

        Args:
            image: uint8 or float [H, W, 3], RGB 0..255.
            label: integer [H, W].
            seed: int [2].
            wanted: integer scalar, the id of a class that the crop is to hold: the first drawn
                window that holds it is taken, or else the one with most of it.

        Returns:
            float32 [crop height, crop width, 3] in 0..255, and int32 [crop height, crop width].
        """
        image, label = tf.convert_to_tensor(image), tf.convert_to_tensor(label)
        draw = tf.random.stateless_uniform([11 + 2 * CANDIDATES], seed)
        scale = self._scale(draw[0])
        resized = tf.round(tf.cast(tf.shape(label), tf.float32) * scale)
        crop = tf.constant(self.crop_size, tf.float32)
        offset = self._offset(label, scale, resized - crop, draw[11:], wanted)
        # The rows and columns of the crop that the image covers, first and last.
        first, last = tf.maximum(-offset, 0.0), tf.minimum(resized - offset, crop) - 1.0
        corners = _in_original(tf.stack([first, last]) + offset, scale)
        padding = tf.cast(tf.stack([first, crop - 1.0 - last], axis=1), tf.int32)
        if self.flip:
            mirrored = draw[1] < 0.5
            swap_x = tf.stack([corners[:, 0], corners[::-1, 1]], axis=1)
            corners = tf.where(mirrored, swap_x, corners)
            padding = tf.where(mirrored, tf.stack([padding[0], padding[1, ::-1]]), padding)
        covered = tf.cast(last - first, tf.int32) + 1
        image = _read(image, corners, covered, "bilinear")
        label = _read(label[..., None], corners, covered, "nearest")[..., 0]
        if self.photometric:
            image = photometric_distortion(image, draw[2:11])
        elif self.color:
            image = color_jitter(image, 1.0 + self.color * (2.0 * draw[2:5] - 1.0))
        image = _pad_image(image, padding, self.fill)
        label = tf.pad(tf.cast(label, tf.int32), padding, constant_values=IGNORE)
        return tf.ensure_shape(image, [*self.crop_size, 3]), tf.ensure_shape(label, self.crop_size)

    def _scale(self, draw: Tensor) -> Tensor:
        """Return the factor of the resizing that belongs to a draw from [0, 1)."""
        low, high = self.scale
        if self.scale_distribution == "log_uniform":
            return low * (high / low) ** draw
        if self.scale_distribution == "uniform":
            return low + (high - low) * draw
        return low + 0.1 * tf.floor(draw * (round((high - low) * 10) + 1))

    def _offset(
        self, label: Tensor, scale: Tensor, room: Tensor, draw: Tensor, wanted: Tensor | None
    ) -> Tensor:
        """Return the start of the crop in the resized image, [2]; that is larger by `room`, [2]."""
        if self.placement == "top_left":
            room = tf.maximum(room, 0.0)
        draw = tf.reshape(draw, [CANDIDATES, 2])
        offsets = tf.sign(room) * tf.floor(draw * (tf.abs(room) + 1.0))
        if self.max_class_share == 1 and wanted is None:
            return offsets[0]
        return offsets[self._fittest(label, scale, offsets, wanted)]

    def _fittest(
        self, label: Tensor, scale: Tensor, offsets: Tensor, wanted: Tensor | None
    ) -> Tensor:
        """Return the index of the first fit candidate, or the one with most of a wanted class."""
        last = tf.constant(self.crop_size, tf.float32) - 1.0
        corners = _in_original(tf.stack([offsets, offsets + last], axis=1), scale)
        boxes = corners / tf.cast(tf.shape(label) - 1, tf.float32)
        seen = tf.image.crop_and_resize(
            label[None, ..., None], tf.reshape(boxes, [-1, 4]), tf.zeros(CANDIDATES, tf.int32),
            GRID, "nearest", IGNORE,
        )  # fmt: skip
        seen = tf.cast(tf.reshape(seen, [CANDIDATES, -1]), tf.int32)
        counts = tf.math.bincount(seen, minlength=IGNORE + 1, maxlength=IGNORE + 1, axis=-1)
        counts = counts[:, :IGNORE]
        fit, held = tf.fill([CANDIDATES], True), tf.zeros(CANDIDATES, tf.int32)
        if self.max_class_share < 1:
            labelled = tf.cast(tf.reduce_sum(counts, 1), tf.float32)
            largest = tf.cast(tf.reduce_max(counts, 1), tf.float32)
            fit = largest < self.max_class_share * labelled
        if wanted is not None:
            held = tf.gather(counts, tf.cast(wanted, tf.int32), axis=1)
            fit &= held >= WANTED_POINTS
        score = tf.where(fit, GRID[0] * GRID[1] + 1, held)
        # The first of equals: TensorFlow does not specify which one argmax takes.
        return tf.argmax(score * CANDIDATES - tf.range(CANDIDATES))


def color_jitter(image: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, then contrast about the mean, then saturation, and clip, by one matrix.

    Args:
        image: float32 [H, W, 3], RGB 0..255, as the result.
        factors: float32 [3], of brightness, contrast and saturation; 1 changes nothing.
    """
    brightness, contrast, saturation = tf.unstack(factors)
    grey = tf.tile(tf.constant(GREY)[:, None], [1, 3])
    matrix = brightness * contrast * (saturation * tf.eye(3) + (1.0 - saturation) * grey)
    shift = brightness * (1.0 - contrast) * tf.reduce_mean(image)
    changed = tf.reshape(image, [-1, 3]) @ matrix + shift
    return tf.clip_by_value(tf.reshape(changed, tf.shape(image)), 0.0, 255.0)


def photometric_distortion(image: Tensor, draw: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, each of them for half of the samples.

    Add -32..32 for brightness; multiply by 0.5..1.5 for contrast, right after brightness or at the
    end; in HSV, multiply saturation by 0.5..1.5 and turn the hue by -36..36 degrees. Values are
    clipped after each change.

    Args:
        image: float32 [H, W, 3], RGB 0..255, as the result.
        draw: float32 [9] in [0, 1): whether to change each of the four (below 1/2), how much each
            of the four, and whether contrast comes early (below 1/2).

    Reference:
        `PhotoMetricDistortion` of mmsegmentation, which rounds to whole values after each change,
        and to a hue of 2 degrees.
    """
    drawn, amount, early = draw[:4] < 0.5, 2.0 * draw[4:8] - 1.0, draw[8] < 0.5
    brightness = tf.where(drawn[0], 32.0 * amount[0], 0.0)
    contrast = tf.where(drawn[1], 1.0 + 0.5 * amount[1], 1.0)
    image = tf.clip_by_value(image + brightness, 0.0, 255.0)
    image = tf.clip_by_value(image * tf.where(early, contrast, 1.0), 0.0, 255.0)
    # These two take as long as reading the crop: not without need.
    image = _if(drawn[2], tf.image.adjust_saturation, image, 1.0 + 0.5 * amount[2])
    image = _if(drawn[3], tf.image.adjust_hue, image, 0.1 * amount[3])
    return tf.clip_by_value(image * tf.where(early, 1.0, contrast), 0.0, 255.0)


def _if(condition: Tensor, change: Any, image: Tensor, amount: Tensor) -> Tensor:
    return tf.cond(condition, lambda: change(image, amount), lambda: image)


def _in_original(pixels: Tensor, scale: Tensor) -> Tensor:
    """Return where pixels of an image that was resized by `scale` lie in the original."""
    return (pixels + 0.5) / scale - 0.5


def _read(x: Tensor, corners: Tensor, size: Tensor, method: str) -> Tensor:
    """Read [H, W, C] at `size` points between two corners [[y, x], [y, x]]: float32."""
    # The outer half of a border pixel has the pixel's value, so there is a border to read from.
    x = tf.concat([x[:1], x, x[-1:]], 0)
    x = tf.concat([x[:, :1], x, x[:, -1:]], 1)
    boxes = (corners + 1.0) / tf.cast(tf.shape(x)[:2] - 1, tf.float32)
    return tf.image.crop_and_resize(x[None], tf.reshape(boxes, [1, 4]), [0], size, method)[0]


def _pad_image(image: Tensor, padding: Tensor, fill: tuple[float, float, float]) -> Tensor:
    """Put [[top, bottom], [left, right]] rows and columns of a colour around [H, W, 3]."""
    color = tf.constant(fill, tf.float32)
    # Strips are copied in blocks; masks and sums over three channels take three times as long.
    for axis in (1, 0):
        shape = tf.shape(image)
        strips = [
            tf.broadcast_to(color, tf.tensor_scatter_nd_update(shape, [[axis]], [length]))
            for length in tf.unstack(padding[axis])
        ]
        image = tf.concat([strips[0], image, strips[1]], axis)
    return image
