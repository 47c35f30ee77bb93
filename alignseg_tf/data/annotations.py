"""Annotations of other tools, drawn as label maps: COCO, CVAT's "Segmentation mask 1.1", LabelMe.

Points are x, y in pixels; (0, 0) is the outer corner of the upper left pixel.
"""

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from alignseg_tf.data.catalog import IGNORE, Color, LabelSpace
from alignseg_tf.data.readers import IMAGE_SUFFIXES, DataError

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Annotated:
    """A picture with annotations.

    Attributes:
        source: where the annotations are, for messages.
        name: the picture's name below its folder, without its suffix: `a/b`.
        suffix: its suffix.
        picture: the file, or its content.
        size: (height, width) of the picture that the annotations are for, where they say it.
        draw: (size, class name -> id, id of what is not annotated) -> uint8 [height, width].
            Raises DataError.
        split: train, val or test, where the source has splits.
    """

    source: str
    name: str
    suffix: str
    picture: Path | bytes
    size: Size | None
    draw: Callable[[Size, Mapping[str, int], int], np.ndarray]
    split: str | None = None


@dataclass(frozen=True)
class Annotations:
    """What a tool has written.

    Attributes:
        classes: names, in the order of the tool; `background` may be one of them.
        pictures: those with annotations, and those the tool lists without any.
        colors: the colours of classes, where the tool has them.
    """

    classes: tuple[str, ...]
    pictures: tuple[Annotated, ...]
    colors: Mapping[str, Color]


