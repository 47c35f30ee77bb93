import itertools
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, tiny_model, write_folder

from alignseg_tf import losses
from training.benchmark import __main__ as benchmark
from training.benchmark.inputs import describe_input, images_per_second, run_input, time_steps

OPTIONS = [
    "--crop-size", "64", "64", "--batch-size", "2", "--rare-classes", "0.5",
    "--max-class-share", "0.9", "--photometric",
]  # fmt: skip


class Clock:
    """A step takes a second, two of the processor, and more of both with a batch that is made."""

    def __init__(self, monkeypatch):
        self.now = self.cpu = 0.0
        monkeypatch.setattr(benchmark.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(benchmark.time, "process_time", lambda: self.cpu)

    def train_function(self, batches):
        made = next(batches) == "made"
        self.now += 1.0 + made
        self.cpu += 2.0 + 3 * made
        return {"loss": 0.0}


def test_seconds_are_those_of_a_step_and_of_an_image(monkeypatch):
    clock = Clock(monkeypatch)
    assert time_steps(clock, itertools.repeat("memory"), 4) == (1.0, 2.0)
    assert time_steps(clock, itertools.repeat("made"), 3) == (2.0, 5.0)

    def slow():
        while True:
            clock.now += 0.5
            yield

    assert images_per_second(slow(), 3, 10, batch_size=4) == 8.0


def test_what_is_found_is_told():
    text = describe_input(
        {
            "pipeline_seconds": [2.0, 9.0, 2.5],
            "memory_seconds": [2.0, 2.0, 1.0],
            "waiting": 0.2,
            "pipeline_cpu_share": 0.034,
            "images_per_second": 12.34,
        }
    )
    assert "2.5000 s/step   (2.0000, 9.0000, 2.5000)" in text
    assert "2.0000 s/step   (2.0000, 2.0000, 1.0000)" in text
    assert "20.0% of a step" in text
    assert "3.4% is the pipeline's" in text
    assert "12.3 images/s" in text


def small_model(recipe, label_space):
    """What a model must have to be measured, and nothing that takes long to trace."""
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, {"segmentation": keras.layers.Conv2D(3, 1)(inputs)})
    model.normalization = None
    return model


def compile_small(model, *arguments):
    model.compile("sgd", {"segmentation": losses.CrossEntropy(255)}, jit_compile=False)


def check_command(tmp_path, capsys, *options):
    folder = write_folder(tmp_path / "data", train=4)
    arguments = ["input", "--data", str(folder), "--steps", "2", "--rounds", "3", *OPTIONS]
    file = tmp_path / "new" / "input.json"
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
    assert "waiting for data" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--cached"]])
def test_input_from_the_command_line(tmp_path, capsys, monkeypatch, options):
    monkeypatch.setattr(benchmark, "build_model", small_model)
    monkeypatch.setattr(benchmark, "compile_model", compile_small)
    check_command(tmp_path, capsys, *options)


@pytest.mark.slow
def test_input_with_a_model_of_the_library(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "build_model", lambda recipe, label_space: tiny_model())
    check_command(tmp_path, capsys)


def test_bad_data_is_an_error_of_one_line(tmp_path, capsys):
    assert benchmark.main(["input", "--data", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["input", "--data", str(tmp_path), "--steps", "0"])
    assert "expected 1 or more. Received: 0" in capsys.readouterr().err


def test_the_command_of_the_documentation_is_one():
    text = (ROOT / "docs" / "input_pipeline.md").read_text()
    commands = re.findall(r"^    python -m training.benchmark (.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        assert benchmark.build_parser().parse_args(command.split()).run is run_input


def test_memory_is_measured_on_a_image_that_is_segmented_and_counted(capsys, tmp_path, monkeypatch):
    """In small: the whole command, with a tiny network under the decoder."""

    def tiny(recipe, space):
        assert recipe.backbone_weights == "none"
        return tiny_model(num_classes=space.num_classes)

    monkeypatch.setattr(benchmark, "build_model", tiny)
    counted = []
    count = benchmark.score_image

    def watched(*arguments):
        counted.append(count(*arguments))
        return counted[-1]

    monkeypatch.setattr(benchmark, "score_image", watched)
    arguments = ["memory", "--size", "100", "150", "--classes", "7", "--tile", "64", "64"]
    assert benchmark.main([*arguments, "--json", str(tmp_path / "m.json")]) == 0
    out = capsys.readouterr().out
    assert "7 classes, image of 100 x 150, windows of 64 x 64" in out
    result = json.loads((tmp_path / "m.json").read_text())
    assert result["peak_bytes"] >= result["start_bytes"] > 10**8
    assert counted[0].pixels.sum() == 100 * 150
    assert counted[0].confusion(7).shape == (7, 7)
    assert benchmark.main(["memory", "--tile", "8", "8"]) == 2
    assert "`tile` must be at least 32" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--forms", "frozen", "function"],
        ["--work", "training", "--forms", "function"],
        ["--work", "sampling_training", "--forms", "gather"],
    ],
)
def test_speed_in_small(arguments, capsys, tmp_path):
    """The commands of docs/performance.md on images of 64 x 96."""
    pytest.importorskip("torch")
    against = str(ROOT / "training" / "torch_forms.py")
    arguments = ["speed", *arguments, "--against", against, "--against-forms", "channels_last"]
    small = ["--size", "64", "96", "--channels", "8", "--classes", "3", "--rounds", "2"]
    file = tmp_path / "found.json"
    assert benchmark.main([*arguments, *small, "--json", str(file)]) == 0
    assert "/ torch channels_last" in capsys.readouterr().out
    for form in json.loads(file.read_text())["forms"].values():
        assert len(form["seconds"]) == 2
        assert form["images_per_second"] > 0
