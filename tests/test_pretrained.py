"""Trained models by name."""

import keras
import numpy as np
import pytest
from conftest import CLASSES, ROOT, tiny_model
from PIL import Image

from alignseg_tf import AlignSeg, Predictor, pretrained
from alignseg_tf.__main__ import main
from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.networks import load_model
from alignseg_tf.pretrained import model_path, pretrained_file, pretrained_names


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A package with one trained model, `tiny`."""
    model = tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    (tmp_path / "weights").mkdir()
    model.save(tmp_path / "weights" / "tiny.keras")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return model


def test_a_model_comes_by_its_name(tiny, scene):
    assert pretrained_names() == ["tiny"]
    for model in (AlignSeg.from_pretrained("tiny"), load_model("tiny")):
        assert isinstance(model, AlignSeg)
        for new, old in zip(model.get_weights(), tiny.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old)
    assert (Predictor("tiny").class_map(scene) == Predictor(tiny).class_map(scene)).mean() > 0.999


def test_a_file_of_that_name_goes_before(tiny, tmp_path):
    assert model_path("tiny") == pretrained_file("tiny")
    assert str(model_path("other")) == "other"
    (tmp_path / "tiny").mkdir()
    assert str(model_path("tiny")) == "tiny"


def test_an_unknown_name_is_refused_with_those_that_there_are(tiny, tmp_path, capsys):
    with pytest.raises(ValueError, match="no trained model 'huge' .* there are: tiny"):
        AlignSeg.from_pretrained("huge")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "x.png")
    assert main(["predict", "huge", "x.png", "--output", "out"]) == 2
    assert "huge: no such file; expected a .keras model, or the name" in capsys.readouterr().err


def test_what_the_package_has_is_in_savedmodels_too():
    for name in pretrained_names():
        folder = ROOT / "savedmodels" / name
        assert (folder / f"{name}.keras").samefile(pretrained_file(name))
        assert (folder / "1" / "saved_model.pb").is_file()
        assert (folder / f"{name}.tflite").is_file()
        card = (folder / "MODEL_CARD.md").read_text()
        for needed in (f"# {name}\n", "## Quality", "licence", "research", "Mean IoU"):
            assert needed in card
    files = [p for p in (ROOT / "savedmodels").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 20e6


def test_it_is_a_start_for_other_classes(tiny):
    from training import build
    from training.recipe import Recipe, RecipeError

    recipe = Recipe(start_from="tiny", backbone="resnet50", channels=8)
    with pytest.raises(RecipeError, match="start_from: tiny into resnet50"):
        build.build_model(recipe, LabelSpace(("a", "b")))
    keras.backend.clear_session()
