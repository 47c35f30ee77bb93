"""List the images and labels of a folder or a CSV file."""

import csv
import glob
import io
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from alignseg_tf.system.printable import printable

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"
)  # fmt: skip
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
# Files that systems and tools leave beside the data; so are all hidden ones.
DERIVED_NAMES = ("__macosx", "thumbs.db", "desktop.ini")
# So many problems are listed in one message.
LISTED = 5
# What was left out, by why: a suffix, or one of the reasons below.
Skipped = dict[str, list[Path]]
DERIVED, SPECIAL, LOOP = "hidden", "not a file", "a link to a folder around it"


class DataError(ValueError):
    """Something is wrong with the data; the message names the file."""


class ListingError(DataError):
    """Some samples of a split cannot be listed.

    Attributes:
        problems: what is wrong, each with its file.
        samples: those that can.
    """

    def __init__(self, source: str, problems: Sequence[str], samples: Sequence["Sample"]):
        text = problems[0]
        if len(problems) > 1:
            text = f"{source}: {len(problems)} problems:{list_problems(problems)}"
        super().__init__(text)
        self.problems = list(problems)
        self.samples = list(samples)


def list_problems(problems: Sequence[str]) -> str:
    """Return the first problems, a line each, and the number of the others."""
    more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return "".join(f"\n  {line}" for line in [*problems[:LISTED], *more])


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
    images, labels = Path(root) / "images" / split, Path(root) / "labels" / split
    for folder in (images, labels):
        if not folder.is_dir():
            there = sorted(p.name for p in folder.parent.glob("[!.]*") if p.is_dir())
            raise DataError(
                f"{folder}: no such folder; expected images/{{train,val}}, labels/{{train,val}} "
                f"and classes.json under {root}. Received: {', '.join(there) or 'no folders'}"
            )
    image_files, problems = _files_by_key(images, IMAGE_SUFFIXES, "image")
    if not image_files and not problems:
        raise _no_images(images)
    label_of, more_problems = _files_by_key(labels, LABEL_SUFFIXES, "label")
    problems += more_problems
    unlabelled = [key for key in image_files if key not in label_of]
    if unlabelled:
        used = {label_of[key] for key in image_files if key in label_of}
        others = [path for path in list_files(labels) if path not in used]
        for key in unlabelled[:LISTED]:
            problems.append(_no_label(image_files[key], labels / key, others))
        for key in unlabelled[LISTED:]:
            problems.append(_no_label(image_files[key], labels / key, ()))
    samples = [Sample(image_files[key], label_of[key]) for key in image_files if key in label_of]
    if problems:
        raise ListingError(str(images), problems, samples)
    return samples


def labels_without_image(root: str | Path, split: str) -> list[Path]:
    """List the files of `root/labels/split` that `read_folder` has no use for."""
    images, labels = Path(root) / "images" / split, Path(root) / "labels" / split
    image_files, _ = _files_by_key(images, IMAGE_SUFFIXES, "image")
    label_of, _ = _files_by_key(labels, LABEL_SUFFIXES, "label")
    return [path for key, path in label_of.items() if key not in image_files]


def list_files(folder: Path, skipped: Skipped | None = None) -> list[Path]:
    """List the files below a folder at all depths, also behind links, sorted.

    Args:
        folder: where to look.
        skipped: gets the files of tools and systems (`is_derived_file`), what is neither a file
            nor a folder, and links that lead back to a folder around them.

    Raises:
        DataError: a folder is not readable.
    """
    return sorted(map(Path, walk_files(folder, {} if skipped is None else skipped)))


def walk_files(
    folder: str | Path,
    skipped: Skipped,
    leave_out: Path | None = None,
    around: tuple[tuple[int, int], ...] = (),
) -> Iterator[str]:
    """Yield the paths that `list_files` lists, without a list of them all.

    Args:
        folder: where to look.
        skipped: as in `list_files`.
        leave_out: a folder that is not entered.
        around: devices and inodes of the folders around this one.

    Raises:
        DataError: a folder is not readable.
    """
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
        if _is_derived_name(entry.name):
            skipped.setdefault(DERIVED, []).append(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):  # without asking the disk once more
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
        of_file = kind.startswith(".") or kind == DERIVED
        more = ", ..." if paths[LISTED:] else ""
        named = "" if of_file else f" ({', '.join(map(str, paths[:LISTED]))}{more})"
        parts.append(printable(f"{len(paths)} {kind}{named}"))
    return ", ".join(parts)


def find_spelled(path: Path) -> Path:
    """Return a path in the Unicode form in which it is there; as it is if it is not there."""
    if not path.exists():
        for form in ("NFC", "NFD"):
            other = Path(unicodedata.normalize(form, str(path)))
            if other.exists():
                return other
    return path


def _key(path: Path, folder: Path) -> Path:
    """What an image and its label have in common."""
    return Path(unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix(""))))


