"""The application: what every request passes, its routes, and the files of pages."""

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignseg_tf.serving.images import RefusedError
from alignseg_tf.serving.routes import TEXT, health_routes, image_routes, model_routes
from alignseg_tf.serving.service import Service, address_of
from alignseg_tf.version import __version__

log = logging.getLogger("alignseg_tf.serving")

STATIC = Path(__file__).parent / "static"
# They take no place among the requests: who watches the server needs them most when it is full.
PROBES = {"/healthz", "/readyz"}
# A browser shows these without a token; they hold nothing of the model.
OPEN_PATHS = {"/", *PROBES}
OPEN_FOLDERS = ("/static/", "/litert/")
# Pages show images that they made themselves, and LiteRT.js compiles WebAssembly.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
# Seconds for which, and bytes up to which, the body of a refused request is read, so that the
# client reads why: it gets no answer from a connection that is closed while it sends.
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 * 2**20
# Answers of TrustedHostMiddleware and FileResponse, in the OpenAPI document.
UNREADABLE = {"description": "The header Host names another server, or Range is not readable."}
# Statuses that ask the client to try again, and when.
BUSY, RETRY_SECONDS = {429, 503, 504}, 1
# After this number of chunks, a body whose chunks are smaller on average is refused: each costs the
# event loop as much time as a large one.
CHUNKS, SMALLEST_MEAN_CHUNK = 100, 64
# Seconds between the ends of such connections: Hypercorn parses the 64 KiB that it has read of each
# at once, 11,000 chunks of one byte, and nobody is answered meanwhile.
CLOSE_SECONDS = 3.0
# A status that is counted and never sent: the client went away.
GONE = 499

_TOO_MANY = RefusedError(503, "requests", "Too many requests at once, the server is busy")
_DRAINING = RefusedError(503, "draining", "The server is about to stop")
_NO_TOKEN = RefusedError(401, "token", "Expected the header Authorization: Bearer TOKEN")
_SMALL_CHUNKS = RefusedError(
    400,
    "chunks",
    f"Expected chunks of at least {SMALLEST_MEAN_CHUNK} bytes. Received: smaller ones",
)
_OTHER_SITE = RefusedError(403, "origin", "Expected a request of this server's own pages")


