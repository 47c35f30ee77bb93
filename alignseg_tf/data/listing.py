"""List the images and labels of a folder or a CSV file.

A folder holds `images/{train,val}`, `labels/{train,val}` and `classes.json`; an image and its label
share a name up to the suffix. A CSV list has the columns `image` and `label` with paths relative to
the list, optionally `split`, and `classes.json` beside it.

Hidden files and folders are skipped, links to folders are followed, and names are compared in the
Unicode form NFC.
"""

import csv
import glob
import io
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from alignseg_tf.system.printable import printable

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"
)  # fmt: skip
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
# Files that systems and tools write beside the data, in addition to hidden ones.
DERIVED_NAMES = ("__macosx", "thumbs.db", "desktop.ini")
# Maximum number of problems listed in one error message.
LISTED = 5
# Skipped paths by kind: a suffix, or one of the kinds below.
Skipped = dict[str, list[Path]]
DERIVED, SPECIAL, LOOP = "hidden", "not a file", "a link to a folder around it"


class DataError(ValueError):
    """The data are wrong; the message names the file."""


def expect(fits: bool, where: str, what: str, received: Any) -> None:
    """Raise DataError, which shows 80 characters of the received value, unless it fits."""
    if not fits:
        raise DataError(f"{where}: expected {what}. Received: {received!r:.80}")


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Raise a ValueError of the body as a DataError whose message starts with the source."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


class ListingError(DataError):
    """Some samples of a split cannot be listed.

    Attributes:
        problems: what is wrong, each with its file.
        samples: the samples that can be listed.
    """

    def __init__(self, source: str, problems: Sequence[str], samples: Sequence["Sample"]):
        text = f"{source}: {len(problems)} problems:{list_problems(problems)}"
        super().__init__(text if len(problems) > 1 else problems[0])
        self.problems = list(problems)
        self.samples = list(samples)


def list_problems(problems: Sequence[str]) -> str:
    """Return the first problems, a line each, and the number of the others."""
    more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return "".join(f"\n  {line}" for line in problems[:LISTED]) + more


@dataclass(frozen=True)
class Sample:
    """An image and its label on disk."""

    image: Path
    label: Path


def read_folder(root: str | Path, split: str) -> list[Sample]:
    """List the images of `root/images/split` with their labels, sorted by name.

    Raises:
        ListingError: images have no label, or two files have one name.
        DataError: a folder is missing or empty.
    """
    images, labels = (Path(root) / kind / split for kind in ("images", "labels"))
    for folder in (images, labels):
        if not folder.is_dir():
            there = sorted(p.name for p in folder.parent.glob("[!.]*") if p.is_dir())
            raise DataError(
                f"{folder}: no such folder; expected images/{{train,val}}, labels/{{train,val}} "
                f"and classes.json under {root}. Received: {', '.join(there) or 'no folders'}"
            )
    image_of, problems = _files_by_name(images, IMAGE_SUFFIXES, "image")
    if not image_of and not problems:
        raise _no_images(images)
    label_of, label_problems = _files_by_name(labels, LABEL_SUFFIXES, "label")
    problems += label_problems
    samples = [Sample(path, label_of[name]) for name, path in image_of.items() if name in label_of]
    if missing := [name for name in image_of if name not in label_of]:
        others = set(list_files(labels)) - {sample.label for sample in samples}
        for count, name in enumerate(missing):
            near = sorted(others) if count < LISTED else ()  # only the first problems are shown
            problems.append(_no_label(image_of[name], labels / name, near))
    if problems:
        raise ListingError(str(images), problems, samples)
    return samples


def labels_without_image(root: str | Path, split: str) -> list[Path]:
    """List the labels of `root/labels/split` that have no image."""
    image_of, _ = _files_by_name(Path(root) / "images" / split, IMAGE_SUFFIXES, "image")
    label_of, _ = _files_by_name(Path(root) / "labels" / split, LABEL_SUFFIXES, "label")
    return [path for name, path in label_of.items() if name not in image_of]


