"""Write annotations of other tools as a folder for training: `python -m alignseg_tf import`.

The folder holds `images/{train,val}` with byte-for-byte copies, `labels/{train,val}/X.png` with
class ids as grey values and 255 for no class, `classes.json`, and `import.json` with the source.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from alignseg_tf.data.datasets.catalog import label_space_from_file
from alignseg_tf.data.label_space import IGNORE, LabelSpace, default_palette
from alignseg_tf.data.listing import (
    IMAGE_SUFFIXES,
    LISTED,
    DataError,
    Sample,
    expect,
    is_derived_file,
    list_problems,
    naming,
)
from alignseg_tf.data.readers import (
    SWAPPED,
    load_sample,
    opened,
    orientation_of,
    upright,
    upright_size,
)
from alignseg_tf.preparation.annotation_files import Invalid, composed
from alignseg_tf.preparation.annotations import Annotated, Annotations
from alignseg_tf.system.files import (
    RECORD_FILE,
    Output,
    atomic_folder,
    has_keys,
    remove_leftovers,
    write_text,
)
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.printable import printable
from alignseg_tf.system.progress import progress_bar

BACKGROUND = "background"
SPLITS = ("train", "val", "test")
OURS = {"images", "labels", "classes.json", "import.json"}
IMPORT = Output(
    "import",
    lambda folder: has_keys(folder / "import.json", "imports"),
    ("images/*", "labels/*", "classes.json", "import.json"),
)


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import.

    Attributes:
        split: the split of all images; None if they have splits, or `val_share` is given.
        val_share: share of the images that become val, chosen by a hash of their names.
        unlabelled: meaning of pixels without annotation: class 0, `background`, or `void`.
        void: classes whose pixels get no class.
        annotated_on: `upright` or `stored`, for images that EXIF turns.
    """

    split: str | None = None
    val_share: float | None = None
    unlabelled: str = BACKGROUND
    void: tuple[str, ...] = ()
    annotated_on: str = "upright"

    def __post_init__(self) -> None:
        object.__setattr__(self, "void", tuple(map(composed, self.void)))
        for option, value, choices in (
            ("--split", self.split, (None, *SPLITS)),
            ("--unlabelled", self.unlabelled, (BACKGROUND, "void")),
            ("--annotated-on", self.annotated_on, ("upright", "stored")),
        ):
            expect(value in choices, option, f"one of {', '.join(filter(None, choices))}", value)
        share = self.val_share
        expect(share is None or 0 < share < 1, "--val-share", "a number between 0 and 1", share)
        if self.split is not None and self.val_share is not None:
            raise DataError("give --split or --val-share, not both")
        if self.unlabelled == BACKGROUND and BACKGROUND in self.void:
            raise DataError("--void background is --unlabelled void: give that")


@dataclass(frozen=True)
class ImportReport:
    """Result of an import.

    Attributes:
        images: number of images of each split that was written.
        pixels: pixels of each class, int64 [n].
        ignored: pixels without a class.
        left_out: number of images without a pixel that has a class.
        skipped: what was skipped as invalid, with the reason.
    """

    root: Path
    label_space: LabelSpace
    images: Mapping[str, int]
    pixels: np.ndarray
    ignored: int
    left_out: int
    skipped: tuple[str, ...] = ()

    def text(self) -> str:
        """Return a summary and the next commands."""
        split = " and ".join(f"{count} {name}" for name, count in self.images.items())
        counts = [*self.pixels.tolist(), self.ignored]
        names = [*map(printable, self.label_space.classes), "(void)"]
        ids = [*range(len(self.pixels)), IGNORE]
        width = max(map(len, names))
        lines = [f"{self.root}: {split} images", ""]
        for number, name, count in zip(ids, names, counts, strict=True):
            share = 100 * count / sum(counts)
            lines.append(f"{number:>5}  {name:<{width}}  {share:6.2f} % of the pixels")
        if self.left_out:
            lines += ["", f"Left out: {self.left_out} images in which no pixel has a class"]
        absent = [name for name, count in zip(names[:-1], counts, strict=False) if not count]
        if absent:
            lines += ["", f"Warning: no pixel has the classes: {', '.join(absent)}"]
        if BACKGROUND in absent:
            lines.append("Every pixel is annotated: --unlabelled void omits background")
        if self.skipped:
            shown = list_problems([printable(problem) for problem in self.skipped])
            more = f"; all are in {self.root / 'import.json'}" * (len(self.skipped) > LISTED)
            lines += ["", f"Skipped as invalid: {len(self.skipped)}{more}{shown}"]
        inspect = f"  python -m alignseg_tf inspect {self.root} --output inspection"
        train = f"  python -m training.train --data {self.root} --output runs/{self.root.name}"
        return "\n".join([*lines, "", "Next:", inspect, train])


