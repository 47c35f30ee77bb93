import numpy as np
import pytest
from conftest import CLASSES, random_images, tiny_model
from PIL import Image

from alignseg_tf import AlignSeg, Predictor, backbones
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import load_model

SPACE = LabelSpace(CLASSES)


@pytest.mark.smoke
@pytest.mark.parametrize("upsample", [True, False])
def test_class_map_is_the_argmax_at_the_image_size(upsample):
    model = tiny_model(upsample_logits=upsample)
    full = tiny_model()
    full.set_weights(model.get_weights())
    for size in ((64, 96), (50, 67)):
        image = random_images(1, *size)[0]
        expected = np.argmax(full(image[None].astype("float32"))["segmentation"][0], -1)
        class_map = Predictor(model).class_map(image)
        assert class_map.dtype == np.uint8
        assert class_map.shape == size
        assert (class_map == expected).mean() > 0.999
        assert len(np.unique(class_map)) == 3


def test_a_path_gives_what_the_model_gives(tmp_path, scene):
    model = tiny_model(label_space=SPACE.to_dict())
    model.save(tmp_path / "m.keras")
    predictor = Predictor(tmp_path / "m.keras")
    prediction = predictor(scene)
    # Equal except for rounding: a file runs the inference graph.
    assert (prediction.class_map == Predictor(model).class_map(scene)).mean() > 0.999
    assert predictor.label_space == SPACE
    assert prediction.overlay().shape == scene.shape


def test_saving_writes_ids_and_overlay(tmp_path, scene):
    prediction = Predictor(tiny_model())(scene)
    ids, overlay = prediction.save(tmp_path / "out", "street")
    assert [ids.name, overlay.name] == ["street_classes.png", "street_overlay.png"]
    with Image.open(ids) as image:
        np.testing.assert_array_equal(np.asarray(image), prediction.class_map)
    with Image.open(overlay) as image:
        np.testing.assert_array_equal(np.asarray(image), prediction.overlay())


def test_probabilities_are_computed_when_they_are_asked_for(scene, monkeypatch):
    predictor = Predictor(tiny_model())
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
    predictor = Predictor(tiny_model())
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
    model = tiny_model()
    shapes = []

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


def test_a_model_without_names_numbers_its_classes():
    assert Predictor(tiny_model()).label_space.classes == ("class 0", "class 1", "class 2")


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
        Predictor(tiny_model()).class_map(image)


def test_unreadable_models_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.keras: no such file"):
        load_model(tmp_path / "gone.keras")
    (tmp_path / "bad.keras").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"bad\.keras: not readable as a Keras model"):
        Predictor(tmp_path / "bad.keras")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder: not a SavedModel"):
        Predictor(tmp_path / "folder")
    backbones.resnet((1, 1, 1, 1), width=4).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=r"other\.keras: expected an AlignSeg"):
        Predictor(tmp_path / "other.keras")


def test_the_class_is_exported_lazily():
    import alignseg_tf

    assert alignseg_tf.AlignSeg is AlignSeg
    assert set(alignseg_tf.__all__) <= set(dir(alignseg_tf))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        alignseg_tf.Nothing  # noqa: B018
