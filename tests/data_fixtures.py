"""Tiny data sets in the layouts of the real ones, and tiny annotations of other tools.

Each function of `FIXTURES` fills a folder with a few images of 64 x 96 pixels, at least two to
train on and one to validate on, and returns what `--data` takes.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import random_images, write_folder
from PIL import ExifTags, Image

from alignseg_tf import backbones
from alignseg_tf.data.datasets.camvid import CAMVID_ORIGINAL, CAMVID_VOID
from alignseg_tf.data.label_space import voc_palette
from alignseg_tf.system.files import RECORD_FILE
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


def save(image: Image.Image | np.ndarray, path: Path, orientation: int | None = None, **options):
    """Save an image, in a new folder if need be, with an EXIF orientation; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def with_palette(ids: np.ndarray, palette) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(np.ravel(palette).tolist())
    return image


def encoded(values: np.ndarray, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, kind)
    return content.getvalue()


def contents(root: Path) -> dict[str, bytes]:
    """The files below a folder, except the record of what was written."""
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {name: found[name].read_bytes() for name in sorted(found) if name != RECORD_FILE}


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
        save(_photograph(label, seed), root / "leftImg8bit" / f"{name}_000019_leftImg8bit.png")
        label = label * (not name.startswith("test"))
        beside = f"{root / 'gtFine' / name}_000019_gtFine_"
        ids = label if encoding == "labelIds" else train_ids[label]
        save(ids, Path(f"{beside}{encoding}.png"))
        save(label.astype(np.uint16) * 1000, Path(f"{beside}instanceIds.png"))
        save(_photograph(label).convert("RGBA"), Path(f"{beside}color.png"))
        Path(f"{beside}polygons.json").write_text("{}")
    return root


def ade20k(root: Path) -> Path:
    """1..150 and 0; images of several sizes, as there are."""
    names = [f"training/ADE_train_0000000{i}" for i in (1, 2, 3)] + ["validation/ADE_val_00000001"]
    for seed, name in enumerate(names):
        label = _stripes((1, 2, 3, 0, 150), seed, size=(SIZE, (72, 88))[seed % 2])
        save(_photograph(label, seed), root / "images" / f"{name}.jpg")
        save(label, root / "annotations" / f"{name}.png")
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


def _save_palette(label: np.ndarray, path: Path) -> None:
    """As VOC's labels are: indices into a palette, which has the borders' 255 as well."""
    save(with_palette(label, voc_palette(256)), path)


def pascal_voc(root: Path, augmented: bool = True) -> Path:
    """Two images of VOC's own train list and, where augmented, one of SBD's."""
    voc = root / "VOCdevkit" / "VOC2012"
    names = ["2007_000032", "2007_000039", "2007_000033", "2008_000002", "2008_000003"]
    train, val, more = names[:2], names[2:3], names[3:4]
    for seed, name in enumerate(names):
        label = _stripes((0, 1, 255, 15, 20), seed)
        save(_photograph(label, seed), voc / "JPEGImages" / f"{name}.jpg")
        (voc / "Annotations").mkdir(exist_ok=True)
        (voc / "Annotations" / f"{name}.xml").write_text("<annotation/>\n")
        if name in (*train, *val):
            _save_palette(label, voc / "SegmentationClass" / f"{name}.png")
            _save_palette(label, voc / "SegmentationObject" / f"{name}.png")
        if augmented and name in (*train, *more):
            save(np.where(label == 255, 0, label), voc / "SegmentationClassAug" / f"{name}.png")
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
        save(_photograph(label, seed), voc / "JPEGImages" / f"{name}.jpg")
        save(label, voc / "SegmentationClassContext" / f"{name}.png")
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
        save(_photograph(label, seed), root / images / f"{name}.png")
        save(colored, root / labels / f"{name}_L.png")
    if form == "split":
        rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in colors.items()]
        _write_lines(root / "class_dict.csv", ["name,r,g,b", *rows])
    return root


