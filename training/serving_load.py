"""Load on a server: clients of all kinds at once, and its end while they ask.

Most clients send good pictures, whose answers are compared with the model's own. Others send
truncated pictures, huge ones, bodies that are too large, too slow or no pictures at all, broken
HTTP, or leave. Each has an answer that it must get.
"""

import argparse
import io
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from alignseg_tf.networks import SavedModelNetwork
from alignseg_tf.serving.models import Models

# Of the server, so that slow clients are found out within the measurement.
OPTIONS = ("--read-seconds", "2", "--header-seconds", "2", "--poll-seconds", "1")
# Share of each kind of request.
WEIGHTS = {
    "good": 70, "truncated": 8, "huge picture": 5, "huge body": 2, "no picture": 5,
    "broken HTTP": 3, "slow": 2, "silent": 1, "gone": 1,
}  # fmt: skip
# What each kind may be answered; None is a connection that the server closes.
EXPECTED: dict[str, set[int | None]] = {
    "good": {200}, "truncated": {422}, "huge picture": {413}, "huge body": {413},
    "no picture": {415}, "broken HTTP": {400}, "slow": {408},
    "silent": {None}, "gone": {None},
}  # fmt: skip
# What a busy server says, and a client repeats.
BUSY = {429, 503}
# Batches of other sizes round otherwise, which decides where two classes are as likely.
LEAST_AGREEMENT = 0.99
# A request that was sent so long before the signal has been accepted.
CERTAIN_SECONDS = 0.1
TIMEOUT = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        kind: of the client.
        status: of the answer, None without one.
        sent: when it was sent as a whole, in seconds of the monotonic clock.
        seconds: until the answer was there.
        agreement: share of the pixels that have the class which was expected; good ones alone.
    """

    kind: str
    status: int | None
    sent: float
    seconds: float
    agreement: float | None = None


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Return the bytes of a picture file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def blurred_noise(height: int, width: int, seed: int) -> np.ndarray:
    """Draw a picture: noise at an eighth of its size, enlarged."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


