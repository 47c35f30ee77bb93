"""The training script end to end, on images of boxes and discs."""

import contextlib
import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, leftover, write_folder
from PIL import Image

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.pipeline import View
from alignseg_tf.data.sources import open_data
from alignseg_tf.layers.nested import nested_layers
from alignseg_tf.metrics import mean_iou
from alignseg_tf.prediction.protocol import axis_windows
from alignseg_tf.system.files import RECORD_FILE
from training import build, demo, evaluate, train
from training.build import for_inference
from training.callbacks import run_folder as callbacks
from training.callbacks.run_folder import (
    CONTENT,
    FILES_FILE,
    check_run_folder,
    data_files,
    describe_run,
)
from training.callbacks.stopping import RunStoppedError
from training.data import check_data, training_samples, validation_views
from training.dry_run import dry_run
from training.options import load_recipe, recipe_names
from training.recipe import Recipe, RecipeError

OPTIONS = [
    "--crop-size", "64", "64", "--channels", "8", "--batch-size", "2", "--epochs", "2",
    "--backbone-weights", "none", "--scale", "0.8", "1.2",
]  # fmt: skip


def arguments(folder: Path, output: Path, *options: str) -> list[str]:
    return ["--data", str(folder), "--output", str(output), *OPTIONS, *options]


def start(*words, **kwargs) -> subprocess.Popen:
    """Start a training in its own process."""
    command = [sys.executable, "-m", "training.train", *arguments(*words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, **kwargs)


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(output: Path) -> dict[str, np.ndarray]:
    """Every number in `last.keras`: weights, batch statistics and the optimizer's state."""
    items = {}
    with (
        zipfile.ZipFile(output / "last.keras") as archive,
        archive.open("model.weights.h5") as file,
        h5py.File(file) as h5,
    ):
        h5.visititems(items.__setitem__)
        return {name: item[()] for name, item in items.items() if isinstance(item, h5py.Dataset)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, Path]:
    """A data folder and a finished run on it."""
    base = tmp_path_factory.mktemp("training")
    folder = write_folder(base / "data", train=4, val=2, sizes=((64, 96), (72, 64)))
    with (base / "stdout").open("w") as out, contextlib.redirect_stdout(out):
        assert train.main(arguments(folder, base / "run")) == 0
    return folder, base / "run"


def test_a_run_leaves_its_files(unbroken):
    _, output = unbroken
    assert {p.name for p in output.iterdir()} == {
        RECORD_FILE, "run.json", "metrics.csv", "iou.csv", "best.keras", "last.keras",
        "evaluation.json", "report.json", "report.md", "curves.png", "tensorboard",
        "data_files.json",
    }  # fmt: skip
    text = (output.parent / "stdout").read_text()
    for expected in ("4 training images, 64 x 64 to 96 x 72", " left", "mean IoU"):
        assert expected in text
    assert [row["epoch"] for row in rows(output)] == ["0", "1"]
    assert float(rows(output)[1]["learning_rate"]) == 0.0
    assert list((output / "tensorboard").rglob("*tfevents*"))


def test_best_is_for_use_and_repeats_its_figure(unbroken, capsys):
    folder, output = unbroken
    model = keras.saving.load_model(output / "best.keras")
    assert getattr(model, "optimizer", None) is None
    assert model.label_space["classes"] == ["ground", "box", "disc"]
    file = output.parent / "evaluation.json"
    words = [str(output / "best.keras"), "--data", str(folder), "--json", str(file)]
    assert evaluate.main(words) == 0
    report = json.loads(file.read_text())
    best = max(float(row[callbacks.VALIDATION_METRIC]) for row in rows(output))
    assert report["mean_iou"] == pytest.approx(best, abs=2e-5)
    assert mean_iou(np.array(report["confusion"])) == report["mean_iou"]
    assert "disc" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path):
    """SIGKILL in the middle of an epoch, then the same command again."""
    folder = write_folder(tmp_path / "data", train=24, val=1)
    assert start(folder, tmp_path / "unbroken").wait() == 0
    output = tmp_path / "killed"
    process = start(folder, output, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (output / "last.keras").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)  # an epoch has 12 steps of about 0.2 seconds
    process.send_signal(signal.SIGKILL)
    process.wait()
    with zipfile.ZipFile(output / "last.keras") as archive:
        assert archive.read(callbacks.EPOCHS_DONE) == b"1", "killed too late"
    # What a kill while saving leaves behind, from a process that is gone.
    leftover(output / "last.keras").write_bytes(b"half")

    assert start(folder, output).wait() == 0
    assert not [path for path in output.glob(".*") if path.name != RECORD_FILE]
    ours, theirs = state(output), state(tmp_path / "unbroken")
    assert ours.keys() == theirs.keys()
    assert any("optimizer" in name for name in ours)
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for row, other in zip(rows(output), rows(tmp_path / "unbroken"), strict=True):
        assert row["learning_rate"] == other["learning_rate"]
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)


