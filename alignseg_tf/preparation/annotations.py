"""Read annotations of other tools as label maps: COCO, CVAT's "Segmentation mask 1.1", LabelMe.

Points are x, y in pixels; (0, 0) is the outer corner of the upper left pixel. Each reader takes an
`Invalid`, which decides whether invalid annotations and images are errors (default) or skipped.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from alignseg_tf.data.label_space import IGNORE, Color, LabelSpace, read_labelmap
from alignseg_tf.data.listing import (
    IMAGE_SUFFIXES,
    DataError,
    expect,
    is_derived_file,
    list_files,
    naming,
)
from alignseg_tf.data.readers import opened
from alignseg_tf.preparation.annotation_files import (
    FileFinder,
    Invalid,
    Size,
    class_name,
    composed,
    declared_size,
    decode_base64,
    existing_folder,
    image_name,
    path_below,
    read_json,
    read_text,
    whole_number,
)

Drawing = Callable[[Size, Mapping[str, int], int], np.ndarray]
Ids = Mapping[str, int]

# Maximum outline of a polygon, in pixels. pycocotools allocates 80 bytes for each, unchecked.
MAX_OUTLINE = 10_000_000


@dataclass(frozen=True)
class Annotated:
    """An image with annotations.

    Attributes:
        source: where the annotations are, for messages.
        name: path of the image below its folder, without suffix.
        image: the file, or its content.
        size: (height, width) of the annotated image, if the source states it.
        draw: (size, class name -> id, id of pixels without annotation) -> uint8 [height, width].
            Raises DataError.
        split: train, val or test, if the source has splits.
    """

    source: str
    name: str
    suffix: str
    image: Path | bytes
    size: Size | None
    draw: Drawing
    split: str | None = None

    @property
    def file_name(self) -> str:
        """Name with suffix."""
        return f"{self.name}{self.suffix}"

    @property
    def content(self) -> bytes:
        """Bytes of the image file."""
        return self.image if isinstance(self.image, bytes) else self.image.read_bytes()


@dataclass(frozen=True)
class Annotations:
    """The annotations of a tool.

    Attributes:
        classes: names, in the order of the tool; `background` may be one of them.
        images: the images with annotations, and listed images without any.
        colors: colours of classes, if the tool has them.
        invalid: what was skipped; drawing adds to it.
    """

    classes: tuple[str, ...]
    images: tuple[Annotated, ...]
    colors: Mapping[str, Color]
    invalid: Invalid


def merge_annotations(parts: Sequence[Annotations]) -> Annotations:
    """Return the annotations of several files as one; equal class names are one class."""
    classes = dict.fromkeys(name for part in parts for name in part.classes)
    images = tuple(image for part in parts for image in part.images)
    colors = {name: color for part in parts for name, color in part.colors.items()}
    return Annotations(tuple(classes), images, colors, parts[0].invalid)


# COCO: an object is (where it is, its row, its class).
_CocoObject = tuple[str, Mapping[str, Any], str]
_Id = int | str


def read_coco(file: str | Path, images: str | Path, invalid: Invalid | None = None) -> Annotations:
    """Read a COCO file of instances: polygons, and RLE compressed or not.

    Larger objects are drawn before smaller ones. Crowd regions get no class and are drawn first.
    Polygons are rasterized by pycocotools. A root category, as Roboflow writes it, is no class.
    `images` is the folder that `file_name` paths start from.

    Raises:
        DataError: the file is invalid, or an image is missing.
        ImportError: pycocotools is missing.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"COCO annotations need pycocotools: pip install 'alignseg_tf[import]' ({error})"
        ) from error

    file, images, invalid = Path(file), existing_folder(images), invalid or Invalid()
    content = read_json(file)
    names: dict[_Id, str] = {}
    parents: dict[_Id, str] = {}
    for where, key, row in _coco_rows(file, content, "categories", ("id", "name"), invalid):
        with invalid.skipped():
            names[key] = class_name(row["name"], where)
            parents[key] = composed(str(row.get("supercategory") or "none")).strip()
    rows = list(_coco_rows(file, content, "images", ("id", "file_name"), invalid))
    objects_of: dict[_Id, list[_CocoObject]] = {key: [] for _, key, _ in rows}
    used: set[_Id] = set()
    keys = ("image_id", "category_id")
    for where, _, row in _coco_rows(file, content, "annotations", keys, invalid):
        with invalid.skipped():
            category = _known_id(row["category_id"], names, "a category", where)
            used.add(category)
            image = _known_id(row["image_id"], objects_of, "an image", where)
            objects_of[image].append((where, row, names[category]))
    finder, records = FileFinder(), []
    for where, key, row in rows:
        with invalid.skipped():
            path = _coco_image(finder, images, row["file_name"], where)
            name = image_name(path.relative_to(images))
            size = declared_size(row, "height", "width", where)
            draw = partial(_draw_coco, objects_of[key], invalid)
            records.append(Annotated(where, name, path.suffix, path, size, draw))
    return Annotations(_coco_classes(file, names, parents, used), tuple(records), {}, invalid)


