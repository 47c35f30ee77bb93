"""A line on the console that says how far something is."""

import sys
import time
from collections.abc import Callable

# Seconds between two changes of the line.
INTERVAL = 0.1
# The same where lines stay, as in a log.
LOG_INTERVAL = 30.0


def counter(what: str) -> Callable[[int, int], None]:
    """Return a progress function for (done, total), which prints `what` and the time left.

    On a terminal one line is rewritten; elsewhere there is one every half minute, and at the end.
    """
    started = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done == total:
            line = f"{what} {done}/{total}, {duration(now - started)}\n"
        elif now - shown >= (INTERVAL if sys.stdout.isatty() else LOG_INTERVAL):
            left = (now - started) / done * (total - done)
            line = f"{what} {done}/{total}, {duration(left)} left"
            line += "" if sys.stdout.isatty() else "\n"
        else:
            return
        shown = now
        print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, end="", flush=True)

    return show


def duration(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
