"""From files to arrays: which picture has which label, and what is in them.

A folder holds `images/{train,val}`, `labels/{train,val}` and `classes.json`; a label has its
picture's name, up to the suffix. A CSV list has the columns `image` and `label` with paths
relative to the list, optionally `split`, and `classes.json` beside it.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from alignseg_tf.data.catalog import LabelSpace

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
# Pillow's modes of more than 8 bits a channel.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# The network's coarsest stride.
MIN_SIDE = 32


class DataError(ValueError):
    """Something is wrong with the data; the message names the file."""


@dataclass(frozen=True)
class Sample:
    """A picture and its label on disk."""

    image: Path
    label: Path


def read_folder(root: str | Path, split: str) -> list[Sample]:
    """List the pictures of `root/images/split` with their labels, sorted by name.

    Raises:
        DataError: a folder is missing or empty, or pictures have no label.
    """
    root = Path(root)
    images, labels = root / "images" / split, root / "labels" / split
    for folder in (images, labels):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; expected images/{{train,val}}, labels/{{train,val}} "
                f"and classes.json under {root}"
            )
    pictures = sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise DataError(f"{images}: no pictures ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    found: dict[Path, Path] = {}
    for path in sorted(p for p in labels.rglob("*") if p.suffix.lower() in LABEL_SUFFIXES):
        key = path.relative_to(labels).with_suffix("")
        if key in found:
            raise DataError(f"{path}: a second label beside {found[key].name}; remove one")
        found[key] = path
    keys = {picture: picture.relative_to(images).with_suffix("") for picture in pictures}
    missing = [picture for picture in pictures if keys[picture] not in found]
    if missing:
        raise DataError(
            f"{missing[0]}: no label {labels / keys[missing[0]]}.png"
            + (f", and {len(missing) - 1} more pictures without a label" if missing[1:] else "")
        )
    return [Sample(picture, found[keys[picture]]) for picture in pictures]


def read_csv(path: str | Path, split: str | None = None) -> list[Sample]:
    """List the samples of a CSV file with the columns `image` and `label`.

    Args:
        path: the file; its paths are relative to its folder.
        split: keep the rows with this value in the column `split`; None keeps all rows.

    Raises:
        DataError: no such file, no such columns, no rows, or a file that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    expected = {"image", "label"} if split is None else {"image", "label", "split"}
    samples = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file, restval="")
        if not expected <= set(rows.fieldnames or ()):
            raise DataError(
                f"{path}: expected the columns {sorted(expected)}. Received: {rows.fieldnames}"
            )
        for row in rows:
            if split is not None and row["split"].strip() != split:
                continue
            if not row["image"] or not row["label"]:
                raise DataError(f"{path}, line {rows.line_num}: image and label expected")
            sample = Sample(path.parent / row["image"], path.parent / row["label"])
            for file_path in (sample.image, sample.label):
                if not file_path.is_file():
                    raise DataError(f"{path}, line {rows.line_num}: {file_path} is not there")
            samples.append(sample)
    if not samples:
        raise DataError(f"{path}: no rows" + (f" of the split {split!r}" if split else ""))
    return samples


