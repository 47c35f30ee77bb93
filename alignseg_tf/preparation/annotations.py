"""Read annotations of other tools as label maps: COCO, CVAT's "Segmentation mask 1.1", LabelMe.

Points are x, y in pixels; (0, 0) is the outer corner of the upper left pixel. Each reader takes an
`Invalid`, which decides whether invalid annotations and images are errors (default) or skipped.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from alignseg_tf.data.label_space import IGNORE, Color, LabelSpace, read_labelmap
from alignseg_tf.data.listing import IMAGE_SUFFIXES, DataError, is_derived_file, list_files
from alignseg_tf.data.readers import opened
from alignseg_tf.preparation.annotation_files import (
    FileFinder,
    Invalid,
    Size,
    class_name,
    composed,
    declared_size,
    decode_base64,
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
        suffix: suffix of the image.
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


# COCO: an object is (where it is, its row, its class)
_CocoObject = tuple[str, Mapping[str, Any], str]


def read_coco(file: str | Path, images: str | Path, invalid: Invalid | None = None) -> Annotations:
    """Read a COCO file of instances: polygons, and RLE compressed or not.

    Larger objects are drawn before smaller ones. Crowd regions get no class and are drawn first.
    Polygons are rasterized by pycocotools. A root category, as Roboflow writes it, is no class.

    Args:
        file: the JSON, such as `instances_val2017.json`.
        images: the folder that its `file_name` paths start from.
        invalid: whether to skip invalid annotations and images.

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

    file, images, invalid = Path(file), Path(images), invalid or Invalid()
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    content = read_json(file)
    names: dict[int | str, str] = {}
    parents: dict[int | str, str] = {}
    for where, row in _coco_rows(file, content, "categories", ("id", "name"), invalid):
        with invalid.skipped():
            key = _new_id(row["id"], names, where)
            names[key] = class_name(row["name"], where)
            parents[key] = composed(str(row.get("supercategory") or "none")).strip()
    objects_of: dict[int | str, list[_CocoObject]] = {}
    found: list[tuple[str, Mapping[str, Any], list[_CocoObject]]] = []
    for where, row in _coco_rows(file, content, "images", ("id", "file_name"), invalid):
        with invalid.skipped():
            objects = objects_of.setdefault(_new_id(row["id"], objects_of, where), [])
            found.append((where, row, objects))
    used: set[int | str] = set()
    keys = ("image_id", "category_id")
    for where, row in _coco_rows(file, content, "annotations", keys, invalid):
        with invalid.skipped():
            category = _known_id(row["category_id"], names, "category", where)
            used.add(category)
            image = _known_id(row["image_id"], objects_of, "image", where)
            objects_of[image].append((where, row, names[category]))
    finder, records = FileFinder(), []
    for where, row, objects in found:
        with invalid.skipped():
            path = _coco_image(finder, images, row["file_name"], where)
            name = image_name(path.relative_to(images))
            size = declared_size(row, "height", "width", where)
            draw = partial(_draw_coco, objects, invalid)
            records.append(Annotated(where, name, path.suffix, path, size, draw))
    return Annotations(_coco_classes(file, names, parents, used), tuple(records), {}, invalid)


