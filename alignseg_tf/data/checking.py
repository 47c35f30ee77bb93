"""Facts about the samples of a data set; `inspect` and training report the same.

A problem keeps a data set from being trained on, a note is worth a look.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, Sample, Skipped, list_problems
from alignseg_tf.data.readers import DEEP_MODES, load_sample, opened, orientation_of
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.printable import printable
from alignseg_tf.system.progress import progress_bar

# Files named for each kind of note.
NAMED = 3
# A 16-bit image whose largest value is below this, of 255, probably holds 12 bits.
FAINT = 32


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image and its label; only `problem` if the sample is unfit.

    Attributes:
        problem: why the sample is unfit; empty if it is not.
        size: (width, height).
        image_kind: format and mode of the image, such as "JPEG RGB"; `label_kind` likewise.
        file_bytes: size of both files.
        counts: pixels of each class, then those without a class, int64 [n + 1].
        digest: hash of the image file.
    """

    sample: Sample
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    image_kind: str = ""
    label_kind: str = ""
    file_bytes: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    digest: bytes = b""
    notes: tuple[str, ...] = ()


def examine(sample: Sample, label_space: LabelSpace) -> ImageFacts:
    """Decode an image and its label, verify the checksums of PNG files, and collect facts."""
    try:
        with opened(sample.image) as pixels:
            mode, has_alpha = pixels.mode, pixels.has_transparency_data
            turned = orientation_of(pixels) != 1
            image_kind = f"{pixels.format} {mode}"
            pixels.verify()  # decoding verifies checksums only in part
        with opened(sample.label, "a label") as label_file:
            label_kind = f"{label_file.format} {label_file.mode}"
            label_file.verify()
        image, label = load_sample(sample, label_space)
    except DataError as error:
        return ImageFacts(sample, str(error))
    is_faint = mode in DEEP_MODES and image.max() < FAINT
    notes = {
        "turned by their EXIF orientation; see that their labels lie right": turned,
        "with transparency, which is dropped": has_alpha,
        "of 4 bands, of which the first 3 are read": image_kind == "TIFF RGBX",
        f"of 16 bits whose values are all below {FAINT << 8}, so almost black": is_faint,
    }
    histogram = np.bincount(label.ravel(), minlength=256)
    classes = label_space.num_classes
    content = sample.image.read_bytes()
    return ImageFacts(
        sample,
        size=(label.shape[1], label.shape[0]),
        image_kind=image_kind,
        label_kind=label_kind,
        file_bytes=len(content) + sample.label.stat().st_size,
        counts=np.append(histogram[:classes], histogram[classes:].sum()),
        digest=hashlib.blake2b(content, digest_size=16).digest(),
        notes=tuple(note for note, holds in notes.items() if holds),
    )


