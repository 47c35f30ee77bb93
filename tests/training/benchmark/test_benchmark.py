import itertools
import json
import shlex
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, tiny_model, write_folder

from alignseg_tf import losses
from training.benchmark import __main__ as benchmark
from training.benchmark import inputs, memory

OPTIONS = [
    "--crop-size", "64", "64", "--batch-size", "2", "--rare-classes", "0.5",
    "--max-class-share", "0.9", "--photometric",
]  # fmt: skip


def test_seconds_are_those_of_a_step_and_of_an_image(monkeypatch):
    """A step takes a second, two of the processor, and more of both with a batch that is made."""
    seconds, cpu_seconds = [0.0], [0.0]
    monkeypatch.setattr(inputs.time, "perf_counter", lambda: sum(seconds))
    monkeypatch.setattr(inputs.time, "process_time", lambda: sum(cpu_seconds))

    def train_function(batches):
        made = next(batches) == "made"
        seconds.append(1.0 + made)
        cpu_seconds.append(2.0 + 3 * made)
        return {"loss": 0.0}

    model = SimpleNamespace(train_function=train_function)
    assert inputs.time_steps(model, itertools.repeat("memory"), 4) == (1.0, 2.0)
    assert inputs.time_steps(model, itertools.repeat("made"), 3) == (2.0, 5.0)
    slow = (seconds.append(0.5) for _ in itertools.count())
    assert inputs.images_per_second(slow, 3, 10, batch_size=4) == 8.0


def small_model(recipe, label_space):
    """What a model must have to be measured, and nothing that takes long to trace."""
    image = keras.Input((None, None, 3))
    model = keras.Model(image, {"segmentation": keras.layers.Conv2D(3, 1)(image)})
    model.normalization = None
    return model


@pytest.mark.parametrize("options", [[], ["--cached"]])
def test_input_from_the_command_line(tmp_path, capsys, monkeypatch, options):
    monkeypatch.setattr(inputs, "build_model", small_model)
    loss = losses.CrossEntropy(255)
    monkeypatch.setattr(
        inputs, "compile_model", lambda model, *_: model.compile("sgd", {"segmentation": loss})
    )
    folder = write_folder(tmp_path / "data", train=4)
    file = tmp_path / "new" / "input.json"
    arguments = ["input", "--data", str(folder), "--steps", "2", "--rounds", "3", *OPTIONS]
    assert benchmark.main([*arguments, *options, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    medians = [np.median(found[f"{kind}_seconds"]) for kind in ("pipeline", "memory")]
    assert all(len(found[f"{kind}_seconds"]) == 3 for kind in ("pipeline", "memory"))
    assert found["waiting"] == pytest.approx(1 - medians[1] / medians[0])
    assert found["pipeline_cpu_share"] < 1
    assert found["images_per_second"] > 0
    assert (found["crop_size"], found["images"]) == ([64, 64], 4)
    assert found["cached"] == bool(options)
    assert found["versions"]["tensorflow"] == tf.__version__
    printed = capsys.readouterr().out
    assert f"{medians[0]:.4f} s/step" in printed
    assert f"{found['waiting']:.1%} of a step" in printed


def test_bad_data_is_an_error_of_one_line(tmp_path, capsys):
    assert benchmark.main(["input", "--data", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["input", "--data", str(tmp_path), "--steps", "0"])
    assert "expected 1 or more. Received: 0" in capsys.readouterr().err


def test_memory_is_measured_on_an_image_that_is_segmented_and_counted(
    capsys, tmp_path, monkeypatch
):
    """In small: the whole command, with a tiny network under the decoder."""

    def tiny(recipe, space):
        assert recipe.backbone_weights == "none"
        return tiny_model(num_classes=space.num_classes)

    monkeypatch.setattr(memory, "build_model", tiny)
    counted = []
    count = memory.score_image
    monkeypatch.setattr(memory, "score_image", lambda *arguments: counted.append(count(*arguments)))
    arguments = ["memory", "--size", "100", "150", "--classes", "7", "--tile", "64", "64"]
    assert benchmark.main([*arguments, "--json", str(tmp_path / "m.json")]) == 0
    assert "7 classes, image of 100 x 150, windows of 64 x 64" in capsys.readouterr().out
    result = json.loads((tmp_path / "m.json").read_text())
    assert result["peak_bytes"] >= result["start_bytes"] > 10**8
    assert counted[0].pixels.sum() == 100 * 150
    assert counted[0].confusion(7).shape == (7, 7)
    assert benchmark.main(["memory", "--tile", "8", "8"]) == 2
    assert "`tile` must be at least 32" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--forms frozen function",
        "--work training --forms function",
        "--work sampling_training --forms gather",
    ],
)
def test_speed_in_small(options, capsys, tmp_path):
    """The commands of docs/performance.md on images of 64 x 96."""
    pytest.importorskip("torch")
    against = str(ROOT / "training" / "benchmark" / "torch_forms.py")
    small = "--size 64 96 --channels 8 --classes 3 --rounds 2 --against-forms channels_last"
    file = tmp_path / "found.json"
    arguments = [*shlex.split(f"{options} {small}"), "--against", against, "--json", str(file)]
    assert benchmark.main(["speed", *arguments]) == 0
    assert "/ torch channels_last" in capsys.readouterr().out
    for form in json.loads(file.read_text())["forms"].values():
        assert len(form["seconds"]) == 2
        assert form["images_per_second"] > 0