def _coco_rows(
    file: Path, content: Any, table: str, keys: Sequence[str], invalid: Invalid
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield (location, id or None, row) for the rows that have all keys; required ids differ."""
    rows = content.get(table) if isinstance(content, Mapping) else None
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list {table!r}, as in COCO's instances")
    seen: set[_Id | None] = set()
    for place, row in enumerate(rows):
        where = f"{file}: {table}[{place}]"
        with invalid.skipped():
            missing = [key for key in keys if not isinstance(row, Mapping) or key not in row]
            if missing:
                raise DataError(f"{where} has no {', '.join(missing)}")
            key = _id(row.get("id"))
            if "id" in row:
                where += f", id {row['id']!r:.80}"
            if "id" in keys:
                expect(key is not None, where, "a whole number or text", row["id"])
                expect(key not in seen, where, "an id that no row before has", key)
            seen.add(key)
            yield where, key, row


def _id(value: Any) -> _Id | None:
    return value if isinstance(value, str) else whole_number(value)


def _known_id(value: Any, known: Mapping[_Id, Any], what: str, where: str) -> _Id:
    key = _id(value)
    if key is None or key not in known:
        there = ", ".join(map(str, islice(known, 10))) + ", ..." * (len(known) > 10)
        expect(False, where, f"the id of {what}, one of {there or 'none'}", value)
    return key  # type: ignore[return-value]


def _coco_image(finder: FileFinder, images: Path, name: Any, where: str) -> Path:
    name = path_below(images, name, f"{where}: file_name")
    find = finder.find_tail if PureWindowsPath(name).anchor else finder.find
    if (path := find(images, name)) is None:
        raise DataError(
            f"{where}: the image {name!r} is not there below {images}" + finder.nearby(images, name)
        )
    return path


def _coco_classes(
    file: Path, names: Mapping[_Id, str], parents: Mapping[_Id, str], used: set[_Id]
) -> tuple[str, ...]:
    """Return the names of categories, without unused roots of others."""
    roots = set(parents.values()) - {"none"}
    classes: dict[str, _Id] = {}
    for key, name in names.items():
        if key not in used and parents[key] == "none" and name in roots:
            continue
        if name in classes:
            raise DataError(f"{file}: the categories {classes[name]} and {key} are both {name!r}")
        classes[name] = key
    return tuple(classes)


def _draw_coco(
    objects: Sequence[_CocoObject], invalid: Invalid, size: Size, ids: Ids, unlabelled: int
) -> np.ndarray:
    regions = []
    for where, row, name in objects:
        with invalid.skipped():
            crowd = row.get("iscrowd") or 0
            expect(crowd in (0, 1), where, "iscrowd 0 or 1", crowd)
            runs = _coco_runs(row.get("segmentation"), size, where)
            regions.append((not crowd, -sum(runs[1::2]), IGNORE if crowd else ids[name], runs))
    label = np.full(size[0] * size[1], unlabelled, np.uint8)  # column after column
    for _, _, value, runs in sorted(regions, key=lambda region: region[:2]):
        ends = list(accumulate(runs))
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            label[start:end] = value
    return np.ascontiguousarray(label.reshape(size[1], size[0]).T)


def _coco_runs(shape: Any, size: Size, where: str) -> list[int]:
    """Return a region as lengths of runs, alternately off and on, column after column."""
    if isinstance(shape, list) and shape:
        shape = _merged_polygons(shape, size, where)
    has_counts = isinstance(shape, Mapping) and "counts" in shape
    expect(has_counts, where, "a segmentation, polygons or RLE, not only a box", shape)
    given, counts = shape.get("size"), shape["counts"]
    fits = isinstance(given, list) and [whole_number(value) for value in given] == list(size)
    expect(fits, where, f"an RLE of size {list(size)}, the image's height and width", given)
    is_text = isinstance(counts, str)
    expect(is_text or isinstance(counts, list), where, "an RLE as text or a list", counts)
    try:
        runs: list[Any] = _decompress(counts.encode()) if is_text else [*map(whole_number, counts)]
    except ValueError as error:
        raise DataError(f"{where}: broken RLE ({error})") from error
    # Python's integers, because those of NumPy overflow.
    fits = None not in runs and sum(runs) == size[0] * size[1] and min(runs) >= 0
    what = f"an RLE of whole numbers from 0 on that add up to {size[0]} * {size[1]} pixels"
    expect(fits, where, what, counts)
    return runs


def _merged_polygons(shape: Sequence[Any], size: Size, where: str) -> dict[str, Any]:
    """Return polygons as one RLE."""
    from pycocotools import mask

    polygons = []
    for polygon in shape:
        fits = isinstance(polygon, list) and len(polygon) % 2 == 0
        expect(fits, where, "a polygon as [x, y, x, y, ...]", polygon)
        pairs = zip(polygon[::2], polygon[1::2], strict=True)
        polygons.append(_checked_points(pairs, size, where, least=3).ravel().tolist())
    merged = mask.merge(mask.frPyObjects(polygons, *size))
    return {"size": list(merged["size"]), "counts": merged["counts"].decode()}


def _decompress(text: bytes) -> list[int]:
    """Return the runs of COCO's compressed RLE.

    Each run is a number in groups of 5 bits, the lowest first, a character per group. From the
    fourth run on it is the difference to the run before the last. pycocotools reads beyond the
    end of broken text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = character - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError(f"character {character:#x}")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:  # the last group
            if group & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the last number is cut short")
    return runs


CVAT_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test",
}  # fmt: skip


