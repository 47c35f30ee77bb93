"""Pascal VOC 2012: 21 classes."""

from functools import partial
from pathlib import Path

from alignseg_tf.data.datasets.layout import Layout, no_test_labels, pair_with_labels
from alignseg_tf.data.label_space import LabelSpace, voc_palette
from alignseg_tf.data.listing import DataError, Sample, expect

PASCAL_VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
PASCAL_VOC = LabelSpace(PASCAL_VOC_CLASSES, voc_palette(21))


def pascal_root(path: Path, year: str) -> Path:
    """Return the folder of a year, given itself, `VOCdevkit`, or its parent."""
    inside = (path / year, path / "VOCdevkit" / year)
    return next((folder for folder in inside if (folder / "JPEGImages").is_dir()), path)


_voc_root = partial(pascal_root, year="VOC2012")


def _is_pascal_voc(path: Path) -> bool:
    root = _voc_root(path)
    return (
        (root / "ImageSets" / "Segmentation").is_dir()
        and any((root / f"SegmentationClass{end}").is_dir() for end in ("", "Aug"))
        and not (root / "SegmentationClassContext").is_dir()
    )


def read_names(path: Path) -> list[str]:
    """Read a list of names, or of paths of which the first names the image."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it lists the names of the images")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    expect(bool(names), str(path), "names of images", names)
    return names


def check_apart(training: Path, validation: Path) -> None:
    """Refuse training images that are also validation images."""
    held_out = set(read_names(validation)) if validation.is_file() else set()
    if both := [name for name in read_names(training) if name in held_out]:
        raise DataError(
            f"{training}: lists {len(both)} images that {validation.name} lists too, for "
            f"instance {both[0]}; remove them, or validation measures what was trained on"
        )


def _find_pascal_voc(path: Path, split: str) -> list[Sample]:
    if split == "test":
        raise no_test_labels(path, "PASCAL VOC")
    root = _voc_root(path)
    lists, labels = root / "ImageSets" / "Segmentation", root / "SegmentationClass"
    more_labels = root / "SegmentationClassAug"
    names = lists / f"{split}.txt"
    if split == "train":
        if more_labels.is_dir():
            names = lists / "trainaug.txt"
        if more_labels.is_dir() and not names.is_file():
            raise DataError(
                f"{names}: no such file; {more_labels.name} is there, so expected the list of "
                "10582 names that belongs to it (some call it train_aug.txt)"
            )
        check_apart(names, lists / "val.txt")

    def label_of(image: Path) -> Path:
        """Return VOC's own label if there is one: it is finer and ignores the borders."""
        own = labels / f"{image.stem}.png"
        more = more_labels / own.name
        return more if not own.is_file() and more.is_file() else own

    images = [root / "JPEGImages" / f"{name}.jpg" for name in read_names(names)]
    return pair_with_labels(images, label_of)


PASCAL_VOC_LAYOUT = Layout(
    name="pascal_voc",
    known_by="[VOCdevkit/][VOC2012/] JPEGImages, SegmentationClass or "
    "SegmentationClassAug, ImageSets/Segmentation",
    matches=_is_pascal_voc,
    find=_find_pascal_voc,
    label_space=lambda path: PASCAL_VOC,
    inner=_voc_root,
)
