"""From files to arrays: which picture has which label, and what is in them.

A folder holds `images/{train,val}`, `labels/{train,val}` and `classes.json`; a label has its
picture's name, up to the suffix. A CSV list has the columns `image` and `label` with paths
relative to the list, optionally `split`, and `classes.json` beside it.

Hidden files and folders, such as `._a.png` or `.ipynb_checkpoints`, are no data. Links to folders
are followed. Names are equal whatever their Unicode form: macOS splits an accented letter in two.
"""

import csv
import glob
import io
import os
import re
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from alignseg_tf.data.image_headers import check_header, describe_tiff, exif_orientation
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.system.printable import printable

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"
)  # fmt: skip
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
# What Pillow may take a file for. It knows more formats: some run other programs (EPS), some are
# decoded in Python (QOI, FITS), whatever the suffix says.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
# Files that systems and tools leave beside the data; so are all hidden ones.
DERIVED_NAMES = ("__macosx", "thumbs.db", "desktop.ini")
# Pillow's modes of more than 8 bits a channel.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# The network's coarsest stride: what is smaller leaves nothing there. The model refuses it too, as
# its `MIN_IMAGE_SIZE`; data and model know nothing of each other, so a test holds both equal.
MIN_SIDE = 32
# So many problems are listed in one message.
LISTED = 5

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    """A picture and its label on disk."""

    image: Path
    label: Path