def read_cvat(
    export: str | Path, images: str | Path | None = None, invalid: Invalid | None = None
) -> Annotations:
    """Read a folder of CVAT's format "Segmentation mask 1.1".

    It holds `labelmap.txt`, `ImageSets/Segmentation/SUBSET.txt`, `SegmentationClass/X.png` in the
    colours of `labelmap.txt` and, if exported with images, `JPEGImages/X.*`. Black, the colour of
    `background`, and a listed image without a mask are not annotated. The subsets Train,
    Validation and Test are splits. `images` is for an export without images.

    Raises:
        DataError: a file is missing or invalid.
    """
    export, invalid = Path(export), invalid or Invalid()
    if images is None and not (export / "JPEGImages").is_dir():
        raise DataError(f"{export}: no folder JPEGImages; export with 'Save images', or --images")
    images = existing_folder(export / "JPEGImages" if images is None else images)
    masks = existing_folder(export / "SegmentationClass")
    colors, space = _read_labelmap(export / "labelmap.txt")
    lists = [
        path
        for path in sorted((export / "ImageSets" / "Segmentation").glob("*.txt"))
        if path.is_file() and not is_derived_file(PurePath(path.name))
    ]
    if not lists:
        raise DataError(f"{export}: no list ImageSets/Segmentation/*.txt of the images")
    finder = FileFinder()
    listed: dict[Path, Path] = {}
    records = []
    for subset in lists:
        split = CVAT_SPLITS.get(subset.stem.lower())
        for name in filter(None, map(str.strip, read_text(subset).splitlines())):
            with invalid.skipped():
                path = _cvat_image(finder, images, name, subset)
                if path in listed:
                    raise DataError(f"{subset}: {name!r} is also in {listed[path].name}")
                listed[path] = subset
                mask = finder.find(masks, f"{name}.png")
                source = str(mask or masks / f"{name}.png")
                image = image_name(path.relative_to(images))
                draw = partial(_draw_cvat, mask, space)
                records.append(Annotated(source, image, path.suffix, path, None, draw, split))
    return Annotations(space.classes, tuple(records), colors, invalid)


