"""The REST form of TensorFlow Serving, so that its clients work.

A body has `instances`, a list of rows, or `inputs`, a column an input; an input that is alone needs
no name. Bytes are `{"b64": "..."}`, both ways; among outputs those whose name ends in `_bytes`.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from fastapi import APIRouter, Request
from fastapi.responses import Response

from alignseg_tf.data.readers import MIN_SIDE
from alignseg_tf.serving import schemas
from alignseg_tf.serving.models import Version
from alignseg_tf.serving.pictures import TENSORFLOW_FORMATS, check_picture
from alignseg_tf.serving.refusals import RefusedError
from alignseg_tf.serving.routes import check_name
from alignseg_tf.serving.schemas import errors
from alignseg_tf.serving.service import Service

# How TensorFlow Serving calls the states of `Models.states`.
_STATES = {"active": "AVAILABLE", "unloading": "UNLOADING", "broken": "END", "idle": "END"}


def input_specs(signature: Any) -> dict[str, tf.TensorSpec]:
    """Return the inputs of a signature by name."""
    return dict(signature.structured_input_signature[1])


def parse_request(body: bytes) -> tuple[str, bool, Any]:
    """Read a body.

    Returns:
        The name of the signature, whether the form is that of rows, and the rows or columns.

    Raises:
        RefusedError: it is something else.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad(f"Expected JSON. Received: {error}") from error
    if not isinstance(content, dict) or ("instances" in content) == ("inputs" in content):
        received = list(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise _bad(f"Expected an object with 'instances' or 'inputs'. Received: {received}")
    name = content.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise _bad(f"Expected a text as 'signature_name'. Received: {type(name).__name__}")
    if "inputs" in content:
        return name, False, content["inputs"]
    if not isinstance(content["instances"], list) or not content["instances"]:
        raise _bad("Expected a list of one row or more as 'instances'")
    return name, True, content["instances"]


def columns_of(rows: bool, values: Any, specs: Mapping[str, tf.TensorSpec]) -> dict[str, Any]:
    """Return the values of each input, from rows or columns.

    Raises:
        RefusedError: the names are others than those of the inputs.
    """
    names = set(specs)
    given = values[0] if rows else values
    if isinstance(given, dict) and set(given) != {"b64"}:
        for row in values if rows else [values]:
            if not isinstance(row, dict) or set(row) != names:
                keys = sorted(row)[:5] if isinstance(row, dict) else type(row).__name__
                raise _bad(f"Expected the inputs {sorted(names)}. Received: {keys}")
        return {name: [row[name] for row in values] if rows else values[name] for name in names}
    if len(names) != 1:
        raise _bad(f"Expected the inputs {sorted(names)} by name")
    return {next(iter(names)): values}


def array_of(name: str, values: Any, spec: tf.TensorSpec, max_pixels: int) -> np.ndarray:
    """Turn the values of an input into an array, within the limits for pictures.

    Raises:
        RefusedError: they have another type or shape, or are too large.
    """
    if spec.dtype == tf.string:
        return _bytes_array(name, values, max_pixels)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise _bad(f"{name}: expected numbers of one shape. Received: {error}") from error
    expected = spec.dtype.as_numpy_dtype
    kinds = "iu" if np.issubdtype(expected, np.integer) else "iuf"
    if array.dtype.kind not in kinds:
        what = "whole numbers" if kinds == "iu" else "numbers"
        raise _bad(f"{name}: expected {what} of one shape. Received: {array.dtype}")
    if kinds == "iu" and array.size:
        limits, low, high = np.iinfo(expected), array.min(), array.max()
        if low < limits.min or high > limits.max:
            raise _bad(f"{name}: expected {limits.min} to {limits.max}. Received: {low} to {high}")
    if not spec.shape.is_compatible_with(array.shape):
        raise _bad(f"{name}: expected the shape {spec.shape}. Received: {list(array.shape)}")
    if array.ndim == 4:
        count, height, width, _ = array.shape
        if count * height * width > max_pixels:
            message = f"{name}: expected {max_pixels} pixels at most. Received: {array.shape[:3]}"
            raise RefusedError(413, "pixels", message)
        if not count or min(height, width) < MIN_SIDE:
            message = f"{name}: expected pictures, of sides of {MIN_SIDE} pixels at least"
            raise _bad(f"{message}. Received: {list(array.shape)}")
    return array.astype(expected)


def _bytes_array(name: str, values: Any, max_pixels: int) -> np.ndarray:
    if not isinstance(values, list) or not values:
        raise _bad(f"{name}: expected a list of {{'b64': ...}}")
    files, pixels = [], 0
    for value in values:
        if not isinstance(value, dict) or not isinstance(value.get("b64"), str):
            raise _bad(f"{name}: expected {{'b64': ...}}. Received: {type(value).__name__}")
        try:
            files.append(base64.b64decode(value["b64"], validate=True))
        except (binascii.Error, ValueError) as error:
            raise _bad(f"{name}: expected base64. Received: {error}") from error
        width, height = check_picture(files[-1], max_pixels, TENSORFLOW_FORMATS)
        pixels += width * height
        if pixels > max_pixels:
            message = f"{name}: expected {max_pixels} pixels at most in all. Received: more"
            raise RefusedError(413, "pixels", message)
    return np.array(files, object)


def pixels_of(arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many pixels take the memory that inputs take while they wait."""
    sizes = (sum(map(len, a)) if a.dtype == object else a.nbytes for a in arrays.values())
    return sum(sizes) // 3


def encode_outputs(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """Return the body of an answer."""
    columns = {name: _plain(name, array) for name, array in outputs.items()}
    only = next(iter(columns.values())) if len(columns) == 1 else None
    if not rows:
        return json.dumps({"outputs": columns if only is None else only}).encode()
    if only is None:
        parts = zip(*columns.values(), strict=True)
        only = [dict(zip(columns, part, strict=True)) for part in parts]
    return json.dumps({"predictions": only}).encode()


def _plain(name: str, array: np.ndarray) -> list[Any]:
    if array.dtype != object:
        return array.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(value).decode()} for value in array]
    return [value.decode("utf-8", "replace") for value in array]


def _bad(message: str) -> RefusedError:
    return RefusedError(400, "json", message)


def metadata_of(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Describe signatures as TensorFlow Serving does."""

    def tensor(name: str, spec: Any) -> dict[str, Any]:
        dims = [{"size": str(-1 if n is None else n), "name": ""} for n in spec.shape]
        # The numbers of DataType are part of TensorFlow's formats.
        dtype = f"DT_{'STRING' if spec.dtype == tf.string else spec.dtype.name.upper()}"
        if dtype == "DT_FLOAT32":
            dtype = "DT_FLOAT"
        return {
            "dtype": dtype,
            "tensor_shape": {"dim": dims, "unknown_rank": False},
            "name": name,
        }

    return {
        name: {
            "inputs": {key: tensor(key, spec) for key, spec in input_specs(signature).items()},
            "outputs": {
                key: tensor(key, spec) for key, spec in signature.structured_outputs.items()
            },
            "method_name": "tensorflow/serving/predict",
        }
        for name, signature in sorted(signatures.items())
    }


def tf_serving_routes(service: Service) -> APIRouter:
    """Return the routes that TensorFlow Serving has."""
    router = APIRouter(prefix="/v1/models", tags=["TensorFlow Serving"])
    models = service.models

    def version_of(name: str, number: str | None) -> Version:
        check_name(service, name)
        version = models.active if number is None else None
        # Python's `int` takes more than digits, and not very many of them.
        if number is not None and number.isascii() and number.isdecimal() and len(number) < 19:
            version = models.loaded(int(number))
        if version is None:
            raise RefusedError(
                404, "version", f"Version {str(number)[:20]} of {name} is not loaded"
            )
        return version

    async def predict(request: Request, name: str, number: str | None) -> Response:
        asked = version_of(name, number)

        def prepared(body: bytes) -> tuple[str, bool, dict[str, np.ndarray]]:
            signature, rows, values = parse_request(body)
            if signature not in asked.signatures:
                known = ", ".join(sorted(asked.signatures))
                raise _bad(f"Expected a signature of {known}. Received: {signature[:80]!r}")
            specs = input_specs(asked.signatures[signature])
            columns = columns_of(rows, values, specs)
            most = service.settings.max_pixels
            arrays = {key: array_of(key, columns[key], specs[key], most) for key in columns}
            return signature, rows, arrays

        async with service.time_limit():
            async with service.body(request) as body:
                signature, rows, arrays = await service.in_pool(prepared, body)
            # The largest request has to find room when there is no other.
            with service.room(min(pixels_of(arrays), service.settings.max_pixels)):
                try:
                    outputs = await service.result(
                        request, service.batcher.call(lambda: asked.call(signature, arrays))
                    )
                except RefusedError as refusal:
                    if refusal.reason == "model":
                        refusal.status = 400  # as TensorFlow Serving
                    raise
                content = await service.in_pool(encode_outputs, outputs, rows)
        headers = {"X-Model-Version": str(asked.number)}
        return Response(content, media_type="application/json", headers=headers)

    predict_responses = {200: {"model": schemas.PredictResponse}} | errors(
        400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504
    )

    @router.post(
        "/{name}:predict", response_class=Response, responses=predict_responses,
        openapi_extra=schemas.PREDICT_BODY,
    )  # fmt: skip
    async def predict_newest(request: Request, name: str) -> Response:
        """Run a signature of the version that serves."""
        return await predict(request, name, None)

    @router.post(
        "/{name}/versions/{version}:predict", response_class=Response,
        responses=predict_responses, openapi_extra=schemas.PREDICT_BODY,
    )  # fmt: skip
    async def predict_version(request: Request, name: str, version: str) -> Response:
        """Run a signature of a version, which must be in memory."""
        return await predict(request, name, version)

    def metadata(name: str, number: str | None) -> dict[str, Any]:
        version = version_of(name, number)
        return {
            "model_spec": {"name": name, "signature_name": "", "version": str(version.number)},
            "metadata": {"signature_def": {"signature_def": metadata_of(version.signatures)}},
        }

    def status(name: str, number: str | None) -> dict[str, Any]:
        check_name(service, name)
        states = {str(key): _STATES[state] for key, state in models.states().items()}
        if number is not None and number not in states:
            raise RefusedError(404, "version", f"There is no version {number[:20]} of {name}")
        chosen = states if number is None else {number: states[number]}
        return {
            "model_version_status": [
                {
                    "version": key,
                    "state": state,
                    "status": {"error_code": "OK", "error_message": ""},
                }
                for key, state in sorted(chosen.items(), key=lambda item: -int(item[0]))
            ]
        }

    get_errors = errors(401, 404, 500)

    @router.get("/{name}", response_model=schemas.ModelVersionStatus, responses=get_errors)
    async def model_status(name: str) -> dict[str, Any]:
        """Return the states of all versions."""
        return status(name, None)

    @router.get("/{name}/metadata", response_model=schemas.ModelMetadata, responses=get_errors)
    async def model_metadata(name: str) -> dict[str, Any]:
        """Describe the signatures of the version that serves."""
        return metadata(name, None)

    @router.get(
        "/{name}/versions/{version}", response_model=schemas.ModelVersionStatus,
        responses=get_errors,
    )  # fmt: skip
    async def version_status(name: str, version: str) -> dict[str, Any]:
        """Return the state of a version."""
        return status(name, version)

    @router.get(
        "/{name}/versions/{version}/metadata", response_model=schemas.ModelMetadata,
        responses=get_errors,
    )  # fmt: skip
    async def version_metadata(name: str, version: str) -> dict[str, Any]:
        """Describe the signatures of a version, which must be in memory."""
        return metadata(name, version)

    return router
