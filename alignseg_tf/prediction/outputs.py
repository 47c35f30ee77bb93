"""Files that a prediction can be written as.

classes        PNG, grey values are class ids
color          PNG, classes in their colours
overlay        PNG, classes painted over the picture
side_by_side   PNG, picture and overlay, with a legend
probabilities  NumPy .npz: `probabilities`, float16 [H, W, classes], and `classes`, their names
coco           JSON, a COCO data set of one picture: a run-length encoded mask a class
polygons       GeoJSON, a polygon a connected region, in pixels
cityscapes     PNG, grey values are Cityscapes' labelIds, as its server takes them
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alignseg_tf.data.label_space import CITYSCAPES, LabelSpace
from alignseg_tf.system.files import atomic_path, write_text

if TYPE_CHECKING:
    from alignseg_tf.prediction.predictor import Prediction


@dataclass(frozen=True)
class Kind:
    """A form of file.

    Attributes:
        ending: what follows the picture's name.
        write: writes a prediction to a path.
        picture: for forms that are pictures of what was predicted, uint8 RGB [any, any, 3]: videos
            can be made of them.
    """

    ending: str
    write: Callable[["Prediction", Path], None]
    picture: Callable[["Prediction"], np.ndarray] | None = None


def _picture_kind(ending: str, picture: Callable[["Prediction"], np.ndarray]) -> Kind:
    return Kind(ending, lambda prediction, path: _write_png(picture(prediction), path), picture)


def _write_png(content: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(content).save(temporary)


def _write_classes(prediction: "Prediction", path: Path) -> None:
    _write_png(prediction.class_map, path)


def _write_probabilities(prediction: "Prediction", path: Path) -> None:
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            probabilities=prediction.probabilities.astype(np.float16),
            classes=np.array(prediction.label_space.classes),
        )


def _write_coco(prediction: "Prediction", path: Path) -> None:
    file_name = prediction.file_name or path.name.removesuffix("_coco.json")
    write_text(path, json.dumps(coco_data_set(prediction, file_name)))


def _write_polygons(prediction: "Prediction", path: Path) -> None:
    write_text(path, json.dumps(polygons(prediction.class_map, prediction.label_space)))


def _write_cityscapes(prediction: "Prediction", path: Path) -> None:
    _write_png(CITYSCAPES.decode(prediction.class_map), path)


KINDS = {
    "classes": Kind("_classes.png", _write_classes),
    "color": _picture_kind("_color.png", lambda made: made.color()),
    "overlay": _picture_kind("_overlay.png", lambda made: made.overlay()),
    "side_by_side": _picture_kind("_side_by_side.png", lambda made: made.side_by_side()),
    "probabilities": Kind("_probabilities.npz", _write_probabilities),
    "coco": Kind("_coco.json", _write_coco),
    "polygons": Kind("_polygons.geojson", _write_polygons),
    "cityscapes": Kind("_labelIds.png", _write_cityscapes),
}


def check_kinds(
    kinds: Sequence[str], label_space: LabelSpace, gives_probabilities: bool = True
) -> None:
    """Refuse kinds of files that cannot be written, before anything is predicted.

    Args:
        kinds: which of `KINDS`.
        label_space: of the model.
        gives_probabilities: whether the model does.

    Raises:
        ValueError: an unknown kind, or one that does not fit the model.
        ImportError: a package is missing.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"`kinds` must be of {', '.join(KINDS)}. Received: {', '.join(unknown)}")
    if "cityscapes" in kinds and label_space.classes != CITYSCAPES.classes:
        raise ValueError(
            "`cityscapes` writes Cityscapes' labelIds, so the model must have its 19 classes. "
            f"Received: {', '.join(label_space.classes)}"
        )
    if "probabilities" in kinds and not gives_probabilities:
        raise ValueError("`probabilities` needs a model with logits; this file gives class maps")
    if "polygons" in kinds:
        _import_rasterio()


def paths(folder: Path, stem: str, kinds: Sequence[str]) -> list[Path]:
    """Return where files go: `FOLDER/STEM` and the ending of each kind."""
    return [folder / f"{stem}{KINDS[kind].ending}" for kind in kinds]


def save(prediction: "Prediction", folder: Path, stem: str, kinds: Sequence[str]) -> list[Path]:
    """Write a prediction, each file at once or not at all; see `Prediction.save`."""
    check_kinds(kinds, prediction.label_space)
    written = paths(folder, stem, kinds)
    for kind, path in zip(kinds, written, strict=True):
        KINDS[kind].write(prediction, path)
    return written


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed run-length code: zeros, ones, zeros ... column by column.

    Args:
        mask: bool [H, W].

    Example:
        >>> run_lengths(np.array([[False, True], [True, True]]))
        [1, 3]
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *changes, flat.size]).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def coco_data_set(prediction: "Prediction", file_name: str) -> dict[str, Any]:
    """Return a prediction as a COCO data set of one picture, with a mask a class.

    A category's id is the class id + 1. Masks are uncompressed run-length codes. They are no
    crowds, which COCO's tools leave out of training and evaluation.

    Args:
        prediction: what to write.
        file_name: of the image, with its suffix.
    """
    height, width = prediction.class_map.shape
    annotations: list[dict[str, Any]] = []
    for index in np.unique(prediction.class_map).tolist():
        mask = prediction.class_map == index
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": index + 1,
                "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                "area": int(mask.sum()),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "categories": [
            {"id": index + 1, "name": name}
            for index, name in enumerate(prediction.label_space.classes)
        ],
        "annotations": annotations,
    }


def _import_rasterio() -> Any:
    try:
        from rasterio import features
    except ImportError as error:
        raise ImportError("`polygons` needs rasterio: pip install rasterio") from error
    return features


def polygons(class_map: np.ndarray, label_space: LabelSpace) -> dict[str, Any]:
    """Return the connected regions of a class map as a GeoJSON feature collection.

    Coordinates are (x, y) in pixels from the picture's upper left corner, y down, and run along
    the pixels' edges, so that areas are exact; regions touch along edges, not at corners. Holes
    are inner rings.

    Args:
        class_map: uint8 [H, W].
        label_space: names of the classes.

    Raises:
        ImportError: rasterio is not installed.
    """
    shapes = _import_rasterio().shapes(class_map, connectivity=4)
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {
                    "class_id": int(value),
                    "class": label_space.classes[int(value)],
                    "area": _area(geometry["coordinates"]),
                },
                "geometry": geometry,
            }
            for geometry, value in shapes
        ],
    }


def _area(rings: Sequence[Sequence[tuple[float, float]]]) -> float:
    """Return the area of a polygon with holes, in pixels."""
    areas = []
    for ring in rings:
        x, y = np.array(ring).T
        areas.append(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
    return float(areas[0] - sum(areas[1:]))
