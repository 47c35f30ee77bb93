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


@pytest.mark.slow
def test_ten_seconds_of_load(tmp_path, capsys):
    (tmp_path / "street").mkdir()
    write_model(tmp_path / "street" / "1")
    file = tmp_path / "load.json"
    arguments = ["serving", str(tmp_path / "street"), "--seconds", "10", "--size", "96", "128"]
    assert benchmark.main([*arguments, "--json", str(file)]) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["problems"] == []
    answers = found["answers"]
    assert {"good: 200", "truncated: 422", "huge image: 413", "no image: 415"} <= set(answers)
    assert np.isfinite(found["seconds_50_90_99"]).all()


@pytest.mark.slow
def test_wrong_answers_are_found(tmp_path, capsys, monkeypatch):
    (tmp_path / "street").mkdir()
    write_model(tmp_path / "street" / "1")
    monkeypatch.setattr(
        serving_load.SavedModelNetwork, "class_map", lambda *_: np.zeros((96, 128), np.uint8)
    )
    arguments = ["serving", str(tmp_path / "street"), "--seconds", "1", "--size", "96", "128"]
    assert benchmark.main(arguments) == 1
    assert "wrong answers" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_an_error(tmp_path, capfd):
    (tmp_path / "street").mkdir()
    write_model(tmp_path / "street" / "1")
    (tmp_path / "street" / "2").mkdir()
    assert benchmark.main(["serving", str(tmp_path / "street")]) == 2
    assert "error: " in capfd.readouterr().err