@dataclass
class SplitReport:
    """Contents of a split.

    Attributes:
        listed: number of samples found.
        facts: facts about the sound samples.
        noted: files by note.
        skipped: files beside the images that are not read, by kind.
    """

    name: str
    label_space: LabelSpace
    listed: int
    facts: list[ImageFacts] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    noted: dict[str, list[Path]] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=dict)

    @property
    def all_counts(self) -> np.ndarray:
        """Pixels of each class and of none in each sound image, int64 [images, n + 1]."""
        counts = np.array([facts.counts for facts in self.facts], np.int64)
        return counts.reshape(-1, self.label_space.num_classes + 1)

    @property
    def counts(self) -> np.ndarray:
        """Pixels of each class in each sound image, int64 [images, n]."""
        return self.all_counts[:, :-1]

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class over all images, int64 [n]."""
        return self.counts.sum(0)

    @property
    def sizes(self) -> np.ndarray:
        """(height, width) of each sound image, int64 [images, 2]."""
        return np.array([facts.size[::-1] for facts in self.facts], np.int64).reshape(-1, 2)

    @property
    def absent(self) -> list[str]:
        """Classes without pixels."""
        return [self.label_space.classes[i] for i in np.flatnonzero(self.pixels == 0)]

    def add(self, facts: ImageFacts) -> None:
        """Add a sample."""
        if facts.problem:
            self.problems.append(facts.problem)
            return
        self.facts.append(facts)
        for note in facts.notes:
            self.note(note, facts.sample.image)
        if not facts.counts[:-1].any():
            self.note("whose labels have no pixel with a class", facts.sample.label)

    def note(self, what: str, path: Path) -> None:
        """Remember a file for a note."""
        self.noted.setdefault(what, []).append(path)

    def learning_problem(self) -> str | None:
        """Return why the split cannot be learned from or scored; None if it can."""
        present = sorted(set(self.label_space.classes) - set(self.absent))
        if not self.facts or len(present) > 1 or (present and self.name != "train"):
            return None
        problem = "no pixel has a class"
        if present:
            problem = f"nothing to learn: the only class with pixels is {present[0]}; expected two"
        return f"{self.facts[0].sample.label} and all others: {problem}{self.void_hint()}"

    def void_hint(self) -> str:
        """Say that a class may have the file value of void, as in masks of 0 and 255."""
        if self.label_space.num_classes != 2 or not self.absent or not self.all_counts[:, -1].any():
            return ""
        return "; is it what counts as void? See docs/data_problems.md"


@dataclass
class Findings:
    """The classes of a data set and a report of each split."""

    label_space: LabelSpace
    splits: list[SplitReport] = field(default_factory=list)

    def read(self, name: str, samples: Sequence[Sample]) -> Iterator[ImageFacts]:
        """Decode the samples of a split once, yield the facts of each, and add a report.

        The split `train` must have two classes, others one.
        """
        split = SplitReport(name, self.label_space, len(samples))
        self.splits.append(split)
        found = in_parallel(partial(examine, label_space=self.label_space), samples)
        for facts in progress_bar(found, f"reading {name}".strip(), len(samples)):
            split.add(facts)
            yield facts
        if problem := split.learning_problem():
            split.problems.append(problem)

    @property
    def repeated(self) -> list[tuple[str, Path, str, Path]]:
        """Images with the bytes of an earlier one, as (split, file, split, file)."""
        first: dict[bytes, tuple[str, Path]] = {}
        found = []
        for split in self.splits:
            for facts in split.facts:
                here = split.name, facts.sample.image
                there = first.setdefault(facts.digest, here)
                if there is not here:
                    found.append((*there, *here))
        return found

    def notes(self) -> list[str]:
        """Return the notes as sentences."""
        notes = []
        for split in self.splits:
            if split.facts and split.absent:
                names = ", ".join(split.absent)
                notes.append(f"no {split.name} image has the classes: {names}{split.void_hint()}")
            for what, paths in split.noted.items():
                named = ", ".join(map(str, paths[:NAMED])) + (", ..." if paths[NAMED:] else "")
                notes.append(f"{len(paths)} {split.name} files {what}: {named}")
        pairs: dict[tuple[str, str], list[tuple[Path, Path]]] = {}
        for there, first, here, second in self.repeated:
            pairs.setdefault((there, here), []).append((first, second))
        for (there, here), files in pairs.items():
            where = "there twice" if here == there else f"in {there} too, which {here} must not be"
            first, second = files[0]
            notes.append(f"{len(files)} {here} images are {where}: {second} is {first}")
        return [printable(note) for note in notes]


def check_samples(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    findings: Findings | None = None,
    name: str = "",
) -> SplitReport:
    """Decode every file once, as `Findings.read`, so that training does not fail after hours.

    `findings` gets the report, for its notes.

    Raises:
        DataError: files are unfit; the message names the first ones.
    """
    findings = findings or Findings(label_space)
    for _ in findings.read(name, samples):
        pass
    split = findings.splits[-1]
    if unfit := len(samples) - len(split.facts):
        problems = list_problems(split.problems[:unfit])
        raise DataError(f"{unfit} of {len(samples)} samples are unfit:{problems}")
    if split.problems:
        raise DataError(split.problems[0])
    return split
