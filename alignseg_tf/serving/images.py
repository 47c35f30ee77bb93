"""Decode the images of requests: limits first, then pixels, in separate processes.

Pillow cannot be interrupted and a thread cannot be ended. A process is killed when its time is over
or when the server stops, and the next image starts another.
"""

import contextlib
import json
import multiprocessing
import queue
import signal
import threading
import warnings
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image, UnidentifiedImageError

from alignseg_tf.data.listing import DataError
from alignseg_tf.data.readers import MIN_SIDE, opened, rgb_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")
BYTES, FORM = "application/octet-stream", "multipart/form-data"

# Forks decoders from a process that has no threads and has imported this module.
_CONTEXT = multiprocessing.get_context("forkserver")


class RefusedError(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP status of the answer.
        reason: one word, by which refusals are counted.
        message: for the client: the expected and the received.
    """

    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


def is_form(content_type: str) -> bool:
    """Return whether a `Content-Type` is that of a form, or else of an image.

    Raises:
        RefusedError: it is neither. A missing type and `application/octet-stream` may be an image:
            its first bytes tell.
    """
    name = content_type.partition(";")[0].strip().lower()
    if name in ("", BYTES, FORM) or name.startswith("image/"):
        return name == FORM
    expected = ", ".join((*MEDIA_TYPES, BYTES, FORM))
    message = f"Expected the Content-Type {expected}. Received: {name[:80]}"
    raise RefusedError(415, "format", message)


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode an image file of at most `max_pixels` to uint8 RGB [H, W, 3], upright by its EXIF.

    Raises:
        RefusedError: the file is empty, of another format, too large, too small, damaged, or holds
            several images, or its header asks for more work than an image needs.
    """
    if not data:
        raise RefusedError(422, "damaged", "Expected an image. Received: an empty body")
    try:
        with opened("the body", content=data) as image:
            if image.format == "GIF":  # a label may be one
                raise UnidentifiedImageError
            _check_size(*image.size, max_pixels)
            return np.ascontiguousarray(rgb_pixels(image, "the body"))
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, RefusedError):
            raise cause from None
        if isinstance(cause, Image.DecompressionBombError | Image.DecompressionBombWarning):
            # Pillow has its own limit, which comes first.
            message = f"Expected an image of at most {max_pixels} pixels. Received: many more"
            raise RefusedError(413, "pixels", message) from error
        if isinstance(cause, UnidentifiedImageError):
            start = f"bytes that start with {data[:12]!r}"
            message = f"Expected {', '.join(FORMATS)}. Received: {start}"
            raise RefusedError(415, "format", message) from error
        raise RefusedError(422, "damaged", str(error)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height} = {width * height} pixels"
        message = f"Expected an image of at most {max_pixels} pixels. Received: {size}"
        raise RefusedError(413, "pixels", message)
    if min(width, height) < MIN_SIDE:
        message = f"Expected sides of at least {MIN_SIDE} pixels. Received: {width} x {height}"
        raise RefusedError(422, "small", message)


class Decoders:
    """Processes that decode one image at a time each.

    Args:
        count: number of processes; a call of `decode` waits for an idle one.
        seconds: longest time for an image.
        max_pixels: maximum number of pixels of an image.
    """

    def __init__(self, count: int, seconds: float, max_pixels: int):
        self._seconds, self._max_pixels = seconds, max_pixels
        self._stopped = False
        self._lock = threading.Lock()
        _CONTEXT.set_forkserver_preload([__name__])
        self._all = [_Decoder() for _ in range(count)]
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def start(self) -> None:
        """Start all processes."""
        with self._lock:
            for decoder in self._all:
                decoder.start()

    def decode(self, data: bytes) -> np.ndarray:
        """Call `decode_image` in an idle process.

        Raises:
            RefusedError: it is not an image that this server takes, or it took too long.
        """
        decoder = self._idle.get()
        try:
            with self._lock:
                if self._stopped:
                    raise RefusedError(503, "draining", "The server is about to stop")
                decoder.start()
            return decoder.decode(data, self._max_pixels, self._seconds)
        finally:
            self._idle.put(decoder)

    def stop(self) -> None:
        """Kill all processes."""
        with self._lock:
            self._stopped = True
            for decoder in self._all:
                decoder.kill()


class _Decoder:
    """A process and the pipe to it."""

    _process: multiprocessing.process.BaseProcess | None = None
    _pipe: Connection

    def start(self) -> None:
        if self._process is not None:
            if self._process.is_alive():
                return
            self._pipe.close()
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def decode(self, data: bytes, max_pixels: int, seconds: float) -> np.ndarray:
        pipe = self._pipe
        try:
            pipe.send_bytes(max_pixels.to_bytes(8, "little") + data)
            if not pipe.poll(seconds):
                self.kill()
                message = f"Expected an image that decodes within {seconds:g} s"
                raise RefusedError(422, "decoding", message)
            answer = json.loads(pipe.recv_bytes())
            if "shape" not in answer:
                raise RefusedError(**answer)
            return np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(answer["shape"])
        except (EOFError, OSError) as error:  # killed: at the end, or for its memory
            self.kill()
            raise RefusedError(503, "decoding", "The image decoder ended; try again") from error


def _work(pipe: Connection) -> None:
    """Decode what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its decoders
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = pipe.recv_bytes()
            try:
                image = decode_image(request[8:], int.from_bytes(request[:8], "little"))
            except RefusedError as refusal:
                pipe.send_bytes(json.dumps(vars(refusal)).encode())
            else:
                pipe.send_bytes(json.dumps({"shape": image.shape}).encode())
                pipe.send_bytes(image.tobytes())
