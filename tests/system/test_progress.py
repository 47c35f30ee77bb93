import sys

import pytest

from alignseg_tf.system import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_shows_the_time_left(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show = progress.counter("reading")
    for done, seconds in ((1, 30.0), (2, 30.01), (3, 90.0), (4, 120.0)):
        clock[0] = seconds
        show(done, 4)
    lines = capsys.readouterr().out.split("\r\x1b[K")
    assert lines == ["", "reading 1/4, 1:30 left", "reading 3/4, 0:30 left", "reading 4/4, 2:00\n"]


def test_elsewhere_there_is_a_line_every_half_minute_and_at_the_end(clock, capsys):
    show = progress.counter("reading")
    for done in range(1, 6):
        clock[0] += 20
        show(done, 5)
    lines = ["reading 2/5, 1:00 left", "reading 4/5, 0:20 left", "reading 5/5, 1:40"]
    assert capsys.readouterr().out.splitlines() == lines


def test_duration():
    assert [progress.duration(s) for s in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]
