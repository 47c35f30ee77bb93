"""Report the contents and problems of a data set before training.

`inspect_data` decodes every file once and writes `images.csv` (a row an image),
`inspection.json` (all numbers) and `contact_sheet.png` (some images with their labels).
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.data.checking import NAMED, Findings, ImageFacts, SplitReport
from alignseg_tf.data.label_space import LabelSpace, class_columns
from alignseg_tf.data.listing import (
    DataError,
    ListingError,
    Sample,
    describe_skipped,
    labels_without_image,
)
from alignseg_tf.data.sources import DataSource
from alignseg_tf.preparation.contact_sheet import draw_contact_sheet
from alignseg_tf.system.files import (
    Output,
    atomic_result,
    check_replaceable,
    has_keys,
    remove_leftovers,
    write_files,
)
from alignseg_tf.system.printable import csv_cell

# Maximum number of kinds of problems shown.
KINDS = 12
# Largest suggested crop side, in pixels.
LARGEST_CROP = 512
# Below this part of an equal share of the pixels, a class calls for class weights.
RARE = 0.1


@dataclass
class Inspection(Findings):
    """Findings with the path of the data set, its layout, and the file that states the classes."""

    data: str = ""
    layout: str = ""
    classes_file: Path | None = None

    @property
    def problems(self) -> list[str]:
        """Reasons not to train on the data, each with its file."""
        return [problem for split in self.splits for problem in split.problems]

    def suggestions(self) -> list[tuple[str, str]]:
        """Return options for `training.train`, each with its reason."""
        training = next((split for split in self.splits if split.facts), None)
        if training is None:
            return []
        height, width = np.median(training.sizes, axis=0)
        crop = [max(64, min(LARGEST_CROP, int(side) // 32 * 32)) for side in (height, width)]
        share = training.pixels / max(1, training.pixels.sum())
        present = np.flatnonzero(share)
        rarest = present[np.argmin(share[present])] if len(present) else 0
        is_rare = share[rarest] < RARE / self.label_space.num_classes
        name = self.label_space.classes[rarest]
        why_crop = (
            f"height and width: the largest multiples of 32 in the median image, {width:.0f} x "
            f"{height:.0f}, up to {LARGEST_CROP}"
        )
        why_weights = (
            f"{name}, the rarest class, has {100 * share[rarest]:.2g} % of the pixels, "
            f"{'less' if is_rare else 'more'} than a tenth of an equal share"
        )
        weights = "sqrt_inverse" if is_rare else "none"
        return [
            (f"--crop-size {crop[0]} {crop[1]}", why_crop),
            (f"--class-weights {weights}", why_weights),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers for JSON."""
        return {
            "data": self.data,
            "layout": self.layout,
            "classes": list(self.label_space.classes),
            "splits": {
                split.name: {
                    "images": split.listed,
                    "sound": len(split.facts),
                    "bytes": sum(facts.file_bytes for facts in split.facts),
                    "sizes": [[*size, count] for size, count in sorted(_counted(split, "size"))],
                    "image_files": dict(_counted(split, "image_kind")),
                    "label_files": dict(_counted(split, "label_kind")),
                    "pixels": split.all_counts.sum(0).tolist(),
                    "images_with": (split.all_counts > 0).sum(0).tolist(),
                    "problems": split.problems,
                    "skipped": {kind: len(paths) for kind, paths in split.skipped.items()},
                }
                for split in self.splits
            },
            "pixels_of": [*self.label_space.classes, "void"],
            "repeated": [[a, str(b), c, str(d)] for a, b, c, d in self.repeated],
            "notes": self.notes(),
            "suggestions": [option for option, _ in self.suggestions()],
        }

    def text(self) -> str:
        """Return the report as text."""
        lines = [
            f"{self.data}: layout {self.layout}, {self.label_space.num_classes} classes"
            + (f" of {self.classes_file.name}" if self.classes_file else ""),
            *(line for split in self.splits for line in _split_lines(split)),
            "",
            *self._class_table(),
        ]
        if notes := self.notes():
            lines += ["", "Notes", *(f"  {note}" for note in notes)]
        if suggestions := self.suggestions():
            width = max(len(option) for option, _ in suggestions)
            lines += ["", "For a first run"]
            lines += [f"  {option:{width}}  {reason}" for option, reason in suggestions]
        lines += ["", *_problem_lines(self.problems, Path(self.data))]
        return "\n".join(lines)

    def _class_table(self) -> Iterator[str]:
        names = [*self.label_space.classes, "void"]
        width = max(len(name) for name in ("class", *names))
        titles = [f"{split.name} {unit}" for unit in ("pixels", "images") for split in self.splits]
        yield "  ".join([f"{'class':{width}}", *(f"{title:>14}" for title in titles)])
        counts = [split.all_counts for split in self.splits]
        shares = [100 * table.sum(0) / max(1, table.sum()) for table in counts]
        images = [(table > 0).sum(0) for table in counts]
        for index, name in enumerate(names):
            cells = [f"{share[index]:12.2f} %" for share in shares]
            cells += [f"{number[index]:14}" for number in images]
            yield "  ".join([f"{name:{width}}", *cells])