def write_import(
    annotations: Annotations,
    output: str | Path,
    options: ImportOptions | None = None,
    source: str = "",
    overwrite: bool = False,
) -> ImportReport:
    """Write annotated images as a folder, which appears when it is complete.

    In the folder of an earlier import, the same splits are replaced, others and their classes are
    kept. `overwrite` replaces any folder, even one that was changed since. Every image and label is
    read back once. `source` is a text for `import.json`.

    Raises:
        ForeignFileError: a file that would be replaced was added or changed since.
        DataError: `output` holds something else, or images or annotations are invalid and
            `annotations.invalid` does not skip them.
    """
    options, output, invalid = options or ImportOptions(), Path(output), annotations.invalid
    unknown = sorted(set(options.void) - set(annotations.classes))
    expect(not unknown, "--void", f"names of classes: {', '.join(annotations.classes)}", unknown)
    chosen = _choose_splits(_writable(annotations), options, invalid)
    remove_leftovers(output.absolute().parent)
    kept = _kept_imports(output, list(chosen), options, overwrite)
    kept_splits = [split for record in kept for split in record["splits"]]
    label_space = _label_space(annotations, options, output / "classes.json" if kept else None)
    jobs = _new_images(chosen, output, kept_splits, invalid)
    carried_over = [f"{kind}/{split}" for split in kept_splits for kind in ("images", "labels")]
    carried_over += ["classes.json"] if kept else []

    with atomic_folder(output, IMPORT, overwrite, carried_over) as folder:
        for name in carried_over:
            if (output / name).is_dir():
                shutil.copytree(output / name, folder / name, copy_function=_link)
            else:
                _link(output / name, folder / name)
        writer = _Writer(folder, output, label_space, options)
        pixels, left_out = _write_images(writer, jobs, invalid)
        if empty := set(chosen) - set(pixels):
            raise DataError(f"{min(empty)}: no image has a pixel with a class{_also(invalid)}")
        if not kept:
            classes = {**label_space.to_dict(), "void": label_space.void}
            write_text(folder / "classes.json", json.dumps(classes, indent=1))
        skipped = tuple(sorted(invalid.problems))
        this = {"source": source, "splits": [*chosen], **({"skipped": skipped} if skipped else {})}
        record = {"unlabelled": options.unlabelled, "imports": [*kept, this]}
        write_text(folder / "import.json", json.dumps(record, indent=1))

    count = label_space.num_classes
    total = np.sum([np.sum(counts, 0) for counts in pixels.values()], 0)
    images = {split: len(pixels[split]) for split in chosen}
    ignored = int(total[count:].sum())
    return ImportReport(output, label_space, images, total[:count], ignored, left_out, skipped)


