import io
import re

import pytest

from alignseg_tf.system import progress
from alignseg_tf.system.progress import duration, progress_bar, progress_shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that every item moves by 20 s."""
    now = [1000.0]
    for bar in (progress.tqdm, progress._LogLines):
        create = bar.__init__

        def with_clock(self, *args, create=create, **options):
            create(self, *args, **options)
            self._time = lambda: now[0]
            self.start_t = self.last_print_t = now[0]

        monkeypatch.setattr(bar, "__init__", with_clock)
    return now


def iterate(file, clock=None, **options):
    with progress_shown():
        for _ in progress_bar(iter(range(4)), "reading", total=5, file=file, done=1, **options):
            if clock:
                clock[0] += 20


def test_a_terminal_shows_a_bar_with_the_time_left():
    file = Terminal()
    iterate(file)
    states = file.getvalue().split("\r")
    assert "reading" in states[1] and "1/5" in states[1]
    assert re.search(r"reading: 100%.* 5/5 \[00:0.*image/s\]\n$", states[-1])


def test_a_log_has_a_line_every_half_minute_and_one_at_the_end(clock):
    file = io.StringIO()
    iterate(file, clock, unit="frame")
    assert file.getvalue().splitlines() == [
        "reading: 3/5, 20.00s/frame, 00:40 left",
        "reading: 5/5, 20.00s/frame, 00:00 left",
    ]  # fmt: skip


def test_what_is_quick_has_one_line_in_a_log():
    file = io.StringIO()
    iterate(file)
    assert re.fullmatch(r"reading: 5/5, .*image/s, 00:00 left\n", file.getvalue())


def test_a_library_call_is_silent(capsys):
    assert list(progress_bar([1, 2], "reading", file=Terminal())) == [1, 2]
    assert not capsys.readouterr().err


def test_duration():
    assert [duration(s) for s in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]