def read_coco(file: str | Path, images: str | Path) -> Annotations:
    """Read a COCO file of instances: polygons, and RLE compressed or not.

    A larger object is drawn before a smaller one, so that what lies on a table is not lost under
    it. Crowd regions get no class; they are drawn first. Polygons become pixels as pycocotools
    does it.

    Args:
        file: the JSON, such as `instances_val2017.json`.
        images: the folder under which each `file_name` of it is.

    Raises:
        DataError: the file is not as expected, or a picture is not there.
        ImportError: pycocotools is missing.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"COCO annotations need pycocotools: pip install 'alignseg_tf[import]' ({error})"
        ) from error

    file, images = Path(file), Path(images)
    content = _read_json(file)
    tables: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for table, keys in (
        ("images", ("id", "file_name")),
        ("categories", ("id", "name")),
        ("annotations", ("id", "image_id", "category_id")),
    ):
        rows = content.get(table) if isinstance(content, Mapping) else None
        if not isinstance(rows, list):
            raise DataError(f"{file}: expected a list {table!r}, as in COCO's instances")
        tables[table] = {}
        for place, row in enumerate(rows):
            missing = [key for key in keys if not isinstance(row, Mapping) or key not in row]
            if missing:
                raise DataError(f"{file}: {table}[{place}] has no {', '.join(missing)}")
            if not isinstance(row["id"], int | str) or row["id"] in tables[table]:
                raise DataError(f"{file}: {table}[{place}]: id {row['id']!r} twice, or no id")
            tables[table][row["id"]] = row

    categories = {key: str(tables["categories"][key]["name"]) for key in tables["categories"]}
    objects_of: dict[Any, list[Mapping[str, Any]]] = {key: [] for key in tables["images"]}
    for key, row in tables["annotations"].items():
        where = f"{file}: annotation {key!r}"
        if row["image_id"] not in objects_of:
            raise DataError(f"{where}: no image has the id {row['image_id']!r}")
        if row["category_id"] not in categories:
            raise DataError(
                f"{where}: no category has the id {row['category_id']!r}; there are "
                f"{list(categories)}"
            )
        objects_of[row["image_id"]].append(row)

    pictures = []
    for key, row in tables["images"].items():
        path = _inside(images, str(row["file_name"]), f"{file}: image {key!r}")
        pictures.append(
            Annotated(
                source=f"{file}: image {key!r}",
                name=path.with_suffix("").relative_to(images).as_posix(),
                suffix=path.suffix,
                picture=path,
                size=_declared_size(row, "height", "width", f"{file}: image {key!r}"),
                draw=_CocoDrawing(str(file), objects_of[key], categories),
            )
        )
    return Annotations(tuple(categories.values()), tuple(pictures), colors={})


@dataclass(frozen=True)
class _CocoDrawing:
    file: str
    objects: Sequence[Mapping[str, Any]]
    categories: Mapping[Any, str]

    def __call__(self, size: Size, ids: Mapping[str, int], unlabelled: int) -> np.ndarray:
        regions = []
        for row in self.objects:
            runs = _coco_runs(row, size, f"{self.file}: annotation {row['id']!r}")
            crowd = bool(row.get("iscrowd"))
            value = IGNORE if crowd else ids[self.categories[row["category_id"]]]
            regions.append((not crowd, -int(runs[1::2].sum()), value, runs))
        label = np.full(size[0] * size[1], unlabelled, np.uint8)  # column after column
        for _, _, value, runs in sorted(regions, key=lambda region: region[:2]):
            label[np.repeat(np.arange(len(runs)) % 2 == 1, runs)] = value
        return np.ascontiguousarray(label.reshape(size[1], size[0]).T)


def _coco_runs(row: Mapping[str, Any], size: Size, where: str) -> np.ndarray:
    """Return a region as lengths of runs, off and on in turn, column after column."""
    from pycocotools import mask

    shape = row.get("segmentation")
    if isinstance(shape, list) and shape:
        polygons = []
        for polygon in shape:
            if not isinstance(polygon, list) or len(polygon) % 2:
                raise DataError(
                    f"{where}: expected a polygon as [x, y, x, y, ...]. "
                    f"Received: {str(polygon)[:80]}"
                )
            pairs = list(zip(polygon[::2], polygon[1::2], strict=True))
            points = _check_points(pairs, size, where, least=3)
            polygons.append([value for point in points for value in point])
        shape = mask.merge(mask.frPyObjects(polygons, *size))
    if not isinstance(shape, Mapping) or "counts" not in shape:
        raise DataError(
            f"{where}: expected a segmentation, polygons or RLE, not only a box. "
            f"Received: {str(shape)[:80]}"
        )
    if tuple(shape.get("size", ())) != size:
        raise DataError(
            f"{where}: expected an RLE of size {list(size)}, the picture's height and width. "
            f"Received: {shape.get('size')}"
        )
    counts = shape["counts"]
    try:
        text = counts.encode() if isinstance(counts, str) else counts
        runs = np.array(_decompress(text) if isinstance(text, bytes) else text, np.int64)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{where}: broken RLE ({error})") from error
    # pycocotools does not look at this, and reads past the end of its memory.
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise DataError(
            f"{where}: the runs of an RLE must add up to {size[0]} * {size[1]} pixels. "
            f"Received: {runs.sum()}"
        )
    return runs


def _decompress(text: bytes) -> list[int]:
    """Return the runs of COCO's compressed RLE.

    Each is a number in groups of 5 bits, the lowest first, a character each; from the fourth run
    on it is the difference to the run before the last.
    """
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            group = text[place] - 48
            if not 0 <= group < 64:
                raise ValueError(f"character {text[place]:#x}")
            place += 1
            value |= (group & 31) << shift
            shift += 5
            more = bool(group & 32)
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


CVAT_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test",
}  # fmt: skip


def read_cvat(export: str | Path, images: str | Path | None = None) -> Annotations:
    """Read a folder of CVAT's format "Segmentation mask 1.1".

    It holds `labelmap.txt`, `ImageSets/Segmentation/SUBSET.txt`, `SegmentationClass/X.png` in the
    colours of `labelmap.txt` and, when exported with pictures, `JPEGImages/X.*`. Black, and the
    colour of `background`, is what is not annotated; so is a listed picture without a mask. The
    subsets Train, Validation and Test are splits.

    Args:
        export: the unpacked export.
        images: the folder of the pictures, where the export has none.

    Raises:
        DataError: something is not there or not as expected.
    """
    export = Path(export)
    images = Path(images) if images is not None else export / "JPEGImages"
    if not images.is_dir():
        raise DataError(
            f"{images}: no such folder; export from CVAT with 'Save images', or give --images"
        )
    colors = _read_labelmap(export / "labelmap.txt")
    lists = sorted((export / "ImageSets" / "Segmentation").glob("*.txt"))
    if not lists:
        raise DataError(f"{export}: no list ImageSets/Segmentation/*.txt of the pictures")
    files: dict[str, list[Path]] = {}
    for path in sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        files.setdefault(path.relative_to(images).with_suffix("").as_posix(), []).append(path)

    classes = {name: color for name, color in colors.items() if name != "background"}
    blank = {(0, 0, 0), colors.get("background", (0, 0, 0))} - set(classes.values())
    space = LabelSpace(
        classes=tuple(classes),
        colors=tuple((color,) for color in classes.values()),
        void_colors=tuple(sorted(blank)),
    )
    listed: dict[str, Path] = {}
    pictures = []
    for subset in lists:
        for name in _read_text(subset).splitlines():
            if not (name := name.strip()):
                continue
            if name in listed:
                raise DataError(f"{subset}: {name!r} is also in {listed[name].name}")
            listed[name] = subset
            if len(files.get(name, ())) != 1:
                found = ", ".join(path.name for path in files.get(name, ())) or "none"
                raise DataError(
                    f"{subset}: expected one picture {images / name}.*. Received: {found}"
                )
            mask = export / "SegmentationClass" / f"{name}.png"
            pictures.append(
                Annotated(
                    source=str(mask),
                    name=name,
                    suffix=files[name][0].suffix,
                    picture=files[name][0],
                    size=None,
                    draw=_CvatDrawing(mask, space),
                    split=CVAT_SPLITS.get(subset.stem.lower()),
                )
            )
    return Annotations(tuple(classes), tuple(pictures), colors)


@dataclass(frozen=True)
class _CvatDrawing:
    mask: Path
    space: LabelSpace

    def __call__(self, size: Size, ids: Mapping[str, int], unlabelled: int) -> np.ndarray:
        if not self.mask.exists():
            return np.full(size, unlabelled, np.uint8)
        try:
            with Image.open(self.mask) as opened:
                values = np.asarray(opened.convert("RGB"))
        except Exception as error:  # Pillow raises many kinds on broken files
            raise DataError(f"{self.mask}: not readable as a mask ({error})") from error
        if values.shape[:2] != size:
            raise DataError(
                f"{self.mask}: the mask is {values.shape[1]} x {values.shape[0]} pixels, its "
                f"picture {size[1]} x {size[0]}"
            )
        table = np.full(256, unlabelled, np.uint8)
        table[: self.space.num_classes] = [ids[name] for name in self.space.classes]
        try:
            return table[self.space.encode(values)]
        except ValueError as error:
            raise DataError(f"{self.mask}: {error}") from error


def _read_labelmap(path: Path) -> dict[str, Color]:
    """Read lines `label:red,green,blue:parts:actions`."""
    colors: dict[str, Color] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        try:
            red, green, blue = (int(value) for value in rest.split(":")[0].split(","))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: expected label:red,green,blue:parts:actions. "
                f"Received: {line!r}"
            ) from error
        color = (red, green, blue)
        if name in colors or color in colors.values():
            raise DataError(f"{path}, line {number}: {name!r} or {color} is there twice")
        colors[name] = color
    if not set(colors) - {"background"}:
        raise DataError(f"{path}: no labels besides the background")
    return colors


# What LabelMe's own list of labels calls what is ignored, and the background.
LABELME_IGNORE, LABELME_BACKGROUND = "__ignore__", "_background_"


def read_labelme(
    folder: str | Path, classes: Sequence[str] = (), line_width: int | None = None
) -> Annotations:
    """Read the JSON files of LabelMe in a folder, at all depths.

    Later shapes are drawn over earlier ones, and all by Pillow, as LabelMe itself does it:
    polygon, rectangle, oriented_rectangle, circle, mask, and with a width line, linestrip and
    point. The label `__ignore__` has no class, `_background_` is the background.

    Args:
        folder: the folder.
        classes: names in the order of their ids; those found, sorted, when empty.
        line_width: pixels across a line or a point; None refuses them, since they have no area.

    Raises:
        DataError: a file is not as expected, or a picture is not there.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise DataError(f"{folder}: no .json files in this folder")
    found: set[str] = set()
    pictures = []
    for file in files:
        content = _read_json(file)
        shapes = content.get("shapes") if isinstance(content, Mapping) else None
        if not isinstance(shapes, list):
            raise DataError(f"{file}: expected a list 'shapes', as in the files of LabelMe")
        labelled = []
        for number, shape in enumerate(shapes):
            if not isinstance(shape, Mapping) or not isinstance(shape.get("label"), str):
                raise DataError(f"{file}: shape {number} has no label")
            label = shape["label"]
            label = "background" if label == LABELME_BACKGROUND else label
            if classes and label not in (*classes, "background", LABELME_IGNORE):
                raise DataError(
                    f"{file}: shape {number}: the label must be one of {', '.join(classes)}. "
                    f"Received: {label!r}"
                )
            labelled.append((label, shape))
        found |= {label for label, _ in labelled}
        picture, suffix = _labelme_picture(file, content)
        pictures.append(
            Annotated(
                source=str(file),
                name=file.relative_to(folder).as_posix().removesuffix(file.suffix),
                suffix=suffix,
                picture=picture,
                size=_declared_size(content, "imageHeight", "imageWidth", str(file)),
                draw=_LabelmeDrawing(str(file), labelled, line_width),
            )
        )
    names = tuple(classes) or tuple(sorted(found - {LABELME_IGNORE}))
    if "background" in found and "background" not in names:
        names = ("background", *names)
    return Annotations(names, tuple(pictures), colors={})