def _cvat_image(finder: FileFinder, images: Path, name: str, subset: Path) -> Path:
    """Return the one image with a name and any suffix."""
    path_below(images, name, f"{subset}: a name")
    candidates = [finder.find(images, f"{name}{suffix}") for suffix in IMAGE_SUFFIXES]
    found = sorted({path for path in candidates if path is not None})
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{subset}: expected one image {images / name}.*. Received: {names}")
    return found[0]


def _draw_cvat(
    mask: Path | None, space: LabelSpace, size: Size, ids: Ids, unlabelled: int
) -> np.ndarray:
    if mask is None:
        return np.full(size, unlabelled, np.uint8)
    with opened(mask, "a mask") as image:
        values = np.asarray(image.convert("RGB"))
    what = f"a mask of the height and width of its image, {size}"
    expect(values.shape[:2] == size, str(mask), what, values.shape[:2])
    table = np.full(256, unlabelled, np.uint8)
    table[: space.num_classes] = [ids[name] for name in space.classes]
    with naming(mask):
        return table[space.encode(values)]


def _read_labelmap(path: Path) -> tuple[dict[str, Color], LabelSpace]:
    """Return the colours of a `labelmap.txt`, and its label space without the background."""
    lines = read_labelmap(read_text(path), path)
    colors = {class_name(name, str(path)): color for name, color in lines.items()}
    classes = {name: color for name, color in colors.items() if name != "background"}
    expect(bool(classes), str(path), "labels besides the background", [*lines])
    blank = {(0, 0, 0), colors.get("background", (0, 0, 0))} - set(classes.values())
    of_classes = tuple((color,) for color in classes.values())
    with naming(path):
        return colors, LabelSpace(
            tuple(classes), colors=of_classes, void_colors=tuple(sorted(blank))
        )


# LabelMe's labels of ignored pixels and of the background.
LABELME_IGNORE, LABELME_BACKGROUND = "__ignore__", "_background_"
# Folders beside the annotations that may hold the images.
LABELME_IMAGE_FOLDERS = ("images", "pictures")
# A shape is (class, where it is, its content).
LabelmeShape = tuple[str, str, Mapping[str, Any]]


