"""What is in a data set and what is wrong with it, to be known before anything is trained.

`inspect_data` decodes every file once and writes `images.csv` (a row an image),
`inspection.json` (all numbers) and `contact_sheet.png` (some images with their labels).
A problem keeps a data set from being trained on; a note is worth a look.
"""

import csv
import json
import re
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

# Kinds of problems shown.
KINDS = 12
# Crops of a first run are at most this high and wide.
LARGEST_CROP = 512
# A class with less than this part of an equal share of the pixels calls for class weights.
RARE = 0.1


@dataclass
class Inspection(Findings):
    """What `inspect_data` found.

    Attributes:
        data: the path.
        layout: how its files lie.
        classes_file: the file of the data set that states the classes, if one does.
    """

    data: str = ""
    layout: str = ""
    classes_file: Path | None = None

    @property
    def problems(self) -> list[str]:
        """What keeps the data from being trained on, each with its file."""
        return [problem for split in self.splits for problem in split.problems]

    def suggestions(self) -> list[tuple[str, str]]:
        """Return options for `training.train`, each with its reason."""
        training = next((split for split in self.splits if split.sound), None)
        if training is None:
            return []
        width, height = np.median(training.side_lengths(), axis=0)
        crop = [max(64, min(LARGEST_CROP, int(side) // 32 * 32)) for side in (height, width)]
        share = training.pixels[:-1] / max(1, training.pixels[:-1].sum())
        present = np.flatnonzero(share)
        rarest = present[np.argmin(share[present])] if len(present) else 0
        is_rare = share[rarest] < RARE / self.label_space.num_classes
        name = self.label_space.classes[rarest]
        return [
            (
                f"--crop-size {crop[0]} {crop[1]}",
                f"height and width: of the median image, {width:.0f} x {height:.0f}, what is a "
                f"multiple of 32, up to {LARGEST_CROP}",
            ),
            (
                f"--class-weights {'sqrt_inverse' if is_rare else 'none'}",
                f"{name}, the rarest class, has {100 * share[rarest]:.2g} % of the pixels, "
                f"{'less' if is_rare else 'more'} than a tenth of an equal share",
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers for JSON."""
        names = (*self.label_space.classes, "void")
        return {
            "data": self.data,
            "layout": self.layout,
            "classes": list(self.label_space.classes),
            "splits": {
                split.name: {
                    "images": split.listed,
                    "sound": len(split.sound),
                    "bytes": split.file_bytes,
                    "sizes": [[*size, count] for size, count in sorted(split.sizes.items())],
                    "image_files": dict(split.image_kinds),
                    "label_files": dict(split.label_kinds),
                    "pixels": split.pixels.tolist(),
                    "images_with": split.images_with.tolist(),
                    "problems": split.problems,
                    "skipped": {kind: len(paths) for kind, paths in split.skipped.items()},
                }
                for split in self.splits
            },
            "pixels_of": list(names),
            "repeated": [[a, str(b), c, str(d)] for a, b, c, d in self.repeated],
            "notes": self.notes(),
            "suggestions": [option for option, _ in self.suggestions()],
        }

    def text(self) -> str:
        """Return the report that a person reads."""
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
        for index, name in enumerate(names):
            shares = [
                f"{100 * split.pixels[index] / max(1, split.pixels.sum()):12.2f} %"
                for split in self.splits
            ]
            images = [f"{split.images_with[index]:14}" for split in self.splits]
            yield "  ".join([f"{name:{width}}", *shares, *images])


def _split_lines(split: SplitReport) -> Iterator[str]:
    sound = f", {len(split.sound)} sound" if len(split.sound) < split.listed else ""
    megabytes = f"{split.file_bytes / 1e6:.1f} MB with labels"
    yield f"\n{split.name}: {split.listed} images{sound}, {megabytes}"
    if split.skipped:
        yield f"  not read  {describe_skipped(split.skipped)}"
    if not split.sound:
        return
    sides = split.side_lengths()
    low, middle, high = (np.quantile(sides, q, axis=0).astype(int) for q in (0, 0.5, 1))
    sizes = f"{low[0]} x {low[1]}"
    if len(split.sizes) > 1:
        sizes += (
            f" to {high[0]} x {high[1]}, median {middle[0]} x {middle[1]}, "
            f"{len(split.sizes)} different"
        )
    yield f"  size      {sizes}"
    for what, kinds in (("images", split.image_kinds), ("labels", split.label_kinds)):
        yield f"  {what:8}  {', '.join(f'{kind} ({n})' for kind, n in kinds.most_common())}"


def _problem_lines(problems: Sequence[str], root: Path) -> Iterator[str]:
    """Show the first problems of each kind."""
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
    """Return what a problem has in common with others: its message without paths and values."""
    folder = re.escape(str(root.parent if root.is_file() else root))
    return re.sub(rf"{folder}[^:;,()]*|b'[^']*'|[\d\s,.\[\]]+", " ", problem)


# In the folder of an inspection.
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
    """Decode every file of a data set once, and write what it holds.

    Args:
        data: what to inspect.
        output: folder for `images.csv`, `inspection.json` and `contact_sheet.png`.
        splits: which parts.
        overwrite: replace files of these names even if no inspection wrote them.

    Raises:
        ForeignFileError: there is such a file.
        DataError: no split has an image with a label.
        OSError: the output cannot be written.
    """
    output = Path(output)
    remove_leftovers(output)
    check_replaceable(output, INSPECTION, INSPECTION_FILES, overwrite)
    report = Inspection(
        data.label_space,
        data=str(data.root),
        layout=data.layout.name,
        classes_file=data.classes_file,
    )
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
                cells = _row(name, facts, data.label_space.num_classes + 1)
                rows.writerow(map(csv_cell, cells))
            split = report.splits[-1]
            split.problems[:0] = problems
            split.skipped = data.skipped(name, samples)
            if data.layout.name == "folder" and samples:
                for path in labels_without_image(data.root, name):
                    split.note("have no image", path)
    numbers = {"inspection.json": json.dumps(report.to_dict(), indent=1)}
    write_files(output, INSPECTION, numbers, overwrite=True)  # all were checked above
    with atomic_result(output, INSPECTION, "contact_sheet.png") as temporary:
        sound = {split.name: split.sound for split in report.splits}
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
    width, height = facts.size or ("", "")
    kinds = facts.image_kind, facts.label_kind
    files = facts.sample.image, facts.sample.label
    counts = [""] * columns if facts.counts is None else facts.counts.tolist()
    return [split, *files, width, height, *kinds, *counts, facts.problem]