class RequestChecks:
    """Check the token, the origin and the number of requests; add headers, metrics, log lines."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service
        self._closing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        requests, address = self._service.requests, address_of(scope.get("client"))
        taken = scope["path"] not in PROBES and requests.take(1, address)
        refusal = self._refusal(scope) if taken or scope["path"] in PROBES else _TOO_MANY
        app = self._app if refusal is None else refused(self._service, refusal)
        try:
            await _Exchange(app, self._service, receive, send, self._closing).run(scope)
        finally:
            if taken:
                requests.give_back(1, address)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return None
        if token := self._service.token:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_known = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token)
            if not is_known or scheme.lower() != "bearer":
                return _NO_TOKEN
        if scope["method"] == "POST":
            if not is_same_origin(headers):
                return _OTHER_SITE
            if self._service.draining:
                return _DRAINING
        return None


def is_same_origin(headers: Headers) -> bool:
    """Return whether a request comes from a page of this server, or from no page.

    Browsers send `Sec-Fetch-Site`, older ones only `Origin`; other clients send neither.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, app: ASGIApp, service: Service, receive: Receive, send: Send, closing: asyncio.Lock
    ):
        self._app, self._service, self._closing = app, service, closing
        self._receive_next, self._send_next = receive, send
        self._id = secrets.token_hex(8)
        self._status = GONE
        self._started = False
        self._body_left = False
        self._chunks = self._bytes = 0

    async def run(self, scope: Scope) -> None:
        began, headers = time.monotonic(), Headers(scope=scope)
        has_length = headers.get("content-length", "0") != "0"
        self._body_left = has_length or "transfer-encoding" in headers
        try:
            await self._app(scope, self._receive, self._send)
        except ClientDisconnect:
            self._status = GONE
        except asyncio.CancelledError:  # by the server, when the time to end is over
            # One that waits to be closed is not a request that was cut off.
            self._service.cut_off += not self._has_small_chunks()
            self._body_left = False
            if not self._started:
                response = json_error("The server stopped before this was done", 503)
                await response(scope, self._receive, self._send)
        except Exception:
            log.exception("request %s failed: %s %r", self._id, scope["method"], scope["path"])
            if self._started:
                raise
            response = json_error(f"The server failed; its log has more under {self._id}", 500)
            await response(scope, self._receive, self._send)
        finally:
            self._note(scope, time.monotonic() - began)

    async def _receive(self) -> Message:
        message = await self._next_message()
        if self._has_small_chunks():
            raise _SMALL_CHUNKS
        return message

    async def _next_message(self) -> Message:
        message = await self._receive_next()
        self._chunks += 1
        self._bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_left = False
        return message

    def _has_small_chunks(self) -> bool:
        return self._chunks > CHUNKS and self._bytes < SMALLEST_MEAN_CHUNK * self._chunks

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self._status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            headers.update({**HEADERS, "x-request-id": self._id})
            if self._body_left:
                with anyio.move_on_after(LINGER_SECONDS):
                    await self._linger()
            if self._has_small_chunks():
                await self._closing.acquire()
                asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._closing.release)
            if self._body_left or self._service.draining:
                headers["connection"] = "close"
        # Hypercorn waits for room in the queue of `receive` before it closes a connection whose
        # body was not read.
        reading = asyncio.ensure_future(self._drop_body()) if self._body_left else None
        try:
            await self._send_next(message)
        except OSError as error:  # the connection was cut
            raise ClientDisconnect from error
        finally:
            if reading is not None:
                reading.cancel()

    async def _linger(self) -> None:
        """Read and drop the rest of a body, so that the client reads the answer."""
        end = self._bytes + LINGER_BYTES
        while self._body_left and self._bytes < end and not self._has_small_chunks():
            await self._next_message()
            await asyncio.sleep(0)  # bytes that are there already do not wait

    async def _drop_body(self) -> None:
        while self._body_left:
            await self._next_message()
            await asyncio.sleep(0)

    def _note(self, scope: Scope, seconds: float) -> None:
        """Count and log the request; paths outside the router share few names."""
        path = scope["path"]
        other = next((folder for folder in OPEN_FOLDERS if path.startswith(folder)), "other")
        route = getattr(scope.get("route"), "path", None) or other
        self._service.monitoring.requests.labels(route, str(self._status)).inc()
        self._service.monitoring.seconds.labels(route).observe(seconds)
        if self._service.verbose:
            what = self._id, scope["method"], path, self._status, 1000 * seconds
            log.info("%s %s %r %d %.0f ms", *what)


def json_error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in the form that all routes share."""
    return JSONResponse({"error": message}, status, headers)


def refused(service: Service, refusal: RefusedError) -> Response:
    """Return the answer to a request that is not served; count it, log what is the server's."""
    service.monitoring.rejected.labels(refusal.reason).inc()
    if refusal.status == 500:
        log.error("%s, %s", service.models.name, refusal.message)
    headers = {}
    if refusal.status in BUSY:
        headers["Retry-After"] = str(RETRY_SECONDS)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_error(refusal.message, refusal.status, headers)


def create_app(service: Service, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Return the application of a server.

    Args:
        service: what its routes share.
        hosts: the names in the header `Host` that are answered.
    """
    # FastAPI's pages of documentation load scripts from other hosts.
    app = FastAPI(
        title="alignseg_tf",
        description=f"Semantic segmentation by the model {service.models.name!r}.",
        version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        responses={400: {**UNREADABLE, **TEXT}},
    )  # fmt: skip
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(RequestChecks, service=service)

    @app.exception_handler(RefusedError)
    async def on_refusal(request: Request, refusal: RefusedError) -> Response:
        return refused(service, refusal)

    @app.exception_handler(RequestValidationError)
    async def on_bad_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = " ".join(map(str, first["loc"]))
        return refused(service, RefusedError(422, "parameter", f"{place}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        return json_error(str(error.detail), error.status_code, error.headers)

    for routes in (health_routes, image_routes, model_routes):
        app.include_router(routes(service))

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    if service.litert is not None:
        app.mount("/litert", StaticFiles(directory=service.litert))
    return app
