"""Cityscapes: street scenes, 19 classes."""

from pathlib import Path

from alignseg_tf.data.datasets.layout import Layout, list_images, no_test_labels, pair_with_labels
from alignseg_tf.data.label_space import LabelSpace, hex_palette
from alignseg_tf.data.listing import DataError, Sample

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_PALETTE = hex_palette(
    "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 "
    "00008e 000046 003c64 005064 0000e6 770b20"
)
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
        raise no_test_labels(root, "Cityscapes")
    labels, ending = root / "gtFine" / split, f"_gtFine_{_cityscapes_encoding(root)}.png"
    return pair_with_labels(
        list_images(root / "leftImg8bit" / split, "*/*_leftImg8bit.png"),
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
