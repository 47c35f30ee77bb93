"""What a model card says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, ROOT, shared_tiny_model, tiny_model
from PIL import Image

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.sources import open_data
from alignseg_tf.evaluation.counts import score_image
from alignseg_tf.evaluation.evaluator import samples_fingerprints
from alignseg_tf.evaluation.provenance import known_facts, read_quality, warn_if_trained_on
from alignseg_tf.evaluation.report import Report
from alignseg_tf.export.agreement import Agreement
from alignseg_tf.export.model_card import is_card, model_card
from alignseg_tf.system.fingerprints import names_hash

AGREEMENT = Agreement(3, 0.99987, 1.5e-5, 12.0, 0.123, (360, 480))


@pytest.fixture(scope="module")
def model():
    return shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict())


@pytest.fixture(scope="module")
def quality():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (4, 40, 50)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.8, truth, 1 - truth).astype(np.uint8)
    scores = [score_image("x", t, p, 3) for p, t in zip(predicted, truth, strict=True)]
    return Report(CLASSES, scores, "whole images").to_dict()


def test_it_quotes_what_was_measured(model, quality):
    run = {"backbone": "resnet", "epochs": 7, "classes": list(CLASSES)}
    card = model_card(model, "boxes", AGREEMENT, quality, run, "Drawn images, CC0.")
    assert card.startswith("# boxes\n")
    assert "Drawn images, CC0." in card
    assert f"Mean IoU {100 * quality['mean_iou']:.2f} % (95 % interval" in card
    assert f"| ground | {100 * quality['iou']['ground']:.2f} |" in card
    assert "| disc | - |" in card  # it does not occur
    assert "| epochs | 7 |" in card
    assert "| classes |" not in card
    assert "same class on 99.9870 % of the pixels of 3 images" in card
    assert "An image of 480 x 360 pixels takes 123 ms" in card
    assert "tensorflow 2." in card
    for number, name in enumerate(CLASSES):
        assert f"| {number} | {name} |" in card
    assert "EXIF" in card


def test_names_are_shown_as_they_are(quality):
    """Names become neither HTML nor Markdown nor another cell."""
    names = ("<img src=x onerror=alert(1)>", "a|b # c", "[x](http://y) *z* `q`")
    space = LabelSpace(names, ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    model = tiny_model(label_space=space.to_dict())
    quality = quality | {"iou": dict.fromkeys(names, 0.5)}
    card = model_card(model, "<b>", AGREEMENT, quality, {"data<": "pole_light | <i>"})
    card.encode()
    assert card.startswith("# &lt;b&gt;\n")
    for shown in (
        "| 0 | &lt;img src=x onerror=alert(1)&gt; | 0, 0, 0 |\n",
        "| &lt;img src=x onerror=alert(1)&gt; | 50.00 |\n",
        r"| 1 | a\|b # c | 1, 1, 1 |" "\n",
        r"| 2 | \[x\](http://y) \*z\* \`q\` | 2, 2, 2 |" "\n",
        r"| data&lt; | pole_light \| &lt;i&gt; |" "\n",
    ):
        assert shown in card
    assert "<" not in card


def test_a_card_is_told_from_other_files(model, tmp_path):
    path = tmp_path / "MODEL_CARD.md"
    for text, expected in ((model_card(model, "boxes", None), True), ("# Mine\n", False)):
        path.write_text(text)
        assert is_card(path) is expected
    path.write_bytes(b"\xff")
    assert not is_card(path)
    assert not is_card(tmp_path)
    assert is_card(ROOT / "savedmodels" / "nuclei_lite0" / "MODEL_CARD.md")


def test_it_gives_no_interval_where_there_is_none(model, quality):
    """Of one image, or one block of them, there is none; an older file has none at all."""
    none = {"level": 0.95, "block": 1, "mean_iou": {"low": None, "high": None}}
    for intervals in (none, None):
        card = model_card(model, "boxes", AGREEMENT, quality | {"intervals": intervals})
        assert f"Mean IoU {100 * quality['mean_iou']:.2f} % on 4 images, whole images.\n" in card
        assert "interval" not in card


@pytest.mark.parametrize("form", ["boxes.keras", "boxes.tflite", "1"])
def test_what_is_known_of_a_model_is_known_of_its_other_forms(tmp_path, form, monkeypatch):
    """Of a model of the package too, to which there is a link."""
    weights, folder = tmp_path / "weights", tmp_path / "boxes"
    (folder / "1").mkdir(parents=True)
    weights.mkdir()
    (weights / "boxes.run.json").write_text('{"train_on": "train+val"}')
    (weights / "boxes.keras").touch()
    (folder / "boxes.tflite").touch()
    (folder / "boxes.keras").symlink_to("../weights/boxes.keras")
    assert known_facts(folder / form)["run"] == {"train_on": "train+val"}
    monkeypatch.chdir(folder)
    assert known_facts(Path(form))["run"] == {"train_on": "train+val"}
    assert known_facts(tmp_path / "elsewhere" / form)["run"] is None
    assert known_facts(folder / f"other.{form}.keras")["run"] is None


def test_the_current_folder_may_be_a_saved_model(tmp_path, monkeypatch):
    (tmp_path / "boxes" / "1").mkdir(parents=True)
    (tmp_path / "boxes" / "boxes.run.json").write_text('{"epochs": 3}')
    monkeypatch.chdir(tmp_path / "boxes" / "1")
    assert known_facts(Path())["run"] == {"epochs": 3}


@pytest.mark.parametrize(
    ("train_on", "split", "warned"),
    [
        ("train", "train", True),
        ("train", "val", False),
        ("train+val", "train", True),
        ("train+val", "val", True),
        ("train+val", "test", False),
    ],
)
def test_judging_a_model_on_what_it_was_trained_on_is_warned_of(
    folder, tmp_path, capsys, train_on, split, warned
):
    """And on images of other names it is not."""
    data = open_data(folder)
    names = [sample.image.name for part in train_on.split("+") for sample in data.samples(part)]
    model = tmp_path / "boxes.keras"
    for hashed, expected in ((names_hash(names), warned), (names_hash(names[:-1]), False)):
        run = {"train_on": train_on, "training_image_names": hashed}
        (tmp_path / "boxes.run.json").write_text(json.dumps(run))
        warn_if_trained_on(model, data, split)
        said = capsys.readouterr().err
        assert (f"Warning: {model} was trained on these images" in said) is expected


def test_what_was_trained_on_is_known_by_its_content(folder, tmp_path, capsys):
    """Under other names and with a corrected label too; not where an image is another."""
    data = open_data(folder)
    images = samples_fingerprints(data.samples("val"))[0]
    run = {"train_on": "val", "training_images": images, "training_image_names": "0"}
    (tmp_path / "boxes.run.json").write_text(json.dumps(run))
    model, copy = tmp_path / "boxes.keras", Path(shutil.copytree(folder, tmp_path / "copy"))
    for kind in ("images", "labels"):
        for path in sorted((copy / kind / "val").iterdir()):
            path.rename(path.with_stem(f"z{9 - int(path.stem)}"))
    label = next((copy / "labels" / "val").iterdir())
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(label)
    warn_if_trained_on(model, open_data(copy), "val")
    assert "was trained on these images" in capsys.readouterr().err
    image = next((copy / "images" / "val").iterdir())
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(image)
    warn_if_trained_on(model, open_data(copy), "val")
    assert capsys.readouterr().err == ""


def test_it_says_what_it_does_not_know(model):
    card = model_card(model, "boxes", AGREEMENT)
    assert "were not stated" in card
    assert "Not measured, or not known" in card
    assert "The run is not known" in card


def test_it_says_if_figures_are_of_what_was_trained_on(model, quality):
    for train_on, said in (("train", False), ("train+val", True)):
        card = model_card(model, "boxes", AGREEMENT, quality, {"train_on": train_on})
        assert ("trained on the validation images" in card) is said


def test_quality_is_read_from_an_evaluation_alone(tmp_path, quality):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(quality))
    assert read_quality(path)["images"] == 4
    older = {key.replace("image", "picture"): value for key, value in quality.items()}
    path.write_text(json.dumps(older))
    assert read_quality(path) == quality
    path.write_text('{"mean_iou": 0.5}')
    with pytest.raises(ValueError, match="evaluation.json: expected the JSON of an evaluation"):
        read_quality(path)
    with pytest.raises(ValueError, match="gone.json: expected the JSON"):
        read_quality(tmp_path / "gone.json")