def _labelme_picture(file: Path, content: Mapping[str, Any]) -> tuple[Path | bytes, str]:
    """Return the picture beside a LabelMe file, else the one within it, and its suffix."""
    name = str(content.get("imagePath") or "").replace("\\", "/")
    if name and (file.parent / name).is_file():
        return file.parent / name, Path(name).suffix
    if not content.get("imageData"):
        raise DataError(f"{file}: the picture {file.parent / name} is not there, nor its imageData")
    stored = _base64(content["imageData"], f"{file}: imageData")
    try:
        with Image.open(io.BytesIO(stored)) as opened:
            return stored, {"JPEG": ".jpg"}.get(str(opened.format), f".{opened.format}".lower())
    except Exception as error:  # Pillow raises many kinds on broken files
        raise DataError(f"{file}: imageData is not readable as a picture ({error})") from error


@dataclass(frozen=True)
class _LabelmeDrawing:
    file: str
    shapes: Sequence[tuple[str, Mapping[str, Any]]]
    line_width: int | None

    def __call__(self, size: Size, ids: Mapping[str, int], unlabelled: int) -> np.ndarray:
        canvas = Image.new("L", size[::-1], unlabelled)
        for number, (label, shape) in enumerate(self.shapes):
            where = f"{self.file}: shape {number}, {label!r}"
            value = IGNORE if label == LABELME_IGNORE else ids[label]
            _draw_shape(canvas, shape, value, self.line_width, where)
        return np.array(canvas)