def _counted(split: SplitReport, attribute: str) -> list[tuple[Any, int]]:
    """Return the values of an attribute of `ImageFacts`, the most frequent first."""
    return Counter(getattr(facts, attribute) for facts in split.facts).most_common()


def _split_lines(split: SplitReport) -> Iterator[str]:
    sound = f", {len(split.facts)} sound" if len(split.facts) < split.listed else ""
    megabytes = sum(facts.file_bytes for facts in split.facts) / 1e6
    yield f"\n{split.name}: {split.listed} images{sound}, {megabytes:.1f} MB with labels"
    if split.skipped:
        yield f"  not read  {describe_skipped(split.skipped)}"
    if not split.facts:
        return
    sides = split.sizes[:, ::-1]
    low, middle, high = (
        "{} x {}".format(*np.quantile(sides, q, axis=0).astype(int)) for q in (0, 0.5, 1)
    )
    if different := len(_counted(split, "size")) - 1:
        low += f" to {high}, median {middle}, {different + 1} different"
    yield f"  size      {low}"
    for what, kind in (("images", "image_kind"), ("labels", "label_kind")):
        kinds = (f"{kind} ({count})" for kind, count in _counted(split, kind))
        yield f"  {what:8}  {', '.join(kinds)}"


def _problem_lines(problems: Sequence[str], root: Path) -> Iterator[str]:
    """Yield the first problems of each kind."""
    if not problems:
        yield "No problems"
        return
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_kind(problem, root), []).append(problem)
    yield f"{len(problems)} problems"
    for same in list(kinds.values())[:KINDS]:
        yield from (f"  {problem}" for problem in same[:NAMED])
        if same[NAMED:]:
            yield f"    and {len(same) - NAMED} more of this kind"
    if len(kinds) > KINDS:
        yield f"  and {len(kinds) - KINDS} more kinds"


def _kind(problem: str, root: Path) -> str:
    """Return the kind of a problem: its message without paths and values."""
    folder = re.escape(str(root.parent if root.is_file() else root))
    return re.sub(rf"{folder}[^:;,()]*|b'[^']*'|[\d\s,.\[\]]+", " ", problem)


# The files of an inspection.
INSPECTION_FILES = ("inspection.json", "images.csv", "contact_sheet.png")
INSPECTION = Output(
    "inspect", lambda folder: has_keys(folder / INSPECTION_FILES[0], "layout", "splits")
)


def inspect_data(
    data: DataSource,
    output: str | Path,
    splits: Sequence[str] = ("train", "val"),
    overwrite: bool = False,
) -> Inspection:
    """Decode every file of a data set once, and write what it holds to a folder.

    `overwrite` replaces files of the same names even if no inspection wrote them.

    Raises:
        ForeignFileError: there is such a file.
        DataError: no split has an image with a label.
        OSError: the output cannot be written.
    """
    output = Path(output)
    remove_leftovers(output)
    check_replaceable(output, INSPECTION, INSPECTION_FILES, overwrite)
    report = Inspection(data.label_space, [], str(data.root), data.layout.name, data.classes_file)
    found = {name: _list_split(data, name) for name in splits}
    if not any(samples for samples, _ in found.values()):
        raise DataError(
            "\n".join(problem for _, problems in found.values() for problem in problems)
        )
    with (
        atomic_result(output, INSPECTION, "images.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(map(csv_cell, _columns(data.label_space)))
        for name, (samples, problems) in found.items():
            for facts in report.read(name, samples):
                rows.writerow(map(csv_cell, _row(name, facts, data.label_space.num_classes + 1)))
            split = report.splits[-1]
            split.problems[:0] = problems
            split.skipped = data.skipped(name, samples)
            if data.layout.name == "folder" and samples:
                for path in labels_without_image(data.root, name):
                    split.note("have no image", path)
    numbers = {"inspection.json": json.dumps(report.to_dict(), indent=1)}
    write_files(output, INSPECTION, numbers)  # checked above
    with atomic_result(output, INSPECTION, "contact_sheet.png") as temporary:
        sound = {s.name: [facts.sample for facts in s.facts] for s in report.splits}
        draw_contact_sheet(sound, data.label_space).save(temporary)
    return report


def _list_split(data: DataSource, name: str) -> tuple[list[Sample], list[str]]:
    """Return the samples that can be listed, and why others cannot."""
    try:
        return data.samples(name), []
    except ListingError as error:
        return error.samples, error.problems
    except DataError as error:
        return [], [str(error)]


def _columns(label_space: LabelSpace) -> list[str]:
    names = (*class_columns(label_space.classes, ["void"]), "void")
    classes = [f"pixels_{name}" for name in names]
    fixed = ["split", "image", "label", "width", "height", "image_file", "label_file"]
    return [*fixed, *classes, "problem"]


def _row(split: str, facts: ImageFacts, columns: int) -> list[Any]:
    size, counts = (["", ""], [""] * columns) if facts.problem else (facts.size, facts.counts)
    files = facts.sample.image, facts.sample.label
    return [split, *files, *size, facts.image_kind, facts.label_kind, *counts, facts.problem]
