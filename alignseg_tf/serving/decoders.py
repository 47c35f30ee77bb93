"""Processes that decode images.

An image library cannot be interrupted and a thread cannot be ended. A process is killed when its
time is over or when the server stops, and the next image starts another.
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
from PIL import Image

from alignseg_tf.serving.images import decode_image
from alignseg_tf.serving.refusals import RefusedError

# Forks decoders from a process that has no threads and has imported this module.
_CONTEXT = multiprocessing.get_context("forkserver")


class Decoders:
    """Processes that decode one image at a time each.

    Args:
        count: number of processes; a call of `decode` waits for an idle one.
        seconds: longest time for an image.
        max_pixels: maximum number of pixels of an image.
    """

    def __init__(self, count: int, seconds: float, max_pixels: int):
        self._seconds = seconds
        self._max_pixels = max_pixels
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
        """Decode an image file to uint8 RGB [H, W, 3]; see `images.decode_image`.

        Raises:
            RefusedError: it is none that this server takes, or it took too long.
        """
        decoder = self._idle.get()
        try:
            with self._lock:
                if self._stopped:
                    raise RefusedError(503, "draining", "The server is about to stop", 1)
                decoder.start()
            return decoder.decode(data, self._max_pixels, self._seconds)
        finally:
            self._idle.put(decoder)

    def stop(self) -> None:
        """End all processes at once."""
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
                raise RefusedError(
                    422, "decoding", f"Expected an image that decodes within {seconds:g} s"
                )
            answer = json.loads(pipe.recv_bytes())
            if "shape" not in answer:
                raise RefusedError(**answer)
            return np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(answer["shape"])
        except (EOFError, OSError) as error:  # killed: at the end, or for its memory
            self.kill()
            raise RefusedError(503, "decoding", "The image decoder ended; try again", 1) from error


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
