"""Galleries of predictions."""

import json
import shutil

import numpy as np
import pytest
from conftest import CLASSES, write_folder
from PIL import Image

from alignseg_tf import Predictor, visualization
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.readers import load_sample
from alignseg_tf.data.sources import open_data
from alignseg_tf.evaluation.evaluator import evaluate as evaluate_images
from alignseg_tf.system.fingerprints import names_hash
from training import evaluate
from training.release import gallery

SCORES = np.array([0.9, 0.1, 0.2, 0.8, 0.3, np.nan, 0.6, 0.5])


@pytest.mark.parametrize(
    ("how", "count", "expected"),
    [
        ("worst", 1, [1]),
        ("worst", 2, [1, 4]),  # 2 is a neighbour of 1
        ("worst", 8, [1, 2, 4, 7, 6, 3, 0]),
        ("spread", 1, [1]),
        ("spread", 2, [1, 0]),
        ("spread", 3, [1, 7, 0]),
        ("spread", 20, [1, 2, 4, 7, 6, 3, 0]),
    ],
)
def test_images_are_chosen_by_their_scores(how, count, expected):
    assert gallery.chosen(SCORES, count, how) == expected
    assert gallery.chosen(np.full(3, np.nan), count, how) == []


def test_rows_columns_and_the_legend_have_their_places(tmp_path):
    """Of three images, the third of another shape; each is wrongly taken for boxes."""
    data = open_data(write_folder(tmp_path, train=3, sizes=((64, 96), (64, 96), (96, 64))))
    space, samples = data.label_space, data.samples("train")
    loaded = [load_sample(sample, space) for sample in samples]
    named = [(sample, sample.image.name) for sample in samples]
    drawn = gallery.draw_gallery(
        named, lambda image: np.ones(image.shape[:2], np.uint8), space, gallery.PANELS, 2, 96
    )
    line, tile = 18, 4 * 96 + 3 * gallery.GAP
    assert drawn.shape[1] == 2 * tile + 3 * gallery.GAP
    for place, (image, truth) in enumerate(loaded[:2]):
        row = drawn[line : line + 64, place * (tile + 3 * gallery.GAP) :]
        predicted = np.ones_like(truth)
        for panel, expected in enumerate((
            image,
            visualization.overlay(image, truth, space.palette),
            visualization.overlay(image, predicted, space.palette),
            visualization.mistakes(image, truth, predicted),
        )):  # fmt: skip
            left = panel * (96 + gallery.GAP)
            np.testing.assert_array_equal(row[:, left : left + 96], expected)
    below = drawn[line + 64 + line : 2 * (line + 64)]
    assert (below[:, :26] == 255).all(), "a high image is in the middle of its panel"
    assert (below[:, 28:68] < 255).any(-1).all()
    assert (below[:, tile:] == 255).all(), "the fourth place is empty"
    np.testing.assert_array_equal(
        drawn[2 * (line + 64) :], visualization.legend(space, drawn.shape[1])
    )


@pytest.fixture
def saved(tmp_path, keras_file):
    return shutil.copy(keras_file, tmp_path / "model.keras")


def test_the_command_shows_the_images_that_it_chose(saved, tmp_path, capsys, monkeypatch):
    """Each under its own name, with its own mean IoU."""
    data = write_folder(tmp_path / "four", val=4)
    output = tmp_path / "made" / "gallery.jpg"
    scores = evaluate_images(Predictor(saved), open_data(data).samples("val"), LabelSpace(CLASSES))
    worst, best = (f(scores.image_iou) for f in (np.argmin, np.argmax))
    texts = []
    titled = visualization.titled
    monkeypatch.setattr(
        visualization, "titled", lambda x, text: texts.append(text) or titled(x, text)
    )
    arguments = [str(saved), "--data", str(data), "--output", str(output), "--panels", "mistakes"]
    assert gallery.main([*arguments, "--choose", "spread", "--images", "2"]) == 0
    assert texts == [f"{i:03d}.png: {100 * scores.image_iou[i]:.2f} %" for i in (worst, best)]
    said = f"2 of 4 images, with the mean IoU of each: {output}"
    assert said in capsys.readouterr().out
    with Image.open(output) as image:
        assert image.format == "JPEG"
        assert image.width == 240


@pytest.mark.parametrize("name", ["gallery.png", "gallery.jpg"])
def test_a_gallery_replaces_only_a_gallery(saved, folder, tmp_path, name, capsys):
    path = tmp_path / name
    drawn = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(drawn).save(path)
    before = path.read_bytes()
    arguments = [str(saved), "--data", str(folder), "--output", str(path)]
    assert gallery.main(arguments) == 2
    assert (
        f"{name}: expected a new file, or one that training.release.gallery"
        in capsys.readouterr().err
    )
    assert path.read_bytes() == before
    gallery.write_gallery(drawn, path)
    assert gallery.is_gallery(path)
    path.write_bytes(b"mine")
    assert not gallery.is_gallery(path)


@pytest.mark.parametrize("script", [gallery, evaluate])
def test_commands_warn_of_images_that_were_trained_on(script, saved, folder, tmp_path, capsys):
    names = [sample.image.name for sample in open_data(folder).samples("val")]
    run = {"train_on": "val", "training_image_names": names_hash(names)}
    saved.with_name("run.json").write_text(json.dumps(run))
    output = ["--output", str(tmp_path / "gallery.png")] if script is gallery else []
    assert script.main([str(saved), "--data", str(folder), *output]) == 0
    assert "was trained on these images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--output gallery.gif", "must end in .png, .jpg, .jpeg. Received: gallery.gif"),
        ("--split test", "images/test: no such folder"),
    ],
)
def test_bad_arguments_are_named(saved, folder, tmp_path, capsys, options, said):
    output = tmp_path / "gallery.png"
    arguments = [str(saved), "--data", str(folder), "--output", str(output)]
    assert gallery.main([*arguments, *options.split()]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()
