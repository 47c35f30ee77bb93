"""Forms of an answer: images, JSON, numbers in bytes."""

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.outputs import run_lengths

# Most vectors of an offset field along a side; more are not seen in an image.
MAX_VECTORS = 64
# Of the deflate of PNG files: larger by some percent, in a fraction of the time.
PNG_LEVEL = 3

SEGMENT_FORMS = {"classes": "image/png", "overlay": "image/png", "json": "application/json"}
OFFSET_FORMS = {"json": "application/json", "binary": "application/octet-stream"}


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def segment_answer(
    form: str,
    image: np.ndarray,
    class_map: np.ndarray,
    label_space: LabelSpace,
    model: str,
    version: int,
) -> bytes:
    """Return the body of an answer to `/v1/segment`.

    Args:
        form: which of `SEGMENT_FORMS`.
        image: uint8 RGB [H, W, 3].
        class_map: uint8 [H, W].
        label_space: of the version.
        model: its name.
        version: its number.
    """
    if form == "classes":
        return png(class_map)
    if form == "overlay":
        return png(visualization.overlay(image, class_map, label_space.palette))
    return json.dumps(segment_json(class_map, label_space, model, version)).encode()


def segment_json(
    class_map: np.ndarray, label_space: LabelSpace, model: str, version: int
) -> dict[str, Any]:
    """Describe a class map: the classes that occur, each with its share and its mask.

    Masks are COCO's uncompressed run-length codes, as `pycocotools` takes them.
    """
    height, width = class_map.shape
    counts = np.bincount(class_map.ravel(), minlength=label_space.num_classes)
    return {
        "model": model,
        "version": str(version),
        "width": width,
        "height": height,
        "classes": [
            {
                "id": index,
                "name": label_space.classes[index],
                "color": list(label_space.palette[index]),
                "share": float(counts[index]) / class_map.size,
                "segmentation": {
                    "size": [height, width],
                    "counts": run_lengths(class_map == index),
                },
            }
            for index in np.flatnonzero(counts[: label_space.num_classes]).tolist()
        ],
    }


def fewer_vectors(field: np.ndarray, most: int = MAX_VECTORS) -> np.ndarray:
    """Sample a field of vectors at fewer places, if it has more along a side.

    Args:
        field: float32 [h, w, 2]; the outer vectors lie on the outer pixels, and stay there.
        most: vectors along a side.

    Returns:
        float32 [min(h, most), min(w, most), 2], linearly interpolated.

    Example:
        >>> fewer_vectors(np.arange(5.0)[:, None, None] * np.ones((5, 1, 2)), 3)[:, 0, 0].tolist()
        [0.0, 2.0, 4.0]
    """
    for axis in (0, 1):
        count = field.shape[axis]
        if count > most:
            places = np.linspace(0, count - 1, most)
            below = np.minimum(places.astype(int), count - 2)
            shape = [1, 1, 1]
            shape[axis] = most
            weight = (places - below).reshape(shape)
            field = field.take(below, axis) * (1 - weight) + field.take(below + 1, axis) * weight
    return field.astype(np.float32)


def offsets_answer(
    form: str, fields: Mapping[str, np.ndarray], width: int, height: int, model: str, version: int
) -> bytes:
    """Return the body of an answer to `/v1/offsets`.

    `json` holds all. `binary` is: a little-endian uint32, the length of the JSON that follows; that
    JSON in UTF-8, filled with spaces to a multiple of 4; then, field by field, float32 x, y of each
    vector, row by row, little-endian.

    Args:
        form: which of `OFFSET_FORMS`.
        fields: float32 [h, w, 2] by name, (x, y) in pixels of the image.
        width: of the image.
        height: of the image.
        model: the model's name.
        version: its number.
    """
    described: list[dict[str, Any]] = []
    for name, field in fields.items():
        entry = {"name": name, "height": field.shape[0], "width": field.shape[1]}
        if form == "json":
            entry["vectors"] = np.asarray(field, np.float64).round(3).tolist()
        described.append(entry)
    head = {
        "model": model,
        "version": str(version),
        "width": width,
        "height": height,
        "fields": described,
    }
    text = json.dumps(head).encode()
    if form == "json":
        return text
    text += b" " * (-len(text) % 4)
    vectors = b"".join(np.ascontiguousarray(field, "<f4").tobytes() for field in fields.values())
    return struct.pack("<I", len(text)) + text + vectors
