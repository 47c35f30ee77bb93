import colorsys
import functools

import numpy as np
import pytest
import tensorflow as tf
from conftest import random_images

from alignseg_tf.data.augmentation import Augmentation, color_jitter, photometric_distortion
from alignseg_tf.data.label_space import IGNORE

HEIGHT, WIDTH = 48, 80
OUTSIDE = (-1000.0, -1000.0, -1000.0)


def coordinates():
    """An image whose red and green are the row and column, and a label that is their code."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype("float32")
    image = np.stack([y, x, np.full_like(x, 200)], -1)
    label = (y.astype(int) // 8) * 10 + x.astype(int) // 8
    return image, label.astype("uint8")


def seeds(count):
    return [tf.constant([3, i], tf.int64) for i in range(count)]


def augmented(augment, image, label, count, how="eager", wanted=None):
    """`count` draws, made one by one or in tf.data."""
    call = functools.partial(augment, wanted=wanted)
    if how == "tf.data":
        dataset = tf.data.Dataset.from_tensor_slices(seeds(count))
        dataset = dataset.map(lambda seed: call(image, label, seed), num_parallel_calls=2)
        return [(x.numpy(), y.numpy()) for x, y in dataset]
    return [tuple(np.asarray(z) for z in call(image, label, seed)) for seed in seeds(count)]


@pytest.mark.parametrize(
    ("how", "distribution", "placement"),
    [
        ("eager", "tenths", "top_left"),
        ("tf.data", "tenths", "top_left"),
        ("tf.data", "log_uniform", "random"),
    ],
)
def test_image_and_label_share_the_draw(how, distribution, placement):
    """All options together: a pixel that is no mixture has the colour of its class."""
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 4, (6, 9)), np.ones((12, 12))).astype("uint8")
    palette = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], "float32")
    fill = (1.0, 2.0, 3.0)
    colors = np.vstack([palette, np.zeros((IGNORE - 4, 3)), [fill]])
    augment = Augmentation(
        (64, 96), (0.7, 2.1), distribution, placement, max_class_share=0.75, fill=fill
    )
    for new_image, new_label in augmented(augment, palette[label], label, 20, how, wanted=3):
        assert new_image.shape == (*new_label.shape, 3) == (64, 96, 3)
        assert (new_image.dtype, new_label.dtype) == (np.float32, np.int32)
        distance = np.abs(new_image[..., None, :] - np.vstack([palette, [fill]])).max(-1)
        pure = distance.min(-1) < 0.01
        assert pure.mean() > 0.5
        np.testing.assert_allclose(new_image[pure], colors[new_label[pure]], atol=0.01)


def resized(image, label, scale):
    """Resize in NumPy as OpenCV does; also where the nearest pixel is no matter of rounding."""
    axes = []
    for size in label.shape:
        at = (np.arange(round(size * scale)) + 0.5) / scale - 0.5
        low = np.clip(np.floor(at).astype(int), 0, size - 1)
        high = np.clip(np.floor(at).astype(int) + 1, 0, size - 1)
        nearest = np.clip(np.round(at).astype(int), 0, size - 1)
        axes.append((low, high, at - np.floor(at), nearest, np.abs(at % 1 - 0.5) > 1e-3))
    (y0, y1, wy, ny, cy), (x0, x1, wx, nx, cx) = axes
    wy, wx = wy[:, None, None], wx[:, None]
    rows = image[y0] * (1 - wy) + image[y1] * wy
    new_image = rows[:, x0] * (1 - wx) + rows[:, x1] * wx
    return new_image, label[np.ix_(ny, nx)], cy[:, None] & cx


@pytest.mark.parametrize("placement", ["random", "top_left"])
@pytest.mark.parametrize("scale", [0.45, 1.0, 1.3])
def test_it_is_resizing_padding_cropping_and_mirroring(scale, placement):
    """The official code's four steps in NumPy give the crop at one offset and direction."""
    crop = (48, 56)
    image = random_images(1, HEIGHT, WIDTH)[0].astype("float32")
    label = coordinates()[1]
    big_image, big_label, clear = resized(image, label, scale)
    short = [max(side - have, 0) for side, have in zip(crop, big_label.shape, strict=True)]
    before = short if placement == "random" else (0, 0)
    padding = [(b, s) for b, s in zip(before, short, strict=True)]
    big_label = np.pad(big_label, padding, constant_values=IGNORE)
    clear = np.pad(clear, padding, constant_values=True)
    big_image = np.pad(big_image - 7.0, [*padding, (0, 0)]) + 7.0
    augment = Augmentation(crop, (scale, scale), placement=placement, fill=(7.0, 7.0, 7.0))
    windows = np.lib.stride_tricks.sliding_window_view(big_image, crop, (0, 1))[..., ::6, ::6]
    offsets, directions = set(), set()
    for new_image, new_label in augmented(augment, image, label, 12):
        for turn in (1, -1):
            few = np.moveaxis(new_image[::6, ::turn][:, ::6], -1, 0)
            distance = np.abs(windows - few).max((2, 3, 4))
            if distance.min() < 0.05:
                y, x = np.unravel_index(distance.argmin(), distance.shape)
                break
        else:
            pytest.fail("there is no such window")
        here = (slice(y, y + crop[0]), slice(x, x + crop[1]))
        np.testing.assert_allclose(new_image[:, ::turn], big_image[here], atol=0.05)
        same = (new_label[:, ::turn] == big_label[here]) | ~clear[here]
        assert same.all()
        offsets.add((y, x))
        directions.add(turn)
    assert len(offsets) == 1 if windows.shape[:2] == (1, 1) else len(offsets) > 1
    assert directions == {1, -1}