def _files_by_name(
    folder: Path, suffixes: Sequence[str], what: str
) -> tuple[dict[str, Path], list[str]]:
    """Return files by path below the folder without suffix, in NFC, and problems of others."""
    found: dict[str, Path] = {}
    problems = []
    for path in list_files(folder):
        if path.suffix.lower() not in suffixes:
            continue
        name = unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix("")))
        if name != name.encode(errors="ignore").decode():
            raw = os.fsencode(path.name)
            problems.append(f"{path.parent}: the name {raw!r} is not UTF-8; rename the file")
        elif name in found:
            problems.append(f"{path}: a second {what} beside {found[name].name}; remove one")
        else:
            found[name] = path
    return found, problems


def _no_images(folder: Path) -> DataError:
    suffixes = Counter(path.suffix or path.name for path in list_files(folder))
    there = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(LISTED))
    return DataError(
        f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder. "
        f"Received: {there or 'no files'}"
    )


def _no_label(image: Path, expected: Path, others: Iterable[Path]) -> str:
    """Say that a label is missing, and name a similar file."""
    stem, suffixes = image.stem.casefold(), ", ".join(LABEL_SUFFIXES)
    near = next((path for path in others if stem in path.stem.casefold()), None)
    rule = f"; there is {near}, but a label has its image's name and one of the suffixes {suffixes}"
    return f"{image}: no label {expected}.png{rule if near else ''}"


def list_files(folder: Path, skipped: Skipped | None = None) -> list[Path]:
    """List the files below a folder at all depths, sorted; see `walk_files`."""
    return sorted(map(Path, walk_files(folder, skipped)))


def walk_files(
    folder: str | Path,
    skipped: Skipped | None = None,
    leave_out: Path | None = None,
    around: tuple[tuple[int, int], ...] = (),
) -> Iterator[str]:
    """Yield the files below a folder at all depths, following links; do not enter `leave_out`.

    `skipped` gets hidden and derived files, special files, and links to a folder around them;
    `around` has the devices and inodes of these folders.

    Raises:
        DataError: a folder is not readable.
    """
    skipped = {} if skipped is None else skipped
    try:
        status = Path(folder).stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{error.filename}: not readable as a folder ({error.strerror})") from error
    identity = status.st_dev, status.st_ino
    if identity in around:
        skipped.setdefault(LOOP, []).append(Path(folder))
        return
    folders = []
    for entry in entries:
        if is_derived_file(PurePath(entry.name)):
            skipped.setdefault(DERIVED, []).append(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):  # known without another system call
            yield entry.path
        elif Path(entry.path).is_dir():
            folders.append(entry.path)
        elif kind := special_kind(entry.path):
            skipped.setdefault(f"{SPECIAL} but {kind}", []).append(Path(entry.path))
        else:
            yield entry.path
    for path in folders:
        if leave_out is None or Path(path) != leave_out:
            yield from walk_files(path, skipped, leave_out, (*around, identity))


def describe_skipped(skipped: Mapping[str, Sequence[Path]]) -> str:
    """Return what was skipped in one line, such as "3 .heic, 1 hidden"; empty if nothing."""
    parts = []
    for kind, paths in sorted(skipped.items()):
        part = f"{len(paths)} {kind}"
        if not kind.startswith(".") and kind != DERIVED:
            part += f" ({', '.join(map(str, paths[:LISTED]))}{', ...' * (len(paths) > LISTED)})"
        parts.append(printable(part))
    return ", ".join(parts)


def find_spelled(path: Path) -> Path:
    """Return a path in the Unicode form in which it exists, or unchanged."""
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((other for other in (path, *forms) if other.exists()), path)


