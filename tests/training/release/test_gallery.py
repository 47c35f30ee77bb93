"""Galleries of predictions."""

import json

import numpy as np
import pytest
from conftest import CLASSES, tiny_model, write_folder
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


def test_each_panel_shows_what_it_says(scene):
    truth = np.zeros(scene.shape[:2], np.uint8)
    predicted = np.eye(*truth.shape, dtype=np.uint8)
    palette = [(255, 0, 0), (0, 255, 0)]
    panels = [gallery.draw_panel(name, scene, truth, predicted, palette) for name in gallery.PANELS]
    expected = [
        scene,
        visualization.overlay(scene, truth, palette),
        visualization.overlay(scene, predicted, palette),
        visualization.mistakes(scene, truth, predicted),
    ]
    for one, other in zip(panels, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_columns_and_the_legend_have_their_places(folder):
    data = open_data(folder)
    samples = [(sample, sample.image.name) for sample in data.samples("train")[:3]]
    image, truth = load_sample(samples[0][0], data.label_space)
    height, width = image.shape[:2]
    drawn = gallery.draw_gallery(
        samples, lambda pixels: truth, data.label_space, ["image", "truth"], 2, width
    )
    tile = 2 * width + gallery.GAP
    assert drawn.shape[1] == 2 * tile + 3 * gallery.GAP
    line = 18
    np.testing.assert_array_equal(drawn[line : line + height, :width], image)
    second = load_sample(samples[1][0], data.label_space)[0]
    left = tile + 3 * gallery.GAP
    np.testing.assert_array_equal(drawn[line : line + height, left : left + width], second)
    # Three images in two columns: the fourth place is empty.
    below = drawn[line + height : 2 * (line + height), left:]
    assert (below == 255).all()
    legend = visualization.legend(data.label_space, drawn.shape[1])
    np.testing.assert_array_equal(drawn[2 * (line + height) :], legend)


def test_images_of_other_shapes_are_fitted():
    image = np.zeros((20, 40, 3), np.uint8)
    fitted = gallery._fitted(image, (60, 60))
    assert fitted.shape == (60, 60, 3)
    assert (fitted[:14] == 255).all()
    assert (fitted[16:44] == 0).all()


@pytest.fixture
def saved(tmp_path):
    model = tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


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
    for choose, count, expected in (("worst", "1", [worst]), ("spread", "2", [worst, best])):
        assert gallery.main([*arguments, "--choose", choose, "--images", count]) == 0
        assert texts == [f"{i:03d}.png: {100 * scores.image_iou[i]:.2f} %" for i in expected]
        texts.clear()
        said = f"{count} of 4 images, with the mean IoU of each: {output}"
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
    arguments = [str(saved), "--data", str(folder)]
    if script is gallery:
        arguments += ["--output", str(tmp_path / "gallery.png")]
    assert script.main(arguments) == 0
    assert "was trained on these images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--output", "gallery.gif"],
            "--output must end in .png, .jpg, .jpeg. Received: gallery.gif",
        ),
        (["--split", "test"], "images/test: no such folder"),
    ],
)
def test_bad_arguments_are_named(saved, folder, tmp_path, capsys, options, said):
    output = tmp_path / "gallery.png"
    arguments = [str(saved), "--data", str(folder), "--output", str(output)]
    assert gallery.main([*arguments, *options]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()