class Clients:
    """Clients of a server, a thread each.

    Args:
        url: of the server.
        model: its name.
        pictures: (file, class ids that are expected).
        count: how many clients.
    """

    def __init__(
        self, url: str, model: str, pictures: Sequence[tuple[bytes, np.ndarray]], count: int
    ):
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._pictures = pictures
        self.outcomes: list[Outcome] = []
        self.waiting: dict[int, float] = {}  # since when good requests wait, by client
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=[number], daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Start all."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all after their present request."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        kinds: dict[str, Callable[[], int | None]] = {
            "huge picture": lambda: self._post(_huge_png()),
            "huge body": lambda: self._post(bytes(17 * 2**20)),
            "no picture": lambda: self._post(rng.randbytes(5000)),
            "broken HTTP": lambda: self._raw(b"\0\1\2 nothing\r\n\r\n"),
            "slow": self._slow,
            "silent": lambda: self._raw(b"POST /v1/segment HTTP/1.1\r\nhost: x\r\n"),
            "gone": self._leave,
        }
        while not self._stop.is_set():
            (kind,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            picture, expected = rng.choice(self._pictures)
            if kind == "good":
                self.outcomes.append(self._good(number, picture, expected))
                continue
            began = time.monotonic()
            status: int | None = None
            try:
                if kind == "truncated":
                    status = self._post(picture[: rng.randrange(100, len(picture) - 100)])
                else:
                    status = kinds[kind]()
            except (OSError, HTTPException):
                pass
            self.outcomes.append(Outcome(kind, status, began, time.monotonic() - began))

    def _good(self, number: int, picture: bytes, expected: np.ndarray) -> Outcome:
        connection = HTTPConnection(self._host, self._port, timeout=TIMEOUT)
        began = sent = time.monotonic()
        status: int | None = None
        agreement: float | None = None
        try:
            connection.request("POST", "/v1/segment", picture)
            sent = self.waiting[number] = time.monotonic()
            response = connection.getresponse()
            content, status = response.read(), response.status
            if status == 200:
                with Image.open(io.BytesIO(content)) as opened:
                    class_map = np.asarray(opened)
                same_shape = class_map.shape == expected.shape
                agreement = float((class_map == expected).mean()) if same_shape else 0.0
            elif status in BUSY:
                time.sleep(0.2)
        except (OSError, HTTPException):
            status = None
            time.sleep(0.05)
        finally:
            self.waiting.pop(number, None)
            connection.close()
        return Outcome("good", status, sent, time.monotonic() - began, agreement)

    def _post(self, body: bytes, path: str = "/v1/segment") -> int:
        connection = HTTPConnection(self._host, self._port, timeout=TIMEOUT)
        try:
            connection.request("POST", path, body)
            return connection.getresponse().status
        finally:
            connection.close()

    def _connect(self) -> socket.socket:
        return socket.create_connection((self._host, self._port), TIMEOUT)

    def _raw(self, sent: bytes) -> int | None:
        with self._connect() as connection:
            connection.sendall(sent)
            return _status(connection.recv(100))

    def _slow(self) -> int | None:
        """Send a byte now and then."""
        with self._connect() as connection:
            connection.sendall(
                b"POST /v1/segment HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n"
            )
            until = time.monotonic() + TIMEOUT
            while time.monotonic() < until:
                if select.select([connection], [], [], 0.1)[0]:
                    return _status(connection.recv(100))
                connection.sendall(b"x")
        return None

    def _leave(self) -> None:
        """Send a good picture and do not wait for the answer."""
        picture = self._pictures[0][0]
        head = f"POST /v1/segment HTTP/1.1\r\nhost: x\r\ncontent-length: {len(picture)}\r\n\r\n"
        with self._connect() as connection:
            connection.sendall(head.encode() + picture)


def _status(answer: bytes) -> int | None:
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else None


def _huge_png() -> bytes:
    """Return the head of a PNG file of 10 billion pixels."""
    data = bytearray(encoded(np.zeros((1, 1), np.uint8)))
    data[16:24] = 2 * (100_000).to_bytes(4, "big")
    return bytes(data[:12]) + _chunk(bytes(data[12:29])) + bytes(data[33:])


def _chunk(content: bytes) -> bytes:
    return content + zlib.crc32(content).to_bytes(4, "big")


def resident_bytes(pid: int) -> int:
    """Return the memory of a process, on Linux."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def measure_serving(
    folder: Path, seconds: float, clients: int, size: tuple[int, int]
) -> dict[str, Any]:
    """Start a server, load it, end it while clients ask, and count what became of all requests.

    Args:
        folder: of the model, as for `python -m alignseg_tf serve`.
        seconds: of the load.
        clients: at once.
        size: height and width of most pictures; some lie on their side.

    Returns:
        `problems`, a list of texts, is empty if all is well.

    Raises:
        ValueError: the server does not start.
    """
    _, newest = max(Models(folder).on_disk().items())
    network = SavedModelNetwork(newest)
    sizes = [size] * 7 + [(size[1], size[0])]
    images = [blurred_noise(*each, seed=seed) for seed, each in enumerate(sizes)]
    pictures = [(encoded(image), network.class_map(image)) for image in images]
    del network
    command = [sys.executable, "-m", "alignseg_tf", "serve", str(folder), "--port", "0", *OPTIONS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            line = _stream(server.stdout).readline()
            if not line.startswith("http://"):
                raise ValueError(
                    f"the server does not start: {_stream(server.stderr).read().strip()}"
                )
            reader = _Reader(_stream(server.stderr))
            asking = Clients(line.split()[0], folder.resolve().name, pictures, clients)
            asking.start()
            began = time.monotonic()
            memory: list[tuple[float, int]] = []
            while time.monotonic() - began < seconds and server.poll() is None:
                memory.append((time.monotonic() - began, resident_bytes(server.pid)))
                time.sleep(min(0.5, seconds / 20))
            # In flight: sent as a whole, and not answered.
            signalled = _await_flight(asking)
            in_flight = dict(asking.waiting)
            server.send_signal(signal.SIGTERM)
            code = server.wait(TIMEOUT)
            ended = time.monotonic()
            asking.stop()
        finally:
            server.kill()
    return _result(
        asking.outcomes, memory, began, signalled, len(in_flight), ended, code, reader.text
    )


def _stream(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("the server was started without a pipe")
    return stream


class _Reader:
    """Reads a stream to its end beside, so that who writes is not held up."""

    def __init__(self, stream: Any):
        self._lines: list[str] = []
        self._thread = threading.Thread(target=lambda: self._lines.extend(stream), daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All that was written."""
        self._thread.join(5)
        return "".join(self._lines)


def _await_flight(asking: Clients) -> float:
    """Wait for requests that are certainly accepted, and return the present time."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        now = time.monotonic()
        if any(now - sent > CERTAIN_SECONDS for sent in list(asking.waiting.values())):
            return now
        time.sleep(0.002)
    return time.monotonic()


def _result(
    outcomes: Sequence[Outcome],
    memory: Sequence[tuple[float, int]],
    began: float,
    signalled: float,
    in_flight: int,
    ended: float,
    code: int,
    log: str,
) -> dict[str, Any]:
    """Count, and say what is wrong."""
    before = [each for each in outcomes if each.sent + each.seconds < signalled]
    accepted = [each for each in outcomes if each.sent < signalled - CERTAIN_SECONDS]
    good = [each for each in outcomes if each.kind == "good"]
    served = [each for each in before if each.kind == "good" and each.status == 200]
    last = [each for each in good if each.sent < signalled <= each.sent + each.seconds]
    lost = [each for each in accepted if each.kind == "good" and each.status is None]
    wrong = [
        each for each in good if each.status == 200 and (each.agreement or 0) < LEAST_AGREEMENT
    ]
    unexpected = Counter(
        f"{each.kind}: {each.status}"
        for each in accepted
        if each.status not in EXPECTED[each.kind]
        and not (each.status in BUSY or each in lost)
        and each in before
    )
    problems = []
    if lost:
        problems.append(f"{len(lost)} accepted requests were lost")
    if wrong:
        problems.append(f"{len(wrong)} answers were wrong")
    if unexpected:
        problems.append(f"unexpected answers: {dict(unexpected)}")
    if code != 0:
        problems.append(f"the server ended with {code}")
    if "Traceback" in log:
        problems.append("the server's log has a traceback")
    if not served:
        problems.append("no good request was served")
    seconds = np.array([each.seconds for each in served] or [np.nan])
    table: dict[str, dict[str, int]] = {}
    for kind in WEIGHTS:
        statuses = Counter(str(each.status) for each in before if each.kind == kind)
        table[kind] = dict(sorted(statuses.items()))

    def resident(share: float) -> int:
        """The median memory around a share of the time."""
        length = memory[-1][0]
        near = [size for at, size in memory if abs(at - share * length) <= 0.05 * length]
        return int(np.median(near))

    return {
        "seconds": signalled - began,
        "answers": table,
        "good_per_second": len(served) / (signalled - began),
        "latency_seconds": {
            name: float(np.percentile(seconds, share))
            for name, share in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
        "least_agreement": min((each.agreement or 0 for each in served), default=0.0),
        "mean_agreement": float(np.mean([each.agreement or 0 for each in served] or [0])),
        "resident_bytes": {
            "start": memory[0][1],
            "tenth": resident(0.1),
            "middle": resident(0.5),
            "end": resident(1.0),
            "most": max(size for _, size in memory),
        },
        "in_flight_at_sigterm": in_flight,
        "answered_after_sigterm": sum(each.status == 200 for each in last),
        "stop_seconds": ended - signalled,
        "exit_status": code,
        "problems": problems,
    }


def describe_serving(result: dict[str, Any]) -> str:
    """Return what `measure_serving` found as lines of text."""
    latency, memory = result["latency_seconds"], result["resident_bytes"]
    rows = [
        f"{kind:<16}"
        + ", ".join(
            f"{count} x {'closed' if status == 'None' else status}"
            for status, count in result["answers"][kind].items()
        )
        for kind in WEIGHTS
    ]
    return "\n".join(
        [
            *rows,
            f"{'good answers':<16}{result['good_per_second']:.1f} a second for "
            f"{result['seconds']:.0f} s",
            f"{'latency':<16}"
            + ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in latency.items()),
            f"{'agreement':<16}{result['mean_agreement']:.6f} of the pixels, at least "
            f"{result['least_agreement']:.6f}",
            f"{'memory':<16}"
            + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in memory.items()),
            f"{'SIGTERM':<16}{result['in_flight_at_sigterm']} good requests in flight, "
            f"{result['answered_after_sigterm']} answered after it, exit status "
            f"{result['exit_status']} after {result['stop_seconds']:.2f} s",
            "; ".join(result["problems"]) or "no problems",
        ]
    )


def run_serving(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run the subcommand `serving`: what is to be written as JSON, and as text."""
    size = (parsed.size[0], parsed.size[1])
    result = measure_serving(parsed.folder, parsed.seconds, parsed.clients, size)
    settings = {"model": parsed.folder.name, "clients": parsed.clients, "size": size}
    return settings | result, describe_serving(result)


def add_serving(commands: Any) -> None:
    """Add the subcommand `serving`."""
    parser = commands.add_parser(
        "serving", help="a server under good, bad and hostile requests", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="of the model, as for `serve`")
    parser.add_argument("--seconds", type=float, default=300.0, help="of load (%(default)g)")
    parser.add_argument("--clients", type=int, default=8, help="at once (%(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(360, 480), metavar=("HEIGHT", "WIDTH"),
        help="of the pictures, in pixels (360 480)",
    )  # fmt: skip
    parser.set_defaults(run=run_serving)