def read_csv(path: str | Path, split: str | None = None) -> list[Sample]:
    """List the samples of a CSV file, or of the rows with a value in the column `split`.

    Paths are relative to the file's folder. Spaces around names and values are ignored, except
    where a file name has them.

    Raises:
        ListingError: rows are incomplete, or name missing files.
        DataError: the file, a column or the rows are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    columns = ["image", "label"] if split is None else ["image", "label", "split"]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
    rows = csv.DictReader(io.StringIO(text, newline=""), restval="")
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    if not set(columns) <= set(rows.fieldnames or ()):
        raise DataError(f"{path}: expected the columns {columns}. Received: {rows.fieldnames}")
    samples, problems, splits = [], [], Counter[str]()
    for row in rows:
        if split is not None:
            splits[row["split"].strip()] += 1
            if row["split"].strip() != split:
                continue
        image, label = (_listed_file(path.parent, row[name]) for name in columns[:2])
        if problem := _row_problem(path.parent, image, label):
            problems.append(f"{path}, line {rows.line_num}: {problem}")
        else:
            samples.append(Sample(image, label))
    if problems:
        raise ListingError(str(path), problems, samples)
    if not samples:
        there = ", ".join(f"{count} of {name!r}" for name, count in splits.most_common(LISTED))
        of_split = f" of the split {split!r}. Received: {there or 'no rows'}" if split else ""
        raise DataError(f"{path}: no rows{of_split}")
    return samples


def _listed_file(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.is_file() else find_spelled(folder / name.strip())


def _row_problem(folder: Path, *paths: Path) -> str | None:
    if folder in paths:
        return "image and label expected"
    for path in paths:
        if kind := special_kind(path):
            return f"{path}: expected a file. Received: {kind}"
        if not path.is_file():
            hint = "; folders are separated by /" if "\\" in str(path) else ""
            return f"{path} is not there{hint}"
    return None


def is_derived_file(path: PurePath) -> bool:
    """Return whether a part of a relative path is hidden, or a name that systems and tools use."""
    return any(
        part.casefold() in DERIVED_NAMES or (part.startswith(".") and part not in (".", ".."))
        for part in path.parts
    )


def special_kind(path: str | Path) -> str | None:
    """Return what a path is if neither a file nor a folder, such as "a pipe", else None.

    Opening a pipe may block forever, and reading a device may not end.
    """
    kinds = {
        stat.S_IFREG: None, stat.S_IFDIR: None, stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"
    }  # fmt: skip
    with suppress(OSError, ValueError):
        return kinds.get(stat.S_IFMT(Path(path).stat().st_mode), "a device")
    return None


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List images as `find_named_images`, without their paths below the folder."""
    return [path for path, _ in find_named_images(paths)]


def find_named_images(
    paths: Iterable[str | Path],
    leave_out: Path | None = None,
    skipped: Skipped | None = None,
) -> list[tuple[Path, Path]]:
    """List images in the order of `paths`, each once, with its path below the given folder.

    Args:
        paths: files, folders (searched at all depths), and patterns such as `**/left.png`.
        leave_out: a folder whose files are omitted.
        skipped: gets other files of folders, and special files, for `describe_skipped`.

    Raises:
        DataError: a path is missing, a folder has no image, or nothing matches a pattern.
    """
    found: dict[Path, Path] = {}
    skipped = {} if skipped is None else skipped
    for path in map(Path, paths):
        for match in _matches(path):
            if match.is_dir():
                found |= {p: p.relative_to(match) for p in _images(match, leave_out, skipped)}
            elif kind := special_kind(match):
                skipped.setdefault(f"{SPECIAL} but {kind}", []).append(match)
            elif match.is_file() or match.is_symlink():  # reading reports a broken link
                found[match] = Path(match.name)
            else:
                raise DataError(f"{match}: no such file or folder")
    if not found and skipped:
        raise DataError(f"no images. Received: {describe_skipped(skipped)}")
    return list(found.items())


def _matches(path: Path) -> list[Path]:
    if path.exists() or path.is_symlink() or not glob.has_magic(str(path)):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if not matches:
        raise DataError(f"{path}: nothing fits this pattern")
    return matches


def _images(folder: Path, leave_out: Path | None, skipped: Skipped) -> list[Path]:
    inside = list_files(folder, skipped)
    if leave_out is not None:
        # Unlike `Path.resolve`, `realpath` accepts a link to itself.
        inside = [p for p in inside if not Path(os.path.realpath(p)).is_relative_to(leave_out)]
    images = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise _no_images(folder)
    add_by_suffix(skipped, (p for p in inside if p.suffix.lower() not in IMAGE_SUFFIXES))
    return images


def add_by_suffix(skipped: Skipped, paths: Iterable[Path]) -> None:
    """Add paths to the skipped ones, by suffix."""
    for path in paths:
        skipped.setdefault(path.suffix.lower() or "without a suffix", []).append(path)
