"""Layouts of data sets: which image has which label, and what the labels mean.

layout           images                               labels
folder           images/SPLIT/X.*                       labels/SPLIT/X.*, classes.json
csv              the column image of a file .csv        the column label, classes.json beside it
cityscapes       leftImg8bit/SPLIT/CITY                 gtFine/SPLIT/CITY
ade20k           images/training                        annotations/training
pascal_voc       JPEGImages, lists in ImageSets         SegmentationClass, SegmentationClassAug
pascal_context   JPEGImages, lists in ImageSets         SegmentationClassContext
camvid_color     701_StillsRaw_full/X.png               LabeledApproved_full/X_L.png, in colours
segnet_camvid    SPLIT/X.png                            SPLITannot/X.png
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import (
    DataError,
    ListingError,
    Sample,
    find_spelled,
    is_derived_file,
    special_kind,
)


@dataclass(frozen=True)
class Layout:
    """Distribution of the files of a data set; all functions raise DataError.

    Attributes:
        name: its name for `--layout`.
        known_by: the files or folders that identify it, for messages.
        matches: whether a path has them.
        find: (root, split) -> samples, for the splits train, val and, if there is one, test.
        label_space: root -> label space, unless a file states it; None if a file must.
        images: (root, split) -> the folder of the images, if all images of a folder are read.
        inner: path -> the folder of the data, which may lie deeper than the path.
    """

    name: str
    known_by: str
    matches: Callable[[Path], bool]
    find: Callable[[Path, str], list[Sample]]
    label_space: Callable[[Path], LabelSpace] | None
    images: Callable[[Path, str], Path] | None = None
    inner: Callable[[Path], Path] = lambda path: path


def list_images(folder: Path, pattern: str) -> list[Path]:
    """List the matches of a pattern in a folder, sorted; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = sorted(
        path for path in folder.glob(pattern) if not is_derived_file(path.relative_to(folder))
    )
    if not found:
        raise DataError(f"{folder}: no images {pattern} in this folder")
    return found


def pair_with_labels(images: list[Path], label_of: Callable[[Path], Path]) -> list[Sample]:
    """Pair images with their labels; ListingError if a file is missing."""
    samples, problems = [], []
    for image in images:
        sample = Sample(find_spelled(image), find_spelled(label_of(image)))
        files = (("image", sample.image), ("label", sample.label))
        missing = [(what, path) for what, path in files if not path.is_file()]
        for what, path in missing[:1]:
            kind = special_kind(path)
            received = f"expected a file. Received: {kind}" if kind else f"no such {what}"
            problems.append(f"{path}: {received}")
        if not missing:
            samples.append(sample)
    if problems:
        raise ListingError(str(images[0].parent), problems, samples)
    return samples


def no_test_labels(root: Path, name: str) -> DataError:
    """Return the error of a split whose labels are not public."""
    return DataError(
        f"{root}: the labels of {name}'s test images are not public; their classes can only be "
        "predicted. Received: split 'test'"
    )