def read_folder(root: str | Path, split: str) -> list[Sample]:
    """List the pictures of `root/images/split` with their labels, sorted by name.

    Raises:
        ListingError: pictures have no label, or two files have one name.
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
    pictures, problems = _files_by_key(images, IMAGE_SUFFIXES, "picture")
    if not pictures and not problems:
        raise _no_pictures(images)
    label_of, more_problems = _files_by_key(labels, LABEL_SUFFIXES, "label")
    problems += more_problems
    unlabelled = [key for key in pictures if key not in label_of]
    if unlabelled:
        used = {label_of[key] for key in pictures if key in label_of}
        others = [path for path in list_files(labels) if path not in used]
        for key in unlabelled[:LISTED]:
            problems.append(_no_label(pictures[key], labels / key, others))
        for key in unlabelled[LISTED:]:
            problems.append(_no_label(pictures[key], labels / key, ()))
    samples = [Sample(pictures[key], label_of[key]) for key in pictures if key in label_of]
    if problems:
        raise ListingError(str(images), problems, samples)
    return samples


def labels_without_picture(root: str | Path, split: str) -> list[Path]:
    """List the files of `root/labels/split` that `read_folder` has no use for."""
    images, labels = Path(root) / "images" / split, Path(root) / "labels" / split
    pictures, _ = _files_by_key(images, IMAGE_SUFFIXES, "picture")
    label_of, _ = _files_by_key(labels, LABEL_SUFFIXES, "label")
    return [path for key, path in label_of.items() if key not in pictures]


# What was left out, by why: a suffix, or one of the reasons below.
Skipped = dict[str, list[Path]]
DERIVED, SPECIAL, LOOP = "hidden", "not a file", "a link to a folder around it"


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
    """What a picture and its label have in common."""
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


def _no_pictures(folder: Path) -> DataError:
    suffixes = Counter(path.suffix or path.name for path in list_files(folder))
    there = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(LISTED))
    return DataError(
        f"{folder}: no pictures ({', '.join(IMAGE_SUFFIXES)}) in this folder. "
        f"Received: {there or 'no files'}"
    )


def _no_label(picture: Path, expected: Path, others: Iterable[Path]) -> str:
    """Say that a label is missing, and which of other files may be meant."""
    text = f"{picture}: no label {expected}.png"
    stem = picture.stem.casefold()
    near = next((path for path in others if stem in path.stem.casefold()), None)
    if near is None:
        return text
    return (
        f"{text}; there is {near}, but a label has its picture's name and one of the suffixes "
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


@contextmanager
def opened(
    path: str | Path, what: str = "a picture", content: bytes | None = None
) -> Iterator[Image.Image]:
    """Open a picture file with Pillow; the pixels are decoded when they are asked for.

    Whatever Pillow raises, here or in the body, becomes a DataError that names the file.

    Args:
        path: the file.
        what: what it should be, for messages.
        content: the file's bytes, where they have been read already.

    Raises:
        DataError: the file is missing, unreadable or damaged, holds several pictures, has more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS` (89 million), above which Pillow warns, or
            fails `check_header`.
    """
    try:
        if content is None and (kind := special_kind(path)):
            raise DataError(f"{path}: expected a file. Received: {kind}")
        check_header(Path(path) if content is None else content)
        # Given a path, Pillow 13 maps a TIFF into memory, and garbles one that is to be turned.
        with (
            Path(path).open("rb") if content is None else io.BytesIO(content) as file,
            Image.open(file, formats=FORMATS) as picture,
        ):
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and picture.width * picture.height > limit:
                raise Image.DecompressionBombError
            # Photographs as MPO carry a preview behind the picture.
            # Not counted: a TIFF may have a million, which Pillow reads one by one.
            if getattr(picture, "is_animated", False) and picture.format != "MPO":
                raise DataError(f"{path}: expected one picture. Received: several in this file")
            yield picture
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds on broken files
        reason = _why_unreadable(Path(path), error, content)
        raise DataError(f"{path}: not readable as {what} ({reason})") from error


def _why_unreadable(path: Path, error: Exception, content: bytes | None) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read this file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels; cut it into tiles"
    if content is None:
        if path.is_symlink() and not path.exists():
            return f"a link to {path.readlink()}, which is not there"
        if not path.exists():
            return "no such file"
        if path.is_dir():
            return "a folder"
        content = path.read_bytes()
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        if tiff := describe_tiff(content):
            return (
                f"{tiff}; what can be read is 1 band of 8, 16 or 32 bits, or 3 or 4 "
                "bands of 8 or 16 bits; gdal_translate -ot Byte -b 1 makes such a file"
            )
        return f"in no known format; the file starts with {content[:16]!r}"
    return f"truncated: {error}" if "truncated" in str(error).lower() else str(error)


def upright(picture: Image.Image) -> Image.Image:
    """Turn and mirror a picture as its EXIF orientation says.

    `PIL.ImageOps.exif_transpose` also rewrites all EXIF, and fails where any tag is mistyped.
    """
    picture.load()
    orientation = orientation_of(picture)
    return picture if orientation == 1 else picture.transpose(_TURNS[orientation])


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(picture: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8, of the header, and of what is loaded already.

    Pillow's `getexif` reads all tags instead, and of a PNG all pixels to look behind them.
    """
    info = picture.info
    if picture.format == "TIFF":
        value = getattr(picture, "tag_v2", {}).get(274, 1)
        return value if value in _TURNS else 1
    exif = info.get("exif") or b""
    if picture.format is None and not exif:  # in memory: tags may have been set
        value = picture.getexif().get(274, 1)
        return value if value in _TURNS else 1
    if not exif and (text := info.get("Raw profile type exif")):
        try:
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            exif = b""
    if (orientation := exif_orientation(exif)) != 1:
        return orientation
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
    xmp = xmp if isinstance(xmp, str) else xmp.decode("latin-1")
    found = re.search(r'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(found[1]) if found else 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Turn to RGB; transparent pixels show the colour that is stored for them."""
    if "transparency" in picture.info:  # Pillow warns of a palette with several such colours
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def load_image(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """Decode a picture to uint8 RGB [H, W, 3], turned as its EXIF orientation says.

    Grey, palette, CMYK and 1-bit pictures become RGB; of 16 bits a channel the upper 8 are kept.
    Transparency is dropped, as `tf.io.decode_image(channels=3)` in a served model does.

    Args:
        path: the file.
        content: its bytes, where they have been read already.

    Raises:
        DataError: as `opened`, or the values are not 8 or 16 bits a channel.
    """
    with opened(path, content=content) as picture:
        return rgb_pixels(picture, str(path))


def rgb_pixels(picture: Image.Image, name: str = "the picture") -> np.ndarray:
    """Turn a Pillow picture to uint8 RGB [H, W, 3], as `load_image` does; `name` is for errors.

    Raises:
        DataError: the values are not 8 or 16 bits a channel.
    """
    picture = upright(picture)
    if picture.mode not in DEEP_MODES:
        return np.asarray(_to_rgb(picture))
    # 16-bit grey, which Pillow's own conversion would clip at 255.
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{name}: expected 8 or 16 bits a channel. Received: mode {picture.mode}, values "
            f"{values.min()} to {values.max()}"
        )
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)


def load_label(path: str | Path, label_space: LabelSpace) -> np.ndarray:
    """Decode a label file to class ids, uint8 [H, W], with `IGNORE` where there is none.

    Palette files give their indices, not their colours; grey files of 1, 2 or 4 bits give what is
    stored, not the grey that shows it; floats must be whole numbers. As a picture, a label is
    turned as its EXIF orientation says.

    Raises:
        DataError: as `opened`, or the file is a JPEG, has transparent pixels, several channels
            where no colours are expected, or unknown values.
    """
    with opened(path, "a label") as picture:
        if picture.format in ("JPEG", "MPO"):
            raise DataError(f"{path}: a JPEG, which changes class ids; expected a PNG")
        stored = _stored_grey(picture)
        turned = upright(picture)
        mode = turned.mode
        if mode in ("LA", "RGBA"):
            if turned.getchannel("A").getextrema() != (255, 255):
                raise DataError(f"{path}: a label must not have transparent pixels")
            turned = turned.convert(mode[:-1])
        values = np.asarray(_to_rgb(turned) if label_space.colors else stored(turned))
    if values.ndim != 2 and not label_space.colors:
        raise DataError(
            f"{path}: expected one channel of class ids, or a palette. Received: {mode} with "
            f"shape {values.shape}{_channels_hint(values)}"
        )
    if values.dtype != np.uint8:
        if not (values.min() >= 0 and values.max() <= 255 and (values == np.rint(values)).all()):
            raise DataError(
                f"{path}: label values must be whole numbers 0..255. Received: "
                f"{values.dtype}, {values.min()} to {values.max()}{_fraction(values)}"
            )
        values = values.astype(np.uint8)
    try:
        return label_space.encode(values)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _stored_grey(picture: Image.Image) -> Callable[[Image.Image], Any]:
    """Return what turns grey pixels back into the stored values.

    Pillow makes grey of few bits as bright as one of 8, and inverts a TIFF in which 0 is white.
    """
    tile = picture.tile[0] if isinstance(picture, ImageFile.ImageFile) and picture.tile else None
    arguments = tile.args if tile else ""
    raw_mode = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    scale = {"L;2": 85, "L;4": 17}.get(raw_mode[:3], 1)
    is_inverted = picture.format == "TIFF" and raw_mode in ("1;I", "1;IR", "L;I", "L;IR", "L;2I",
                                                           "L;2IR", "L;4I", "L;4IR")  # fmt: skip
    if scale == 1 and not is_inverted:
        return lambda grey: grey

    def undo(grey: Image.Image) -> np.ndarray:
        values = np.asarray(grey)
        if values.dtype == bool:
            return ~values
        return (255 - values if is_inverted else values) // np.uint8(scale)

    return undo


def _fraction(values: np.ndarray) -> str:
    if values.dtype.kind != "f":
        return ""
    if not np.isfinite(values).all():
        return ", not all finite"
    parts = values[values != np.rint(values)]
    return f", for instance {parts[0]}" if len(parts) else ""


def _channels_hint(values: np.ndarray) -> str:
    if (values == values[..., :1]).all():
        return "; its channels are all equal, so save one of them"
    return "; for colours, list them as 'colors' in classes.json"


def load_sample(sample: Sample, label_space: LabelSpace) -> tuple[np.ndarray, np.ndarray]:
    """Decode a picture, uint8 [H, W, 3], and its label, uint8 [H, W].

    Raises:
        DataError: a file is unreadable, their sizes differ, or a side is shorter than 32 pixels.
    """
    image, label = load_image(sample.image), load_label(sample.label, label_space)
    if image.shape[:2] != label.shape:
        turned = image.shape[1::-1] == label.shape and is_turned(sample.image)
        raise DataError(
            f"{sample.label}: the label is {label.shape[1]} x {label.shape[0]} pixels, its "
            f"picture {sample.image} is {image.shape[1]} x {image.shape[0]}"
            + (", turned as its EXIF orientation says; turn the label too" if turned else "")
        )
    if min(label.shape) < MIN_SIDE:
        raise DataError(
            f"{sample.image}: the picture is {label.shape[1]} x {label.shape[0]} pixels; the "
            f"network needs at least {MIN_SIDE} x {MIN_SIDE}"
        )
    return image, label


def in_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int = 64,
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield the results for all items in order, from threads that are at most `ahead` in front.

    Pillow decodes without holding Python's lock, so threads do. There are `workers` of them, by
    default as many as Python thinks fit.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def read_image_sizes(paths: Iterable[str | Path]) -> np.ndarray:
    """Read (height, width) of upright pictures from their headers, int64 [n, 2].

    Raises:
        DataError: as `opened`.
    """
    sizes = []
    for path in paths:
        with opened(path) as picture:
            width, height = picture.size
            # Pillow has turned the size of a TIFF already.
            turned = (
                picture.format != "TIFF" and orientation_of(picture) >= 5
            )  # 5 to 8: on its side
        sizes.append((width, height) if turned else (height, width))
    return np.array(sizes, np.int64)


def is_turned(path: str | Path) -> bool:
    """Return whether the EXIF orientation says that a picture is to be turned or mirrored.

    Raises:
        DataError: as `opened`.
    """
    with opened(path) as picture:
        return orientation_of(picture) != 1


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """List the pictures among files, folders and patterns, in order.

    Raises:
        DataError: as `find_named_pictures`.
    """
    return [path for path, _ in find_named_pictures(paths)]


def find_named_pictures(
    paths: Iterable[str | Path],
    leave_out: Path | None = None,
    skipped: Skipped | None = None,
) -> list[tuple[Path, Path]]:
    """List pictures, each with its path below the folder that was asked for.

    Args:
        paths: files, folders (searched at all depths), and patterns such as `street/*.jpg` or
            `**/left.png`.
        leave_out: a folder whose files are not taken.
        skipped: gets what is no picture in folders and among files, for `describe_skipped`.

    Returns:
        (path, path below the folder, or the name of a file), in the order of `paths`, each once.

    Raises:
        DataError: a path is not there, a folder has no picture, or nothing fits a pattern.
    """
    found: dict[Path, Path] = {}
    skipped = {} if skipped is None else skipped
    for path in map(Path, paths):
        for match in _matches(path):
            if match.is_dir():
                found |= {p: p.relative_to(match) for p in _pictures(match, leave_out, skipped)}
            elif kind := special_kind(match):
                skipped.setdefault(f"{SPECIAL} but {kind}", []).append(match)
            elif match.is_file() or match.is_symlink():  # what is wrong with a link, reading says
                found[match] = Path(match.name)
            else:
                raise DataError(f"{match}: no such file or folder")
    if not found and skipped:
        raise DataError(f"no pictures. Received: {describe_skipped(skipped)}")
    return list(found.items())


def _matches(path: Path) -> list[Path]:
    if path.exists() or path.is_symlink() or not glob.has_magic(str(path)):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if not matches:
        raise DataError(f"{path}: nothing fits this pattern")
    return matches


def _pictures(folder: Path, leave_out: Path | None, skipped: Skipped) -> list[Path]:
    inside = list_files(folder, skipped)
    if leave_out is not None:
        # Unlike `Path.resolve`, it takes a link to itself.
        inside = [p for p in inside if not Path(os.path.realpath(p)).is_relative_to(leave_out)]
    pictures = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
    for path in inside:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.setdefault(path.suffix.lower() or "without a suffix", []).append(path)
    if not pictures:
        raise _no_pictures(folder)
    return pictures