# Number of points of LabelMe's shapes: at least, at most.
LABELME_POINTS = {
    "polygon": (3, math.inf), "rectangle": (2, 2), "oriented_rectangle": (4, 4), "circle": (2, 2),
    "mask": (2, 2), "line": (2, 2), "linestrip": (2, math.inf), "point": (1, 1),
}  # fmt: skip


def _draw_shape(
    canvas: Image.Image, shape: Mapping[str, Any], value: int, line_width: int | None, where: str
) -> None:
    kind = shape.get("shape_type") or "polygon"
    if kind not in LABELME_POINTS:
        raise DataError(
            f"{where}: the shape_type must be one of {', '.join(LABELME_POINTS)}. "
            f"Received: {kind!r}"
        )
    if kind in ("line", "linestrip", "point") and line_width is None:
        raise DataError(f"{where}: a {kind} has no area; give --line-width PIXELS, or remove it")
    width = line_width or 0
    least, most = LABELME_POINTS[kind]
    size = (canvas.height, canvas.width)
    points = _check_points(shape.get("points"), size, where, least, most)
    draw = ImageDraw.Draw(canvas)
    first, last = points[0], points[-1]
    low = (min(first[0], last[0]), min(first[1], last[1]))
    high = (max(first[0], last[0]), max(first[1], last[1]))
    if kind in ("polygon", "oriented_rectangle"):
        draw.polygon(points, fill=value, outline=value)
    elif kind == "rectangle":
        draw.rectangle((low, high), fill=value, outline=value)
    elif kind in ("circle", "point"):
        radius = math.dist(first, last) if kind == "circle" else width / 2
        (x, y), r = first, radius
        draw.ellipse(((x - r, y - r), (x + r, y + r)), fill=value, outline=value)
    elif kind in ("line", "linestrip"):
        draw.line(points, fill=value, width=width)
    else:
        left, top, right, bottom = int(low[0]), int(low[1]), int(high[0]), int(high[1])
        stored = _base64(shape.get("mask"), f"{where}: mask")
        try:
            with Image.open(io.BytesIO(stored)) as opened:
                mask = np.asarray(opened.convert("L")) > 0
        except Exception as error:  # Pillow raises many kinds on broken files
            raise DataError(f"{where}: the mask is not readable ({error})") from error
        if mask.shape != (bottom - top + 1, right - left + 1) or left < 0 or top < 0:
            raise DataError(
                f"{where}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its points "
                f"span {right - left + 1} x {bottom - top + 1}"
            )
        canvas.paste(value, (left, top), Image.fromarray(mask))