def _write_images(
    writer: "_Writer", jobs: Sequence[tuple[str, Annotated]], invalid: Invalid
) -> tuple[dict[str, list[np.ndarray]], int]:
    """Write images of splits with their labels.

    Returns:
        For each split a histogram of the label values for each image, and the number of images
        that were left out because no pixel has a class.
    """

    def write(job: tuple[str, Annotated]) -> np.ndarray | str | None:
        try:
            return writer.write_pair(*job)
        except DataError as error:
            return str(error)

    counts: dict[str, list[np.ndarray]] = {}
    problems = []
    results = progress_bar(in_parallel(write, jobs), "importing", len(jobs))
    for (split, _), result in zip(jobs, results, strict=True):
        if isinstance(result, str):
            problems.append(result)
        elif result is not None:
            counts.setdefault(split, []).append(result)
    if problems and not invalid.skip:
        raise DataError(
            f"{len(problems)} of {len(jobs)} images are unfit; nothing was written:"
            f"{list_problems(problems)}"
        )
    invalid.problems.extend(problems)
    return counts, len(jobs) - len(problems) - sum(map(len, counts.values()))


def _also(invalid: Invalid) -> str:
    return f"; skipped as invalid:{list_problems(invalid.problems)}" * bool(invalid.problems)


def _writable(annotations: Annotations) -> list[Annotated]:
    """Return the images; refuse names that readers would not find."""
    seen: dict[str, Annotated] = {}
    for image in annotations.images:
        with annotations.invalid.skipped():
            name, source = image.file_name, image.source
            suffixes = ", ".join(IMAGE_SUFFIXES)
            expect(image.suffix.lower() in IMAGE_SUFFIXES, source, f"one of {suffixes}", name)
            expect(not is_derived_file(PurePath(name)), source, "an image that is not hidden", name)
            expect(name == name.encode(errors="ignore").decode(), source, "a name in UTF-8", name)
            if image.name in seen:
                other = seen[image.name].source
                raise DataError(f"{source}: a second image {name}, beside that of {other}")
            seen[image.name] = image
    return list(seen.values())


def _choose_splits(
    images: Sequence[Annotated], options: ImportOptions, invalid: Invalid
) -> dict[str, list[Annotated]]:
    if not images:
        raise DataError(f"there are no images to import{_also(invalid)}")
    chosen: dict[str, list[Annotated]] = {}
    if options.split is not None:
        chosen[options.split] = list(images)
    elif options.val_share is not None:
        if len(images) < 2:
            raise DataError("--val-share needs two or more images")
        # A hash, so that the choice does not depend on the order.
        hashed = sorted(images, key=lambda image: hashlib.sha256(image.name.encode()).digest())
        count = min(max(1, round(options.val_share * len(hashed))), len(hashed) - 1)
        chosen = {"train": hashed[count:], "val": hashed[:count]}
    elif all(image.split is not None for image in images):
        chosen = {split: [i for i in images if i.split == split] for split in SPLITS}
    else:
        raise DataError("the source has no splits: give --split train, val or test, or --val-share")
    named = {split: sorted(part, key=lambda image: image.name) for split, part in chosen.items()}
    return {split: part for split, part in named.items() if part}


def _kept_imports(
    output: Path, splits: Sequence[str], options: ImportOptions, overwrite: bool
) -> list[dict[str, Any]]:
    """Return the records of former imports of other splits into a folder."""
    found = {path.name for path in output.iterdir()} if output.is_dir() else set()
    found = {output.name} if output.is_file() else found - {RECORD_FILE}
    former: dict[str, Any] = {"imports": []}
    if IMPORT.from_before(output):
        former = json.loads((output / "import.json").read_text(encoding="utf-8"))
        found -= OURS
    if found and not overwrite:
        raise DataError(
            f"{output}: expected a new or empty folder, or one from an import. Received: one with "
            f"{', '.join(sorted(found))}; give another name, or --overwrite"
        )
    kept = [record for record in former["imports"] if not set(record["splits"]) <= set(splits)]
    for record in kept:
        if set(record["splits"]) & set(splits):
            raise DataError(
                f"{output}: {' and '.join(record['splits'])} were imported together; replace both, "
                f"or import into another folder. Received: {' and '.join(splits)}"
            )
    if kept and former["unlabelled"] != options.unlabelled:
        raise DataError(
            f"{output}: its {kept[0]['splits'][0]} images were imported with --unlabelled "
            f"{former['unlabelled']}. Received: {options.unlabelled}"
        )
    return kept


