"""Files that a prediction can be written as.

classes        PNG, grey values are class ids
color          PNG, classes in their colours
overlay        PNG, classes painted over the image
side_by_side   PNG, image and overlay, with a legend
probabilities  NumPy .npz: `probabilities`, float16 [H, W, classes], and `classes`, their names
coco           JSON, a COCO data set of one image: a run-length encoded mask a class
polygons       GeoJSON, a polygon a connected region, in pixels
cityscapes     PNG, grey values are Cityscapes' labelIds, as its server takes them
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.data.datasets.cityscapes import CITYSCAPES
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.system.files import atomic_path, write_text

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Kind:
    """A form of file.

    Attributes:
        ending: what follows the image's name.
        write: writes a prediction to a path.
        image: for forms that are images of what was predicted, uint8 RGB [any, any, 3]: videos
            can be made of them.
    """

    ending: str
    write: Callable[["Prediction", Path], None]
    image: Callable[["Prediction"], np.ndarray] | None = None


def _image_kind(ending: str, image: Callable[["Prediction"], np.ndarray]) -> Kind:
    return Kind(ending, lambda prediction, path: _write_png(image(prediction), path), image)


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
    """Return a prediction as a COCO data set of one image, with a mask a class.

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

    Coordinates are (x, y) in pixels from the image's upper left corner, y down, and run along
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


@dataclass(frozen=True)
class Prediction:
    """What a model sees in an image.

    Attributes:
        image: the image, uint8 RGB [H, W, 3].
        class_map: class ids, uint8 [H, W].
        label_space: names and colours of the classes.
        confidence: probability of the chosen class, float32 [H, W] in 0..1; None where the model
            gives class maps alone.
        in_windows: whether the image was too large to go through whole, see
            `Protocol.largest_whole`.
        file_name: of the image, for files that name it; None where it is unknown.
    """

    image: np.ndarray
    class_map: np.ndarray
    label_space: LabelSpace
    confidence: np.ndarray | None = None
    in_windows: bool = False
    file_name: str | None = None
    _compute_probabilities: Callable[[np.ndarray], np.ndarray] | None = field(
        default=None, repr=False, compare=False
    )

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities of the classes, float32 [H, W, classes].

        They are large, so they are computed when they are first asked for, by another pass through
        the network.

        Raises:
            ValueError: the model gives class maps alone.
        """
        if self._compute_probabilities is None:
            raise ValueError("This prediction was made without a model that gives probabilities")
        return self._compute_probabilities(self.image)

    def color(self) -> np.ndarray:
        """Return the class map in the colours of the classes, uint8 [H, W, 3]."""
        return visualization.colorize(self.class_map, self.label_space.palette)

    def overlay(self) -> np.ndarray:
        """Return the class map painted over the image, uint8 [H, W, 3]."""
        return visualization.overlay(self.image, self.class_map, self.label_space.palette)

    def side_by_side(self) -> np.ndarray:
        """Return the image, the overlay beside it, and a legend below, uint8 [any, any, 3]."""
        row = visualization.side_by_side(self.image, self.overlay())
        return np.concatenate([row, visualization.legend(self.label_space, row.shape[1])])

    def save(
        self, folder: str | Path, stem: str, kinds: Sequence[str] = ("classes", "overlay")
    ) -> list[Path]:
        """Write files into a folder, each at once or not at all.

        Args:
            folder: is made if it is not there.
            stem: start of the files' names.
            kinds: which of `outputs.KINDS`; `classes` is a PNG whose grey values are class
                ids, `overlay` a PNG in colours.

        Returns:
            The paths, in the order of `kinds`.

        Raises:
            ValueError: an unknown kind, or one that does not fit the model.
        """
        from alignseg_tf.prediction import outputs

        return outputs.save(self, Path(folder), stem, kinds)


KINDS = {
    "classes": Kind("_classes.png", _write_classes),
    "color": _image_kind("_color.png", lambda made: made.color()),
    "overlay": _image_kind("_overlay.png", lambda made: made.overlay()),
    "side_by_side": _image_kind("_side_by_side.png", lambda made: made.side_by_side()),
    "probabilities": Kind("_probabilities.npz", _write_probabilities),
    "coco": Kind("_coco.json", _write_coco),
    "polygons": Kind("_polygons.geojson", _write_polygons),
    "cityscapes": Kind("_labelIds.png", _write_cityscapes),
}
