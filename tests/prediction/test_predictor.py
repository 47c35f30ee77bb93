import numpy as np
import pytest
from conftest import CLASSES, random_images, shared_tiny_model
from PIL import Image
from prediction_fixtures import SPACE, ColorNetwork

from alignseg_tf import AlignSeg, Predictor
from alignseg_tf.prediction.protocol import Protocol


@pytest.fixture(scope="module")
def model():
    return shared_tiny_model(label_space=SPACE.to_dict())


@pytest.mark.smoke
@pytest.mark.parametrize("upsample", [True, False])
def test_class_map_is_the_argmax_at_the_image_size(model, upsample):
    predictor = Predictor(model if upsample else shared_tiny_model(upsample_logits=False))
    assert (predictor.label_space.classes == CLASSES) == upsample  # else they are numbered
    for size in ((64, 96), (50, 67)):
        image = random_images(1, *size)[0]
        expected = np.argmax(model(image[None].astype("float32"))["segmentation"][0], -1)
        class_map = predictor.class_map(image)
        assert class_map.dtype == np.uint8
        assert class_map.shape == size
        assert (class_map == expected).mean() > 0.999
        assert len(np.unique(class_map)) == 3


def test_a_path_gives_what_the_model_gives(model, keras_file, tmp_path, scene):
    predictor = Predictor(keras_file)
    Image.fromarray(scene).save(tmp_path / "street.png")
    with Image.open(tmp_path / "street.png") as image:
        prediction = predictor(image)
    # Equal except for rounding: a file runs the inference graph.
    assert (prediction.class_map == Predictor(model).class_map(scene)).mean() > 0.999
    assert predictor.label_space == SPACE
    assert prediction.file_name == "street.png"
    ids, overlay = prediction.save(tmp_path / "out", "street")
    for path, expected in ((ids, prediction.class_map), (overlay, prediction.overlay())):
        with Image.open(path) as written:
            np.testing.assert_array_equal(np.asarray(written), expected)


def test_probabilities_are_computed_when_they_are_asked_for(scene, monkeypatch):
    predictor = Predictor(ColorNetwork())
    runs, logits = [], predictor.network.logits
    monkeypatch.setattr(
        predictor.network, "logits", lambda images: runs.append(1) or logits(images)
    )
    prediction = predictor(scene)
    assert len(runs) == 1
    probabilities = prediction.probabilities
    assert prediction.probabilities is probabilities
    assert len(runs) == 2
    np.testing.assert_array_equal(probabilities.argmax(-1), prediction.class_map)
    np.testing.assert_allclose(probabilities.max(-1), prediction.confidence, rtol=1e-5)
    np.testing.assert_array_equal(predictor.probabilities(scene), probabilities)


def test_pillow_images_of_any_mode(scene):
    predictor = Predictor(ColorNetwork())
    image = Image.fromarray(scene)
    expected = predictor.class_map(scene)
    np.testing.assert_array_equal(predictor(image).class_map, expected)
    np.testing.assert_array_equal(predictor(image.convert("RGBA")).class_map, expected)
    grey = predictor(image.convert("L"))
    assert grey.image.shape == scene.shape
    turned = Image.fromarray(np.rot90(scene))
    turned.getexif()[0x0112] = 6  # to be turned clockwise
    np.testing.assert_array_equal(predictor(turned).class_map, expected)


def test_a_protocol_is_followed_and_large_images_go_in_windows(scene, monkeypatch):
    model, shapes = ColorNetwork(), []

    def watched(predictor):
        logits = predictor.network.logits
        monkeypatch.setattr(
            predictor.network, "logits", lambda x: shapes.append(x.shape[1:3]) or logits(x)
        )
        return predictor

    prediction = watched(Predictor(model, Protocol(tile=(64, 64))))(scene)
    assert set(shapes) == {(64, 64)}
    assert not prediction.in_windows  # as asked for
    shapes.clear()
    monkeypatch.setattr("alignseg_tf.prediction.protocol.LARGE_IMAGE_TILE", (48, 64))
    prediction = watched(Predictor(model, Protocol(largest_whole=1000)))(scene)
    assert prediction.in_windows
    assert set(shapes) == {(48, 64)}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), r"uint8 RGB image .* Received: float32"),
        (np.zeros((64, 64), np.uint8), r"Received: uint8 of shape \(64, 64\)"),
        (np.zeros((31, 64, 3), np.uint8), r"at least 32 x 32 pixels. Received: 64 x 31"),
        (np.zeros((0, 64, 3), np.uint8), r"Received: uint8 of shape \(0, 64, 3\)"),
    ],
)
def test_other_arrays_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        Predictor(ColorNetwork()).class_map(image)


def test_the_class_is_exported_lazily():
    import alignseg_tf

    assert alignseg_tf.AlignSeg is AlignSeg
    assert set(alignseg_tf.__all__) <= set(dir(alignseg_tf))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        alignseg_tf.Nothing  # noqa: B018
