"""The command `export`."""

import re

import numpy as np
import pytest
from conftest import CLASSES, ROOT, shared_tiny_model, tiny_model

from alignseg_tf.__main__ import main
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.sources import open_data
from alignseg_tf.evaluation.evaluator import evaluate_model
from alignseg_tf.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model whose folder tests may write to."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict()).save(path)
    return path


@pytest.mark.slow
def test_a_table_compares_files_with_the_model(model_file, folder, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    images = str(folder / "images" / "train")
    arguments = [
        "export", str(model_file), "--output", str(tmp_path / "tiny.tflite"),
        "--size", "64", "96", "--quantization", "float32", "int8", "--calibration", images,
        "--check", images, "--data", str(folder),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert sorted(x.name for x in tmp_path.glob("*.tflite")) == [
        "tiny_float32.tflite", "tiny_int8.tflite"
    ]  # fmt: skip
    output = capsys.readouterr().out
    data = open_data(folder)
    for path in (model_file, *tmp_path.glob("*.tflite")):
        report = evaluate_model(path, [Predictor(path)], data.samples("val"), data.label_space)
        line = next(line for line in output.splitlines() if line.startswith(str(path)))
        assert line.endswith(f"{100 * report.mean_iou:6.2f} %")
        assert re.search(r"\d MB +\d+ ms", line)
    assert "on 6 images" in output


def test_the_card_has_what_lies_beside_the_model(model_file, tmp_path):
    (tmp_path / "about.md").write_text("Drawn boxes, CC0.")
    (model_file.parent / "run.json").write_text('{"epochs": 5}')
    target = tmp_path / "boxes" / "2"
    arguments = ["export", str(model_file), "--output", str(target)]
    assert main([*arguments, "--about", str(tmp_path / "about.md")]) == 0
    card = (tmp_path / "boxes" / "MODEL_CARD.md").read_text()
    assert "Drawn boxes, CC0." in card
    assert "| epochs | 5 |" in card
    assert card.startswith("# boxes\n")


@pytest.mark.parametrize("output", ["x/1", "x.onnx", "x.tflite"])
def test_nothing_is_kept_of_a_model_whose_logits_are_not_finite(tmp_path, output, capsys):
    pytest.importorskip({"x.onnx": "tf2onnx", "x.tflite": "ai_edge_litert"}.get(output, "numpy"))
    model = tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    kernel = model.get_layer("segmentation_head").classifier.kernel
    kernel.assign(np.full(kernel.shape, 3e38))
    model.save(tmp_path / "spoilt.keras")
    assert main(["export", str(tmp_path / "spoilt.keras"), "--output", str(tmp_path / output)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'spoilt.keras'}: check image 1: expected finite logits" in error
    assert "Received: NaN or infinity" in error
    assert [path.name for path in tmp_path.rglob("*.*")] == ["spoilt.keras"]


@pytest.mark.parametrize("name", ["x.tflite", "x.onnx", "x_int8.tflite"])
def test_a_file_is_replaced_only_if_an_export_wrote_it(model_file, tmp_path, name, capsys):
    pytest.importorskip({"x.onnx": "tf2onnx"}.get(name, "ai_edge_litert"))
    (tmp_path / name).write_bytes(b"mine")
    output = str(tmp_path / name.replace("_int8", ""))
    arguments = ["export", str(model_file), "--output", output]
    if "int8" in name:
        image = str(ROOT / "docs" / "images" / "street_scenes.jpg")
        arguments += ["--quantization", "float32", "int8", "--size", "64", "96"]
        arguments += ["--calibration", image]
    assert main(arguments) == 2
    assert f"{name}: expected a new file, or one that export wrote" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"
    if "int8" not in name:
        assert main([*arguments, "--overwrite"]) == 0
        first = (tmp_path / name).stat().st_ino
        assert main(arguments) == 0
        assert (tmp_path / name).stat().st_ino != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.keras"], "--output must be a folder, or end in .tflite or .onnx"),
        (["--output", "x/1", "--quantization", "int8"], "x/1 must be float32 or float16 or bf"),
        (["--output", "x/1", "--quantization", "float16", "float32"], "Received: float16 float32"),
        (["--output", "x.tflite", "--quantization", "bfloat16"], "x.tflite must be float32 or"),
        (["--output", "x.onnx", "--quantization", "float16"], "x.onnx must be float32. Received"),
        (["--output", "x/1", "--returns", "logits"], "--returns is for .tflite"),
        (["--output", "x/1", "--fused"], "--fused is for a SavedModel with --size"),
        (["--output", "x.onnx", "--size", "64", "96", "--fused"], "--fused is for a SavedModel"),
        (["--output", "x.onnx", "--about", "a.md"], "--about and --quality are for a SavedModel"),
        (["--output", "x.tflite", "--quantization", "int8"], "needs --size HEIGHT WIDTH and --cal"),
        (["--output", "x.tflite", "--size", "16", "64"], "must be at least 32 x 32"),
        (["--output", "x/1", "--quality", "gone.json"], "gone.json: expected the JSON"),
        (["--output", "x/1", "--data", "gone"], "gone: no such file or folder"),
    ],
)
def test_bad_options_are_named(model_file, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(model_file), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