def load_image(path: str | Path) -> np.ndarray:
    """Decode a picture to uint8 RGB [H, W, 3], turned as its EXIF orientation says.

    Raises:
        DataError: the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode not in DEEP_MODES:
                return np.asarray(upright.convert("RGB"))
            mode, values = upright.mode, np.asarray(upright)
    except Exception as error:  # Pillow raises many kinds on broken files
        raise DataError(f"{path}: not readable as a picture ({error})") from error
    # 16-bit grey, which Pillow's own conversion would clip at 255.
    if mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{path}: expected 8 or 16 bits a channel. Received: mode {mode}, values "
            f"{values.min()} to {values.max()}"
        )
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)


def load_label(path: str | Path, label_space: LabelSpace) -> np.ndarray:
    """Decode a label file to class ids, uint8 [H, W], with `IGNORE` where there is none.

    Palette files give their indices, not their colours.

    Raises:
        DataError: the file is unreadable, has colours, or holds unknown values.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.asarray(picture.convert("RGB") if label_space.colors else picture)
    except Exception as error:  # Pillow raises many kinds on broken files
        raise DataError(f"{path}: not readable as a label ({error})") from error
    if values.ndim != 2 and not label_space.colors:
        raise DataError(
            f"{path}: expected one channel of class ids, or a palette. Received: {mode} with "
            f"shape {values.shape}; for colours, list them as 'colors' in classes.json"
        )
    if values.dtype != np.uint8:
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 255:
            raise DataError(
                f"{path}: label values must be whole numbers 0..255. Received: "
                f"{values.dtype}, {values.min()} to {values.max()}"
            )
        values = values.astype(np.uint8)
    try:
        return label_space.encode(values)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def load_sample(sample: Sample, label_space: LabelSpace) -> tuple[np.ndarray, np.ndarray]:
    """Decode a picture, uint8 [H, W, 3], and its label, uint8 [H, W].

    Raises:
        DataError: a file is unreadable, their sizes differ, or a side is shorter than 32 pixels.
    """
    image, label = load_image(sample.image), load_label(sample.label, label_space)
    if image.shape[:2] != label.shape:
        raise DataError(
            f"{sample.label}: the label is {label.shape[1]} x {label.shape[0]} pixels, its "
            f"picture {sample.image} is {image.shape[1]} x {image.shape[0]}"
        )
    if min(label.shape) < MIN_SIDE:
        raise DataError(
            f"{sample.image}: the picture is {label.shape[1]} x {label.shape[0]} pixels; the "
            f"network needs at least {MIN_SIDE} x {MIN_SIDE}"
        )
    return image, label


@dataclass
class DataSummary:
    """What a check of a data set found.

    Attributes:
        counts: pixels of each class in each picture, int64 [pictures, n].
        sizes: (height, width) of each picture, int64 [pictures, 2].
        ignored: pixels without a class in each picture, int64 [pictures].
    """

    counts: np.ndarray
    sizes: np.ndarray
    ignored: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class over all pictures, int64 [n]."""
        return self.counts.sum(0)


def check_samples(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    progress: Callable[[int, int], None] | None = None,
) -> DataSummary:
    """Decode every file once, so that nothing is found wrong after hours of training.

    Args:
        samples: what to check.
        label_space: what labels may hold.
        progress: called with (done, total).

    Raises:
        DataError: something is wrong; the first files are named with what is wrong with them.
    """
    classes = label_space.num_classes
    counts, sizes, problems, ignored = [], [], [], []

    def check(sample: Sample) -> tuple[tuple[int, int], np.ndarray] | str:
        try:
            _, label = load_sample(sample, label_space)
        except DataError as error:
            return str(error)
        return label.shape, np.bincount(label.ravel(), minlength=256)

    with ThreadPoolExecutor() as pool:
        for done, result in enumerate(pool.map(check, samples), start=1):
            if isinstance(result, str):
                problems.append(result)
            else:
                shape, histogram = result
                sizes.append(shape)
                counts.append(histogram[:classes])
                ignored.append(histogram[classes:].sum())
            if progress is not None:
                progress(done, len(samples))
    if problems:
        listed = "\n  ".join(problems[:5])
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"{len(problems)} of {len(samples)} samples are unfit:\n  {listed}{more}")
    if not np.any(counts):
        raise DataError(f"{samples[0].label} and all others: no pixel has a class")
    return DataSummary(np.array(counts), np.array(sizes, np.int64), np.array(ignored))


def read_image_sizes(paths: Iterable[str | Path]) -> np.ndarray:
    """Read (height, width) of pictures from their headers, int64 [n, 2].

    Raises:
        DataError: a file is missing or no picture.
    """
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                width, height = picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not readable as a picture ({error})") from error
        sizes.append((height, width))
    return np.array(sizes, np.int64)


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """List the pictures among files and folders, in order; folders are searched at all depths.

    Raises:
        DataError: a path is not there, or a folder has no picture.
    """
    pictures: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"{path}: no pictures ({', '.join(IMAGE_SUFFIXES)}) in this folder")
            pictures += inside
        elif path.is_file():
            pictures.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return pictures