def _files_by_key(
    folder: Path, suffixes: Sequence[str], what: str
) -> tuple[dict[Path, Path], list[str]]:
    """Return the files with one of the suffixes by `_key`, and what is wrong with others."""
    found: dict[Path, Path] = {}
    problems = []
    for path in list_files(folder):
        key = _key(path, folder)
        if path.suffix.lower() not in suffixes:
            continue
        if not _is_utf8(path.name):
            name = os.fsencode(path.name)
            problems.append(f"{path.parent}: the name {name!r} is not UTF-8; rename the file")
        elif key in found:
            problems.append(f"{path}: a second {what} beside {found[key].name}; remove one")
        else:
            found[key] = path
    return found, problems


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # what Python makes of other bytes in a name
        return False
    return True


def _no_images(folder: Path) -> DataError:
    suffixes = Counter(path.suffix or path.name for path in list_files(folder))
    there = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(LISTED))
    return DataError(
        f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder. "
        f"Received: {there or 'no files'}"
    )


def _no_label(image: Path, expected: Path, others: Iterable[Path]) -> str:
    """Say that a label is missing, and which of other files may be meant."""
    text = f"{image}: no label {expected}.png"
    stem = image.stem.casefold()
    near = next((path for path in others if stem in path.stem.casefold()), None)
    if near is None:
        return text
    return (
        f"{text}; there is {near}, but a label has its image's name and one of the suffixes "
        f"{', '.join(LABEL_SUFFIXES)}"
    )


def read_csv(path: str | Path, split: str | None = None) -> list[Sample]:
    """List the samples of a CSV file with the columns `image` and `label`.

    Spaces around names and values do not count, unless a file's name has them.

    Args:
        path: the file; its paths are relative to its folder.
        split: keep the rows with this value in the column `split`; None keeps all rows.

    Raises:
        ListingError: rows are incomplete, or name files that are not there.
        DataError: no such file, no such columns, or no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    expected = {"image", "label"} if split is None else {"image", "label", "split"}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
    samples, problems, splits = [], [], Counter[str]()
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file, restval="")
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        if not expected <= set(rows.fieldnames or ()):
            raise DataError(
                f"{path}: expected the columns {sorted(expected)}. Received: {rows.fieldnames}"
            )
        for row in rows:
            if split is not None:
                splits[row["split"].strip()] += 1
                if row["split"].strip() != split:
                    continue
            image, label = (_listed_file(path.parent, row[name]) for name in ("image", "label"))
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
    """Return whether a system or a tool made a file, which is therefore no data.

    Such are hidden files and folders (`._a.png`, `.ipynb_checkpoints`), `__MACOSX`, `Thumbs.db` and
    `desktop.ini`.

    Args:
        path: a path below the folder or inside the archive that is read; all its parts count.
    """
    return any(map(_is_derived_name, path.parts))


def _is_derived_name(name: str) -> bool:
    return name.casefold() in DERIVED_NAMES or (name.startswith(".") and name not in (".", ".."))


def special_kind(path: str | Path) -> str | None:
    """Return what a path is that is neither a file nor a folder, such as "a pipe", or None.

    Opening a pipe may wait forever, and reading a device may not end.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List the images among files, folders and patterns, in order.

    Raises:
        DataError: as `find_named_images`.
    """
    return [path for path, _ in find_named_images(paths)]


def find_named_images(
    paths: Iterable[str | Path],
    leave_out: Path | None = None,
    skipped: Skipped | None = None,
) -> list[tuple[Path, Path]]:
    """List images, each with its path below the folder that was asked for.

    Args:
        paths: files, folders (searched at all depths), and patterns such as `street/*.jpg` or
            `**/left.png`.
        leave_out: a folder whose files are not taken.
        skipped: gets what is no image in folders and among files, for `describe_skipped`.

    Returns:
        (path, path below the folder, or the name of a file), in the order of `paths`, each once.

    Raises:
        DataError: a path is not there, a folder has no image, or nothing fits a pattern.
    """
    found: dict[Path, Path] = {}
    skipped = {} if skipped is None else skipped
    for path in map(Path, paths):
        for match in _matches(path):
            if match.is_dir():
                found |= {p: p.relative_to(match) for p in _images(match, leave_out, skipped)}
            elif kind := special_kind(match):
                skipped.setdefault(f"{SPECIAL} but {kind}", []).append(match)
            elif match.is_file() or match.is_symlink():  # what is wrong with a link, reading says
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
        # Unlike `Path.resolve`, it takes a link to itself.
        inside = [p for p in inside if not Path(os.path.realpath(p)).is_relative_to(leave_out)]
    images = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
    for path in inside:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.setdefault(path.suffix.lower() or "without a suffix", []).append(path)
    if not images:
        raise _no_images(folder)
    return images
