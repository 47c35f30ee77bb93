"""Tiny data sets that lie as the real ones do, encodings, odd files and all.

Each function fills a folder with a few images of 64 x 96 pixels, at least two to train on and
one to validate on, and returns what `--data` takes.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import write_folder
from PIL import Image

from alignseg_tf import backbones
from alignseg_tf.data.datasets.camvid import CAMVID_ORIGINAL, CAMVID_VOID
from alignseg_tf.data.label_space import voc_palette
from training import build, evaluate, train

SIZE = (64, 96)


def _stripes(values: Sequence[int], seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Upright stripes, one a value, uint8 [H, W]; the first is `values[seed % len(values)]`."""
    height, width = size
    stripe = np.arange(width) * len(values) // width
    values = np.roll(np.array(values, np.uint8), -seed)
    return np.tile(values[stripe], (height, 1))


def _photograph(label: np.ndarray, seed: int = 0) -> Image.Image:
    """A noisy image whose colours tell the values of a label apart."""
    colors = np.random.default_rng(7).integers(0, 256, (256, 3))
    noise = np.random.default_rng(seed).normal(0, 8, (*label.shape, 3))
    return Image.fromarray(np.clip(colors[label] + noise, 0, 255).astype(np.uint8))


def _save(image: Image.Image | np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def folder(root: Path) -> Path:
    return write_folder(root, train=3, val=1)


def write_csv(
    root: Path, rows: Sequence | None = None, columns: Sequence[str] = ("image", "label", "split"),
    encoding: str = "utf-8",
) -> Path:  # fmt: skip
    """Write `list.csv`, by default of all images of a folder; the first is on line 2."""
    if rows is None:
        images, labels = (sorted((root / kind).glob("*/*")) for kind in ("images", "labels"))
        pairs = zip(images, labels, strict=True)
        rows = [(x.relative_to(root), y.relative_to(root), x.parent.name) for x, y in pairs]
    with (root / "list.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return root / "list.csv"


def csv_list(root: Path) -> Path:
    return write_csv(folder(root))


CITYSCAPES_VALUES = (7, 8, 11, 23, 26, 33, 0, 1, 4, 29)


def cityscapes(root: Path, encoding: str = "labelIds") -> Path:
    """LabelIds, of which 0, 1, 4 and 29 have no class; beside them what else gtFine holds."""
    train_ids = np.full(256, 255, np.uint8)
    train_ids[[7, 8, 11, 23, 26, 33]] = (0, 1, 2, 10, 13, 18)
    names = (
        "train/aachen/aachen_000000", "train/aachen/aachen_000001", "train/ulm/ulm_000000",
        "val/munster/munster_000000", "test/berlin/berlin_000000",
    )  # fmt: skip
    for seed, name in enumerate(names):
        label = _stripes(CITYSCAPES_VALUES, seed)
        _save(_photograph(label, seed), root / "leftImg8bit" / f"{name}_000019_leftImg8bit.png")
        label = label * (not name.startswith("test"))
        beside = f"{root / 'gtFine' / name}_000019_gtFine_"
        _save(
            label if encoding == "labelIds" else train_ids[label], Path(f"{beside}{encoding}.png")
        )
        _save(label.astype(np.uint16) * 1000, Path(f"{beside}instanceIds.png"))
        _save(_photograph(label).convert("RGBA"), Path(f"{beside}color.png"))
        Path(f"{beside}polygons.json").write_text("{}")
    return root


def ade20k(root: Path) -> Path:
    """1..150 and 0; images of several sizes, as there are."""
    names = [f"training/ADE_train_0000000{i}" for i in (1, 2, 3)] + ["validation/ADE_val_00000001"]
    for seed, name in enumerate(names):
        label = _stripes((1, 2, 3, 0, 150), seed, size=(SIZE, (72, 88))[seed % 2])
        _save(_photograph(label, seed), root / "images" / f"{name}.jpg")
        _save(label, root / "annotations" / f"{name}.png")
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


def _save_palette(label: np.ndarray, path: Path) -> None:
    """As VOC's labels are: indices into a palette, which has the borders' 255 as well."""
    image = Image.fromarray(label).convert("P")
    image.putdata(label.ravel().tolist())
    image.putpalette([value for color in voc_palette(256) for value in color])
    _save(image, path)


def pascal_voc(root: Path, augmented: bool = True) -> Path:
    """Two images of VOC's own train list and, where augmented, one of SBD's."""
    voc = root / "VOCdevkit" / "VOC2012"
    names = ["2007_000032", "2007_000039", "2007_000033", "2008_000002", "2008_000003"]
    train, val, more = names[:2], names[2:3], names[3:4]
    for seed, name in enumerate(names):
        label = _stripes((0, 1, 255, 15, 20), seed)
        _save(_photograph(label, seed), voc / "JPEGImages" / f"{name}.jpg")
        (voc / "Annotations").mkdir(exist_ok=True)
        (voc / "Annotations" / f"{name}.xml").write_text("<annotation/>\n")
        if name in (*train, *val):
            _save_palette(label, voc / "SegmentationClass" / f"{name}.png")
            _save_palette(label, voc / "SegmentationObject" / f"{name}.png")
        if augmented and name in (*train, *more):
            _save(np.where(label == 255, 0, label), voc / "SegmentationClassAug" / f"{name}.png")
    lists = voc / "ImageSets" / "Segmentation"
    _write_lines(lists / "train.txt", train)
    _write_lines(lists / "val.txt", val)
    _write_lines(lists / "trainval.txt", sorted(train + val))
    if augmented:
        _write_lines(lists / "trainaug.txt", train + more)
    return root / "VOCdevkit"


def pascal_context(root: Path) -> Path:
    """0..59 in grey, in a VOC2010 folder, which has VOC's own labels as well."""
    voc = root / "VOCdevkit" / "VOC2010"
    names = ["2008_000002", "2008_000003", "2008_000008", "2008_000026"]
    for seed, name in enumerate(names):
        label = _stripes((0, 1, 59, 46), seed)
        _save(_photograph(label, seed), voc / "JPEGImages" / f"{name}.jpg")
        _save(label, voc / "SegmentationClassContext" / f"{name}.png")
        _save_palette(np.minimum(label, 20), voc / "SegmentationClass" / f"{name}.png")
    for folder_name in ("SegmentationContext", "Segmentation"):
        _write_lines(voc / "ImageSets" / folder_name / "train.txt", names[:3])
        _write_lines(voc / "ImageSets" / folder_name / "val.txt", names[3:])
    return voc


CAMVID_NAMES = {
    "0001TP_006690": "train",
    "0006R0_f00930": "train",
    "0016E5_08640": "train",
    "0016E5_07959": "val",
    "Seq05VD_f00000": "test",
    "0001TP_008550": "test",
}
CAMVID_STRIPES = ("Sky", "Archway", "Truck_Bus", "Sidewalk", "LaneMkgsDriv", "Void")


def camvid_color(root: Path, form: str = "original") -> Path:
    """Colours of the 32 classes; `form` is original, or split: a folder a split."""
    colors = {name: color for group in CAMVID_ORIGINAL.values() for name, color in group.items()}
    colors |= CAMVID_VOID
    table = np.array([colors[name] for name in CAMVID_STRIPES], np.uint8)
    for seed, (name, split) in enumerate(CAMVID_NAMES.items()):
        images, labels = "701_StillsRaw_full", "LabeledApproved_full"
        if form == "split":
            images, labels = split, f"{split}_labels"
        label = _stripes(range(len(table)), seed)
        colored = table[label]
        colored[-1, -1] = (128, 128, 102)  # blended, as along some edges of one real label
        _save(_photograph(label, seed), root / images / f"{name}.png")
        _save(colored, root / labels / f"{name}_L.png")
    if form == "split":
        rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in colors.items()]
        _write_lines(root / "class_dict.csv", ["name,r,g,b", *rows])
    return root


def segnet_camvid(root: Path) -> Path:
    """0..10 and 11 for void, in grey."""
    for seed, (name, split) in enumerate(CAMVID_NAMES.items()):
        label = _stripes((0, 3, 10, 11), seed)
        _save(_photograph(label, seed), root / split / f"{name}.png")
        _save(label, root / f"{split}annot" / f"{name}.png")
        with (root / f"{split}.txt").open("a") as file:
            file.write(
                f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n"
            )
    return root


FIXTURES: dict[str, Callable[[Path], Path]] = {
    "csv": csv_list,
    "folder": folder,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "pascal_voc": pascal_voc,
    "pascal_context": pascal_context,
    "camvid_color": camvid_color,
    "segnet_camvid": segnet_camvid,
}


def train_and_evaluate(arguments: list[str], folder: Path) -> dict:
    """Train an epoch of two steps or more on what `arguments` name, and evaluate it, by command.

    The network under the decoder is a tiny one, for speed. Returns the report of the evaluation.
    """
    output, report = folder / "run", folder / "report.json"
    options = [
        "--crop-size", "64", "64", "--channels", "8", "--batch-size", "1", "--epochs", "1",
        "--scale", "0.8", "1.2", "--backbone-weights", "none",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        tiny = backbones.resnet((1, 1, 1, 1), width=8)
        patch.setattr(build, "build_backbone", lambda recipe: tiny)
        assert train.main([*arguments, "--output", str(output), *options]) == 0
    splits = json.loads((output / "report.json").read_text())["data"]["splits"]
    assert splits["train"]["images"] >= 2
    model = str(output / "best.keras")
    assert evaluate.main([model, *arguments, "--json", str(report)]) == 0
    again, trained = (json.loads(path.read_text()) for path in (report, output / "evaluation.json"))
    assert again["confusion"] == trained["confusion"]
    return again