@pytest.mark.slow
def test_overflown_steps_of_float16_do_not_repeat_an_epoch(tmp_path, capsys):
    """The optimizer does not count steps that overflow."""
    folder = write_folder(tmp_path / "data", train=4, val=1)
    options = ["--dtype-policy", "mixed_float16", "--epochs", "1"]
    for _ in range(2):
        assert train.main(arguments(folder, tmp_path / "run", *options)) == 0
    assert "after epoch 1/1" in capsys.readouterr().out
    assert len(rows(tmp_path / "run")) == 1


@pytest.mark.slow
def test_the_demo_on_a_folder(tmp_path, monkeypatch, capsys):
    folder = write_folder(tmp_path / "data", train=8, val=9, sizes=((64, 96), (96, 64)))
    monkeypatch.setattr(demo, "PIXEL_BUDGET", 1e5)
    output = tmp_path / "demo"
    street = str(folder / "images" / "val" / "000.png")
    assert demo.main(["--data", str(folder), "--output", str(output), "--image", street]) == 0
    text = capsys.readouterr().out
    for expected in (
        f"as the trained model {demo.TRAINED} sees it: {output / 'trained.png'}",
        "disc", "mean IoU", "agrees with it on 100.00 %", "predict",
    ):  # fmt: skip
        assert expected in text
    overlays = sorted((output / "overlays").glob("*.png"))
    assert len(overlays) == demo.IMAGES
    for path in (output / "trained.png", overlays[0]):
        with Image.open(path) as image:
            assert image.width == 2 * 96 + 4
            assert image.height > 64 + 20  # the legend
    assert json.loads((output / "evaluation.json").read_text())["images"] == 9


def test_the_demo_fits_its_recipe_to_the_data(tmp_path):
    folder = write_folder(tmp_path / "data", train=3, val=1, sizes=((70, 130),))
    recipe = demo.own_data_recipe(open_data(folder))
    assert recipe.crop_size == (64, 128)
    assert recipe.batch_size == 3
    assert recipe.epochs == 60


def test_a_demo_that_is_stopped_says_how_to_resume(monkeypatch, capsys):
    def stopped(parsed):
        raise RunStoppedError("stopped by SIGINT; the same command resumes", 130)

    monkeypatch.setattr(demo, "run_demo", stopped)
    assert demo.main([]) == 130
    assert capsys.readouterr().err == "error: stopped by SIGINT; the same command resumes\n"


def test_a_finished_run_is_evaluated_again(unbroken, capsys):
    folder, output = unbroken
    before = state(output)
    assert train.main(arguments(folder, output)) == 0
    assert "after epoch 2/2" in capsys.readouterr().out
    np.testing.assert_equal(state(output), before)


