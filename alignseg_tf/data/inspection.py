"""What is in a data set and what is wrong with it, to be known before anything is trained.

`inspect_data` decodes every file once and writes `pictures.csv` (a row a picture),
`inspection.json` (all numbers) and `contact_sheet.png` (some pictures with their labels).
A problem keeps a data set from being trained on; a note is worth a look.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.contact_sheet import draw_contact_sheet
from alignseg_tf.data.readers import (
    DEEP_MODES,
    DataError,
    ListingError,
    Sample,
    check_sample,
    in_parallel,
    is_turned,
    labels_without_picture,
    opened,
)
from alignseg_tf.data.sources import DataSource
from alignseg_tf.files import atomic_path, write_text

Counters = Callable[[str], Callable[[int, int], None]]

# So many files are named for each kind of problem or note, and so many kinds are shown.
NAMED, KINDS = 3, 12
# Crops of a first run are at most this high and wide.
LARGEST_CROP = 512
# A class with less than this part of an equal share of the pixels calls for class weights.
RARE = 0.1
# 16-bit pictures whose brightest value is below this, of 255, were likely written with 12 bits.
FAINT = 32


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture and its label.

    Attributes:
        sample: the files.
        size: (width, height), None where unreadable.
        picture_kind: format and mode of the picture, such as "JPEG RGB".
        label_kind: the same of the label.
        file_bytes: of both files.
        counts: pixels of each class, then those without a class, int64 [n + 1]; None where
            unreadable.
        digest: tells files of different bytes apart.
        turned: whether EXIF says that the picture is to be turned.
        has_alpha: whether the picture has transparency, which readers drop.
        is_faint: whether it has 16 bits a channel and uses the lowest few only.
        problem: why it cannot be used; empty if it can.
    """

    sample: Sample
    size: tuple[int, int] | None = None
    picture_kind: str = ""
    label_kind: str = ""
    file_bytes: int = 0
    counts: np.ndarray | None = None
    digest: bytes = b""
    turned: bool = False
    has_alpha: bool = False
    is_faint: bool = False
    problem: str = ""


def examine(sample: Sample, label_space: LabelSpace) -> PictureFacts:
    """Decode a picture and its label, and say what they are."""
    try:
        with opened(sample.image) as picture:
            mode = picture.mode
            has_alpha = picture.has_transparency_data
            picture_kind = f"{picture.format} {mode}"
        with opened(sample.label, "a label") as label_file:
            label_kind = f"{label_file.format} {label_file.mode}"
        image, label = check_sample(sample, label_space)
    except DataError as error:
        return PictureFacts(sample, problem=str(error))
    histogram = np.bincount(label.ravel(), minlength=256)
    classes = label_space.num_classes
    content = sample.image.read_bytes()
    return PictureFacts(
        sample=sample,
        size=(label.shape[1], label.shape[0]),
        picture_kind=picture_kind,
        label_kind=label_kind,
        file_bytes=len(content) + sample.label.stat().st_size,
        counts=np.append(histogram[:classes], histogram[classes:].sum()),
        digest=hashlib.blake2b(content, digest_size=16).digest(),
        turned=is_turned(sample.image),
        has_alpha=has_alpha,
        is_faint=mode in DEEP_MODES and int(image.max()) < FAINT,
    )