def read_labelme(
    folder: str | Path,
    classes: Sequence[str] = (),
    line_width: int | None = None,
    images: str | Path | None = None,
    invalid: Invalid | None = None,
) -> Annotations:
    """Read the JSON files of LabelMe in a folder, at all depths.

    Later shapes are drawn over earlier ones, by Pillow, as LabelMe does: polygon, rectangle,
    oriented_rectangle, circle, mask, and with a width line, linestrip and point. The label
    `__ignore__` has no class, `_background_` is the background.

    Args:
        folder: the folder.
        classes: names in the order of their ids; the sorted labels when empty.
        line_width: pixels across a line or a point; None refuses them.
        images: a folder of images, searched before that of the JSON file.
        invalid: whether to skip invalid shapes and files.

    Raises:
        DataError: a file is invalid, or an image is missing.
    """
    folder, invalid = existing_folder(folder), invalid or Invalid()
    images = None if images is None else existing_folder(images)
    expect(line_width is None or line_width >= 1, "--line-width", "1 or more", line_width)
    files = [path for path in list_files(folder) if path.suffix.lower() == ".json"]
    if not files:
        raise DataError(f"{folder}: no .json files in this folder")
    classes = tuple(class_name(name, "--classes") for name in classes)
    finder = FileFinder()
    found: set[str] = set()
    records = []
    for file in files:
        with invalid.skipped():
            content = read_json(file)
            shapes = _labelme_shapes(file, content, classes, invalid)
            found |= {label for label, _, _ in shapes}
            image, suffix = _labelme_image(finder, file, content, folder, images)
            name = image_name(file.relative_to(folder))
            size = declared_size(content, "imageHeight", "imageWidth", str(file))
            draw = partial(_draw_labelme, shapes, line_width, invalid)
            records.append(Annotated(str(file), name, suffix, image, size, draw))
    names = classes or tuple(sorted(found - {LABELME_IGNORE}))
    if "background" in found and "background" not in names:
        names = ("background", *names)
    return Annotations(names, tuple(records), {}, invalid)


def _labelme_shapes(
    file: Path, content: Any, classes: Sequence[str], invalid: Invalid
) -> list[LabelmeShape]:
    shapes = content.get("shapes") if isinstance(content, Mapping) else None
    if not isinstance(shapes, list):
        raise DataError(f"{file}: expected a list 'shapes', as in the files of LabelMe")
    found = []
    for number, shape in enumerate(shapes):
        where = f"{file}: shape {number}"
        with invalid.skipped():
            if not isinstance(shape, Mapping) or not isinstance(shape.get("label"), str):
                raise DataError(f"{where} has no label")
            label = class_name(shape["label"], f"{where}: label")
            label = "background" if label == LABELME_BACKGROUND else label
            fits = not classes or label in (*classes, "background", LABELME_IGNORE)
            expect(fits, where, f"a label of {', '.join(classes)}", label)
            found.append((label, f"{where}, {label!r}", shape))
    return found


def _labelme_image(
    finder: FileFinder, file: Path, content: Mapping[str, Any], root: Path, images: Path | None
) -> tuple[Path | bytes, str]:
    """Return the image of a LabelMe file and its suffix.

    It is below `images`, beside the JSON file, within it, or in a usual folder beside `root`.
    """
    name = content.get("imagePath")
    name = name.replace("\\", "/") if isinstance(name, str) else ""
    below = file.parent.relative_to(root)
    near = [] if images is None else [images / below, images]
    path = next(filter(None, (finder.find_tail(place, name) for place in near)), None)
    path = path or finder.find(file.parent, name) or finder.find_tail(file.parent, name)
    if path is None and content.get("imageData"):
        stored = decode_base64(content["imageData"], f"{file}: imageData")
        with opened(f"{file}: imageData", content=stored) as image:
            kind = str(image.format)
        return stored, ".jpg" if kind in ("JPEG", "MPO") else f".{kind}".lower()
    for beside in (root.absolute().parent / other for other in LABELME_IMAGE_FOLDERS):
        path = path or finder.find_tail(beside / below, name) or finder.find_tail(beside, name)
    if path is None:
        raise DataError(
            f"{file}: the image {name!r} is not there, nor its imageData"
            + (finder.nearby(root, name) or "; give the folder of the images as --images")
        )
    return path, path.suffix


