"""The outcome of each image and video: the rows of `predictions.csv`."""

import csv
import io
import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from alignseg_tf.system.files import write_text
from alignseg_tf.system.printable import FORMULA_STARTS, printable
from alignseg_tf.system.progress import duration
from alignseg_tf.system.tables import csv_text

OUTCOMES = ("written", "kept", "skipped")
# Outcome of rows whose results belong to no image: of another model, or not yet written.
OUTDATED = "outdated"


@dataclass(frozen=True)
class Outcome:
    """The outcome of an image or a video.

    Attributes:
        source: its path, `printable`.
        outcome: one of `OUTCOMES`. `kept`: the results of an earlier run belong to this image.
        height: of an image or the first frame, in pixels.
        width: likewise.
        frames: number of frames; 1 for an image.
        in_windows: whether it was too large to go through the network whole.
        seconds: network time.
        files: results, below the output folder, `printable`.
        sha256: of the image's file; empty for a video.
        message: why it was skipped.
    """

    source: str
    outcome: str
    height: int | None = None
    width: int | None = None
    frames: int = 1
    in_windows: bool = False
    seconds: float | None = None
    files: tuple[str, ...] = ()
    sha256: str = ""
    message: str = ""

    def skipped(self, message: str) -> "Outcome":
        """Return the outcome without results, and why."""
        return replace(self, outcome="skipped", files=(), message=message)


COLUMNS = tuple(field.name for field in fields(Outcome))


# The cells of a CSV row, by column; `files` is a tuple.
Row = dict[str, Any]


def _cell(value: Any) -> Any:
    """Return a CSV cell; files are quoted as in a shell."""
    if isinstance(value, tuple):
        text = shlex.join(value)
        # Quotes keep a name such as =1.png, which spreadsheets take for a formula.
        return f"'{value[0]}'{text[len(value[0]) :]}" if text.startswith(FORMULA_STARTS) else text
    return f"{value:.3f}" if isinstance(value, float) else value


def relative_names(paths: Iterable[Path], folder: Path) -> tuple[str, ...]:
    """Return paths below a folder as `Outcome.files` has them."""
    return tuple(printable(path.relative_to(folder)) for path in paths)


class OutcomeLog:
    """A CSV file of outcomes, which also says to which image each result belongs.

    Enter it to write. Each row is appended at once, so that a killed run loses none. Rows of
    earlier runs stay while they have results that no later row has.

    Args:
        path: the CSV file; it may be missing.

    Attributes:
        counts: number of images of this run by outcome.
    """

    def __init__(self, path: Path):
        self.path = path
        self.counts: Counter[str] = Counter()
        self._earlier = _read_rows(path)
        self._sha256 = _belonging(self._earlier)
        self._has_begun = False
        self._lock = threading.Lock()

    def outdate(self, files: Iterable[str]) -> None:
        """Mark all known results, and these files, as belonging to no image."""
        rows = [{**row, "outcome": OUTDATED, "sha256": ""} for row in self._earlier]
        rows += [asdict(Outcome("", OUTDATED, files=(file,))) for file in files]
        self._earlier, self._sha256 = rows, _belonging(rows)

    def __enter__(self) -> "OutcomeLog":
        """Rewrite the earlier rows, without half a row of a killed run, and append to them."""
        self._write(self._earlier)
        self._file = self.path.open("a", encoding="utf-8", newline="")
        return self

    def belong(self, files: Iterable[str], sha256: str) -> bool:
        """Return whether all of these results were made of an image with this SHA-256."""
        return all(self._sha256.get(file) == sha256 for file in files)

    def knows(self, file: str) -> bool:
        """Return whether a run wrote a result, or was killed over it."""
        return file in self._sha256

    def begin(self, outcome: Outcome) -> None:
        """Note that results are about to be written, in case the run is killed meanwhile."""
        self._has_begun = True
        self._sha256 |= dict.fromkeys(outcome.files, "")
        self._append(replace(outcome, outcome=OUTDATED, sha256=""))

    def add(self, outcome: Outcome) -> None:
        """Append a row."""
        self.counts[outcome.outcome] += 1
        self._append(outcome)

    def _append(self, outcome: Outcome) -> None:
        with self._lock:
            self._file.write(csv_text([map(_cell, astuple(outcome))]))
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        """Close the file, and remove from earlier rows the results that later ones have.

        Images of this run may share a result, so that its own rows stay.
        """
        self._file.close()
        if not self._earlier and not self._has_begun:
            return
        rows: list[Row] = []
        claimed: set[str] = set()
        for index, row in reversed(list(enumerate(_read_rows(self.path)))):
            is_own = index >= len(self._earlier) and row["outcome"] != OUTDATED
            left = tuple(file for file in row["files"] if is_own or file not in claimed)
            claimed.update(row["files"])
            if left or is_own:
                rows.append({**row, "files": left})
        self._write(reversed(rows))

    def _write(self, rows: Iterable[Row]) -> None:
        write_text(self.path, csv_text([COLUMNS, *(map(_cell, row.values()) for row in rows)]))

    def report(self, seconds: float) -> int:
        """Print the number of images of each outcome in this run; return the exit status."""
        shown = (f"{self.counts[kind]} {kind}" for kind in OUTCOMES if self.counts[kind])
        print(
            f"{self.counts.total()} in {duration(seconds)} ({self.counts['written'] / seconds:.2f} "
            f"written/s): {', '.join(shown)}; see {printable(self.path)}"
        )
        if skipped := self.counts["skipped"]:
            print(f"error: {skipped} of {self.counts.total()} were skipped", file=sys.stderr)
        return 1 if skipped else 0


def _belonging(rows: Iterable[Row]) -> dict[str, str]:
    return {file: row["sha256"] for row in rows for file in row["files"]}


def _read_rows(path: Path) -> list[Row]:
    """Read the rows of earlier runs; none if the columns differ."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a row
    rows = csv.DictReader(io.StringIO(whole, newline=""))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        return []
    whole_rows = (row for row in rows if None not in row.values())
    try:
        return [{**row, "files": tuple(shlex.split(row["files"]))} for row in whole_rows]
    except ValueError:  # quotes that this program does not write
        return []
