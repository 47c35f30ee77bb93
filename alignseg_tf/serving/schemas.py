"""What the OpenAPI document says of bodies."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignseg_tf.serving.images import BYTES, FORM, MEDIA_TYPES

Color = tuple[int, int, int]


class Error(BaseModel):
    """Why a request was not served: what was expected and what was received."""

    error: str


class Status(BaseModel):
    """State of the server."""

    status: str


class RunLengths(BaseModel):
    """A mask as COCO's uncompressed run-length code: zeros, ones, zeros ... column by column."""

    size: tuple[int, int] = Field(description="height, width")
    counts: list[int]


class SegmentClass(BaseModel):
    """A class that occurs in the image."""

    id: int
    name: str
    color: Color
    share: float = Field(description="of the image's pixels, 0..1")
    segmentation: RunLengths


class Segmentation(BaseModel):
    """The classes that a model gives an image."""

    model_config = ConfigDict(title="Segmentation")

    model: str
    version: str
    width: int
    height: int
    classes: list[SegmentClass]


class OffsetField(BaseModel):
    """A field of vectors; the outer ones lie on the image's outer pixels."""

    name: str
    height: int
    width: int
    vectors: list[list[tuple[float, float]]] = Field(description="(x, y), pixels of the image")


class Offsets(BaseModel):
    """The offset fields of a model for an image."""

    model: str
    version: str
    width: int
    height: int
    fields: list[OffsetField]


class VersionState(BaseModel):
    """A version, and whether it serves."""

    version: str
    state: Literal["active", "unloading", "broken", "idle"]


class ModelClass(BaseModel):
    """A class of the model."""

    id: int
    name: str
    color: Color


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


class Models(BaseModel):
    """All models: one."""

    models: list[Model]


_FILE = {"type": "string", "format": "binary"}

# FastAPI does not read these bodies: the service does, within limits.
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{name: {"schema": _FILE} for name in (*MEDIA_TYPES, BYTES)},
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_WORDS = {
    400: "The request is not readable.",
    401: "The token is missing or wrong.",
    403: "A page of another site sent this.",
    404: "There is no such thing.",
    405: "The path is there, but not for this method.",
    408: "The body came too slowly.",
    413: "The body, or the image in it, is too large.",
    415: "This is no image of a known format.",
    416: "The file does not reach there.",
    422: "The image is damaged, truncated, animated or of another size, or a parameter is unknown.",
    429: "The queue is full; try again after `Retry-After` seconds.",
    500: "The server failed; its log has more under the answer's X-Request-Id.",
    503: "No memory just now, no model yet, or the server is about to stop.",
    504: "Not done in time.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for statuses of errors."""
    return {status: {"model": Error, "description": _WORDS[status]} for status in statuses}
