import io
import json

import numpy as np
import pytest
from PIL import Image
from serving_fixtures import encoded, noise_image, write_model

from training.benchmark import __main__ as benchmark
from training.benchmark import serving_load


def test_the_huge_image_is_one_to_pillow():
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(serving_load.body_of("huge image", encoded(noise_image()))))


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "street").mkdir()
    write_model(tmp_path / "street" / "1")
    return ["serving", str(tmp_path / "street"), "--size", "96", "128"]


@pytest.mark.slow
def test_ten_seconds_of_load(arguments, tmp_path, capsys):
    file = tmp_path / "load.json"
    arguments += ["--seconds", "10", "--json", str(file)]
    assert benchmark.main(arguments) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["problems"] == []
    answers = found["answers"]
    assert {"good: 200", "truncated: 422", "huge image: 413", "no image: 415"} <= set(answers)
    assert np.isfinite(found["seconds_50_90_99"]).all()


@pytest.mark.slow
def test_wrong_answers_are_found(arguments, capsys, monkeypatch):
    monkeypatch.setattr(
        serving_load.SavedModelNetwork, "class_map", lambda *_: np.zeros((96, 128), np.uint8)
    )
    assert benchmark.main([*arguments, "--seconds", "1"]) == 1
    assert "wrong answers" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_an_error(arguments, tmp_path, capfd):
    (tmp_path / "street" / "2").mkdir()
    assert benchmark.main(arguments) == 2
    assert "error: " in capfd.readouterr().err
