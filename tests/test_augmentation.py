import numpy as np
import pytest
import tensorflow as tf
from conftest import random_images

from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.catalog import IGNORE

HEIGHT, WIDTH = 48, 80


def coordinates():
    """A picture whose red and green are the row and column, and a label that is their code."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype("float32")
    image = np.stack([y, x, np.full_like(x, 200)], -1)
    label = (y.astype(int) // 8) * 10 + x.astype(int) // 8
    return image, label.astype("uint8")


def seeds(count):
    return [tf.constant([3, i], tf.int64) for i in range(count)]


@pytest.mark.parametrize("traced", [False, True])
def test_picture_and_label_share_the_draw(traced):
    """The label at each pixel is the one that belongs to the coordinates in the picture."""
    image, label = coordinates()
    augment = Augmentation((64, 64), scale=(0.5, 2.0), fill=(-1000.0, -1000.0, -1000.0))
    call = tf.function(augment) if traced else augment
    kept = 0
    for seed in seeds(20):
        new_image, new_label = (np.asarray(x) for x in call(image, label, seed))
        assert new_image.shape == (64, 64, 3)
        assert new_label.shape == (64, 64)
        assert new_label.dtype == np.int32
        inside = new_image[..., 2] > 0
        np.testing.assert_array_equal(new_label == IGNORE, ~inside)
        y, x = new_image[..., 0], new_image[..., 1]
        # Half-way between two cells the nearest one is a matter of rounding.
        clear = inside & (np.abs(y % 1 - 0.5) > 1e-3) & (np.abs(x % 1 - 0.5) > 1e-3)
        expected = np.round(y) // 8 * 10 + np.round(x) // 8
        np.testing.assert_array_equal(new_label[clear], expected[clear])
        kept += clear.sum()
    assert kept > 20 * 64 * 64 * 0.3


def test_eager_and_traced_agree():
    image, label = random_images(1, HEIGHT, WIDTH)[0], coordinates()[1]
    augment = Augmentation((64, 96), color=0.4)
    for seed in seeds(3):
        for eager, traced in zip(
            augment(image, label, seed), tf.function(augment)(image, label, seed), strict=True
        ):
            np.testing.assert_allclose(eager, traced, atol=1e-2)


def test_without_scale_flip_and_room_it_is_the_identity():
    image, label = random_images(1, HEIGHT, WIDTH)[0], coordinates()[1]
    augment = Augmentation((HEIGHT, WIDTH), scale=(1.0, 1.0), flip=False)
    new_image, new_label = augment(image, label, seeds(1)[0])
    np.testing.assert_allclose(new_image, image, atol=1e-3)
    np.testing.assert_array_equal(new_label, label)


def test_scale_and_flip_are_drawn_as_said():
    image, label = coordinates()
    augment = Augmentation((32, 32), scale=(0.5, 2.0), fill=(-1000.0, -1000.0, -1000.0))
    scales, mirrored = [], []
    for seed in seeds(200):
        columns = np.asarray(augment(image, label, seed)[0])[16, :, 1]
        step = np.median(np.diff(columns[columns >= 0]))
        scales.append(1 / abs(step))
        mirrored.append(step < 0)
    assert 0.5 <= min(scales) < 0.55
    assert 1.8 < max(scales) <= 2.01
    assert 0.35 < np.mean(mirrored) < 0.65
    assert abs(np.mean(np.log(scales))) < 0.12


def test_a_picture_smaller_than_the_crop_is_whole_in_it():
    image, label = coordinates()
    augment = Augmentation((96, 128), scale=(1.0, 1.0), fill=(-1000.0, -1000.0, -1000.0))
    for seed in seeds(5):
        new_image, new_label = augment(image, label, seed)
        # The window is not aligned with the pixels: a border row may fall outside.
        inside = int(np.sum(np.asarray(new_image)[..., 2] > 0))
        assert (HEIGHT - 1) * (WIDTH - 1) <= inside <= HEIGHT * WIDTH
        assert set(np.unique(new_label)) == {*np.unique(label), IGNORE}


def test_color_changes_the_picture_only():
    image, label = random_images(1, HEIGHT, WIDTH)[0], coordinates()[1]
    plain = Augmentation((HEIGHT, WIDTH), scale=(1.0, 1.0), flip=False)
    colored = Augmentation((HEIGHT, WIDTH), scale=(1.0, 1.0), flip=False, color=0.5)
    for seed in seeds(5):
        new_image, new_label = colored(image, label, seed)
        np.testing.assert_array_equal(new_label, plain(image, label, seed)[1])
        assert 0 <= np.min(new_image) <= np.max(new_image) <= 255
        assert np.abs(np.asarray(new_image) - image).mean() > 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop_size": (16, 64)}, "at least 32 x 32. Received"),
        ({"crop_size": (64, 64), "scale": (2.0, 1.0)}, "0 < low <= high"),
        ({"crop_size": (64, 64), "color": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**kwargs)
