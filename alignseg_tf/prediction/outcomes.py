"""The outcome of each image and video: the rows of `predictions.csv`."""

import csv
import io
import shlex
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
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
        source: its path; characters that cannot be shown are escaped.
        outcome: one of `OUTCOMES`. `kept`: the results of an earlier run belong to this image.
        height: of an image or the first frame, in pixels.
        width: likewise.
        frames: number of frames; 1 for an image.
        in_windows: whether it was too large to go through the network whole.
        seconds: network time.
        files: what was written or kept, below the output folder, escaped as `source`.
        sha256: of the image's file, to which the results belong; empty for a video.
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
        """Return the outcome if nothing was written, and why."""
        return replace(self, outcome="skipped", files=(), message=message)

    def row(self) -> dict[str, Any]:
        """Return the cells of a CSV row by column; `files` is quoted as in a shell."""
        return {name: _cell(getattr(self, name)) for name in COLUMNS}


COLUMNS = tuple(field.name for field in fields(Outcome))


def _cell(value: Any) -> Any:
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

    Enter it to write. Each row is appended at once, so a killed run loses none. Rows of earlier
    runs stay for as long as they have results that no later row has.

    Args:
        path: the CSV file; it may be missing.

    Attributes:
        counts: number of images of this run by outcome.
    """

    def __init__(self, path: Path):
        self.path = path
        self.counts: Counter[str] = Counter()
        self._earlier = [row for row, _ in _read_rows(path)]
        self._sha256 = _belonging(self._earlier)
        self._has_begun = False
        self._lock = threading.Lock()

    def outdate(self, files: Iterable[str]) -> None:
        """Mark all known results, and these files, as belonging to no image."""
        rows = [{**row, "outcome": OUTDATED, "sha256": ""} for row in self._earlier]
        rows += [Outcome("", OUTDATED, files=(file,)).row() for file in files]
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
            self._file.write(csv_text([outcome.row().values()]))
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        """Close the file, and remove from earlier rows the results that later ones have.

        Images of this run may share a result, so its own rows stay as they are.
        """
        self._file.close()
        if not self._earlier and not self._has_begun:
            return
        rows: list[dict[str, Any]] = []
        claimed: set[str] = set()
        for index, (row, files) in reversed(list(enumerate(_read_rows(self.path)))):
            is_own = index >= len(self._earlier) and row["outcome"] != OUTDATED
            left = tuple(file for file in files if is_own or file not in claimed)
            claimed.update(files)
            if left or is_own:
                rows.append({**row, "files": _cell(left)})
        self._write(reversed(rows))

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        write_text(self.path, csv_text([COLUMNS, *(row.values() for row in rows)]))

    def summary(self, seconds: float) -> str:
        """Return a line with the number of images of each outcome."""
        shown = (f"{self.counts[kind]} {kind}" for kind in OUTCOMES if self.counts[kind])
        return (
            f"{self.counts.total()} in {duration(seconds)} ({self.counts['written'] / seconds:.2f} "
            f"written/s): {', '.join(shown)}; see {printable(self.path)}"
        )


def _belonging(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {file: row["sha256"] for row in rows for file in shlex.split(row["files"])}


def _read_rows(path: Path) -> list[tuple[dict[str, str], list[str]]]:
    """Read the rows of earlier runs and the files of each; none if the columns differ."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a row
    rows = csv.DictReader(io.StringIO(whole, newline=""))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        return []
    try:
        return [(row, shlex.split(row["files"])) for row in rows if None not in row.values()]
    except ValueError:  # quotes that this program does not write
        return []
