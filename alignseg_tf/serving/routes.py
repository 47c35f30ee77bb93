"""The addresses of the server; see `docs/serving.md`."""

from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request, Security
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer

from alignseg_tf.data.readers import MIN_SIDE
from alignseg_tf.serving import answers
from alignseg_tf.serving.images import BYTES, FORM, MEDIA_TYPES, RefusedError
from alignseg_tf.serving.models import Version
from alignseg_tf.serving.monitoring import MEDIA_TYPE
from alignseg_tf.serving.service import Service

Responses = dict[int | str, dict[str, Any]]

_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_BINARY: dict[str, Any] = {"schema": _FILE}
TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_RANGES: Responses = {
    206: {
        "description": "A part of the file.",
        "content": {BYTES: _BINARY, "multipart/byteranges": _BINARY},
    },
    416: {"description": "The file does not reach there.", **TEXT},
}
# The service reads these bodies, within limits, and not FastAPI.
_IMAGE_FORM = {"type": "object", "required": ["image"], "properties": {"image": _FILE}}
_IMAGE_CONTENT = {**dict.fromkeys((*MEDIA_TYPES, BYTES), _BINARY), FORM: {"schema": _IMAGE_FORM}}
_IMAGE_BODY = {"requestBody": {"required": True, "content": _IMAGE_CONTENT}}
_WORDS = {
    401: "The token is missing or wrong.",
    403: "A page of another site sent this.",
    404: "Not found.",
    408: "The body came too slowly.",
    413: "The body, or the image in it, is too large.",
    415: "This is no image of a known format.",
    422: "The image is damaged, truncated, animated or of another size, or a parameter is unknown.",
    429: "The queue is full; try again after `Retry-After` seconds.",
    500: "The server failed; its log has more under the answer's X-Request-Id.",
    503: "No memory just now, or the server is about to stop.",
    504: "Not done in time.",
}


def _errors(*statuses: int) -> Responses:
    """Return the `responses` of a route for statuses of errors."""
    return {status: {"model": answers.Error, "description": _WORDS[status]} for status in statuses}


def with_token(service: Service) -> list[Any]:
    """Return the `dependencies` that declare the token in the OpenAPI document, if there is one."""
    # The middleware checks it.
    return [Security(HTTPBearer(scheme_name="token", auto_error=False))] if service.token else []


def health_routes(service: Service) -> APIRouter:
    """Return the routes that watch the server."""
    router = APIRouter(tags=["health"], responses=_errors(500))

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "alive"}

    @router.get("/readyz", responses=_errors(503))
    async def readyz() -> dict[str, str]:
        """Say whether requests are taken: the server is not stopping."""
        if service.draining:
            raise RefusedError(503, "draining", "The server is about to stop")
        return {"status": "ready"}

    @router.get(
        "/metrics", dependencies=with_token(service), response_class=Response,
        responses={200: TEXT, **_errors(401, 503)},
    )  # fmt: skip
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.monitoring.text(), media_type=MEDIA_TYPE)

    return router


