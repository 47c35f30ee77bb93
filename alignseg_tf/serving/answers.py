"""Bodies of answers: JSON as the OpenAPI document describes it, images, bytes."""

import io
import struct
from collections.abc import Mapping

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from scipy.ndimage import zoom

from alignseg_tf import visualization
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.outputs import run_lengths
from alignseg_tf.serving.models import State

# Maximum number of vectors of an offset field along a side; more are not seen in an image.
MAX_VECTORS = 64
# Deflate level of PNG files: some percent larger than the default, several times faster.
PNG_LEVEL = 3

# Media type of the answers by `format`.
SEGMENT_FORMS = {"classes": "image/png", "overlay": "image/png", "json": "application/json"}
OFFSET_FORMS = {"json": "application/json", "binary": "application/octet-stream"}


class Error(BaseModel):
    """The expected and the received in a request that was not served."""

    error: str


class RunLengths(BaseModel):
    """A mask as COCO's uncompressed run-length code: zeros, ones, zeros ... column by column."""

    size: tuple[int, int] = Field(description="height, width")
    counts: list[int]


class ModelClass(BaseModel):
    """A class of the model."""

    id: int
    name: str
    color: tuple[int, int, int]


class SegmentClass(ModelClass):
    """A class that occurs in the image."""

    share: float = Field(description="share of the image's pixels, 0..1")
    segmentation: RunLengths


class Answer(BaseModel):
    """The model and version that made an answer, and the size of its image."""

    model: str
    version: str
    width: int
    height: int


class Segmentation(Answer):
    """The classes that a model gives an image."""

    classes: list[SegmentClass]


class OffsetField(BaseModel):
    """A field of vectors; the outer ones lie on the image's outer pixels."""

    name: str
    height: int
    width: int
    vectors: list[list[tuple[float, float]]] = Field(description="(x, y), pixels of the image")


class Offsets(Answer):
    """The offset fields of a model for an image."""

    fields: list[OffsetField]


class VersionState(BaseModel):
    """A version, and whether it serves."""

    version: str
    state: State


class InputContract(BaseModel):
    """The images that are taken."""

    media_types: list[str]
    min_side: int
    size: tuple[int, int] | None = Field(description="height, width; null for any size")
    max_pixels: int
    max_bytes: int


class TfliteFile(BaseModel):
    """A `.tflite` file of the model."""

    name: str
    bytes: int
    url: str


class Model(BaseModel):
    """A model and its versions."""

    name: str
    active: str
    versions: list[VersionState]
    classes: list[ModelClass]
    input: InputContract
    signatures: list[str]
    files: list[TfliteFile]


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def classes_of(space: LabelSpace) -> list[ModelClass]:
    """Return the classes of a label space, in the order of their ids."""
    names = zip(space.classes, space.palette, strict=True)
    return [ModelClass(id=i, name=name, color=color) for i, (name, color) in enumerate(names)]


def segment_answer(
    form: str, image: np.ndarray, class_map: np.ndarray, space: LabelSpace, model: str, version: int
) -> bytes:
    """Return the body of an answer to `/v1/segment` in one of `SEGMENT_FORMS`.

    Args:
        form: its name.
        image: uint8 RGB [H, W, 3].
        class_map: uint8 [H, W].
        space: label space of the version.
        model: name of the model.
        version: number of the version.
    """
    if form == "classes":
        return png(class_map)
    if form == "overlay":
        return png(visualization.overlay(image, class_map, space.palette))
    height, width = class_map.shape
    counts = np.bincount(class_map.ravel(), minlength=space.num_classes)
    classes = [
        SegmentClass(
            **vars(each),
            share=counts[each.id] / class_map.size,
            segmentation=RunLengths(size=(height, width), counts=run_lengths(class_map == each.id)),
        )
        for each in classes_of(space)
        if counts[each.id]
    ]
    made = Segmentation(
        model=model, version=str(version), width=width, height=height, classes=classes
    )
    return made.model_dump_json().encode()


def fewer_vectors(field: np.ndarray) -> np.ndarray:
    """Sample a field of vectors at `MAX_VECTORS` positions, linearly, along sides that have more.

    Args:
        field: float32 [h, w, 2]; the outer vectors lie on the outer pixels, and stay there.
    """
    factors = [min(1.0, MAX_VECTORS / side) for side in field.shape[:2]]
    return zoom(field, (*factors, 1), order=1, mode="nearest")


def offsets_answer(
    form: str, fields: Mapping[str, np.ndarray], width: int, height: int, model: str, version: int
) -> bytes:
    """Return the body of an answer to `/v1/offsets`.

    `json` is an `Offsets`. `binary` is: a little-endian uint32, the length of the JSON that
    follows; that JSON without the vectors, in UTF-8, filled with spaces to a multiple of 4; then,
    field by field, float32 x, y of each vector, row by row, little-endian.

    Args:
        form: one of `OFFSET_FORMS`.
        fields: float32 [h, w, 2] by name, (x, y) in pixels of the image.
        width: of the image.
        height: of the image.
        model: name of the model.
        version: number of the version.
    """
    described = [
        OffsetField(
            name=name, height=field.shape[0], width=field.shape[1],
            vectors=np.asarray(field, np.float64).round(3).tolist(),
        )
        for name, field in fields.items()
    ]  # fmt: skip
    made = Offsets(model=model, version=str(version), width=width, height=height, fields=described)
    if form == "json":
        return made.model_dump_json().encode()
    text = made.model_dump_json(exclude={"fields": {"__all__": {"vectors"}}}).encode()
    text += b" " * (-len(text) % 4)
    vectors = b"".join(np.ascontiguousarray(field, "<f4").tobytes() for field in fields.values())
    return struct.pack("<I", len(text)) + text + vectors