def drawn_scales(**kwargs):
    """The factors of 200 draws, and whether each is mirrored, from the steps of the columns."""
    image, label = coordinates()
    augment = Augmentation((32, 32), fill=OUTSIDE, **kwargs)
    steps = []
    for new_image, _ in augmented(augment, image, label, 200, "tf.data"):
        columns = new_image[16, :, 1]
        steps.append(np.median(np.diff(columns[columns >= 0])))
    return 1 / np.abs(steps), np.array(steps) < 0


def test_scale_and_flip_are_drawn_as_said():
    scales, mirrored = drawn_scales(scale=(0.5, 2.0))
    assert 0.5 <= scales.min() < 0.55
    assert 1.8 < scales.max() <= 2.01
    assert 0.35 < np.mean(mirrored) < 0.65
    assert abs(np.mean(np.log(scales))) < 0.12

    scales, _ = drawn_scales(scale=(0.5, 2.0), scale_distribution="uniform", flip=False)
    counts, _ = np.histogram(scales, 5, (0.499, 2.001))
    assert counts.sum() == 200
    assert counts.min() > 22
    assert abs(scales.mean() - 1.25) < 0.09  # 1.08 if half and double were as likely
    scales, _ = drawn_scales(scale=(0.7, 2.1), scale_distribution="tenths", flip=False)
    values, counts = np.unique(scales.round(1), return_counts=True)
    np.testing.assert_allclose(scales, scales.round(1), atol=2e-3)
    np.testing.assert_allclose(values, np.arange(7, 22) / 10)
    assert counts.min() >= 3


@pytest.mark.parametrize("colors", [{"color": 0.5}, {"photometric": True}])
def test_colours_change_the_image_only(colors):
    image, label = random_images(1, HEIGHT, WIDTH)[0], coordinates()[1]
    still = {"crop_size": (64, 96), "scale": (1.0, 1.0), "flip": False, "fill": (9.0, 8.0, 7.0)}
    plain = augmented(Augmentation(**still), image, label, 5)
    changed = augmented(Augmentation(**still, **colors), image, label, 5)
    changes = []
    for (old_image, old_label), (new_image, new_label) in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(new_label, old_label)
        assert 0 <= new_image.min() <= new_image.max() <= 255
        outside = (old_image == still["fill"]).all(-1)
        assert outside.sum() >= 64 * 96 - HEIGHT * WIDTH
        np.testing.assert_array_equal(new_image[outside], old_image[outside])
        changes.append(np.abs(new_image - old_image).mean())
    assert np.median(changes) > 1


def test_color_jitter_is_brightness_then_contrast_then_saturation():
    image = random_images(1, 20, 24)[0].astype("float32")
    brightness, contrast, saturation = 0.8, 1.3, 0.6
    expected = image * brightness
    expected = (expected - expected.mean()) * contrast + expected.mean()
    grey = expected @ np.array([[0.299], [0.587], [0.114]], "float32")
    expected = np.clip((expected - grey) * saturation + grey, 0, 255)
    actual = color_jitter(image, tf.constant([brightness, contrast, saturation]))
    np.testing.assert_allclose(actual, expected, atol=1e-2)
    np.testing.assert_allclose(color_jitter(image, tf.ones(3)), image, atol=1e-3)


