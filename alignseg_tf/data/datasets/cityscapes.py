"""Cityscapes: street scenes, 19 classes."""

from pathlib import Path

from alignseg_tf.data.datasets.layout import Layout, _images, _no_test_labels, _with_labels
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, Sample

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
# The labelIds of the 19 evaluated classes; files hold 0..33, the others are ignored.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES = LabelSpace(
    CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, void=0, ids=CITYSCAPES_IDS, ignore_unlisted=True
)
CITYSCAPES_TRAIN_IDS = LabelSpace(CITYSCAPES_CLASSES, CITYSCAPES_PALETTE)


def _cityscapes_encoding(root: Path) -> str:
    """Return the kind of label files; downloaded labelIds before trainIds."""
    for encoding in ("labelIds", "labelTrainIds"):
        for split in ("train", "val"):
            if any((root / "gtFine" / split).glob(f"*/*_gtFine_{encoding}.png")):
                return encoding
    raise DataError(
        f"{root / 'gtFine'}: no labels; expected "
        "{train,val}/CITY/*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png"
    )


def _find_cityscapes(root: Path, split: str) -> list[Sample]:
    # gtFine/test has label files, but no pixel in them has a class.
    if split == "test":
        raise _no_test_labels(root, "Cityscapes")
    labels, ending = root / "gtFine" / split, f"_gtFine_{_cityscapes_encoding(root)}.png"
    return _with_labels(
        _images(root / "leftImg8bit" / split, "*/*_leftImg8bit.png"),
        lambda image: labels / image.parent.name / image.name.replace("_leftImg8bit.png", ending),
    )


def _cityscapes_space(root: Path) -> LabelSpace:
    return CITYSCAPES if _cityscapes_encoding(root) == "labelIds" else CITYSCAPES_TRAIN_IDS


CITYSCAPES_LAYOUT = Layout(
    name="cityscapes",
    known_by="leftImg8bit and gtFine",
    matches=lambda path: (path / "leftImg8bit").is_dir() and (path / "gtFine").is_dir(),
    find=_find_cityscapes,
    label_space=_cityscapes_space,
    images=lambda path, split: path / "leftImg8bit" / split,
)
