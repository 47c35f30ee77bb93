"""What can be asked for; see `docs/serving.md`."""

from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from alignseg_tf.data.readers import MIN_SIDE
from alignseg_tf.serving import schemas
from alignseg_tf.serving.answers import (
    OFFSET_FORMS,
    SEGMENT_FORMS,
    fewer_vectors,
    offsets_answer,
    segment_answer,
)
from alignseg_tf.serving.images import MEDIA_TYPES
from alignseg_tf.serving.models import Version
from alignseg_tf.serving.monitoring import MEDIA_TYPE
from alignseg_tf.serving.refusals import RefusedError
from alignseg_tf.serving.schemas import errors
from alignseg_tf.serving.service import Service

Responses = dict[int | str, dict[str, Any]]

_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_WORK_ERRORS = (401, 403, 408, 413, 415, 422, 429, 500, 503, 504)
_RANGES: Responses = {
    206: {
        "description": "A part of the file.",
        "content": {"application/octet-stream": _BINARY, "multipart/byteranges": _BINARY},
    },
    400: {
        "description": "The header Range is not readable.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
    416: {
        "description": "The file does not reach there.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
}
_PLAIN: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


def _answers(good: dict[str, Any], *statuses: int) -> Responses:
    """Return the `responses` of a route: the good one and errors."""
    return {200: good, **errors(*statuses)}


def health_routes(service: Service) -> APIRouter:
    """Return the routes that watch the server."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", response_model=schemas.Status, responses=errors(500))
    async def healthz() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "alive"}

    @router.get("/readyz", response_model=schemas.Status, responses=errors(500, 503))
    async def readyz() -> dict[str, str]:
        """Say whether requests are taken: a model is loaded, and the server is not stopping."""
        if service.draining:
            raise RefusedError(503, "draining", "The server is about to stop")
        if not service.models.ready:
            raise RefusedError(503, "loading", "No model is loaded yet")
        return {"status": "ready"}

    @router.get(
        "/metrics",
        response_class=Response,
        responses=_answers(_PLAIN, 401, 500, 503),
    )
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.monitoring.text(), media_type=MEDIA_TYPE)

    return router


def image_routes(service: Service) -> APIRouter:
    """Return the routes that take an image."""
    router = APIRouter(prefix="/v1", tags=["images"])

    @router.post(
        "/segment",
        response_class=Response,
        responses=_answers(
            {"model": schemas.Segmentation, "content": {"image/png": _BINARY}}, *_WORK_ERRORS
        ),
        openapi_extra=schemas.IMAGE_BODY,
    )
    async def segment(
        request: Request,
        format: Literal["classes", "overlay", "json"] = "classes",
    ) -> Response:
        """Segment an image.

        The answer is a PNG file whose grey values are class ids, one of the classes painted over
        the image, or JSON with a run-length code a class.
        """
        async with service.time_limit(), service.image(request) as image:
            made = await service.result(request, service.run(lambda: service.segment(image)))
            version = made.version
            content = await service.encode(
                segment_answer, format, image, made.class_map, version.label_space,
                service.models.name, version.number,
            )  # fmt: skip
        return Response(
            content,
            media_type=SEGMENT_FORMS[format],
            headers={"X-Model-Version": str(version.number)},
        )

    @router.post(
        "/offsets",
        response_class=Response,
        responses=_answers(
            {"model": schemas.Offsets, "content": {"application/octet-stream": _BINARY}},
            404,
            *_WORK_ERRORS,
        ),
        openapi_extra=schemas.IMAGE_BODY,
    )
    async def offsets(
        request: Request,
        format: Literal["json", "binary"] = "json",
    ) -> Response:
        """Return where the alignment layers of the model look, in pixels of the image.

        `binary` is a little-endian uint32, the length of the JSON that follows; that JSON; then,
        field by field, float32 x, y of each vector, row by row.
        """
        if "offsets" not in service.models.active.signatures:
            raise _no_offsets(service.models.active)

        def run(image: np.ndarray) -> tuple[dict[str, np.ndarray], Version]:
            version = service.models.active
            if "offsets" not in version.signatures:  # there has been a switch meanwhile
                raise _no_offsets(version)
            fields = version.call("offsets", image)
            # TensorFlow gives the outputs of a signature in any order.
            return {name: fewer_vectors(fields[name]) for name in sorted(fields)}, version

        async with service.time_limit(), service.image(request) as image:
            fields, version = await service.result(request, service.run(lambda: run(image)))
            height, width = image.shape[:2]
            content = await service.encode(
                offsets_answer, format, fields, width, height, service.models.name, version.number
            )
        return Response(
            content,
            media_type=OFFSET_FORMS[format],
            headers={"X-Model-Version": str(version.number)},
        )

    return router


def _no_offsets(version: Version) -> RefusedError:
    return RefusedError(
        404, "signature",
        f"Version {version.number} has no signature 'offsets', only "
        f"{', '.join(sorted(version.signatures))}; export the model again",
    )  # fmt: skip


def model_routes(service: Service) -> APIRouter:
    """Return the routes that describe the model and give its files."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    models, settings = service.models, service.settings

    @router.get("", response_model=schemas.Models, responses=errors(401, 500, 503))
    async def list_models() -> dict[str, Any]:
        """Describe the model, its versions, classes and files."""
        version = models.active
        space = version.label_space
        return {
            "models": [
                {
                    "name": models.name,
                    "active": str(version.number),
                    "versions": [
                        {"version": str(number), "state": state}
                        for number, state in models.states().items()
                    ],
                    "classes": [
                        {"id": index, "name": name, "color": color}
                        for index, (name, color) in enumerate(
                            zip(space.classes, space.palette, strict=True)
                        )
                    ],
                    "input": {
                        "media_types": list(MEDIA_TYPES),
                        "min_side": MIN_SIDE,
                        "size": version.size,
                        "max_pixels": settings.max_pixels,
                        "max_bytes": settings.max_bytes,
                    },
                    "signatures": sorted(version.signatures),
                    "files": [
                        {
                            "name": name,
                            "bytes": size,
                            "url": f"/v1/models/{quote(models.name, '')}/files/{quote(name, '')}",
                        }
                        for name, size in models.tflite_sizes().items()
                    ],
                }
            ]
        }

    @router.get(
        "/{name}/files/{file}",
        response_class=FileResponse,
        responses=_answers({"content": {"application/octet-stream": _BINARY}}, 401, 404, 500, 503)
        | _RANGES,
    )
    async def model_file(name: str, file: str) -> Response:
        """Return a `.tflite` file that lies beside the versions."""
        check_name(service, name)
        files = models.tflite_files()
        if file not in files:
            raise RefusedError(
                404, "file", f"Expected one of {', '.join(files) or 'no files'}. Received: {file!r}"
            )
        return FileResponse(files[file], media_type="application/octet-stream")

    return router


def check_name(service: Service, name: str) -> None:
    """Refuse names of other models."""
    if name != service.models.name:
        raise RefusedError(
            404, "model", f"Expected the model {service.models.name!r}. Received: {name[:80]!r}"
        )


def json_error(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Return an error in the form that all routes share."""
    return JSONResponse({"error": message}, status, headers)