def image_routes(service: Service) -> APIRouter:
    """Return the routes that take an image."""
    name = service.models.name
    router = APIRouter(
        prefix="/v1", tags=["images"], dependencies=with_token(service),
        responses=_errors(401, 403, 408, 413, 415, 422, 429, 500, 503, 504),
    )  # fmt: skip

    def answer(content: bytes, media_type: str, version: Version) -> Response:
        headers = {"X-Model-Version": str(version.number)}
        return Response(content, media_type=media_type, headers=headers)

    @router.post(
        "/segment", response_class=Response, openapi_extra=_IMAGE_BODY,
        responses={200: {"model": answers.Segmentation, "content": {"image/png": _BINARY}}},
    )  # fmt: skip
    async def segment(
        request: Request, format: Literal["classes", "overlay", "json"] = "classes"
    ) -> Response:
        """Segment an image.

        The answer is a PNG file whose grey values are class ids, one of the classes painted over
        the image, or JSON with a run-length code for each class.
        """
        async with service.image(request) as image:
            class_map, version = await service.result(request, service.segment, image)
            made_by = version.label_space, name, version.number
            content = await service.encode(
                answers.segment_answer, format, image, class_map, *made_by
            )
        return answer(content, answers.SEGMENT_FORMS[format], version)

    @router.post(
        "/offsets", response_class=Response, openapi_extra=_IMAGE_BODY,
        responses={200: {"model": answers.Offsets, "content": {BYTES: _BINARY}}, **_errors(404)},
    )  # fmt: skip
    async def offsets(request: Request, format: Literal["json", "binary"] = "json") -> Response:
        """Return where the alignment layers of the model look, in pixels of the image.

        `binary` is a little-endian uint32, the length of the JSON that follows; that JSON; then,
        field by field, float32 x, y of each vector, row by row.
        """
        _version_with_offsets(service)
        async with service.image(request) as image:
            fields, version = await service.result(request, lambda x: _offsets(service, x), image)
            height, width = image.shape[:2]
            content = await service.encode(
                answers.offsets_answer, format, fields, width, height, name, version.number
            )
        return answer(content, answers.OFFSET_FORMS[format], version)

    return router


def _offsets(service: Service, image: np.ndarray) -> tuple[dict[str, np.ndarray], Version]:
    version = _version_with_offsets(service)  # another one may be active by now
    fields = version.call("offsets", image)
    # TensorFlow gives the outputs of a signature in any order.
    return {name: answers.fewer_vectors(fields[name]) for name in sorted(fields)}, version


def _version_with_offsets(service: Service) -> Version:
    version = service.models.active
    if "offsets" not in version.signatures:
        message = (
            f"Version {version.number} has no signature 'offsets', only "
            f"{', '.join(sorted(version.signatures))}; export the model again"
        )
        raise RefusedError(404, "signature", message)
    return version


def model_routes(service: Service) -> APIRouter:
    """Return the routes that describe the model and give its files."""
    models = service.models
    router = APIRouter(
        prefix="/v1/models", tags=["models"], dependencies=with_token(service),
        responses=_errors(401, 500, 503),
    )  # fmt: skip

    @router.get("")
    async def list_models() -> dict[Literal["models"], list[answers.Model]]:
        """Describe the model, its versions, classes and files."""
        return {"models": [_described(service)]}

    @router.get(
        "/{name}/files/{file}", response_class=FileResponse,
        responses={200: {"content": {BYTES: _BINARY}}, **_errors(404, 422), **_RANGES},
    )  # fmt: skip
    async def model_file(name: str, file: str) -> Response:
        """Return a `.tflite` file in the folder of the model."""
        if name != models.name:
            message = f"Expected the model {models.name!r}. Received: {name[:80]!r}"
            raise RefusedError(404, "model", message)
        files = models.tflite_sizes()
        if file not in files:
            message = f"Expected one of {', '.join(files) or 'no files'}. Received: {file!r}"
            raise RefusedError(404, "file", message)
        return FileResponse(models.folder / file, media_type=BYTES)

    return router


def _described(service: Service) -> answers.Model:
    models, settings, version = service.models, service.settings, service.models.active
    folder = f"/v1/models/{quote(models.name, '')}/files"
    return answers.Model(
        name=models.name,
        active=str(version.number),
        versions=[
            answers.VersionState(version=str(number), state=state)
            for number, state in models.states().items()
        ],
        classes=answers.classes_of(version.label_space),
        input=answers.InputContract(
            media_types=list(MEDIA_TYPES), min_side=MIN_SIDE, size=version.size,
            max_pixels=settings.max_pixels, max_bytes=settings.max_bytes,
        ),
        signatures=sorted(version.signatures),
        files=[
            answers.TfliteFile(name=name, bytes=size, url=f"{folder}/{quote(name, '')}")
            for name, size in models.tflite_sizes().items()
        ],
    )  # fmt: skip
