"""Each data set in its own layout, from the command line to an evaluated model."""

import json

import pytest
from data_fixtures import FIXTURES

from alignseg_tf import backbones
from alignseg_tf.data.sources import open_data
from training import build, evaluate, train

OPTIONS = [
    "--crop-size", "64", "64", "--channels", "8", "--batch-size", "1", "--epochs", "1",
    "--scale", "0.8", "1.2", "--backbone-weights", "none",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(FIXTURES))
def test_a_data_set_trains_and_evaluates(layout, tmp_path, monkeypatch, capsys):
    """Two steps or more; the network under the decoder is a tiny one, for speed."""
    tiny = backbones.resnet((1, 1, 1, 1), width=8)
    monkeypatch.setattr(build, "build_backbone", lambda recipe: tiny)
    data = FIXTURES[layout](tmp_path / "data")
    output = tmp_path / "run"
    arguments = ["--data", str(data), "--layout", layout]
    assert train.main([*arguments, "--output", str(output), *OPTIONS]) == 0, capsys.readouterr().err
    trained = json.loads((output / "evaluation.json").read_text())
    report = tmp_path / "report.json"
    assert evaluate.main(
        [str(output / "best.keras"), *arguments, "--json", str(report)]
    ) == 0, capsys.readouterr().err  # fmt: skip
    assert json.loads(report.read_text())["confusion"] == trained["confusion"]
    source = open_data(data)
    assert source.layout.name == layout
    assert list(trained["iou"]) == list(source.label_space.classes)
    assert trained["pictures"] == len(source.samples("val"))
