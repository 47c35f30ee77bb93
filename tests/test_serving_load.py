import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_fixtures import write_model

from training import benchmark, serving_load
from training.serving_load import Outcome

MEMORY = [(float(second), 1000 + second) for second in range(11)]


def result(*outcomes, code=0, log=""):
    return serving_load._result(outcomes, MEMORY, 100.0, 110.0, 1, 110.5, code, log)


GOOD = Outcome("good", 200, 101.0, 0.5, 1.0)


def test_what_is_well():
    busy = Outcome("good", 429, 102.0, 0.1)
    at_the_end = Outcome("good", 200, 109.5, 0.7, 1.0)
    late = Outcome("good", None, 110.1, 0.1)
    found = result(GOOD, busy, at_the_end, late, Outcome("truncated", 422, 103.0, 0.1))
    assert found["problems"] == []
    assert found["good_per_second"] == pytest.approx(0.1)
    assert found["answers"]["good"] == {"200": 1, "429": 1}
    assert found["answered_after_sigterm"] == 1
    assert found["resident_bytes"] == {
        "start": 1000, "tenth": 1001, "middle": 1005, "end": 1010, "most": 1010,
    }  # fmt: skip
    text = serving_load.describe_serving(found)
    assert "1 x 200, 1 x 429" in text
    assert text.endswith("no problems")


@pytest.mark.parametrize(
    ("outcomes", "kwargs", "problem"),
    [
        ([GOOD, Outcome("good", None, 109.5, 1.0)], {}, "1 accepted requests were lost"),
        ([GOOD, Outcome("good", 200, 101.0, 0.5, 0.5)], {}, "1 answers were wrong"),
        ([GOOD, Outcome("slow", 200, 101.0, 0.5)], {}, "unexpected answers: {'slow: 200': 1}"),
        ([GOOD, Outcome("good", 500, 101.0, 0.5)], {}, "unexpected answers: {'good: 500': 1}"),
        ([GOOD, Outcome("silent", 408, 101.0, 0.5)], {}, "unexpected answers"),
        ([GOOD], {"code": 1}, "the server ended with 1"),
        ([GOOD], {"log": "Traceback (most"}, "the server's log has a traceback"),
        ([Outcome("truncated", 422, 103.0, 0.1)], {}, "no good request was served"),
    ],
)
def test_what_is_wrong(outcomes, kwargs, problem):
    (found,) = result(*outcomes, **kwargs)["problems"]
    assert problem in found


def test_the_huge_picture_is_one_to_pillow():
    import io

    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(serving_load._huge_png()))


@pytest.mark.slow
def test_ten_seconds_of_load(tmp_path: Path, capsys):
    (tmp_path / "street").mkdir()
    write_model(tmp_path / "street" / "1")
    file = tmp_path / "load.json"
    arguments = ["serving", str(tmp_path / "street"), "--seconds", "10", "--size", "96", "128"]
    assert benchmark.main([*arguments, "--json", str(file)]) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["problems"] == []
    assert found["least_agreement"] == 1.0
    assert found["exit_status"] == 0
    asked = {kind for kind, answers in found["answers"].items() if answers}
    assert {"good", "truncated", "huge picture", "no picture"} <= asked
    memory = found["resident_bytes"]
    assert memory["end"] < 1.3 * memory["tenth"]
    assert np.isfinite(found["latency_seconds"]["p99"])


def test_a_server_that_does_not_start_is_an_error(tmp_path, capsys):
    (tmp_path / "street").mkdir()
    write_model(tmp_path / "street" / "1")
    (tmp_path / "street" / "2").mkdir()
    assert benchmark.main(["serving", str(tmp_path / "street")]) == 2
    assert "error: " in capsys.readouterr().err
