"""A prediction, and the files that it is written as.

classes        PNG, grey values are class ids
color          PNG, classes in their colours
overlay        PNG, classes painted over the image
side_by_side   PNG, image and overlay, with a legend
probabilities  NumPy .npz: `probabilities`, float16 [H, W, classes], and `classes`, their names
coco           JSON, a COCO data set of one image: a run-length encoded mask for each class
polygons       GeoJSON, a polygon for each connected region, in pixels
cityscapes     PNG, grey values are Cityscapes' labelIds, as its server takes them
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from alignseg_tf import visualization
from alignseg_tf.data.datasets.cityscapes import CITYSCAPES
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.system.files import atomic_path


@dataclass(frozen=True)
class Kind:
    """A form of file.

    Attributes:
        ending: follows the image's name; its suffix tells the format.
        content: of a prediction: an image (PNG), arrays by name (NPZ) or a JSON object.
        is_video: whether `predict` makes a video of it; content is then uint8 RGB [any, any, 3].
    """

    ending: str
    content: Callable[["Prediction"], Any]
    is_video: bool = False

    def write(self, prediction: "Prediction", path: Path) -> None:
        """Write a prediction to `path`, at once or not at all."""
        content = self.content(prediction)
        with atomic_path(path) as temporary:
            if path.suffix == ".png":
                Image.fromarray(content).save(temporary)
            elif path.suffix == ".npz":
                np.savez_compressed(temporary, **content)
            else:
                temporary.write_text(json.dumps(content), encoding="utf-8")


def check_kinds(
    kinds: Sequence[str], label_space: LabelSpace, gives_probabilities: bool = True
) -> None:
    """Raise a `ValueError` for kinds of files that are unknown or do not fit the model.

    Raises:
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
    """Return the paths of files: `FOLDER/STEM` and the ending of each kind."""
    return [folder / f"{stem}{KINDS[kind].ending}" for kind in kinds]


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask, bool [H, W]: zeros, ones, ... by column.

    Example:
        >>> run_lengths(np.array([[False, True], [True, True]]))
        [1, 3]
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *changes, flat.size]).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def coco_data_set(prediction: "Prediction") -> dict[str, Any]:
    """Return a prediction as a COCO data set of one image, with a mask for each class.

    A category's id is the class id + 1. Masks are uncompressed run lengths. `iscrowd` is 0, since
    COCO's tools ignore crowds.
    """
    class_map = prediction.class_map
    height, width = class_map.shape
    annotations: list[dict[str, Any]] = []
    for index, box in enumerate(ndimage.find_objects(class_map.astype(np.int32) + 1)):
        if box is None:  # the class does not occur
            continue
        (top, bottom), (left, right) = ((part.start, part.stop) for part in box)
        mask = class_map == index
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": index + 1,
                "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                "area": int(mask.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
            }
        )
    image = {"id": 1, "file_name": prediction.file_name, "height": height, "width": width}
    names = enumerate(prediction.label_space.classes, start=1)
    categories = [{"id": number, "name": name} for number, name in names]
    return {"images": [image], "categories": categories, "annotations": annotations}


def _import_rasterio() -> Any:
    try:
        from rasterio import features
    except ImportError as error:
        raise ImportError("`polygons` needs rasterio: pip install rasterio") from error
    return features


def polygons(class_map: np.ndarray, label_space: LabelSpace) -> dict[str, Any]:
    """Return the connected regions of a class map as a GeoJSON feature collection.

    Coordinates are (x, y) in pixels from the image's upper left corner, y down, along the pixels'
    edges. Regions are connected along edges, not at corners. Holes are inner rings.

    Args:
        class_map: uint8 [H, W].
        label_space: names of the classes.

    Raises:
        ImportError: rasterio is not installed.
    """
    features = []
    for geometry, value in _import_rasterio().shapes(class_map, connectivity=4):
        class_id, area = int(value), _area(geometry["coordinates"])
        about = {"class_id": class_id, "class": label_space.classes[class_id], "area": area}
        features.append({"type": "Feature", "properties": about, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}


def _area(rings: Sequence[Sequence[tuple[float, float]]]) -> float:
    """Return the area of a polygon with holes, in pixels."""
    areas = []
    for ring in rings:
        x, y = np.array(ring).T
        areas.append(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
    return float(areas[0] - sum(areas[1:]))


@dataclass(frozen=True)
class Prediction:
    """The classes that a model predicts in an image.

    Attributes:
        image: uint8 RGB [H, W, 3].
        class_map: class ids, uint8 [H, W].
        label_space: names and colours of the classes.
        confidence: probability of the chosen class, float32 [H, W] in 0..1; None where the model
            gives only class maps.
        in_windows: whether the image was too large to go through whole.
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

        They are large, so another pass through the network computes them on first use.

        Raises:
            ValueError: the model gives only class maps.
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
        """Return the image and the overlay side by side, over a legend, uint8 [any, any, 3]."""
        row = visualization.side_by_side(self.image, self.overlay())
        return np.concatenate([row, visualization.legend(self.label_space, row.shape[1])])

    def save(
        self, folder: str | Path, stem: str, kinds: Sequence[str] = ("classes", "overlay")
    ) -> list[Path]:
        """Write files into a folder, each at once or not at all.

        Args:
            folder: made if it is missing.
            stem: start of the files' names.
            kinds: which of `outputs.KINDS`, as the head of `outputs` lists them.

        Returns:
            The paths, in the order of `kinds`.

        Raises:
            ValueError: an unknown kind, or one that does not fit the model.
        """
        check_kinds(kinds, self.label_space)
        written = paths(Path(folder), stem, kinds)
        named = replace(self, file_name=self.file_name or stem)
        for kind, path in zip(kinds, written, strict=True):
            KINDS[kind].write(named if kind == "coco" else self, path)
        return written


def _probabilities(prediction: Prediction) -> dict[str, np.ndarray]:
    return {
        "probabilities": prediction.probabilities.astype(np.float16),
        "classes": np.array(prediction.label_space.classes),
    }


KINDS = {
    "classes": Kind("_classes.png", lambda made: made.class_map),
    "color": Kind("_color.png", Prediction.color, is_video=True),
    "overlay": Kind("_overlay.png", Prediction.overlay, is_video=True),
    "side_by_side": Kind("_side_by_side.png", Prediction.side_by_side, is_video=True),
    "probabilities": Kind("_probabilities.npz", _probabilities),
    "coco": Kind("_coco.json", coco_data_set),
    "polygons": Kind("_polygons.geojson", lambda made: polygons(made.class_map, made.label_space)),
    "cityscapes": Kind("_labelIds.png", lambda made: CITYSCAPES.decode(made.class_map)),
}
