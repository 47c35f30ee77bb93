"""Processes that run alternately: with implementations that take no time to start."""

import itertools
import json

import numpy as np
import pytest

from training.benchmark import __main__ as benchmark
from training.benchmark import speed
from training.benchmark.timing import Implementation, Runs, Task, ratio, time_alternately

FORMS = """
import time

def prepare(seconds):
    def of_task(task):
        def run():
            print("what a library prints")
            with open({log!r}, "a") as log:
                print(seconds, task.batch, file=log)
            time.sleep(seconds)
        return run
    return of_task

def broken(task):
    raise RuntimeError("no such kernel")

FORMS = {{"slow": prepare(0.6), "quick": prepare(0.2), "broken": broken}}
"""


@pytest.fixture
def forms(tmp_path):
    file = tmp_path / "stone_forms.py"
    file.write_text(FORMS.format(log=str(tmp_path / "log.txt")))
    return file


def test_implementations_alternate(forms, tmp_path):
    both = [Implementation(forms, form) for form in ("slow", "quick")]
    slow, quick = time_alternately(both, Task(batch=3), range(3), {})
    lines = (tmp_path / "log.txt").read_text().splitlines()
    turns = [(run, len(list(same))) for run, same in itertools.groupby(lines)]
    # Warm up A, B; then A B, B A, A B. A quick one runs once, and then several times that count.
    assert [run for run, _ in turns] == ["0.6 3", "0.2 3"] * 3
    assert [number for _, number in turns[::2]] == [2, 1, 2]
    assert min(number for _, number in turns[1::2]) >= 4
    assert len(slow.seconds) == len(quick.processor_seconds) == 3
    assert min(slow.seconds) > 0.5
    assert 0.2 <= min(quick.seconds) < 0.5
    assert slow.busy(1) < 0.5  # it slept
    assert quick.peak_bytes > 10**6


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("broken", None, "(?s)stone broken: .*no such kernel"),
        ("x", None, "no form 'x'"),
        ("x", "", "expected a dict FORMS. Received: NoneType"),
    ],
)
def test_an_implementation_that_fails_says_why(form, content, message, forms):
    if content is not None:
        forms.write_text(content)
    with pytest.raises(ValueError, match=message):
        time_alternately([Implementation(forms, form)], Task(), range(1), {})


def test_a_ratio_is_of_neighbouring_runs():
    """The machine slows down threefold meanwhile, and the ratio does not see it."""
    found = ratio(Runs([1.0, 2.0, 3.3]), Runs([2.0, 4.0, 6.0]))
    assert found == pytest.approx({"median": 0.5, "low": 0.5, "high": 0.525})


def test_all_images_and_labels_have_the_size_of_the_task():
    task = Task(height=50, width=70, batch=2, classes=5)
    assert task.images().shape == (2, 50, 70, 3)
    assert task.labels().shape == (2, 50, 70)
    assert set(np.unique(task.labels())) == set(range(5))
    np.testing.assert_array_equal(task.images(), task.images())


def test_speed_is_a_table_and_a_plot(forms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "OURS", forms)
    plot, file = tmp_path / "new" / "speed.png", tmp_path / "speed.json"
    options = ["--rounds", "2", "--forms", "quick", "--batch", "2", "--plot", str(plot)]
    options += ["--against", str(forms), "--against-forms", "slow", "--json", str(file)]
    assert benchmark.main(["speed", *options]) == 0
    result = json.loads(file.read_text())
    found = result["ratios"]["stone quick"]["stone slow"]
    assert 0.2 < found["low"] <= found["median"] <= found["high"] < 0.8
    assert 2 / 0.6 < result["forms"]["stone quick"]["images_per_second"] <= 2 / 0.2
    header, quick, slow, note = capsys.readouterr().out.splitlines()[1:5]
    assert "/ stone slow" in header
    assert quick.startswith("stone quick")
    assert slow.startswith("stone slow")
    assert note.startswith("Ratios are medians")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0", "9"], "--size: expected 1 or more. Received: 0"),
        (["--against-forms", "x"], "--against-forms needs --against"),
        (["--against", "none.py"], "none.py: no such file"),
    ],
)
def test_bad_arguments_are_named(options, message, capsys, forms, monkeypatch):
    monkeypatch.setattr(speed, "OURS", forms)
    try:
        status = benchmark.main(["speed", "--forms", "quick", *options])
    except SystemExit as stopped:  # by argparse
        status = stopped.code
    assert status == 2
    assert message in capsys.readouterr().err
