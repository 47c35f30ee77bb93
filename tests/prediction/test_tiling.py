import numpy as np
import pytest
import tensorflow as tf
from conftest import random_images
from PIL import Image
from prediction_fixtures import ColorNetwork

from alignseg_tf.layers import resize_align_corners
from alignseg_tf.prediction import tiling as bands
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.tiling import resized, segment_in_bands

CLASSES = 5


network = ColorNetwork(CLASSES).logits


def full(image, softmax=True):
    """The network's answer at the image's size, by its own resize."""
    scores = resize_align_corners(network(image[None]), image.shape[:2])[0]
    return (tf.nn.softmax(scores) if softmax else scores).numpy()


def probabilities(image, protocol, **kwargs):
    parts = segment_in_bands(
        network, image, CLASSES, protocol, with_probabilities=True, with_confidence=True, **kwargs
    )
    parts = list(parts)
    result = np.concatenate([part.probabilities for part in parts])
    class_map = np.concatenate([part.class_map for part in parts])
    confidence = np.concatenate([part.confidence for part in parts])
    ends = np.cumsum([len(part.class_map) for part in parts])
    assert [part.first for part in parts] == [0, *ends[:-1]]
    assert result.shape == (*image.shape[:2], CLASSES)
    np.testing.assert_array_equal(class_map, result.argmax(-1))
    np.testing.assert_allclose(confidence, result.max(-1), rtol=1e-5)
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-5)
    return result


@pytest.fixture(scope="module")
def image():
    return random_images(1, 90, 131)[0]


def test_a_whole_image_is_the_network_and_its_resize(image):
    np.testing.assert_allclose(probabilities(image, Protocol()), full(image), atol=2e-6)


PROTOCOLS = [
    Protocol(),
    Protocol(tile=(40, 48), overlap=0.0),
    Protocol(tile=(40, 48), overlap=0.8, blending="gaussian", batch_size=3),
    Protocol(tile=(64, 64), scales=(0.6, 1.0, 1.5), flip=True),
    Protocol(scales=(0.75, 1.25), average="logits", flip=True),
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_bands_of_any_height_give_the_same(image, protocol, monkeypatch):
    whole = probabilities(image, protocol)
    monkeypatch.setattr(bands, "BAND_BYTES", 4 * 7 * image.shape[1] * CLASSES)
    np.testing.assert_allclose(probabilities(image, protocol), whole, atol=1e-6)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_windows_by_hand(image, average):
    """The usual loop: scores of the image's size, added up and divided by the count."""
    height, width = 40, 48
    total, count = np.zeros((*image.shape[:2], CLASSES)), np.zeros((*image.shape[:2], 1))
    for top in (0, 27, 50):
        for left in (0, 32, 64, 83):
            tile = image[top : top + height, left : left + width]
            place = np.s_[top : top + height, left : left + width]
            total[place] += full(tile, average == "probabilities")
            count[place] += 1
    expected = total / count
    if average == "logits":
        expected = tf.nn.softmax(expected).numpy()
    found = probabilities(image, Protocol(tile=(height, width), average=average))
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_scales_and_mirroring_by_hand(image, average):
    """Each scale and side through the network; read where the image's pixels lie; averaged."""
    views = []
    for scale in (0.5, 1.0, 1.5):
        size = round(90 * scale), round(131 * scale)
        scaled = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        y = np.clip((np.arange(90) + 0.5) * size[0] / 90 - 0.5, 0, size[0] - 1)
        x = np.clip((np.arange(131) + 0.5) * size[1] / 131 - 0.5, 0, size[1] - 1)
        for mirrored in (False, True):
            logits = network(scaled[None, :, :: -1 if mirrored else 1]).numpy()[0]
            logits = logits[:, :: -1 if mirrored else 1]
            v = y * (logits.shape[0] - 1) / (size[0] - 1)
            u = x * (logits.shape[1] - 1) / (size[1] - 1)
            sampled = bilinear(logits, v, u)
            views.append(sampled if average == "logits" else tf.nn.softmax(sampled).numpy())
    expected = np.mean(views, 0)
    if average == "logits":
        expected = tf.nn.softmax(expected).numpy()
    protocol = Protocol(scales=(0.5, 1.0, 1.5), flip=True, average=average)
    np.testing.assert_allclose(probabilities(image, protocol), expected, atol=3e-6)


def bilinear(x, v, u):
    i, j = (np.minimum(p.astype(int), n - 2) for p, n in zip((v, u), x.shape, strict=False))
    a, b = (v - i)[:, None, None], (u - j)[None, :, None]
    top = x[i][:, j] * (1 - b) + x[i][:, j + 1] * b
    return top * (1 - a) + (x[i + 1][:, j] * (1 - b) + x[i + 1][:, j + 1] * b) * a


def test_mirroring_swaps_left_and_right_only(image):
    """A network that knows where it is: the mean with its mirror is symmetric in x alone."""

    def where(images):
        x, y = np.meshgrid(*(np.linspace(0, 1, n // 4) for n in images.shape[2:0:-1]))
        logits = np.stack([x, y, x * y], -1).astype(np.float32)
        return tf.convert_to_tensor(np.repeat(logits[None], len(images), 0))

    protocols = (Protocol(flip=flip, average="logits") for flip in (False, True))
    plain, both = (
        next(segment_in_bands(where, image, 3, protocol, with_probabilities=True)).probabilities
        for protocol in protocols
    )
    np.testing.assert_allclose(both, both[:, ::-1], atol=1e-6)
    assert abs(plain - plain[:, ::-1]).max() > 0.1
    assert abs(both - both[::-1]).max() > 0.1


def test_tiles_are_dropped_when_they_are_done(monkeypatch):
    """Memory: of a tall image only the tiles of a few rows are ever held."""
    image = random_images(1, 400, 64)[0]
    held, most = [], 0

    class Counted(bands._Scale):
        def parts(self, first, end):
            nonlocal most
            yield from super().parts(first, end)
            most = max(most, len(self.computed))

        def _compute(self, row):
            held.append(row.start)
            return super()._compute(row)

    monkeypatch.setattr(bands, "_Scale", Counted)
    monkeypatch.setattr(bands, "BAND_BYTES", 4 * 8 * 64 * CLASSES)
    probabilities(image, Protocol(tile=(48, 64)))
    assert held == sorted(set(held))  # each row of tiles once, from the top
    assert len(held) > 10
    assert most <= 3


def test_a_network_of_one_size_gets_the_image_resized(image):
    seen = []

    def fixed(images):
        seen.append(images.shape)
        return network(images)

    parts = segment_in_bands(fixed, image, CLASSES, Protocol(), (64, 96), with_probabilities=True)
    found = np.concatenate([part.probabilities for part in parts])
    assert seen == [(1, 64, 96, 3)]
    logits = network(resized(image, (64, 96))[None]).numpy()[0]
    y = np.clip((np.arange(90) + 0.5) * 64 / 90 - 0.5, 0, 63) * (logits.shape[0] - 1) / 63
    x = np.clip((np.arange(131) + 0.5) * 96 / 131 - 0.5, 0, 95) * (logits.shape[1] - 1) / 95
    expected = tf.nn.softmax(bilinear(logits, y, x)).numpy()
    np.testing.assert_allclose(found, expected, atol=3e-6)
    seen.clear()
    list(segment_in_bands(fixed, image, CLASSES, Protocol(tile=(64, 96)), (64, 96)))
    assert set(seen) == {(1, 64, 96, 3)}
