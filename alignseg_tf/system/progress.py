"""Progress bars on the standard error stream, which commands switch on."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# Seconds between two lines where lines stay, as in a log.
LOG_INTERVAL = 30.0
LOG_FORMAT = "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"

_shown: ContextVar[bool] = ContextVar("progress_shown", default=False)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show the progress bars of this block; a library call without it is silent."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


def progress_bar(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    unit: str = "image",
    done: int = 0,
    file: TextIO | None = None,
) -> Iterable[Item]:
    """Return the items; iterating over them shows what is done and an estimate of the time left.

    A terminal shows a bar, a log a line every `LOG_INTERVAL` seconds and one at the end.

    Args:
        items: what to iterate over.
        what: the activity, such as "reading".
        total: number of items, with those `done` before; None for `len(items)`.
        unit: name of one item.
        done: number of items done before.
        file: stream to write to; None for `sys.stderr`.
    """
    if not _shown.get():
        return items
    file = file or sys.stderr
    options: dict[str, Any] = {"unit": unit, "initial": done, "file": file, "miniters": 1}
    if file.isatty():
        return tqdm(items, what, total, **options)
    # A delay, however short, omits the line before the first item.
    options |= {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "delay": 1e-9}
    return _LogLines(items, what, total, bar_format=LOG_FORMAT, **options)


class _LogLines(tqdm):
    """A bar whose states are lines, the last one included."""

    monitor_interval = 0  # no thread
    disable: bool  # True once it is closed
    _written = -1  # items done in the last line

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n != self._written:
            self._written = self.n
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self.display()


def duration(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