@dataclass
class SplitReport:
    """What is in a split; it grows with `add` and keeps no pictures.

    Attributes:
        name: train, val or test.
        classes: number of classes, n.
        listed: samples found.
        sound: samples that can be used.
        sizes: how often each (width, height) occurs.
        picture_kinds: how often each format and mode of a picture occurs.
        label_kinds: the same of labels.
        file_bytes: of all files.
        pixels: of each class and of none, int64 [n + 1].
        pictures_with: pictures that have each class and pixels without a class, int64 [n + 1].
        problems: what is wrong, each with its file.
        noted: files by what is to be noted of them.
    """

    name: str
    classes: int
    listed: int = 0
    sound: list[Sample] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    picture_kinds: Counter[str] = field(default_factory=Counter)
    label_kinds: Counter[str] = field(default_factory=Counter)
    file_bytes: int = 0
    pixels: np.ndarray = field(init=False)
    pictures_with: np.ndarray = field(init=False)
    problems: list[str] = field(default_factory=list)
    noted: dict[str, list[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(self.classes + 1, np.int64)
        self.pictures_with = np.zeros(self.classes + 1, np.int64)

    def add(self, facts: PictureFacts) -> None:
        """Count a picture."""
        if facts.counts is None or facts.size is None:
            self.problems.append(facts.problem)
            return
        self.sound.append(facts.sample)
        self.sizes[facts.size] += 1
        self.picture_kinds[facts.picture_kind] += 1
        self.label_kinds[facts.label_kind] += 1
        self.file_bytes += facts.file_bytes
        self.pixels += facts.counts
        self.pictures_with += facts.counts > 0
        if facts.turned:
            self.note("turned by their EXIF orientation; see that their labels lie right",
                      facts.sample.image)  # fmt: skip
        if facts.has_alpha:
            self.note("with transparency, which is dropped", facts.sample.image)
        if facts.is_faint:
            self.note(f"of 16 bits whose values are all below {FAINT << 8}, so almost black; "
                      "scale them", facts.sample.image)  # fmt: skip
        if not facts.counts[:-1].any():
            self.note("whose labels have no pixel with a class", facts.sample.label)

    def note(self, what: str, path: Path) -> None:
        """Remember a file for a note."""
        self.noted.setdefault(what, []).append(path)

    def side_lengths(self) -> np.ndarray:
        """Return (width, height) of each sound picture, int64 [pictures, 2]."""
        sizes = np.array(list(self.sizes), np.int64).reshape(-1, 2)
        return np.repeat(sizes, list(self.sizes.values()), axis=0)


@dataclass
class Inspection:
    """What `inspect_data` found.

    Attributes:
        data: the path.
        layout: how its files lie.
        label_space: its classes.
        splits: what is in each split.
        repeated: pictures that have the bytes of an earlier one, as (split, file, split, file).
    """

    data: str
    layout: str
    label_space: LabelSpace
    splits: list[SplitReport] = field(default_factory=list)
    repeated: list[tuple[str, Path, str, Path]] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What keeps the data from being trained on, each with its file."""
        return [problem for split in self.splits for problem in split.problems]

    def notes(self) -> list[str]:
        """Return what is worth a look, in sentences."""
        notes = []
        for split in self.splits:
            absent = [
                name
                for name, pixels in zip(self.label_space.classes, split.pixels, strict=False)
                if split.sound and not pixels
            ]
            if absent:
                names = ", ".join(absent)
                # A mask of 0 and 255 looks like this, whose 255 was meant as the second class.
                is_mask = self.label_space.num_classes == 2 and split.pixels[-1]
                hint = "; is it what counts as void? See docs/data_problems.md" if is_mask else ""
                notes.append(f"no {split.name} picture has the classes: {names}{hint}")
            for what, paths in split.noted.items():
                named = ", ".join(map(str, paths[:NAMED])) + (", ..." if paths[NAMED:] else "")
                notes.append(f"{len(paths)} {split.name} files {what}: {named}")
        pairs = Counter((there, here) for there, _, here, _ in self.repeated)
        for (there, here), count in pairs.items():
            _, first, _, second = next(r for r in self.repeated if r[::2] == (there, here))
            where = "there twice" if here == there else f"in {there} too, which {here} must not be"
            notes.append(f"{count} {here} pictures are {where}: {second} is {first}")
        return notes

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
                f"height and width: of the median picture, {width:.0f} x {height:.0f}, what is a "
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
                    "pictures": split.listed,
                    "sound": len(split.sound),
                    "bytes": split.file_bytes,
                    "sizes": [[*size, count] for size, count in sorted(split.sizes.items())],
                    "picture_files": dict(split.picture_kinds),
                    "label_files": dict(split.label_kinds),
                    "pixels": split.pixels.tolist(),
                    "pictures_with": split.pictures_with.tolist(),
                    "problems": split.problems,
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
            f"{self.data}: layout {self.layout}, {self.label_space.num_classes} classes",
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
        titles = [
            f"{split.name} {unit}" for unit in ("pixels", "pictures") for split in self.splits
        ]
        yield "  ".join([f"{'class':{width}}", *(f"{title:>14}" for title in titles)])
        for index, name in enumerate(names):
            shares = [
                f"{100 * split.pixels[index] / max(1, split.pixels.sum()):12.2f} %"
                for split in self.splits
            ]
            pictures = [f"{split.pictures_with[index]:14}" for split in self.splits]
            yield "  ".join([f"{name:{width}}", *shares, *pictures])


def _split_lines(split: SplitReport) -> Iterator[str]:
    sound = f", {len(split.sound)} sound" if len(split.sound) < split.listed else ""
    megabytes = f"{split.file_bytes / 1e6:.1f} MB with labels"
    yield f"\n{split.name}: {split.listed} pictures{sound}, {megabytes}"
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
    for what, kinds in (("pictures", split.picture_kinds), ("labels", split.label_kinds)):
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


def inspect_data(
    data: DataSource,
    output: str | Path,
    splits: Sequence[str] = ("train", "val"),
    counters: Counters | None = None,
) -> Inspection:
    """Decode every file of a data set once, and write what it holds.

    Args:
        data: what to inspect.
        output: folder for `pictures.csv`, `inspection.json` and `contact_sheet.png`.
        splits: which parts.
        counters: what is done -> progress function, called with (done, total).

    Raises:
        DataError: no split has a picture with a label.
        OSError: the output cannot be written.
    """
    output = Path(output)
    report = Inspection(str(data.root), data.layout.name, data.label_space)
    found = {}
    for name in splits:
        split = SplitReport(name, data.label_space.num_classes)
        report.splits.append(split)
        found[name], split.problems = _list_split(data, name)
        split.listed = len(found[name])
    if not any(found.values()):
        raise DataError("\n".join(report.problems))
    seen: dict[bytes, tuple[str, Path]] = {}
    with (
        atomic_path(output / "pictures.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(_columns(data.label_space))
        for split in report.splits:
            samples = found[split.name]
            progress = counters(f"reading {split.name}") if counters else None
            look = partial(examine, label_space=data.label_space)
            for done, facts in enumerate(in_parallel(look, samples), start=1):
                split.add(facts)
                rows.writerow(_row(split.name, facts, len(split.pixels)))
                if facts.digest:
                    here = split.name, facts.sample.image
                    there = seen.setdefault(facts.digest, here)
                    if there != here:
                        report.repeated.append((*there, *here))
                if progress:
                    progress(done, len(samples))
            if split.sound and not split.pixels[:-1].any():
                split.problems.append(
                    f"{split.sound[0].label} and all others: no pixel has a class"
                )
            if data.layout.name == "folder" and samples:
                for path in labels_without_picture(data.root, split.name):
                    split.note("have no picture", path)
    with atomic_path(output / "contact_sheet.png") as temporary:
        sound = {split.name: split.sound for split in report.splits}
        draw_contact_sheet(sound, data.label_space).save(temporary)
    write_text(output / "inspection.json", json.dumps(report.to_dict(), indent=1))
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
    classes = [f"pixels_{name}" for name in (*label_space.classes, "void")]
    fixed = ["split", "picture", "label", "width", "height", "picture_file", "label_file"]
    return [*fixed, *classes, "problem"]


def _row(split: str, facts: PictureFacts, columns: int) -> list[Any]:
    width, height = facts.size or ("", "")
    kinds = facts.picture_kind, facts.label_kind
    files = facts.sample.image, facts.sample.label
    counts = [""] * columns if facts.counts is None else facts.counts.tolist()
    return [split, *files, width, height, *kinds, *counts, facts.problem]
