"""What all requests share, and the way of a request: body, picture, queue, answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from starlette.requests import ClientDisconnect, Request

from alignseg_tf.serving.batching import Batcher
from alignseg_tf.serving.models import Models, Version
from alignseg_tf.serving.monitoring import Monitoring
from alignseg_tf.serving.pictures import (
    check_media_type,
    check_picture,
    decode_picture,
    picture_in_form,
)
from alignseg_tf.serving.refusals import RefusedError
from alignseg_tf.serving.settings import Settings

Result = TypeVar("Result")

# Told to clients that come when there is no room.
RETRY_SECONDS = 1


class Budget:
    """So much of something may be in use at once. For one thread, that of the event loop."""

    def __init__(self, limit: int):
        self._limit = limit
        self.used = 0

    def take(self, amount: int) -> bool:
        """Take a part if it is there, and say whether it was."""
        if self.used + amount > self._limit:
            return False
        self.used += amount
        return True

    def give_back(self, amount: int) -> None:
        """Give back what was taken."""
        self.used -= amount


@dataclass(frozen=True)
class Segmentation:
    """The class ids of a picture, uint8 [H, W], and the version that gave them."""

    class_map: np.ndarray
    version: Version


class Service:
    """The parts of a server behind its routes.

    Args:
        models: the versions of the model.
        settings: limits and times.
        token: what clients must send, or None.
        litert: folder of LiteRT.js to serve, or None.
        verbose: log each request.

    Attributes:
        draining: whether the server is about to stop, and takes no new requests.
        cut_off: how many requests were not done when the time to stop was over.
    """

    def __init__(
        self,
        models: Models,
        settings: Settings,
        token: bytes | None = None,
        litert: Path | None = None,
        verbose: bool = False,
    ):
        self.models = models
        self.settings = settings
        self.token = token
        self.litert = litert
        self.verbose = verbose
        self.draining = False
        self.cut_off = 0
        self.monitoring = Monitoring(models.name, settings.max_batch)
        self.batcher = Batcher(
            self._segment,
            settings.max_batch,
            settings.max_pixels,
            settings.max_wait_ms / 1000,
            self.monitoring.batch,
        )
        models.on_switch = self.monitoring.switched
        models.on_broken = lambda number: self.monitoring.broken.inc()
        if models.ready:
            self.monitoring.switched(models.active.number)
        self.monitoring.show_queue(lambda: self.batcher.length)
        self._bodies = Budget(settings.max_body_memory)
        self._pictures = Budget(settings.max_queue)
        self._pixels = Budget(settings.max_queue_pixels)
        self._pool = ThreadPoolExecutor(settings.decoders, thread_name_prefix="pictures")

    def _segment(self, images: np.ndarray) -> Sequence[Segmentation]:
        version = self.models.active
        return [Segmentation(class_map, version) for class_map in version.class_maps(images)]

    def stop(self, seconds: float) -> bool:
        """End the threads; say whether TensorFlow was done in time."""
        self.models.close()
        self._pool.shutdown(wait=False)
        return self.batcher.stop(seconds)

    async def in_pool(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run something that takes a while beside the event loop, some at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    @asynccontextmanager
    async def time_limit(self) -> AsyncIterator[None]:
        """Refuse what is not done in time."""
        try:
            async with asyncio.timeout(self.settings.request_seconds):
                yield
        except TimeoutError as error:
            raise RefusedError(
                504, "time",
                f"Not done within {self.settings.request_seconds:g} s, the server is busy",
                RETRY_SECONDS,
            ) from error  # fmt: skip

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of a request; its memory is taken until the end of the context.

        Raises:
            RefusedError: it is too large, comes too slowly, or there is no memory for it.
        """
        limit, content = self.settings.max_bytes, bytearray()
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(limit, f"Content-Length: {announced[:20]}")
        try:
            try:
                async with asyncio.timeout(self.settings.read_seconds):
                    async for chunk in request.stream():
                        if len(content) + len(chunk) > limit:
                            raise _too_large(limit, "more")
                        if not self._bodies.take(len(chunk)):
                            message = "No memory for another body just now, the server is busy"
                            raise RefusedError(503, "memory", message, RETRY_SECONDS)
                        content += chunk
            except TimeoutError as error:
                raise RefusedError(
                    408, "slow",
                    f"Expected the whole body within {self.settings.read_seconds:g} s. Received: "
                    f"{len(content)} bytes",
                ) from error  # fmt: skip
            yield bytes(content)
        finally:
            self._bodies.give_back(len(content))

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Take a place among the pictures that are worked on, or refuse.

        Raises:
            RefusedError: there are too many.
        """
        if not self._pictures.take(1):
            raise _full(f"{self.settings.max_queue} pictures")
        try:
            if not self._pixels.take(pixels):
                raise _full(f"pictures of {self._pixels.used} pixels")
            try:
                yield
            finally:
                self._pixels.give_back(pixels)
        finally:
            self._pictures.give_back(1)

    @asynccontextmanager
    async def picture(self, request: Request) -> AsyncIterator[np.ndarray]:
        """Read and decode the picture of a request; its place is taken until the end.

        Yields:
            uint8 RGB [H, W, 3].

        Raises:
            RefusedError: it is not one that this server takes, or there is no room for it.
        """
        content_type = request.headers.get("content-type", "")
        in_form, most = check_media_type(content_type), self.settings.max_pixels
        with ExitStack() as place:
            async with self.body(request) as data:
                if in_form:
                    data = await self.in_pool(picture_in_form, data, content_type)
                width, height = await self.in_pool(check_picture, data, most)
                place.enter_context(self.room(width * height))
                image = await self.in_pool(decode_picture, data, most)
            yield image

    async def result(self, request: Request, future: Future) -> Any:
        """Wait for what TensorFlow makes of a request; drop it if the client goes away.

        Raises:
            ClientDisconnect: it did.
            RefusedError: the memory is full, or the model does not take this picture.
        """
        waiting = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            return waiting.result()
        except tf.errors.InvalidArgumentError as error:
            raise RefusedError(422, "model", f"The model refuses this: {error.message}") from error
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            message = "No memory for this picture just now"
            raise RefusedError(503, "memory", message, RETRY_SECONDS) from error
        finally:
            waiting.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int, received: str) -> RefusedError:
    return RefusedError(
        413, "bytes", f"Expected a body of {limit} bytes at most. Received: {received}"
    )


def _full(what: str) -> RefusedError:
    return RefusedError(429, "queue", f"The queue is full: {what} are there", RETRY_SECONDS)
