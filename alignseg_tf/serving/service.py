"""The way of a request: body, image, model; and the limits that all requests share."""

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from alignseg_tf.serving.images import Decoders, RefusedError, is_form
from alignseg_tf.serving.models import Models, Version
from alignseg_tf.serving.monitoring import Monitoring
from alignseg_tf.serving.settings import Settings

log = logging.getLogger("alignseg_tf.serving")

Result = TypeVar("Result")

# Maximum number of fields of a form in addition to its file.
MAX_FIELDS = 16


class InUse:
    """Limit how much of something is in use, in total and by one address.

    Only the thread of the event loop may call it.
    """

    def __init__(self, limit: int, limit_per_address: int):
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._by_address: Counter[str] = Counter()
        self.total = 0

    def take(self, amount: int, address: str) -> bool:
        """Take an amount if there is room for it, and return whether there was."""
        of_address = self._by_address[address] + amount
        if self.total + amount > self._limit or of_address > self._limit_per_address:
            return False
        self.total += amount
        self._by_address[address] = of_address
        return True

    def give_back(self, amount: int, address: str) -> None:
        """Give back what was taken."""
        self.total -= amount
        self._by_address[address] -= amount
        if not self._by_address[address]:
            del self._by_address[address]

    @contextmanager
    def place(self, amount: int, address: str, what: str) -> Iterator[None]:
        """Hold a part of the queue, or refuse the request."""
        if not self.take(amount, address):
            message = f"The queue is full: {self.total} {what} are there"
            raise RefusedError(429, "queue", message)
        try:
            yield
        finally:
            self.give_back(amount, address)


