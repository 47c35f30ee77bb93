"""CamVid: street scenes, 11 classes, in three layouts."""

import dataclasses
import re
from pathlib import Path

from alignseg_tf.data.datasets.layout import Layout, list_images, pair_with_labels
from alignseg_tf.data.label_space import LabelSpace, hex_palette
from alignseg_tf.data.listing import DataError, Sample, expect

_CAMVID_FOLDERS = {"701_StillsRaw_full": "LabeledApproved_full", "CamVid_RGB": "CamVid_Label"}
# The SegNet split's 11 classes; colours of the original 32-class labels, but for the pavement's.
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree",
    "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_PALETTE = hex_palette(
    "808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"
)
# Colours of the 32 classes of CamVid's original labels, grouped by the 11 classes.
CAMVID_ORIGINAL = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0), "Archway": (192, 0, 128), "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64), "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {
        "Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64),
    },
    "pavement": {
        "Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192),
    },
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign_symbol": {
        "SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64),
    },
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128), "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0), "Child": (192, 128, 64), "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}  # fmt: skip
CAMVID_VOID = {"Void": (0, 0, 0)}
CAMVID = LabelSpace(CAMVID_CLASSES, CAMVID_PALETTE)
# One original label, Seq05VD_f02610_L.png, has blended colours along some edges.
CAMVID_COLOR = LabelSpace(
    CAMVID_CLASSES,
    CAMVID_PALETTE,
    colors=tuple(tuple(CAMVID_ORIGINAL[name].values()) for name in CAMVID_CLASSES),
    void_colors=tuple(CAMVID_VOID.values()),
    ignore_unlisted=True,
)
SEGNET_CAMVID = dataclasses.replace(CAMVID, void=11)


def _camvid_split(image: Path) -> str:
    """Return SegNet's split of an image: 367 train, 101 val and 233 test."""
    found = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d{5,6})", image.stem)
    if found is None:
        raise DataError(f"{image}: not a name that CamVid has, such as 0001TP_006690")
    sequence, number = found[1], int(found[2])
    if sequence == "Seq05VD" or (sequence == "0001TP" and number > 8520):
        return "test"
    # The part that was labelled 15 times a second.
    return "val" if sequence == "0016E5" and 7959 <= number <= 8159 else "train"


def _camvid_folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return the folders of images and labels, or None."""
    for images, labels in _CAMVID_FOLDERS.items():
        if (root / images).is_dir() and (root / labels).is_dir():
            return root / images, root / labels
    # Other data sets come in this form too.
    classes = root / "class_dict.csv"
    if classes.is_file() and "LaneMkgsDriv" in classes.read_text(encoding="utf-8"):
        return root / split, root / f"{split}_labels"
    return None


def _find_camvid_color(root: Path, split: str) -> list[Sample]:
    folders = _camvid_folders(root, split)
    if folders is None:
        raise DataError(f"{root}: expected {CAMVID_COLOR_LAYOUT.known_by}")
    images, labels = folders
    files = list_images(images, "*.png")
    if images.name != split:
        files = [image for image in files if _camvid_split(image) == split]
        expect(bool(files), str(images), "images of the split", split)
    return pair_with_labels(files, lambda image: labels / f"{image.stem}_L.png")


def _find_segnet_camvid(root: Path, split: str) -> list[Sample]:
    images = list_images(root / split, "*.png")
    return pair_with_labels(images, lambda image: root / f"{split}annot" / image.name)


CAMVID_COLOR_LAYOUT = Layout(
    name="camvid_color",
    known_by="701_StillsRaw_full and LabeledApproved_full; CamVid_RGB and CamVid_Label; "
    "or train, train_labels and CamVid's class_dict.csv",
    matches=lambda path: _camvid_folders(path, "train") is not None,
    find=_find_camvid_color,
    label_space=lambda path: CAMVID_COLOR,
)
SEGNET_CAMVID_LAYOUT = Layout(
    name="segnet_camvid",
    known_by="train and trainannot",
    matches=lambda path: (path / "train").is_dir() and (path / "trainannot").is_dir(),
    find=_find_segnet_camvid,
    label_space=lambda path: SEGNET_CAMVID,
    images=lambda path, split: path / split,
)
