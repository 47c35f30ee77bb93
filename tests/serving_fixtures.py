"""Small SavedModels without a network, and servers on them."""

import asyncio
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

for package in ("fastapi", "httpx", "hypercorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(package, reason="needs the server: pip install 'alignseg_tf[serve]' httpx")

import httpx
from conftest import ROOT

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.saved_networks import LABEL_SPACE_FILE
from alignseg_tf.serving.app import create_app
from alignseg_tf.serving.models import Models
from alignseg_tf.serving.service import Service
from alignseg_tf.serving.settings import Settings

SPACE = LabelSpace(("ground", "box", "disc", "sky"))
# An image whose first pixel is this is refused by the model: what fails, fails inside TensorFlow.
POISON = (255, 254, 253)
# The model gives this red value the class of 255 // 64, and NaN as logits.
NOT_FINITE = 252
SECONDS = 30
IMAGES = tf.TensorSpec((None, None, None, 3), tf.uint8, "images")


class Quarters(tf.Module):
    """Classes are quarters of the red channel, moved on by a number: what tells versions apart."""

    def __init__(self, shift: int):
        super().__init__()
        self.shift = tf.Variable(shift, dtype=tf.int32)

    def classes(self, images):
        poisoned = tf.reduce_all(images[:, 0, 0] == tf.constant(POISON, tf.uint8), -1)
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(poisoned), ["poison"])]):
            values = tf.cast(images[..., 0], tf.int32) // 64 + self.shift
        return tf.cast(values % len(SPACE.classes), tf.uint8)

    @tf.function(input_signature=[IMAGES])
    def serve(self, images):
        return {"class_map": self.classes(images)}

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, "images")])
    def logits(self, images):
        """Not finite where red is `NOT_FINITE`; one channel for each class."""
        small = images[:, ::4, ::4] / 256
        bad = tf.reduce_all(images[:, ::4, ::4, :1] == NOT_FINITE, -1, keepdims=True)
        return {"logits": tf.where(bad, np.nan, tf.concat([small, small[..., :1]], -1))}

    @tf.function(input_signature=[IMAGES])
    def offsets(self, images):
        """As many vectors as pixels: (column, row) of each."""
        shape = tf.shape(images)
        x, y = tf.meshgrid(tf.range(shape[2]), tf.range(shape[1]))
        field = tf.cast(tf.stack([x, y], -1), tf.float32)[None]
        return {"coarse": field[:, ::8, ::8], "fine": field}


@cache
def saved_model(shift: int) -> tempfile.TemporaryDirectory:
    module, folder = Quarters(shift), tempfile.TemporaryDirectory()
    signatures = {
        "serving_default": module.serve, "logits": module.logits, "offsets": module.offsets,
    }  # fmt: skip
    tf.saved_model.save(module, folder.name, signatures)
    classes = Path(folder.name, LABEL_SPACE_FILE)
    classes.parent.mkdir()
    classes.write_text(json.dumps(SPACE.to_dict()))
    return folder


def write_model(path: Path, shift: int = 0) -> Path:
    """Write a version's folder, whole at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.copytree(saved_model(shift).name, temporary)
    return temporary.rename(path)


def expected(image: np.ndarray, shift: int = 0) -> np.ndarray:
    """What `Quarters` says of an image."""
    return ((image[..., 0].astype(int) // 64 + shift) % len(SPACE.classes)).astype(np.uint8)


def noise_image(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 250, (height, width, 3)).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened)


class Client:
    """Asks an application without connections."""

    def __init__(self, app, runner: asyncio.Runner, address: tuple[str, int] = ("127.0.0.1", 1)):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=address)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30)
        self._runner = runner

    def together(self, *requests: tuple[str, str, dict]) -> list[httpx.Response]:
        """Send requests at once."""

        async def send():
            return await asyncio.gather(
                *(self._client.request(method, url, **options) for method, url, options in requests)
            )

        return self._runner.run(send())

    def get(self, url: str, **options) -> httpx.Response:
        return self.together(("GET", url, options))[0]

    def post(self, url: str, content=b"", **options) -> httpx.Response:
        return self.together(("POST", url, {"content": content, **options}))[0]


@cache
def loaded(folder: Path) -> Models:
    models = Models(folder)
    models.update()
    return models


@contextmanager
def running(
    folder: Path, settings: Settings | None = None, hosts: Sequence[str] = ("*",), **kwargs
) -> Iterator[tuple[Client, Service]]:
    """A server's application on a folder, without connections."""
    service = Service(loaded(folder), settings or Settings(), **kwargs)
    service.decoders.start()
    try:
        with asyncio.Runner() as runner:
            yield Client(create_app(service, hosts), runner), service
    finally:
        assert service.stop(10)


@contextmanager
def process(folder, *options):
    """A server in a process of its own, and its address; it is killed if it is still there."""
    command = [sys.executable, "-m", "alignseg_tf", "serve", folder, "--port", "0", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            line = started.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line + started.stderr.read()
            yield started, line.split()[0]
        finally:
            started.kill()


def until(condition):
    """Wait for something, a while."""
    last = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < last, "nothing happened"
        time.sleep(0.05)
