"""Annotations of other tools, written as a folder that trains: `python -m alignseg_tf import`.

The folder holds `images/{train,val}` with the pictures, copied byte for byte,
`labels/{train,val}/X.png` with class ids as grey values and 255 for no class, `classes.json`, and
`import.json`, which says where they are from.
"""

import argparse
import filecmp
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from alignseg_tf.data.annotations import (
    Annotated,
    Annotations,
    read_coco,
    read_cvat,
    read_labelme,
)
from alignseg_tf.data.catalog import IGNORE, LabelSpace, default_palette
from alignseg_tf.data.readers import IMAGE_SUFFIXES, DataError, Sample, load_sample
from alignseg_tf.files import atomic_path, write_text

BACKGROUND = "background"
SPLITS = ("train", "val", "test")
OURS = {"images", "labels", "classes.json", "import.json"}
# EXIF orientations that swap height and width.
TURNED = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImportOptions:
    """How annotations become labels.

    Attributes:
        split: the split that all pictures belong to; None where they have splits of their own, or
            `val_share` is given.
        val_share: share of the pictures, chosen by a hash of their names, that become val.
        unlabelled: what pixels without annotation are: class 0, `background`, or `void`.
        void: classes whose pixels get no class.
        annotated_on: for pictures that EXIF turns, what the annotations are of: `upright`, as
            they are shown, or `stored`, as their pixels are stored.
    """

    split: str | None = None
    val_share: float | None = None
    unlabelled: str = BACKGROUND
    void: tuple[str, ...] = ()
    annotated_on: str = "upright"

    def __post_init__(self) -> None:
        if self.split not in (None, *SPLITS):
            raise DataError(f"--split must be one of {', '.join(SPLITS)}. Received: {self.split!r}")
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise DataError(f"--val-share must be between 0 and 1. Received: {self.val_share}")
        if self.split is not None and self.val_share is not None:
            raise DataError("give --split or --val-share, not both")
        if self.unlabelled not in (BACKGROUND, "void"):
            raise DataError(
                f"--unlabelled must be background or void. Received: {self.unlabelled!r}"
            )
        if self.unlabelled == BACKGROUND and BACKGROUND in self.void:
            raise DataError("--void background is --unlabelled void: give that")
        if self.annotated_on not in ("upright", "stored"):
            raise DataError(
                f"--annotated-on must be upright or stored. Received: {self.annotated_on!r}"
            )


