"""`python -m training.benchmark serving`: good images and hostile requests at once."""

import argparse
import asyncio
import io
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignseg_tf.prediction.saved_networks import SavedModelNetwork
from alignseg_tf.serving.models import Models
from training.benchmark.timing import Task

# Limits that let the server refuse slow clients within the measurement.
OPTIONS = ("--read-seconds", "2", "--header-seconds", "2", "--poll-seconds", "1")
# Each kind of request: its share in percent, and the expected status.
KINDS = {
    "good": (75, 200), "truncated": (8, 422), "huge image": (5, 413), "huge body": (2, 413),
    "no image": (6, 415), "slow": (4, 408),
}  # fmt: skip
BUSY, TIMEOUT = {429, 503, 504}, 90.0


def body_of(kind: str, image: bytes) -> Any:
    """Return the body of a request of a kind."""

    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.2)

    header = image[12:16] + 2 * (100_000).to_bytes(4, "big") + image[24:29]
    return {
        "good": image, "truncated": image[: len(image) // 2], "huge body": bytes(17 * 2**20),
        # A PNG whose header claims 10 billion pixels.
        "huge image": image[:12] + header + zlib.crc32(header).to_bytes(4, "big") + image[33:],
        "no image": image[1:], "slow": slow(),
    }[kind]  # fmt: skip


class Load:
    """Clients that send images, (file, expected class ids), until `stop`."""

    def __init__(self, url: str, images: Sequence[tuple[bytes, np.ndarray]]):
        self._url, self._images = url, images
        self.stop = False
        self.waiting = self.wrong = self.after_signal = 0
        self.answers: Counter[tuple[str, int | str]] = Counter()
        self.seconds: list[float] = []

    async def client(self, number: int) -> None:
        """Send one request after another."""
        import httpx

        rng, shares = random.Random(number), [share for share, _ in KINDS.values()]
        async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT) as client:
            while not self.stop:
                (kind,) = rng.choices(list(KINDS), shares)
                image, expected = rng.choice(self._images)
                began, good = time.monotonic(), kind == "good"
                self.waiting += good
                try:
                    response = await client.post("/v1/segment", content=body_of(kind, image))
                    status: int | str = response.status_code
                except httpx.TransportError as error:
                    status = type(error).__name__
                self.waiting -= good
                self.answers[kind, status] += 1
                if status in BUSY:
                    await asyncio.sleep(0.2)
                elif good and status == 200:
                    self.seconds.append(time.monotonic() - began)
                    self.after_signal += self.stop
                    with Image.open(io.BytesIO(response.content)) as opened:
                        self.wrong += not np.array_equal(np.asarray(opened), expected)


async def run_load(server: subprocess.Popen, load: Load, seconds: float, clients: int) -> list[int]:
    """Run clients, send SIGTERM while they wait, and return samples of the server's memory."""
    tasks = [asyncio.ensure_future(load.client(number)) for number in range(clients)]
    until, memory = time.monotonic() + seconds, []
    while server.poll() is None and (time.monotonic() < until or not load.waiting):
        pages = Path(f"/proc/{server.pid}/statm").read_text().split()[1]
        memory.append(int(pages) * 4096 >> 20)
        await asyncio.sleep(0.1)
    load.stop = True
    server.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    return memory


def measure(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Load a server, end it while clients wait, and return the answers as JSON and as text."""
    network = SavedModelNetwork(max(Models(parsed.folder).on_disk().items())[1])
    images = []
    for image in Task(height=parsed.size[0], width=parsed.size[1], batch=8).images():
        pixels, file = image.astype(np.uint8), io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append((file.getvalue(), network.class_map(pixels)))
    command = [sys.executable, "-m", "alignseg_tf", "serve", parsed.folder, "--port", "0", *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            if not (line := server.stdout.readline() if server.stdout else ""):
                raise ValueError(f"{parsed.folder}: the server does not start, see above")
            load = Load(line.split()[0], images)
            memory = asyncio.run(run_load(server, load, parsed.seconds, parsed.clients))
            code = server.wait(TIMEOUT)
        finally:
            server.kill()
    unexpected = [k for k in load.answers if k[1] != KINDS[k[0]][1] and k[1] not in BUSY]
    result = {
        "answers": {f"{kind}: {status}": n for (kind, status), n in load.answers.items()},
        "good_per_second": len(load.seconds) / parsed.seconds,
        "seconds_50_90_99": np.percentile(load.seconds or [np.inf], (50, 90, 99)).tolist(),
        "mebibytes_quarter_end_most": [memory[len(memory) // 4], memory[-1], max(memory)],
        "answered_after_sigterm": load.after_signal,
        "problems": [f"unexpected answers {unexpected}"] * bool(unexpected)
        + [f"{load.wrong} wrong answers"] * bool(load.wrong)
        + [f"the server ended with {code}"] * bool(code)
        + ["no good request was served"] * (not load.seconds),
    }
    return result, "\n".join(f"{name:<28}{value}" for name, value in result.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serving`."""
    parser.add_argument("folder", type=Path, help="folder of a model, as for `serve`")
    parser.add_argument("--seconds", type=float, default=300.0, help="of load (%(default)g)")
    parser.add_argument("--clients", type=int, default=8, help="at once (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), help="of images (360 480)")
