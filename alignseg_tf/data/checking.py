"""What is in the samples of a data set, and what keeps it from being learned from.

`inspect` and training read every file by the same functions, so both say the same: a problem keeps
a data set from being trained on, a note is worth a look.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, Sample, Skipped, list_problems
from alignseg_tf.data.readers import DEEP_MODES, is_turned, load_sample, opened
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.printable import printable
from alignseg_tf.system.progress import progress_bar

# Files named for each kind of note.
NAMED = 3
# 16-bit images whose brightest value is below this, of 255, were likely written with 12 bits.
FAINT = 32


def check_sample(sample: Sample, label_space: LabelSpace) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and its label as `load_sample` does, and see to the checksums of PNG files.

    Decoding goes by them in part only, and may return other pixels than were written.

    Raises:
        DataError: as `load_sample`, or bytes of a file have changed.
    """
    for path, what in ((sample.image, "an image"), (sample.label, "a label")):
        with opened(path, what) as image:
            image.verify()
    return load_sample(sample, label_space)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image and its label.

    Attributes:
        sample: the files.
        size: (width, height), None where unreadable.
        image_kind: format and mode of the image, such as "JPEG RGB".
        label_kind: the same of the label.
        file_bytes: of both files.
        counts: pixels of each class, then those without a class, int64 [n + 1]; None where
            unreadable.
        digest: tells files of different bytes apart.
        turned: whether EXIF says that the image is to be turned.
        has_alpha: whether the image has transparency, which readers drop.
        is_faint: whether it has 16 bits a channel and uses the lowest few only.
        problem: why it cannot be used; empty if it can.
    """

    sample: Sample
    size: tuple[int, int] | None = None
    image_kind: str = ""
    label_kind: str = ""
    file_bytes: int = 0
    counts: np.ndarray | None = None
    digest: bytes = b""
    turned: bool = False
    has_alpha: bool = False
    is_faint: bool = False
    problem: str = ""


def examine(sample: Sample, label_space: LabelSpace) -> ImageFacts:
    """Decode an image and its label, and say what they are."""
    try:
        with opened(sample.image) as pixels:
            mode = pixels.mode
            has_alpha = pixels.has_transparency_data
            image_kind = f"{pixels.format} {mode}"
        with opened(sample.label, "a label") as label_file:
            label_kind = f"{label_file.format} {label_file.mode}"
        image, label = check_sample(sample, label_space)
    except DataError as error:
        return ImageFacts(sample, problem=str(error))
    histogram = np.bincount(label.ravel(), minlength=256)
    classes = label_space.num_classes
    content = sample.image.read_bytes()
    return ImageFacts(
        sample=sample,
        size=(label.shape[1], label.shape[0]),
        image_kind=image_kind,
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
    """What is in a split; it grows with `add` and keeps no images.

    Attributes:
        name: train, val or test.
        classes: number of classes, n.
        listed: samples found.
        sound: samples that can be used.
        sizes: how often each (width, height) occurs.
        image_kinds: how often each format and mode of an image occurs.
        label_kinds: the same of labels.
        file_bytes: of all files.
        pixels: of each class and of none, int64 [n + 1].
        images_with: images that have each class and pixels without a class, int64 [n + 1].
        problems: what is wrong, each with its file.
        noted: files by what is to be noted of them.
        skipped: what lies beside the images and is not read, by kind.
    """

    name: str
    classes: int
    listed: int = 0
    sound: list[Sample] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    image_kinds: Counter[str] = field(default_factory=Counter)
    label_kinds: Counter[str] = field(default_factory=Counter)
    file_bytes: int = 0
    pixels: np.ndarray = field(init=False)
    images_with: np.ndarray = field(init=False)
    problems: list[str] = field(default_factory=list)
    noted: dict[str, list[Path]] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(self.classes + 1, np.int64)
        self.images_with = np.zeros(self.classes + 1, np.int64)

    def add(self, facts: ImageFacts) -> None:
        """Count an image."""
        if facts.counts is None or facts.size is None:
            self.problems.append(facts.problem)
            return
        self.sound.append(facts.sample)
        self.sizes[facts.size] += 1
        self.image_kinds[facts.image_kind] += 1
        self.label_kinds[facts.label_kind] += 1
        self.file_bytes += facts.file_bytes
        self.pixels += facts.counts
        self.images_with += facts.counts > 0
        if facts.turned:
            self.note("turned by their EXIF orientation; see that their labels lie right",
                      facts.sample.image)  # fmt: skip
        if facts.has_alpha:
            self.note("with transparency, which is dropped", facts.sample.image)
        if facts.image_kind == "TIFF RGBX":
            self.note("of 4 bands, of which the first 3 are read", facts.sample.image)
        if facts.is_faint:
            self.note(f"of 16 bits whose values are all below {FAINT << 8}, so almost black; "
                      "scale them", facts.sample.image)  # fmt: skip
        if not facts.counts[:-1].any():
            self.note("whose labels have no pixel with a class", facts.sample.label)

    def note(self, what: str, path: Path) -> None:
        """Remember a file for a note."""
        self.noted.setdefault(what, []).append(path)

    def side_lengths(self) -> np.ndarray:
        """Return (width, height) of each sound image, int64 [images, 2]."""
        sizes = np.array(list(self.sizes), np.int64).reshape(-1, 2)
        return np.repeat(sizes, list(self.sizes.values()), axis=0)


@dataclass
class DataSummary:
    """What a check of samples found.

    Attributes:
        counts: pixels of each class in each image, int64 [images, n].
        sizes: (height, width) of each image, int64 [images, 2].
        ignored: pixels without a class in each image, int64 [images].
    """

    counts: np.ndarray
    sizes: np.ndarray
    ignored: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class over all images, int64 [n]."""
        return self.counts.sum(0)