def _draw_labelme(
    shapes: Sequence[LabelmeShape],
    line_width: int | None,
    invalid: Invalid,
    size: Size,
    ids: Ids,
    unlabelled: int,
) -> np.ndarray:
    canvas = Image.new("L", size[::-1], unlabelled)
    for label, where, shape in shapes:
        with invalid.skipped():
            value = IGNORE if label == LABELME_IGNORE else ids[label]
            _draw_shape(canvas, shape, value, line_width, where)
    return np.array(canvas)


# Minimum and maximum number of points of a shape. X-AnyLabeling writes rotation.
LABELME_POINTS = {
    "polygon": (3, math.inf), "rectangle": (2, 2), "oriented_rectangle": (4, 4),
    "rotation": (4, 4), "circle": (2, 2), "mask": (2, 2), "line": (2, 2),
    "linestrip": (2, math.inf), "point": (1, 1),
}  # fmt: skip


def _draw_shape(
    canvas: Image.Image, shape: Mapping[str, Any], value: int, line_width: int | None, where: str
) -> None:
    kind = shape.get("shape_type") or "polygon"
    is_known = isinstance(kind, str) and kind in LABELME_POINTS
    expect(is_known, where, f"a shape_type of {', '.join(LABELME_POINTS)}", kind)
    if kind in ("line", "linestrip", "point") and line_width is None:
        raise DataError(f"{where}: a {kind} has no area; give --line-width PIXELS, or remove it")
    width = line_width or 0
    given = shape.get("points")
    if kind == "rectangle" and isinstance(given, list) and len(given) == 4:
        kind = "oriented_rectangle"  # X-AnyLabeling writes four corners
    found = _checked_points(given, (canvas.height, canvas.width), where, *LABELME_POINTS[kind])
    points = [(x, y) for x, y in found.tolist()]
    draw = ImageDraw.Draw(canvas)
    box = [*found.min(0), *found.max(0)]
    if kind in ("polygon", "oriented_rectangle", "rotation"):
        draw.polygon(points, fill=value, outline=value)
    elif kind == "rectangle":
        draw.rectangle(box, fill=value, outline=value)
    elif kind in ("circle", "point"):
        (x, y), r = points[0], math.dist(points[0], points[-1]) if kind == "circle" else width / 2
        draw.ellipse((x - r, y - r, x + r, y + r), fill=value, outline=value)
    elif kind in ("line", "linestrip"):
        draw.line(points, fill=value, width=width)
    else:
        _draw_mask(canvas, shape.get("mask"), box, value, where)


def _draw_mask(
    canvas: Image.Image, stored: Any, box: Sequence[float], value: int, where: str
) -> None:
    left, top, right, bottom = map(int, box)
    content = decode_base64(stored, f"{where}: mask")
    with opened(where, "a mask", content=content) as image:
        mask = np.asarray(image.convert("L")) > 0
    fits = mask.shape == (bottom - top + 1, right - left + 1) and left >= 0 and top >= 0
    span = bottom - top + 1, right - left + 1
    expect(fits, where, f"a mask of height and width {span}, as its points", mask.shape)
    canvas.paste(value, (left, top), Image.fromarray(mask))


def _checked_points(
    points: Any, size: Size, where: str, least: float, most: float = math.inf
) -> np.ndarray:
    """Return points as float64 [n, 2]; they must lie near the image, and their outline be short."""
    try:
        found = np.array([(float(x), float(y)) for x, y in points]).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: expected points as pairs of numbers ({error})") from error
    number = f"{least}" if least == most else f"at least {least}"
    expect(least <= len(found) <= most, where, f"{number} points", len(found))
    limit = np.array(size[::-1])
    far = ~((found >= -limit) & (found <= 2 * limit)).all(1)  # NaN too
    what = f"points in or near the image of {size[1]} x {size[0]} pixels"
    expect(not far.any(), where, what, found[far][:1].tolist())
    length = (np.abs(found - np.roll(found, 1, 0)).max(1) + 1).sum()
    what = f"an outline of at most {MAX_OUTLINE} pixels"
    expect(length <= MAX_OUTLINE, where, what, round(float(length)))
    return found
