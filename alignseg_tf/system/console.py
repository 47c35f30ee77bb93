"""The output of a command."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from alignseg_tf.system.printable import printable
from alignseg_tf.system.progress import progress_shown


@contextmanager
def command_output() -> Iterator[None]:
    """Show progress bars, and escape control characters and surrogates in all that is printed.

    New lines stay, and carriage returns, which rewrite a progress bar.
    """
    out, err = (_PrintableStream(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err), progress_shown():  # type: ignore[type-var]
        yield


class _PrintableStream:
    """A text stream that escapes what a terminal would obey."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(re.sub(r"[^\n\r]+", lambda match: printable(match[0]), text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