@dataclass
class Findings:
    """What is in the splits of a data set; `read` adds one.

    Attributes:
        label_space: the classes.
        splits: what is in each split.
        repeated: images that have the bytes of an earlier one, as (split, file, split, file).
    """

    label_space: LabelSpace
    splits: list[SplitReport] = field(default_factory=list)
    repeated: list[tuple[str, Path, str, Path]] = field(default_factory=list)
    _seen: dict[bytes, tuple[str, Path]] = field(default_factory=dict, repr=False)

    def read(self, name: str, samples: Sequence[Sample]) -> Iterator[ImageFacts]:
        """Decode the samples of a split once, and yield what is known of each.

        Args:
            name: of the split; `train` must have something to learn.
            samples: what to read.
        """
        split = SplitReport(name, self.label_space.num_classes, listed=len(samples))
        self.splits.append(split)
        look = partial(examine, label_space=self.label_space)
        found = in_parallel(look, samples)
        for facts in progress_bar(found, f"reading {name}".strip(), len(samples)):
            split.add(facts)
            if facts.digest:
                here = name, facts.sample.image
                if facts.digest in self._seen:
                    self.repeated.append((*self._seen[facts.digest], *here))
                else:
                    self._seen[facts.digest] = here
            yield facts
        if problem := learning_problem(split, self.label_space):
            split.problems.append(problem)

    def notes(self) -> list[str]:
        """Return what is worth a look, in sentences."""
        notes = []
        for split in self.splits:
            pixels = split.pixels[:-1]
            absent = [c for c, n in zip(self.label_space.classes, pixels, strict=True) if not n]
            if split.sound and absent:
                hint = void_hint(split, self.label_space)
                names = ", ".join(absent)
                notes.append(f"no {split.name} image has the classes: {names}{hint}")
            for what, paths in split.noted.items():
                named = ", ".join(map(str, paths[:NAMED])) + (", ..." if paths[NAMED:] else "")
                notes.append(f"{len(paths)} {split.name} files {what}: {named}")
        pairs = Counter((there, here) for there, _, here, _ in self.repeated)
        for (there, here), count in pairs.items():
            _, first, _, second = next(r for r in self.repeated if r[::2] == (there, here))
            where = "there twice" if here == there else f"in {there} too, which {here} must not be"
            notes.append(f"{count} {here} images are {where}: {second} is {first}")
        return [printable(note) for note in notes]


def learning_problem(split: SplitReport, label_space: LabelSpace) -> str | None:
    """Return why nothing can be learned from a split, or judged by it; None if something can.

    A network that is trained on one class learns to say it everywhere: with a loss of 0, and as it
    seems without a mistake.
    """
    present = [c for c, n in zip(label_space.classes, split.pixels[:-1], strict=True) if n]
    if not split.sound or len(present) > 1:
        return None
    everywhere = f"{split.sound[0].label} and all others"
    if not present:
        return f"{everywhere}: no pixel has a class{void_hint(split, label_space)}"
    if split.name != "train":
        return None
    return (
        f"{everywhere}: nothing to learn: the only class with pixels is {present[0]}; expected two "
        f"at least{void_hint(split, label_space)}"
    )


def void_hint(split: SplitReport, label_space: LabelSpace) -> str:
    """Say that a class may be what counts as void, as in masks of 0 and 255."""
    present = np.count_nonzero(split.pixels[:-1])
    if label_space.num_classes != 2 or present > 1 or not split.pixels[-1]:
        return ""
    return "; is it what counts as void? See docs/data_problems.md"


def check_samples(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    findings: Findings | None = None,
    name: str = "",
) -> DataSummary:
    """Decode every file once, so that nothing is found wrong after hours of training.

    Args:
        samples: what to check.
        label_space: what labels may hold.
        findings: gets what is found, for its notes.
        name: of the split; `train` must have something to learn.

    Raises:
        DataError: something is wrong; the first files are named with what is wrong with them.
    """
    findings = Findings(label_space) if findings is None else findings
    counts, sizes = [], []
    for facts in findings.read(name, samples):
        if facts.counts is not None and facts.size is not None:
            counts.append(facts.counts)
            sizes.append(facts.size[::-1])
    split = findings.splits[-1]
    unfit = len(samples) - len(split.sound)
    if unfit:
        problems = list_problems(split.problems[:unfit])
        raise DataError(f"{unfit} of {len(samples)} samples are unfit:{problems}")
    if split.problems:
        raise DataError(split.problems[0])
    table = np.array(counts)
    return DataSummary(table[:, :-1], np.array(sizes, np.int64), table[:, -1])