def segnet_camvid(root: Path) -> Path:
    """0..10 and 11 for void, in grey."""
    for seed, (name, split) in enumerate(CAMVID_NAMES.items()):
        label = _stripes((0, 3, 10, 11), seed)
        save(_photograph(label, seed), root / split / f"{name}.png")
        save(label, root / f"{split}annot" / f"{name}.png")
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


# Annotations of other tools, of images of 48 x 64 pixels

ANNOTATED = (48, 64)


def photograph(path: Path, size: tuple[int, int] = ANNOTATED, seed: int = 0, orientation=None):
    return save(random_images(1, *size, seed=seed)[0], path, orientation)


def square(left: int, top: int, right: int, bottom: int) -> list[int]:
    """A polygon along the edges of pixels."""
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(region: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE, column after column, off first."""
    ends = np.flatnonzero(np.diff(np.concatenate([[0], region.T.ravel()])))
    return np.diff([0, *ends, region.size]).tolist()


def rle(region: np.ndarray) -> dict:
    return {"size": list(region.shape), "counts": run_lengths(region)}


class CocoFile:
    """Three images: a cup on a table and a crowd, a table all over, and nothing."""

    def __init__(self, root: Path):
        self.path, self.images = root / "instances.json", root / "images"
        for number in range(3):
            photograph(self.images / "city" / f"{number}.png", seed=number)
        crowd = np.zeros(ANNOTATED, np.uint8)
        crowd[30:40, 50:60] = 1
        shapes = (
            (10, 3, 0, [square(10, 6, 14, 9), square(20, 6, 22, 9)]),
            (10, 7, 0, [square(4, 4, 40, 20)]),
            (10, 3, 1, rle(crowd)),
            (11, 7, 0, [square(0, 0, 64, 48)]),
        )
        keys = ("id", "image_id", "category_id", "iscrowd", "segmentation")
        self.content = {
            "images": [
                {"id": 10 + i, "file_name": f"city/{i}.png", "height": 48, "width": 64}
                for i in range(3)
            ],
            "categories": [{"id": 7, "name": "table"}, {"id": 3, "name": "cup"}],
            "annotations": [
                dict(zip(keys, (i, *shape), strict=True)) for i, shape in enumerate(shapes, start=1)
            ],
        }

    def write(self) -> Path:
        self.path.write_text(json.dumps(self.content))
        return self.path


CVAT_LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
table:128,0,0::
cup:0,128,64:handle:
"""
CVAT_MASK = "SegmentationClass/a/frame 1.000.png"


def cvat_label() -> np.ndarray:
    """The ids of the mask in `cvat_export`."""
    label = np.zeros(ANNOTATED, np.uint8)
    label[10:20, 10:20] = 1
    label[12:14, 12:14] = 2
    return label


def cvat_export(root: Path) -> Path:
    """CVAT's "Segmentation mask 1.1": an image with a mask, and one without."""
    _write_lines(root / "ImageSets/Segmentation/default.txt", ["a/frame 1.000", "blank", ""])
    (root / "labelmap.txt").write_text(CVAT_LABELMAP)
    photograph(root / "JPEGImages/a/frame 1.000.png", seed=1)
    photograph(root / "JPEGImages/blank.jpg", seed=2)
    colors = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 64)], np.uint8)
    save(colors[cvat_label()], root / CVAT_MASK)
    return root


def labelme_file(root: Path, *shapes: tuple, name: str = "one", **content) -> Path:
    """Write an image and its LabelMe file, with shapes of (label, type, points, others)."""
    image = photograph(root / "images" / f"{name}.png")
    keys = ("label", "shape_type", "points")
    content = {
        "imagePath": f"..\\images\\{image.name}", "imageData": None,
        "imageHeight": ANNOTATED[0], "imageWidth": ANNOTATED[1],
        "shapes": [dict(zip(keys, shape[:3], strict=True), **shape[3]) for shape in shapes],
        **content,
    }  # fmt: skip
    _write_lines(root / "labels" / f"{name}.json", [json.dumps(content)])
    return root / "labels"
