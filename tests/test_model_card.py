"""What a model card says."""

import json

import numpy as np
import pytest
from conftest import CLASSES, tiny_model

from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.evaluation_report import Report
from alignseg_tf.export.agreement import Agreement
from alignseg_tf.export.model_card import (
    known_facts,
    model_card,
    read_quality,
    warn_if_trained_on,
)
from alignseg_tf.scores import score_picture

AGREEMENT = Agreement(3, 0.99987, 1.5e-5, 12.0, 0.123, (360, 480))


@pytest.fixture(scope="module")
def model():
    return tiny_model(label_space=LabelSpace(CLASSES).to_dict())


@pytest.fixture(scope="module")
def quality():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (4, 40, 50)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.8, truth, 1 - truth).astype(np.uint8)
    scores = [score_picture("x", t, p, 3) for p, t in zip(predicted, truth, strict=True)]
    return Report(CLASSES, scores, "whole pictures").to_dict()


def test_it_quotes_what_was_measured(model, quality):
    run = {"backbone": "resnet", "epochs": 7, "classes": list(CLASSES)}
    card = model_card(model, "boxes", AGREEMENT, quality, run, "Drawn pictures, CC0.")
    assert card.startswith("# boxes\n")
    assert "Drawn pictures, CC0." in card
    assert f"Mean IoU {100 * quality['mean_iou']:.2f} % (95 % interval" in card
    assert f"| ground | {100 * quality['iou']['ground']:.2f} |" in card
    assert "| disc | - |" in card  # it does not occur
    assert "| epochs | 7 |" in card
    assert "| classes |" not in card
    assert "same class on 99.9870 % of the pixels of 3 pictures" in card
    assert "A picture of 480 x 360 pixels takes 123 ms" in card
    assert "tensorflow 2." in card
    for number, name in enumerate(CLASSES):
        assert f"| {number} | {name} |" in card
    assert "EXIF" in card


def test_it_gives_no_interval_where_there_is_none(model, quality):
    """Of one picture, or one block of them, there is none; an older file has none at all."""
    none = {"level": 0.95, "block": 1, "mean_iou": {"low": None, "high": None}}
    for intervals in (none, None):
        card = model_card(model, "boxes", AGREEMENT, quality | {"intervals": intervals})
        assert (
            f"Mean IoU {100 * quality['mean_iou']:.2f} % on 4 pictures, whole pictures.\n" in card
        )
        assert "interval" not in card


@pytest.mark.parametrize("form", ["boxes.keras", "boxes.tflite", "1"])
def test_what_is_known_of_a_model_is_known_of_its_other_forms(tmp_path, form, capsys):
    """Of a model of the package too, to which there is a link."""
    weights, folder = tmp_path / "weights", tmp_path / "boxes"
    (folder / "1").mkdir(parents=True)
    weights.mkdir()
    (weights / "boxes.run.json").write_text('{"train_on": "train+val"}')
    (weights / "boxes.keras").touch()
    (folder / "boxes.tflite").touch()
    (folder / "boxes.keras").symlink_to("../weights/boxes.keras")
    assert known_facts(folder / form)["run"] == {"train_on": "train+val"}
    assert known_facts(tmp_path / "elsewhere" / form)["run"] is None
    warn_if_trained_on(folder / form, "test")
    assert capsys.readouterr().err == ""
    warn_if_trained_on(folder / form, "val")
    assert f"Warning: {folder / form} was trained on the validation" in capsys.readouterr().err


def test_it_says_what_it_does_not_know(model):
    card = model_card(model, "boxes", AGREEMENT)
    assert "were not stated" in card
    assert "Not measured, or not known" in card
    assert "The run is not known" in card


def test_it_says_if_figures_are_of_what_was_trained_on(model, quality):
    for train_on, said in (("train", False), ("train+val", True)):
        card = model_card(model, "boxes", AGREEMENT, quality, {"train_on": train_on})
        assert ("trained on the validation pictures" in card) is said


def test_quality_is_read_from_an_evaluation_alone(tmp_path, quality):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(quality))
    assert read_quality(path)["pictures"] == 4
    path.write_text('{"mean_iou": 0.5}')
    with pytest.raises(ValueError, match="evaluation.json: expected the JSON of an evaluation"):
        read_quality(path)
    with pytest.raises(ValueError, match="gone.json: expected the JSON"):
        read_quality(tmp_path / "gone.json")