def _coco_rows(
    file: Path, content: Any, table: str, keys: Sequence[str], invalid: Invalid
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a table that have all keys, each with its location."""
    rows = content.get(table) if isinstance(content, Mapping) else None
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list {table!r}, as in COCO's instances")
    for place, row in enumerate(rows):
        where = f"{file}: {table}[{place}]"
        missing = [key for key in keys if not isinstance(row, Mapping) or key not in row]
        with invalid.skipped():
            if missing:
                raise DataError(f"{where} has no {', '.join(missing)}")
        if not missing:
            yield f"{where}, id {_shown(row['id'])}" if "id" in row else where, row


def _shown(value: Any) -> str:
    """Return a value for a message, cut to 80 characters."""
    return repr(value)[:80]


def _id(value: Any) -> int | str | None:
    return value if isinstance(value, str) else whole_number(value)


def _new_id(value: Any, known: Mapping[int | str, Any], where: str) -> int | str:
    found = _id(value)
    if found is None:
        raise DataError(f"{where}: expected a whole number or text. Received: {_shown(value)}")
    if found in known:
        raise DataError(f"{where}: another one before it has this id")
    return found


def _known_id(value: Any, known: Mapping[int | str, Any], what: str, where: str) -> int | str:
    found = _id(value)
    if found is None or found not in known:
        there = ", ".join(map(str, list(known)[:10])) + (", ..." if len(known) > 10 else "")
        raise DataError(
            f"{where}: no {what} has the id {_shown(value)}; there are {there or 'none'}"
        )
    return found


def _coco_image(finder: FileFinder, images: Path, name: Any, where: str) -> Path:
    name = path_below(images, name, f"{where}: file_name")
    absolute = PureWindowsPath(name).anchor
    path = finder.find_tail(images, name) if absolute else finder.find(images, name)
    if path is None:
        raise DataError(
            f"{where}: the image {name!r} is not there below {images}" + finder.nearby(images, name)
        )
    return path


def _coco_classes(
    file: Path,
    names: Mapping[int | str, str],
    parents: Mapping[int | str, str],
    used: set[int | str],
) -> tuple[str, ...]:
    """Return the names of categories, without unused roots of others."""
    has_children = set(parents.values()) - {"none"}
    classes: dict[str, int | str] = {}
    for key, name in names.items():
        if key not in used and parents[key] == "none" and name in has_children:
            continue
        if name in classes:
            raise DataError(
                f"{file}: the categories with the ids {classes[name]} and {key} have the same "
                f"name, {name!r}"
            )
        classes[name] = key
    return tuple(classes)


def _draw_coco(
    objects: Sequence[_CocoObject], invalid: Invalid, size: Size, ids: Ids, unlabelled: int
) -> np.ndarray:
    regions = []
    for where, row, name in objects:
        with invalid.skipped():
            crowd = row.get("iscrowd") or 0
            if crowd not in (0, 1):
                raise DataError(f"{where}: iscrowd must be 0 or 1. Received: {_shown(crowd)}")
            runs = _coco_runs(row.get("segmentation"), size, where)
            value = IGNORE if crowd else ids[name]
            regions.append((not crowd, -sum(runs[1::2]), value, runs))
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
    if not isinstance(shape, Mapping) or "counts" not in shape:
        raise DataError(
            f"{where}: expected a segmentation, polygons or RLE, not only a box. "
            f"Received: {_shown(shape)}"
        )
    given = shape.get("size")
    if not isinstance(given, list) or [whole_number(value) for value in given] != list(size):
        raise DataError(
            f"{where}: expected an RLE of size {list(size)}, the image's height and width. "
            f"Received: {_shown(given)}"
        )
    counts = shape["counts"]
    try:
        if isinstance(counts, str):
            runs = _decompress(counts.encode())
        elif isinstance(counts, list):
            runs = [_run_length(count) for count in counts]
        else:
            raise ValueError(f"expected a list or text. Received: {_shown(counts)}")
    except (ValueError, IndexError) as error:
        raise DataError(f"{where}: broken RLE ({error})") from error
    # Python's integers, because those of NumPy overflow.
    pixels, total = size[0] * size[1], sum(runs)
    if total != pixels or min(runs) < 0:
        received = "a negative run" if min(runs, default=0) < 0 else min(total, 10**18)
        raise DataError(
            f"{where}: the runs of an RLE must add up to {size[0]} * {size[1]} pixels. "
            f"Received: {received}"
        )
    return runs


def _run_length(count: Any) -> int:
    if (run := whole_number(count)) is None:
        raise ValueError(f"expected whole numbers. Received: {_shown(count)}")
    return run


def _merged_polygons(shape: Sequence[Any], size: Size, where: str) -> dict[str, Any]:
    """Return polygons as one RLE."""
    from pycocotools import mask

    polygons = []
    for polygon in shape:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise DataError(
                f"{where}: expected a polygon as [x, y, x, y, ...]. Received: {_shown(polygon)}"
            )
        pairs = list(zip(polygon[::2], polygon[1::2], strict=True))
        points = _check_points(pairs, size, where, least=3)
        polygons.append([value for point in points for value in point])
    merged = mask.merge(mask.frPyObjects(polygons, *size))
    return {"size": list(merged["size"]), "counts": merged["counts"].decode()}


def _decompress(text: bytes) -> list[int]:
    """Return the runs of COCO's compressed RLE.

    Each run is a number in groups of 5 bits, the lowest first, a character per group. From the
    fourth run on it is the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = character - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError(f"character {character:#x}")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:  # more groups follow
            continue
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
    Validation and Test are splits.

    Args:
        export: the unpacked export.
        images: the folder of the images, if the export has none.
        invalid: whether to skip invalid images.

    Raises:
        DataError: a file is missing or invalid.
    """
    export, invalid = Path(export), invalid or Invalid()
    images = Path(images) if images is not None else export / "JPEGImages"
    if not images.is_dir():
        raise DataError(
            f"{images}: no such folder; export from CVAT with 'Save images', or give --images"
        )
    masks = export / "SegmentationClass"
    if not masks.is_dir():
        raise DataError(f"{masks}: no such folder, so there are no annotations")
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
    if values.shape[:2] != size:
        raise DataError(
            f"{mask}: the mask is {values.shape[1]} x {values.shape[0]} pixels, its image "
            f"{size[1]} x {size[0]}"
        )
    table = np.full(256, unlabelled, np.uint8)
    table[: space.num_classes] = [ids[name] for name in space.classes]
    try:
        return table[space.encode(values)]
    except ValueError as error:
        raise DataError(f"{mask}: {error}") from error


def _read_labelmap(path: Path) -> tuple[dict[str, Color], LabelSpace]:
    """Return the colours of a `labelmap.txt`, and its label space without the background."""
    try:
        lines = read_labelmap(read_text(path), str(path))
        colors = {class_name(name, str(path)): color for name, color in lines.items()}
        if len(colors) < len(lines):
            raise DataError(f"{path}: labels that are the same in the form NFC")
        classes = {name: color for name, color in colors.items() if name != "background"}
        if not classes:
            raise DataError(f"{path}: no labels besides the background")
        blank = {(0, 0, 0), colors.get("background", (0, 0, 0))} - set(classes.values())
        space = LabelSpace(
            classes=tuple(classes),
            colors=tuple((color,) for color in classes.values()),
            void_colors=tuple(sorted(blank)),
        )
    except DataError:
        raise
    except ValueError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return colors, space


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
    folder, invalid = Path(folder), invalid or Invalid()
    images = None if images is None else Path(images)
    for given in (folder, images):
        if given is not None and not given.is_dir():
            raise DataError(f"{given}: no such folder")
    if line_width is not None and line_width < 1:
        raise DataError(f"--line-width must be at least 1. Received: {line_width}")
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
            if classes and label not in (*classes, "background", LABELME_IGNORE):
                raise DataError(
                    f"{where}: the label must be one of {', '.join(classes)}. Received: {label!r}"
                )
            found.append((label, f"{where}, {label!r}", shape))
    return found


def _labelme_image(
    finder: FileFinder, file: Path, content: Mapping[str, Any], root: Path, images: Path | None
) -> tuple[Path | bytes, str]:
    """Return the image of a LabelMe file and its suffix.

    It is below `images`, beside the JSON file, within it, or in `images` beside `root`.
    """
    name = content.get("imagePath")
    name = name.replace("\\", "/") if isinstance(name, str) else ""
    below = file.parent.relative_to(root)
    near = [images / below, images] if images is not None else []
    path = next((p for place in near if (p := finder.find_tail(place, name))), None)
    path = path or (finder.find(file.parent, name) if name else None)
    path = path or finder.find_tail(file.parent, name)
    if path is not None:
        return path, path.suffix
    if content.get("imageData"):
        stored = decode_base64(content["imageData"], f"{file}: imageData")
        with opened(f"{file}: imageData", content=stored) as image:
            kind = str(image.format)
        return stored, {"JPEG": ".jpg", "MPO": ".jpg"}.get(kind, f".{kind}".lower())
    beside = [root.absolute().parent / other for other in LABELME_IMAGE_FOLDERS]
    for place in (place for other in beside for place in (other / below, other)):
        if path := finder.find_tail(place, name):
            return path, path.suffix
    raise DataError(
        f"{file}: the image {name!r} is not there, nor its imageData"
        + (finder.nearby(root, name) or "; give the folder of the images as --images")
    )


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
    if not isinstance(kind, str) or kind not in LABELME_POINTS:
        raise DataError(
            f"{where}: the shape_type must be one of {', '.join(LABELME_POINTS)}. "
            f"Received: {kind!r}"
        )
    if kind in ("line", "linestrip", "point") and line_width is None:
        raise DataError(f"{where}: a {kind} has no area; give --line-width PIXELS, or remove it")
    width = line_width or 0
    points = shape.get("points")
    if kind == "rectangle" and isinstance(points, list) and len(points) == 4:
        kind = "oriented_rectangle"  # X-AnyLabeling writes four corners
    points = _check_points(points, (canvas.height, canvas.width), where, *LABELME_POINTS[kind])
    draw = ImageDraw.Draw(canvas)
    (x, y), last = points[0], points[-1]
    box = [min(x, last[0]), min(y, last[1]), max(x, last[0]), max(y, last[1])]
    if kind in ("polygon", "oriented_rectangle", "rotation"):
        draw.polygon(points, fill=value, outline=value)
    elif kind == "rectangle":
        draw.rectangle(box, fill=value, outline=value)
    elif kind in ("circle", "point"):
        r = math.dist(points[0], last) if kind == "circle" else width / 2
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
    if mask.shape != (bottom - top + 1, right - left + 1) or left < 0 or top < 0:
        raise DataError(
            f"{where}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its points "
            f"span {right - left + 1} x {bottom - top + 1}"
        )
    canvas.paste(value, (left, top), Image.fromarray(mask))


def _check_points(
    points: Any, size: Size, where: str, least: float, most: float = math.inf
) -> list[tuple[float, float]]:
    """Return points as numbers; they must lie near the image, and their outline be short."""
    try:
        found = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: expected points as pairs of numbers ({error})") from error
    if not least <= len(found) <= most:
        expected = f"{least}" if least == most else f"at least {least}"
        raise DataError(f"{where}: expected {expected} points. Received: {len(found)}")
    height, width = size
    for x, y in found:
        # Also false for NaN.
        if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
            raise DataError(
                f"{where}: the point ({x:g}, {y:g}) is far outside the image of {width} x "
                f"{height} pixels"
            )
    steps = np.abs(np.array(found) - np.roll(found, 1, 0)).max(1) + 1
    if steps.sum() > MAX_OUTLINE:
        raise DataError(
            f"{where}: expected an outline of at most {MAX_OUTLINE} pixels. "
            f"Received: {steps.sum():.0f}"
        )
    return found
