"""Processes that take turns: with contestants that take no time to start."""

import itertools
import json

import numpy as np
import pytest

from training.benchmark import contest, speed
from training.benchmark.contest import Contestant, Runs, Task, hold_contest, load_forms, ratio

FORMS = """
import time

def prepare(seconds):
    def of_task(task):
        with open({log!r}, "a") as log:
            print("ready", file=log)
        def run():
            print("what a library prints")
            with open({log!r}, "a") as log:
                print(seconds, task.batch, file=log)
            time.sleep(seconds)
        return run
    return of_task

def broken(task):
    raise RuntimeError("no such kernel")

FORMS = {{"slow": prepare(0.6), "quick": prepare(0.3), "broken": broken}}
"""


@pytest.fixture
def forms(tmp_path):
    file = tmp_path / "stone_forms.py"
    file.write_text(FORMS.format(log=str(tmp_path / "log.txt")))
    return file


def test_contestants_run_in_turn_after_warming_up(forms, tmp_path):
    pairs = [(Contestant(forms, "slow"), Task()), (Contestant(forms, "quick"), Task(batch=3))]
    slow, quick = hold_contest(pairs, 3)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    runs = ["0.6 1", "0.3 3"]
    warm_up = [line for run in runs for line in ("ready", *[run] * contest.WARM_UP)]
    assert lines[: len(warm_up)] == warm_up
    turns = [(run, len(list(same))) for run, same in itertools.groupby(lines[len(warm_up) :])]
    # A B, B A, A B; a quick one runs once, and then several times that count.
    assert [run for run, _ in turns] == [runs[0], runs[1], runs[0], runs[1]]
    assert [turns[0][1], turns[2][1]] == [1, 2]
    assert turns[1][1] > 4
    assert turns[3][1] > 2
    assert len(slow.seconds) == len(quick.processor_seconds) == 3
    assert min(slow.seconds) > 0.5
    assert 0.3 <= min(quick.seconds) < 0.6
    assert slow.busy(1) < 0.5  # it slept
    assert quick.peak_bytes > 10**6
    assert str(pairs[0][0]) == "stone slow"


def test_a_contestant_that_fails_says_why(forms, tmp_path):
    for form, message in (("broken", "(?s)stone broken: .*no such kernel"), ("x", "no form 'x'")):
        with pytest.raises(ValueError, match=message):
            hold_contest([(Contestant(forms, form), Task())], 1)
    with pytest.raises(ValueError, match="no such file"):
        load_forms(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="expected a dict FORMS. Received: NoneType"):
        load_forms(tmp_path / "empty.py")


def test_a_ratio_is_of_neighbouring_runs():
    """The machine slows down threefold meanwhile, and the ratio does not see it."""
    ours, theirs = Runs([1.0, 2.0, 3.3]), Runs([2.0, 4.0, 6.0])
    assert str(ratio(ours, theirs)) == "0.50 (0.50 to 0.52)"


def test_all_images_and_labels_have_the_size_of_the_task():
    task = Task(height=50, width=70, batch=2, classes=5)
    assert task.images().shape == (2, 50, 70, 3)
    assert task.labels().shape == (2, 50, 70)
    assert set(np.unique(task.labels())) == set(range(5))
    np.testing.assert_array_equal(task.images(), task.images())


def test_speed_is_a_table_and_a_plot(forms, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "OURS", forms)
    parser = contest_parser()
    plot = tmp_path / "new" / "speed.png"
    parsed = parser.parse_args(
        [
            "speed",
            "--rounds",
            "3",
            "--forms",
            "quick",
            "--against",
            str(forms),
            "--against-forms",
            "slow",
            "--batch",
            "2",
            "--plot",
            str(plot),
        ]
    )
    result, text = parsed.run(parsed)
    json.dumps(result)
    found = result["ratios"]["stone quick"]["stone slow"]
    assert 0.2 < found["low"] <= found["median"] <= found["high"] < 0.8
    assert result["forms"]["stone quick"]["images_per_second"] < 2 / 0.02
    header, quick, slow, note = text.splitlines()
    assert "/ stone slow" in header
    assert quick.startswith("stone quick")
    assert slow.startswith("stone slow")
    assert note.startswith("Ratios are medians")
    assert plot.read_bytes().startswith(b"\x89PNG")


def contest_parser():
    from training.benchmark.__main__ import build_parser

    return build_parser()


def test_growth_tells_the_exponent(monkeypatch):
    """Time of pixels ** 1, classes ** 0, channels ** 2, batch ** 1."""

    def held(pairs, rounds, what):
        return [
            Runs([task.height * task.width * task.channels**2 * task.batch * 1e-9] * rounds)
            for _, task in pairs
        ]

    monkeypatch.setattr(speed, "hold_contest", held)
    result = speed.measure_growth(Task(height=100, width=200), "frozen", 2)
    exponents = {what: result[what]["exponent"] for what in speed.GROWTH}
    expected = {"pixels": 1, "classes": 0, "channels": 2, "batch": 1}
    assert exponents == pytest.approx(expected, abs=0.02)
    assert result["classes"]["values"] == [19, 76, 304]
    assert "pixels         20000" in speed.growth_table(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0", "9"], "--size: expected 1 or more. Received: [0, 9]"),
        (["--rounds", "0"], "--rounds: expected 1 or more"),
        (["--against-forms", "x"], "--against-forms needs --against"),
        (["--against", "none.py"], "none.py: no such file"),
    ],
)
def test_bad_arguments_are_one_line(options, message, capsys, forms, monkeypatch):
    from training.benchmark import __main__ as benchmark

    monkeypatch.setattr(speed, "OURS", forms)
    assert benchmark.main(["speed", "--forms", "quick", *options]) == 2
    assert message in capsys.readouterr().err