@pytest.mark.smoke
def test_a_dry_run_tells_what_a_run_would_take(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", train=4, val=3)
    options = ("--dry-run", "--epochs", "30", "--accumulate", "2", "--aggregation", "bilinear")
    assert train.main(arguments(folder, tmp_path / "run", *options)) == 0
    assert not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    for expected in (
        r"loss \d+\.\d{3}\n", r"step: \d+\.\d\d s for 2 crops of 64 x 64", r"memory: \d\.\d GiB",
        r"validation: \d+\.\d\d s a batch, 3 batches",
        r"whole run: 30 epochs of 2 steps and 30 validations, about \d+:\d\d",
    ):  # fmt: skip
        assert re.search(expected, printed), printed


def test_a_dry_run_of_one_step_measures_it(capsys):
    """Data of one batch, for one epoch: fewer steps than are timed."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    batch = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
    one = tf.data.Dataset.from_tensors(batch)
    dry_run(model, Recipe(epochs=1), one, one, steps=1, validations=1)
    out = capsys.readouterr().out
    assert "1 batches" in out
    assert "nan" not in out
    assert "1 epochs of 1 steps and 1 validations" in out


def test_fine_tuning_says_what_it_keeps(unbroken, capsys):
    best = unbroken[1] / "best.keras"
    recipe = Recipe(start_from=str(best), channels=8, backbone_weights="none", seed=1)
    model = build.build_model(recipe, LabelSpace(("ground", "thing")))
    assert "kept: aggregation_context" in capsys.readouterr().out
    trained = {weight.path: weight for weight in keras.saving.load_model(best).weights}
    for weight in model.weights:
        if "/classifier/" not in weight.path:
            np.testing.assert_array_equal(weight, trained[weight.path], err_msg=weight.path)
    assert model.output["segmentation"].shape[-1] == 2
    with pytest.raises(RecipeError, match="into resnet50 with --channels 8: .* same backbone"):
        build.build_model(dataclasses.replace(recipe, backbone="resnet50"), LabelSpace(("a",)))


def test_another_run_is_kept_out_of_the_folder(unbroken, tmp_path, capsys):
    """Another recipe; then the same names of files, one label corrected."""
    folder, output = unbroken
    before = {path: path.read_bytes() for path in output.iterdir() if path.is_file()}
    assert train.main(arguments(folder, output, "--learning-rate", "0.5")) == 2
    assert "holds another run:\n  learning_rate: 0.001 there, 0.5 here\n" in capsys.readouterr().err
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    label = copy / "labels" / "train" / "001.png"
    Image.fromarray(np.asarray(Image.open(label))[::-1].copy()).save(label)
    assert train.main(arguments(copy, output)) == 2
    assert "files: 1 changed: labels/train/001.png" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_the_script_runs_on_two_replicas(tmp_path):
    """Also with images of several sizes, whose validation batches are filled up."""
    folder = write_folder(tmp_path / "data", train=4, val=3, sizes=((64, 96), (72, 64)))
    options = ("--cpu-replicas", "2", "--epochs", "1")
    assert start(folder, tmp_path / "run", *options).wait() == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert float(rows(tmp_path / "run")[0][callbacks.VALIDATION_METRIC]) == pytest.approx(
        report["mean_iou"], abs=2e-3
    )
    model = keras.saving.load_model(tmp_path / "run" / "best.keras")
    norms = [x for x in nested_layers(model) if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) > 10
    assert not any(norm.synchronized for norm in norms)


def broken_size(folder):
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(folder / "labels/val/001.png")


def broken_image(folder):
    (folder / "images/train/003.png").write_bytes(b"cut off")


def broken_classes(folder):
    (folder / "classes.json").write_text(json.dumps({"classes": ["ground", "box"]}))


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (broken_size, "", "labels/val/001.png: the label is 10 x 10 pixels"),
        (broken_image, "", "images/train/003.png: not readable as an image"),
        (broken_classes, "", "unknown label values [2]: the 2 classes have 0..1"),
        (None, "--batch-size 99", "a batch of 99 needs as many"),
        (None, "--crop-size 32 64", "at least 64 x 64"),
        (None, "--context global --batch-size 1", "at least 2 crops"),
        (None, "--start-from gone.keras", "start_from: gone.keras: no such file"),
        (None, "--recipe nothing", "no recipe 'nothing'; there are: "),
        (None, "--backbone resnet50 --backbone-weights imagenet", "comes without ImageNet weights"),
        (None, "--backbone resnet50 --backbone-weights gone.npz", "gone.npz: no such file"),
    ],
)
def test_bad_input_is_found_before_training(tmp_path, damage, options, message, capsys):
    folder = write_folder(tmp_path / "data", train=4)
    if damage:
        damage(folder)
    assert train.main(arguments(folder, tmp_path / "run", *options.split())) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluating_with_other_classes_is_refused(unbroken, tmp_path, capsys):
    _, output = unbroken
    other = write_folder(tmp_path / "data")
    (other / "classes.json").write_text(json.dumps({"classes": list("abcd")}))
    assert evaluate.main([str(output / "best.keras"), "--data", str(other)]) == 2
    assert "ground, box, disc in the model and a, b, c, d in the data" in capsys.readouterr().err


def test_recipes_load():
    for name in recipe_names():
        recipe = load_recipe(name)
        assert isinstance(recipe, Recipe)
        assert train.stages(recipe)[-1][1] == recipe.epochs


def described(folder, recipe=None):
    """Return what a run is, and its files, as training writes them."""
    recipe, data = recipe or Recipe(), open_data(folder)
    training = training_samples(recipe, data)
    return describe_run(recipe, data, training), data_files(data, training)


@pytest.fixture
def run_of(tmp_path):
    """The folder of a run that has only said what it is, and its data."""
    data = write_folder(tmp_path / "data", train=3, val=2)
    (tmp_path / "run").mkdir()
    run, files = described(data)
    check_run_folder(tmp_path / "run", run, files)
    (tmp_path / "run" / train.RUN_FILE).write_text(json.dumps(run))
    (tmp_path / "run" / FILES_FILE).write_text(json.dumps(files))
    return tmp_path / "run", data


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_run_belongs_to_the_content_of_its_data(run_of, part):
    output, data = run_of
    check_run_folder(output, *described(data))
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(data / f"labels/{part}/000.png")
    for folder in ("images", "labels"):
        (data / folder / part / "001.png").rename(data / folder / part / "new.png")
    with pytest.raises(RecipeError, match="holds another run") as caught:
        check_run_folder(output, *described(data))
    line = next(line for line in str(caught.value).splitlines() if "  files: " in line)
    for said in (
        f"1 changed: labels/{part}/000.png",
        f"2 removed: images/{part}/001.png, labels/{part}/001.png",
        f"2 added: images/{part}/new.png, labels/{part}/new.png",
    ):
        assert said in line


@pytest.mark.parametrize(
    ("recipe", "classes", "message"),
    [
        (Recipe(train_on="train+val"), {}, "train_on: 'train' there, 'train[+]val' here"),
        (Recipe(), {"classes": ["ground", "box", "ring"]}, "classes: "),
        # The same names of classes, but 2 is void, and 255 a class.
        (Recipe(), {"void": 2, "ids": [0, 1, 255]}, "label_encoding: 2 changed: void, ids"),
    ],
)
def test_another_recipe_or_other_classes_make_another_run(run_of, recipe, classes, message):
    output, data = run_of
    content = json.loads((data / "classes.json").read_text())
    (data / "classes.json").write_text(json.dumps(content | classes))
    with pytest.raises(RecipeError, match=message):
        check_run_folder(output, *described(data, recipe))


def test_initial_weights_that_were_replaced_make_another_run(run_of, tmp_path):
    output, data = run_of
    start = tmp_path / "start.keras"
    start.write_bytes(b"one")
    recipe = Recipe(start_from=str(start))
    (output / train.RUN_FILE).write_text(json.dumps(described(data, recipe)[0]))
    start.write_bytes(b"two")
    with pytest.raises(RecipeError, match="initial_weights: "):
        check_run_folder(output, *described(data, recipe))
    start.unlink()  # the run has its own weights since
    check_run_folder(output, *described(data, recipe))


def test_an_older_run_goes_on(run_of, capsys):
    """One from before fingerprints, and from before an option."""
    output, data = run_of
    run, files = described(data)
    check_run_folder(output, run, files)
    assert capsys.readouterr().out == ""
    older = {name: run[name] for name in run if name not in {*CONTENT, "train_on"}}
    (output / train.RUN_FILE).write_text(json.dumps(older))
    check_run_folder(output, run, files)
    assert "an older run that did not record" in capsys.readouterr().out
    (output / train.RUN_FILE).write_text("[]")
    with pytest.raises(RecipeError, match=r"run\.json: expected the values of a training run"):
        check_run_folder(output, run, files)
    (output / train.RUN_FILE).unlink()
    (output / "last.keras").touch()
    with pytest.raises(RecipeError, match=r"Received: one with last.keras, but without run.json"):
        check_run_folder(output, run, files)


def test_training_says_what_is_odd_about_the_data(tmp_path, capsys):
    root = write_folder(tmp_path / "data", train=3, val=2)
    data = open_data(root)
    check_data(data, training_samples(Recipe(), data))
    assert "Warning" not in capsys.readouterr().out
    both = training_samples(Recipe(train_on="train+val"), data)
    assert both == data.samples("train") + data.samples("val")
    check_data(data, both)
    assert "Warning: 2 of the validation images are trained on" in capsys.readouterr().out
    shutil.copy(root / "images/train/000.png", root / "images/train/001.png")
    (root / "images/train/x.heic").touch()
    for folder in ("images", "labels"):  # known by its content
        shutil.copy(root / folder / "train" / "002.png", root / folder / "val" / "copy.png")
    data = open_data(root)
    check_data(data, data.samples("train"))
    printed = capsys.readouterr().out
    assert "not read: 1 .heic\n" in printed
    assert "Warning: 1 train images are there twice: " in printed
    assert "Warning: 1 of the validation images are trained on" in printed


@pytest.mark.parametrize(
    ("value", "classes", "hint"),
    [
        (1, {"classes": ["crack"], "ids": [1], "void": 0}, "the only class with pixels is crack"),
        (255, {"classes": ["background", "crack"]}, "is it what counts as void"),
    ],
)
def test_data_with_nothing_to_learn_are_refused(value, classes, hint, tmp_path):
    root = write_folder(tmp_path / "data", train=2, val=1)
    label = np.zeros((64, 96), np.uint8)
    label[:, 48:] = value
    for path in root.glob("labels/*/*.png"):
        Image.fromarray(label).save(path)
    (root / "classes.json").write_text(json.dumps(classes))
    data = open_data(root)
    with pytest.raises(DataError, match=f"000.png and all others: nothing to learn: .*{hint}"):
        check_data(data, data.samples("train"))


def test_class_weights_have_a_mean_pixel_of_one():
    pixels = np.array([900, 90, 10, 0])
    weights = build.class_weights(Recipe(class_weights="sqrt_inverse"), pixels)
    assert weights[1] / weights[0] == pytest.approx(10**0.5)
    assert weights[3] == 0
    assert np.dot(weights, pixels / pixels.sum()) == pytest.approx(1.0)
    assert build.class_weights(Recipe(), pixels) is None


def test_stages_and_validation():
    recipe = Recipe(epochs=10, small_crop_epochs=4, validate_every=4, crop_size=(352, 480))
    assert train.stages(recipe) == [(0, 4, (256, 352)), (4, 10, (352, 480))]
    assert train.validation_epochs(recipe) == [4, 8, 10]
    assert train.stages(Recipe(epochs=3, small_crop_epochs=9)) == [(0, 3, (256, 352))]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("optimizer", "adam", "one of .* Received: 'adam'"), ("epochs", 0, "positive"),
        ("weight_decay", -1.0, "at least 0"), ("learning_rate", float("nan"), "finite"),
        ("scale", (0.5, float("inf")), "finite"), ("scale", (2, 1), "0 < low <= high"),
        ("crop_size", (32, 64), "at least 64 x 64"), ("channels", 6, "a multiple of 4"),
        ("color", 1.5, r"in \[0, 1\)"), ("max_class_share", 0.0, r"in \(0, 1\]"),
        ("warmup_epochs", 24, "less than the 24 epochs"),
    ],
)  # fmt: skip
def test_bad_values_are_refused(name, value, expected):
    with pytest.raises(RecipeError, match=f"{name} must be {expected}"):
        Recipe(**{name: value})


def test_the_recipe_reaches_the_optimizer():
    recipe = Recipe(
        channels=8, backbone_weights="none", epochs=4, warmup_epochs=1.0, schedule="cosine",
        backbone_rate=0.1, head_rate=10.0, decay_norms_and_biases=False, clip_norm=2.0,
        accumulate=3, ema=0.9, label_smoothing=0.1, freeze_batch_norm=True, xla=True,
    )  # fmt: skip
    space = LabelSpace(("a", "b"))
    model = build.build_model(recipe, space)
    build.compile_model(model, recipe, space, np.array([5, 5]), 10)
    optimizer = model.optimizer
    rates = [float(optimizer._learning_rate(step)) for step in (0, 5, 10, 25, 40)]
    np.testing.assert_allclose(rates, np.array([1 / 11, 6 / 11, 1, 0.5, 0]) * 1e-3, atol=1e-9)
    assert optimizer.learning_rate_factors["stem_conv"] == 0.1
    assert optimizer.learning_rate_factors["segmentation_head"] == 10.0
    assert "refinement_p2" not in optimizer.learning_rate_factors
    assert not optimizer.decay_norms_and_biases
    assert (optimizer.global_clipnorm, optimizer.gradient_accumulation_steps) == (2.0, 3)
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.9)
    assert optimizer.weight_decay == recipe.weight_decay
    assert model.jit_compile is True
    config = model.get_compile_config()["loss"]
    for name in ("segmentation", "auxiliary"):
        assert config[name]["config"]["label_smoothing"] == 0.1
    frozen, of_backbone = (
        {x.path for x in nested_layers(part) if isinstance(x, keras.layers.BatchNormalization)}
        for part in (model, model.backbone)
    )
    frozen = {x.path for x in nested_layers(model) if x.path in frozen and not x.trainable}
    assert frozen == of_backbone != set()
    assert not model.upsample_logits  # losses and metrics resize in bands
    copy = for_inference(model)
    assert copy.upsample_logits
    assert len(copy.trainable_weights) > len(model.trainable_weights)


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ("cross_entropy", ["CrossEntropy"]),
        ("ohem", ["OhemCrossEntropy"]),
        ("boundary", ["BoundaryCrossEntropy"]),
        ("cross_entropy+lovasz", ["CrossEntropy", "LovaszSoftmax"]),
        ("cross_entropy+dice", ["CrossEntropy", "DiceLoss"]),
    ],
)
def test_losses_by_name(loss, parts):
    built = build.build_loss(Recipe(loss=loss), None)
    assert [type(part).__name__ for part in getattr(built, "losses", [built])] == parts
    if loss == "cross_entropy+lovasz":
        assert built.weights == [1.0, 0.8]  # the official code's


def test_validation_cuts_very_large_images_as_prediction_does():
    whole, *tiles = validation_views(np.array([[64, 96], [3000, 4000]]))
    assert whole == View(0)
    counts = np.zeros((3000, 4000), int)
    for view in tiles:
        assert view.index == 1
        assert [part.stop - part.start for part in view.tile] == [1024, 1024]
        for part, counted in zip(view.tile, view.counted, strict=True):
            assert part.start <= counted.start < counted.stop <= part.stop
        counts[view.counted] += 1
    assert (counts == 1).all()
    columns = sorted({view.tile[1].start for view in tiles})
    assert columns == [window.start for window in axis_windows(4000, 4000, 1024)]
    second = tiles[1].counted[1]
    assert second == slice((1024 + 683) // 2, (683 + 1024 + 2 * 683) // 2)