def _label_space(
    annotations: Annotations, options: ImportOptions, classes_file: Path | None
) -> LabelSpace:
    """Return the classes of the kept folder, or of the annotations."""
    names = [name for name in annotations.classes if name not in options.void]
    if options.unlabelled == BACKGROUND:
        names = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
    if classes_file is not None:
        there = label_space_from_file(classes_file)
        what = f"the same classes in both imports: {', '.join(there.classes)}"
        expect(set(names) <= set(there.classes), str(classes_file), what, ", ".join(names))
        return there
    colors = {BACKGROUND: (0, 0, 0), **annotations.colors}
    others = iter(default_palette(len(names)))
    palette = tuple(colors[name] if name in colors else next(others) for name in names)
    return LabelSpace(tuple(names), palette)


def _new_images(
    chosen: Mapping[str, Sequence[Annotated]],
    output: Path,
    kept_splits: Sequence[str],
    invalid: Invalid,
) -> list[tuple[str, Annotated]]:
    """Return (split, image) for all images; refuse those that are in a kept split."""
    found = []
    for split, image in ((split, image) for split, part in chosen.items() for image in part):
        with invalid.skipped():
            for other in kept_splits:
                there = output / "images" / other / image.file_name
                if there.is_file() and there.read_bytes() == image.content:
                    raise DataError(
                        f"{image.source}: the image is already there as {there}: what is "
                        f"in {other} must not be in {split}"
                    )
            found.append((split, image))
    return found


class _Writer:
    """Write images and labels to a folder, which messages call `output`."""

    def __init__(self, folder: Path, output: Path, label_space: LabelSpace, options: ImportOptions):
        self.folder, self.output = folder, output
        self.label_space, self.options = label_space, options
        self.ids = {name: index for index, name in enumerate(label_space.classes)}
        self.ids |= dict.fromkeys(options.void, IGNORE)
        self.unlabelled = self.ids[BACKGROUND] if options.unlabelled == BACKGROUND else IGNORE

    def write_pair(self, split: str, image: Annotated) -> np.ndarray | None:
        """Write an image and its label; return the counts of label values, None if all are void.

        Raises:
            DataError: the annotations do not fit the image, whose files are removed.
        """
        label = self._label(image)
        if (label == IGNORE).all():
            return None
        image_file = self.folder / "images" / split / image.file_name
        label_file = self.folder / "labels" / split / f"{image.name}.png"
        for path in (image_file, label_file):
            path.parent.mkdir(parents=True, exist_ok=True)
        image_file.write_bytes(image.content)
        Image.fromarray(label).save(label_file)
        try:
            _, label = load_sample(Sample(image_file, label_file), self.label_space)
        except DataError as error:
            image_file.unlink()
            label_file.unlink()
            message = str(error).replace(str(self.folder), str(self.output))
            raise DataError(f"{image.source}: {message}") from error
        return np.bincount(label.ravel(), minlength=256)

    def _label(self, image: Annotated) -> np.ndarray:
        """Draw the annotations on the upright image."""
        content = image.image if isinstance(image.image, bytes) else None
        path = image.file_name if isinstance(image.image, bytes) else image.image
        with naming(image.source), opened(path, content=content) as pixels:
            size, orientation = upright_size(pixels), orientation_of(pixels)
        is_stored, swaps = self.options.annotated_on == "stored", orientation >= SWAPPED
        size = size[::-1] if is_stored and swaps else size
        other = "upright" if is_stored else "stored"
        if image.size not in (None, size):
            hint = f"; EXIF turns it by 90 degrees, so try --annotated-on {other}" if swaps else ""
            raise DataError(
                f"{image.source}: expected annotations of the height and width of "
                f"{image.file_name}, {size}. Received: {image.size}{hint}"
            )
        label = image.draw(size, self.ids, self.unlabelled)
        if not is_stored:
            return label
        turned = Image.fromarray(label)
        turned.getexif()[ExifTags.Base.Orientation] = orientation
        return np.asarray(upright(turned))


def _link(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