@dataclass(frozen=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        root: the folder.
        label_space: its classes.
        pictures: number of pictures of each split that was written.
        pixels: pixels of each class in them, int64 [n].
        ignored: pixels without a class.
        left_out: pictures in which no pixel has a class.
    """

    root: Path
    label_space: LabelSpace
    pictures: Mapping[str, int]
    pixels: np.ndarray
    ignored: int
    left_out: int

    def text(self) -> str:
        """Return a summary and what to do next."""
        split = " and ".join(f"{count} {name}" for name, count in self.pictures.items())
        total = int(self.pixels.sum()) + self.ignored
        rows = [*zip(self.label_space.classes, self.pixels, strict=True), ("(void)", self.ignored)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{self.root}: {split} pictures", ""]
        lines += [
            f"{number if number < len(self.pixels) else IGNORE:>5}  {name:<{width}}"
            f"  {100 * count / total:6.2f} % of the pixels"
            for number, (name, count) in enumerate(rows)
        ]
        if self.left_out:
            lines += ["", f"Left out: {self.left_out} pictures in which no pixel has a class"]
        if absent := [name for name, count in rows[:-1] if not count]:
            lines += ["", f"Warning: no pixel has the classes: {', '.join(absent)}"]
        lines += [
            "",
            "Next:",
            f"  python -m alignseg_tf inspect {self.root} --output inspection",
            f"  python -m training.train --data {self.root} --output runs/{self.root.name}",
        ]
        return "\n".join(lines)


def write_import(
    annotations: Annotations,
    output: str | Path,
    options: ImportOptions | None = None,
    source: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Write annotated pictures as a folder, at once when all of it is done.

    A folder that an import wrote may be given again: the same splits are replaced, others are
    kept, with their classes. Every picture and label is read back once.

    Args:
        annotations: what a reader of `annotations.py` found.
        output: the folder; it must be new, empty, or from an import.
        options: how annotations become labels.
        source: what `import.json` shall say.
        progress: called with (done, total).

    Raises:
        DataError: `output` holds something else, or pictures or annotations do not fit; the first
            ones are named.
    """
    options = options or ImportOptions()
    output = Path(output)
    unknown = set(options.void) - set(annotations.classes)
    if unknown:
        raise DataError(
            f"--void must name classes: {', '.join(annotations.classes)}. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    split_of = _choose_splits(annotations.pictures, options)
    splits = [split for split in SPLITS if split in split_of]
    former = _former_import(output)
    kept = _kept_imports(output, former, splits, options)
    label_space = _label_space(annotations, options, output / "classes.json" if kept else None)
    ids = dict.fromkeys(options.void, IGNORE)
    ids |= {name: index for index, name in enumerate(label_space.classes) if name not in ids}
    unlabelled = ids[BACKGROUND] if options.unlabelled == BACKGROUND else IGNORE
    _check_names(split_of, output, kept)

    with atomic_path(output) as folder:
        for record in kept:
            for split in record["splits"]:
                for kind in ("images", "labels"):
                    shutil.copytree(
                        output / kind / split, folder / kind / split, copy_function=_link
                    )

        def write(job: tuple[str, Annotated]) -> np.ndarray | str | None:
            split, picture = job
            try:
                return _write_pair(folder, split, picture, ids, unlabelled, label_space, options)
            except DataError as error:
                return str(error).replace(str(folder), str(output))

        jobs = [(split, picture) for split in splits for picture in split_of[split]]
        pictures = dict.fromkeys(splits, 0)
        pixels, problems = np.zeros(256, np.int64), []
        with ThreadPoolExecutor() as pool:
            for done, (job, result) in enumerate(
                zip(jobs, pool.map(write, jobs), strict=True), start=1
            ):
                if isinstance(result, str):
                    problems.append(result)
                elif result is not None:
                    pictures[job[0]] += 1
                    pixels += result
                if progress is not None:
                    progress(done, len(jobs))
        if problems:
            more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(
                f"{len(problems)} of {len(jobs)} pictures are unfit; nothing was written:\n  "
                + "\n  ".join(problems[:5])
                + more
            )
        if empty := [split for split, count in pictures.items() if not count]:
            raise DataError(f"{empty[0]}: in none of its pictures has a pixel a class")
        if kept:
            _link(output / "classes.json", folder / "classes.json")
        else:
            classes = {**label_space.to_dict(), "void": label_space.void}
            write_text(folder / "classes.json", json.dumps(classes, indent=1))
        imports = [*kept, {"source": source, "splits": splits}]
        record = {"unlabelled": options.unlabelled, "imports": imports}
        write_text(folder / "import.json", json.dumps(record, indent=1))

    count = label_space.num_classes
    left_out = len(jobs) - sum(pictures.values())
    ignored = int(pixels[count:].sum())
    return ImportReport(output, label_space, pictures, pixels[:count], ignored, left_out)


def _choose_splits(
    pictures: Sequence[Annotated], options: ImportOptions
) -> dict[str, list[Annotated]]:
    if not pictures:
        raise DataError("there are no pictures to import")
    chosen: dict[str, list[Annotated]] = {}
    if options.split is not None:
        chosen[options.split] = list(pictures)
    elif options.val_share is not None:
        if len(pictures) < 2:
            raise DataError("--val-share needs two or more pictures")
        # The same pictures always fall on the same side, in whatever order they come.
        hashed = sorted(pictures, key=lambda p: hashlib.sha256(p.name.encode()).digest())
        count = min(max(1, round(options.val_share * len(hashed))), len(hashed) - 1)
        chosen = {"train": hashed[count:], "val": hashed[:count]}
    elif all(picture.split is not None for picture in pictures):
        for picture in pictures:
            chosen.setdefault(str(picture.split), []).append(picture)
    else:
        raise DataError("the source has no splits of its own: give --split train, val or test, or "
                        "--val-share 0.2")  # fmt: skip
    return {split: sorted(part, key=lambda p: p.name) for split, part in chosen.items()}


def _former_import(output: Path) -> dict[str, Any]:
    """Return what an import left in a folder; nothing where it is new or empty."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {"imports": []}
    found = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    try:
        former = json.loads((output / "import.json").read_text())
    except (OSError, ValueError):
        former = None
    if former is None or found - OURS:
        others = ", ".join(sorted(found - OURS) or sorted(found))
        raise DataError(
            f"{output}: expected a new or empty folder, or one from an import. Received: one with "
            f"{others}"
        )
    return former


def _kept_imports(
    output: Path, former: Mapping[str, Any], splits: Sequence[str], options: ImportOptions
) -> list[dict[str, Any]]:
    """Return the former imports whose splits are not replaced."""
    kept = [record for record in former["imports"] if not set(record["splits"]) <= set(splits)]
    for record in kept:
        if set(record["splits"]) & set(splits):
            raise DataError(
                f"{output}: {' and '.join(record['splits'])} were imported together; replace both, "
                f"or import into another folder. Received: {' and '.join(splits)}"
            )
    if kept and former["unlabelled"] != options.unlabelled:
        raise DataError(
            f"{output}: its {kept[0]['splits'][0]} pictures were imported with --unlabelled "
            f"{former['unlabelled']}. Received: {options.unlabelled}"
        )
    return kept


def _label_space(
    annotations: Annotations, options: ImportOptions, classes_file: Path | None
) -> LabelSpace:
    """Return the classes: those of a folder that is kept, else those of the annotations."""
    names = [name for name in annotations.classes if name not in options.void]
    if options.unlabelled == BACKGROUND:
        names = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
    try:
        if classes_file is not None:
            there = LabelSpace.from_file(classes_file)
            if not set(names) <= set(there.classes):
                raise ValueError(
                    f"{classes_file}: both imports must have the same classes: "
                    f"{', '.join(there.classes)}. Received: {', '.join(names)}"
                )
            return there
        colors = {BACKGROUND: (0, 0, 0), **annotations.colors}
        others = iter(default_palette(len(names)))
        palette = tuple(colors[name] if name in colors else next(others) for name in names)
        return LabelSpace(tuple(names), palette)
    except ValueError as error:
        raise DataError(str(error)) from error


def _check_names(
    split_of: Mapping[str, Sequence[Annotated]], output: Path, kept: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse pictures that would overwrite each other, or are in a kept split already."""
    for split, pictures in split_of.items():
        seen: dict[str, Annotated] = {}
        for picture in pictures:
            if picture.suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(
                    f"{picture.source}: the picture must be one of {', '.join(IMAGE_SUFFIXES)}. "
                    f"Received: {picture.name}{picture.suffix}"
                )
            if picture.name in seen:
                raise DataError(
                    f"{picture.source}: a second picture {picture.name}{picture.suffix}, beside "
                    f"that of {seen[picture.name].source}"
                )
            seen[picture.name] = picture
            for other in (name for record in kept for name in record["splits"]):
                there = output / "images" / other / f"{picture.name}{picture.suffix}"
                if there.is_file() and _same_content(picture.picture, there):
                    raise DataError(
                        f"{picture.source}: the picture is already there as {there}: what is "
                        f"in {other} must not be in {split}"
                    )


def _same_content(picture: Path | bytes, path: Path) -> bool:
    if isinstance(picture, bytes):
        return path.read_bytes() == picture
    return filecmp.cmp(picture, path, shallow=False)


def _write_pair(
    folder: Path,
    split: str,
    picture: Annotated,
    ids: Mapping[str, int],
    unlabelled: int,
    label_space: LabelSpace,
    options: ImportOptions,
) -> np.ndarray | None:
    """Write a picture and its label, and count the label's values; nothing where all are void."""
    image_file = folder / "images" / split / f"{picture.name}{picture.suffix}"
    label_file = folder / "labels" / split / f"{picture.name}.png"
    content = picture.picture
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as opened:
            stored = (opened.height, opened.width)
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow raises many kinds on broken files
        raise DataError(f"{picture.source}: its picture is not readable ({error})") from error
    upright = stored[::-1] if orientation in TURNED else stored
    size = upright if options.annotated_on == "upright" else stored
    if picture.size is not None and picture.size != size:
        height, width = picture.size
        raise DataError(
            f"{picture.source}: the annotations are for {width} x {height} pixels, the picture "
            f"{picture.name}{picture.suffix} has {size[1]} x {size[0]}"
            + (_exif_hint(options) if orientation in TURNED else "")
        )
    label = picture.draw(size, ids, unlabelled)
    if (label == IGNORE).all():
        return None
    if options.annotated_on == "stored":
        turned = Image.fromarray(label)
        turned.getexif()[ExifTags.Base.Orientation] = orientation
        label = np.asarray(ImageOps.exif_transpose(turned))
    for path in (image_file, label_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        image_file.write_bytes(content)
    else:
        shutil.copyfile(content, image_file)
    Image.fromarray(label).save(label_file)
    try:
        _, label = load_sample(Sample(image_file, label_file), label_space)
    except DataError as error:
        raise DataError(f"{picture.source}: {error}") from error
    return np.bincount(label.ravel(), minlength=256)


def _exif_hint(options: ImportOptions) -> str:
    other = "stored" if options.annotated_on == "upright" else "upright"
    return f", {options.annotated_on}; EXIF turns it by 90 degrees, so try --annotated-on {other}"


def _link(source: str | Path, target: str | Path) -> None:
    """Let a file be in two folders, or copy it where the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def unpacked(export: str | Path) -> Iterator[Path]:
    """Yield a folder, or what is in a .zip file while it is needed.

    Raises:
        DataError: it is neither.
    """
    export = Path(export)
    if export.is_dir():
        yield export
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(export) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{export}: expected a folder or a .zip file ({error})") from error
        yield Path(folder)


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sources of an import and their arguments."""
    sources = parser.add_subparsers(required=True, metavar="SOURCE", dest="source")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        source = sources.add_parser(name, help=help, description=help)
        source.add_argument("--output", type=Path, required=True, help="the folder to write")
        splits = source.add_mutually_exclusive_group()
        splits.add_argument("--split", choices=SPLITS, help="what all these pictures are for")
        splits.add_argument(
            "--val-share", type=float, metavar="SHARE",
            help="share of the pictures to hold out, chosen by a hash of their names, as 0.2",
        )  # fmt: skip
        source.add_argument(
            "--unlabelled", choices=(BACKGROUND, "void"), default=ImportOptions.unlabelled,
            help="what pixels without annotation are (%(default)s, class 0)",
        )  # fmt: skip
        source.add_argument(
            "--void", nargs="+", default=(), metavar="CLASS", help="classes to ignore"
        )
        source.add_argument(
            "--annotated-on", choices=("upright", "stored"), default=ImportOptions.annotated_on,
            help="what was annotated where EXIF turns a picture (%(default)s)",
        )  # fmt: skip
        return source

    source = add("coco", "instances of a COCO file: polygons and RLE")
    source.add_argument("--annotations", type=Path, required=True, help="the JSON file")
    source.add_argument("--images", type=Path, required=True, help="the folder of its pictures")

    source = add("cvat", "CVAT's export 'Segmentation mask 1.1'")
    source.add_argument("--export", type=Path, required=True, help="the .zip, or its folder")
    source.add_argument("--images", type=Path, help="folder of the pictures (JPEGImages within)")

    source = add("labelme", "the JSON files of LabelMe")
    source.add_argument("--annotations", type=Path, required=True, help="the folder with them")
    source.add_argument(
        "--classes", nargs="+", default=(), metavar="CLASS",
        help="names in the order of their ids (those found, sorted)",
    )  # fmt: skip
    source.add_argument(
        "--line-width", type=int, metavar="PIXELS",
        help="how wide lines and points are drawn (they are refused)",
    )  # fmt: skip


def import_from_arguments(
    arguments: argparse.Namespace, progress: Callable[[int, int], None] | None = None
) -> ImportReport:
    """Import what the command line names.

    Raises:
        DataError: as `write_import` and the readers of `annotations.py`.
    """
    options = ImportOptions(
        arguments.split, arguments.val_share, arguments.unlabelled, tuple(arguments.void),
        arguments.annotated_on,
    )  # fmt: skip
    path = arguments.export if arguments.source == "cvat" else arguments.annotations
    source = f"{arguments.source} {path.name}"
    if arguments.source == "cvat":
        with unpacked(path) as folder:
            annotations = read_cvat(folder, arguments.images)
            return write_import(annotations, arguments.output, options, source, progress)
    if arguments.source == "coco":
        annotations = read_coco(path, arguments.images)
    else:
        annotations = read_labelme(path, arguments.classes, arguments.line_width)
    return write_import(annotations, arguments.output, options, source, progress)
