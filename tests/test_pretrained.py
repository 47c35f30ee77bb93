"""Trained models by name."""

import shutil

import numpy as np
import pytest
from conftest import CLASSES, ROOT, shared_tiny_model
from PIL import Image

from alignseg_tf import AlignSeg, Predictor, backbones, pretrained
from alignseg_tf.__main__ import main
from alignseg_tf.data.datasets import street_painter
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.evaluation.provenance import known_facts, trained_on_validation
from alignseg_tf.prediction.saved_networks import load_model
from alignseg_tf.pretrained import model_path, pretrained_file, pretrained_names
from training import build
from training.recipe import Recipe, RecipeError


@pytest.fixture
def tiny(keras_file, tmp_path, monkeypatch):
    """A package with one trained model, `tiny`."""
    (tmp_path / "weights").mkdir()
    shutil.copy(keras_file, tmp_path / "weights" / "tiny.keras")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict())


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


RELEASED = sorted(path.parent.name for path in (ROOT / "savedmodels").glob("*/MODEL_CARD.md"))


def test_models_of_the_package_are_released_ones():
    assert set(pretrained_names()) < set(RELEASED)
    notice = (pretrained.FOLDER / "NOTICE").read_text(encoding="utf-8")
    for name in pretrained_names():
        assert (ROOT / "savedmodels" / name / f"{name}.keras").samefile(pretrained_file(name))
        assert f"\n{name}.keras\n" in notice


@pytest.mark.smoke
@pytest.mark.parametrize("name", RELEASED)
def test_a_trained_model_says_what_it_is(name):
    """In the package, for exports of it, and in the clone, for readers."""
    folder = ROOT / "savedmodels" / name
    facts = known_facts(folder / f"{name}.keras")
    assert facts["run"]["epochs"] > 1
    assert 0.75 < facts["quality"]["mean_iou"] < 1
    assert "**Terms**" in facts["about"]
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n")
    assert facts["about"].strip() in card
    assert f"Mean IoU {100 * facts['quality']['mean_iou']:.2f} %" in card
    assert f"| epochs | {facts['run']['epochs']} |" in card
    seen = trained_on_validation(facts["run"])
    assert ("The model was trained on the validation images" in card) is seen
    # What the texts state is what was measured.
    stated = f"| {100 * facts['quality']['mean_iou']:.2f} ("
    for text in (facts["about"], (ROOT / "docs" / "models.md").read_text(encoding="utf-8")):
        assert stated in text


def test_the_twin_that_is_measured_is_that_of_the_model_that_is_used():
    """The same recipe, but for what it is trained on."""
    used, measured = (
        known_facts(ROOT / "savedmodels" / name / f"{name}.keras")["run"]
        for name in ("camvid_lite0", "camvid_lite0_train")
    )
    assert {key for key in used if used[key] != measured.get(key)} == {
        "train_on", "training_samples", "training_image_names"
    }  # fmt: skip
    assert (measured["train_on"], used["train_on"]) == ("train", "train+val")


def test_the_released_files_are_small():
    files = [p for p in (ROOT / "savedmodels" / "camvid_lite0").rglob("*") if p.is_file()]
    assert len(files) > 5
    assert sum(p.stat().st_size for p in files) < 20e6


@pytest.mark.slow
def test_the_released_forms_are_of_one_model():
    pytest.importorskip("ai_edge_litert")
    folder = ROOT / "savedmodels" / "camvid_lite0"
    image = street_painter.draw_scene(0, 1, (540, 720))[0]
    first, saved_model, tflite = (
        Predictor(folder / name).class_map(image)
        for name in ("camvid_lite0.keras", "1", "camvid_lite0.tflite")
    )
    assert (first == saved_model).mean() > 0.995
    # 8 bits were calibrated on photographs; of a drawn image they see the same a little less.
    assert (first == tflite).mean() > 0.9


def test_it_is_a_start_for_other_classes(tiny, monkeypatch):
    """What fits is the source's, the classifier is new, and another backbone is refused."""
    recipe = Recipe(start_from="tiny", channels=8)
    backbone = backbones.resnet((1, 1, 1, 1), width=8)
    monkeypatch.setattr(build, "build_backbone", lambda recipe: backbone)
    model = build.build_model(recipe, LabelSpace(("a", "b")))
    source = {weight.path: weight.numpy() for weight in tiny.weights}
    same = [
        weight.path
        for weight in model.weights
        if weight.path in source
        and weight.shape == source[weight.path].shape
        and (weight.numpy() == source[weight.path]).all()
    ]
    assert len(same) > 0.9 * len(source)
    assert model.num_classes == 2
    monkeypatch.undo()
    recipe = Recipe(start_from=str(pretrained_file("camvid_lite0")), backbone="resnet50")
    with pytest.raises(RecipeError, match="start_from: .*camvid_lite0.* into resnet50"):
        build.build_model(recipe, LabelSpace(("a", "b")))