def _check_points(
    points: Any, size: Size, where: str, least: float, most: float = math.inf
) -> list[tuple[float, float]]:
    """Return points as numbers; they must be near the picture."""
    try:
        found = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected points as pairs of numbers ({error})") from error
    if not least <= len(found) <= most:
        expected = f"{least}" if least == most else f"at least {least}"
        raise DataError(f"{where}: expected {expected} points. Received: {len(found)}")
    height, width = size
    for x, y in found:
        # Also false for NaN.
        if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
            raise DataError(
                f"{where}: the point ({x:g}, {y:g}) is far outside the picture of {width} x "
                f"{height} pixels"
            )
    return found


def _declared_size(row: Mapping[str, Any], height: str, width: str, where: str) -> Size | None:
    """Return the size that a file gives for a picture, if it gives one."""
    given = (row.get(height), row.get(width))
    if given == (None, None):
        return None
    if not all(isinstance(value, int) for value in given):
        raise DataError(f"{where}: {height} and {width} must be whole numbers. Received: {given}")
    return row[height], row[width]


def _base64(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise DataError(f"{where} is no base64 text ({error})") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error


def _inside(folder: Path, name: str, where: str) -> Path:
    """Return a file below a folder."""
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise DataError(f"{where}: file_name must be a path below {folder}. Received: {name!r}")
    path = folder / relative
    if not path.is_file():
        raise DataError(f"{where}: the picture {path} is not there")
    return path