def distorted(image, draw):
    """`photometric_distortion` pixel by pixel, with the colour spaces of the standard library."""
    drawn, amount, early = np.array(draw[:4]) < 0.5, 2 * np.array(draw[4:8]) - 1, draw[8] < 0.5

    def contrast(x):
        return np.clip(x * (1 + 0.5 * amount[1]), 0, 255) if drawn[1] else x

    if drawn[0]:
        image = np.clip(image + 32 * amount[0], 0, 255)
    if early:
        image = contrast(image)
    pixels = []
    for pixel in image.reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        if drawn[2]:
            saturation = min(saturation * (1 + 0.5 * amount[2]), 1)
        if drawn[3]:
            hue = (hue + 36 / 360 * amount[3]) % 1
        pixels.append(colorsys.hsv_to_rgb(hue, saturation, value))
    image = np.reshape(pixels, image.shape) * 255
    return image if early else contrast(image)


@pytest.mark.parametrize(
    "draw",
    [
        [0.9] * 9,
        [0.1, 0.9, 0.9, 0.9, 0.8, 0.1, 0.1, 0.1, 0.1],
        [0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1],
        [0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.95, 0.1, 0.1],
        [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.0, 0.1],
        [0.1, 0.1, 0.1, 0.1, 0.2, 0.99, 0.9, 0.8, 0.3],
        [0.1, 0.1, 0.1, 0.1, 0.2, 0.99, 0.9, 0.8, 0.7],
    ],
)
def test_photometric_distortion_is_that_of_the_standard_colour_space(draw):
    image = np.random.default_rng(0).uniform(0, 255, (12, 16, 3)).astype("float32")
    image[0] = image[0, :, :1]  # greys have no hue
    image[1, 0], image[1, 1] = 0, 255
    actual = photometric_distortion(image, tf.constant(draw, tf.float32))
    np.testing.assert_allclose(actual, distorted(image.astype(float), draw), atol=0.01)


def test_a_class_may_be_limited_to_a_share():
    """An image of which 3/4 is one class; what is between classes is ignored."""
    label = np.zeros((64, 256), "uint8")
    label[:, 180:192] = IGNORE
    label[:, 192:] = 1
    image = np.repeat(label[..., None], 3, -1)

    def shares(limit):
        augment = Augmentation((64, 64), (1.0, 1.0), max_class_share=limit)
        crops = augmented(augment, image, label, 60, "tf.data")
        counts = np.array([[(crop == k).sum() for k in (0, 1)] for _, crop in crops])
        return counts.max(1) / counts.sum(1)

    free, limited = shares(1.0), shares(0.75)
    # 27 of 193 windows are fit, so that all eleven fail in one crop of five.
    assert 0.05 < np.mean(free < 0.75) < 0.3
    assert 0.65 < np.mean(limited < 0.76) < 0.95
    # What was fit at first is what it was.
    np.testing.assert_array_equal(limited[free < 0.74], free[free < 0.74])


def test_a_wanted_class_is_in_the_crop():
    label = np.zeros((96, 256), "uint8")
    label[40:52, 30:42] = 2
    label[80:82, 200] = 3  # too small to count as held, but better than nothing
    image = np.repeat(label[..., None], 3, -1)
    augment = Augmentation((64, 64), (1.0, 1.0))

    def share(wanted, value):
        crops = augmented(augment, image, label, 60, "tf.data", wanted)
        return np.mean([(new_label == value).any() for _, new_label in crops])

    assert share(None, 2) < 0.5
    assert share(2, 2) > 0.9
    assert share(None, 3) < 0.4
    assert share(3, 3) > 0.8
    assert share(9, 9) == 0  # there is no such class, and yet a crop


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop_size": (16, 64)}, "at least 32 x 32. Received"),
        ({"scale": (2.0, 1.0)}, "0 < low <= high"),
        ({"scale_distribution": "normal"}, "log_uniform, uniform, tenths. Received: 'normal'"),
        ({"scale": (0.5, 1.25), "scale_distribution": "tenths"}, "tenths apart. Received"),
        ({"placement": "centre"}, "random, top_left. Received: 'centre'"),
        ({"max_class_share": 0.0}, r"in \(0, 1\]. Received: 0.0"),
        ({"color": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"crop_size": (64, 64), **kwargs})
    Augmentation((64, 64), (0.1, 0.4), "tenths")