def address_of(client: tuple[str, int] | None) -> str:
    """Return the address for limits per client: an IPv4 address, or the /64 network of an IPv6 one.

    Example:
        >>> address_of(("2001:db8::1:2:3:4", 40000))
        '2001:db8::/64'
    """
    host = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Service:
    """The parts of a server behind its routes.

    Args:
        models: the versions of the model.
        settings: limits and times.
        token: token that clients must send, or None.
        litert: folder of LiteRT.js to serve, or None.
        verbose: whether to log each request.

    Attributes:
        draining: whether the server is about to stop, and takes no new requests.
        cut_off: number of requests that were not done when the time to stop was over.
    """

    def __init__(
        self,
        models: Models,
        settings: Settings,
        token: bytes | None = None,
        litert: Path | None = None,
        verbose: bool = False,
    ):
        self.models, self.settings = models, settings
        self.token, self.litert, self.verbose = token, litert, verbose
        self.draining = False
        self.cut_off = 0
        self._waiting: set[Future] = set()  # for TensorFlow
        self.monitoring = Monitoring(
            models.name, lambda: models.active.number, lambda: len(self._waiting)
        )
        models.on_broken = self.monitoring.broken.inc

        def limited(limit: int, largest: int = 1) -> InUse:
            return InUse(limit, max(largest, int(limit * settings.address_share)))

        self.requests = limited(settings.max_requests)
        self.bodies = limited(settings.max_body_memory, settings.max_bytes)
        self.images = limited(settings.max_queue)
        self.pixels = limited(settings.max_queue_pixels, settings.max_pixels)
        self.decoders = Decoders(settings.decoders, settings.decode_seconds, settings.max_pixels)
        self._decoding = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decoding")
        self._encoding = ThreadPoolExecutor(settings.decoders, thread_name_prefix="encoding")
        self._tensorflow = ThreadPoolExecutor(1, thread_name_prefix="tensorflow")

    def stop(self, seconds: float) -> bool:
        """End the threads and the decoders; return whether TensorFlow was done in time."""
        self.models.close()
        self.decoders.stop()
        for pool in (self._decoding, self._encoding, self._tensorflow):
            pool.shutdown(wait=False, cancel_futures=True)
        return not wait(list(self._waiting), seconds).not_done

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the image file of a request, from its body or form; hold memory for the body.

        Raises:
            RefusedError: the body is too large or too slow, there is no memory for it, or it is a
                form without one file.
        """
        in_form = is_form(request.headers.get("content-type", ""))
        limit, address, taken = self.settings.max_bytes, address_of(request.client), 0
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(limit, f"Content-Length: {announced[:20]}")

        async def receive() -> Message:
            nonlocal taken
            message = await request.receive()
            size = len(message.get("body", b""))
            if taken + size > limit:
                raise _too_large(limit, "more")
            if not self.bodies.take(size, address):
                raise RefusedError(503, "memory", "No memory for another body just now")
            taken += size
            return message

        limited, seconds = Request(request.scope, receive), self.settings.read_seconds
        try:
            try:
                async with asyncio.timeout(seconds):
                    content = await (_file_of_form(limited) if in_form else limited.body())
            except TimeoutError as error:
                message = f"Expected the whole body within {seconds:g} s. Received: {taken} bytes"
                raise RefusedError(408, "slow", message) from error
            yield content
        finally:
            self.bodies.give_back(taken, address)

    @asynccontextmanager
    async def image(self, request: Request) -> AsyncIterator[np.ndarray]:
        """Read and decode the image of a request; it has a place in the queue until the end.

        Yields:
            uint8 RGB [H, W, 3].

        Raises:
            RefusedError: it is not one that this server takes, there is no room for it, or the
                block is not done in time.
        """
        address, loop = address_of(request.client), asyncio.get_running_loop()
        seconds = self.settings.request_seconds
        try:
            async with asyncio.timeout(seconds):
                with ExitStack() as places:
                    async with self.body(request) as data:
                        places.enter_context(self.images.place(1, address, "images"))
                        image = await loop.run_in_executor(
                            self._decoding, self.decoders.decode, data
                        )
                        del data
                        pixels = image.shape[0] * image.shape[1]
                        places.enter_context(self.pixels.place(pixels, address, "pixels"))
                    yield image
        except TimeoutError as error:
            message = f"Not done within {seconds:g} s, the server is busy"
            raise RefusedError(504, "time", message) from error

    def run(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Call a function in the only thread that uses TensorFlow."""
        future = self._tensorflow.submit(function, *arguments)
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def segment(self, image: np.ndarray) -> tuple[np.ndarray, Version]:
        """Return the class ids of an image, uint8 [H, W, 3], and the version that gave them."""
        started = time.monotonic()
        version = self.models.active
        class_map = version.class_map(image)
        self.monitoring.images.inc()
        self.monitoring.inference_seconds.observe(time.monotonic() - started)
        return class_map, version

    async def result(
        self, request: Request, function: Callable[[np.ndarray], Result], image: np.ndarray
    ) -> Result:
        """Call a function in TensorFlow's thread; drop the result if the client goes away.

        Raises:
            ClientDisconnect: it did.
            RefusedError: the memory is full, or the model does not take this image.
        """
        waiting: asyncio.Future[Any] = asyncio.wrap_future(self.run(function, image))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            return waiting.result()
        except tf.errors.InvalidArgumentError as error:
            raise RefusedError(422, "model", f"The model refuses this: {error.message}") from error
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise RefusedError(503, "memory", "No memory for this image just now") from error
        finally:
            waiting.cancel()
            gone.cancel()

    async def encode(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Make an answer in a thread, so that the event loop continues."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoding, function, *arguments)


async def _file_of_form(request: Request) -> bytes:
    """Return the content of the only file of a form, or refuse the form."""
    try:
        async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) == 1:
                return await files[0].read()
            received = f"{len(files)} files"
    except HTTPException as error:
        received = error.detail
    raise RefusedError(422, "form", f"Expected a form with one file. Received: {received}")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int, received: str) -> RefusedError:
    message = f"Expected a body of at most {limit} bytes. Received: {received}"
    return RefusedError(413, "bytes", message)
