import contextlib
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from serving_fixtures import (
    SECONDS,
    decoded,
    encoded,
    expected,
    noise_image,
    process,
    until,
    write_model,
)

from alignseg_tf.__main__ import build_parser, main
from alignseg_tf.commands.serve import settings_from_arguments
from alignseg_tf.serving import server
from alignseg_tf.serving.settings import TOKEN_VARIABLE, Settings

httpx = pytest.importorskip("httpx")


def connected(url: str, sent: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    opened = socket.create_connection((host, int(port)), SECONDS)
    opened.sendall(sent)
    return opened


def not_listening(url: str) -> bool:
    try:
        connected(url, b"").close()
    except ConnectionError:
        return True
    return False


def read_all(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


HEAD = b"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.smoke
def test_the_life_of_a_server(tmp_path):
    """One process: slow clients, a new version, a broken one, the end."""
    folder = write_model(tmp_path / "street" / "1").parent
    image = noise_image()
    body = encoded(image)
    options = [
        "--poll-seconds", "0.2", "--header-seconds", "1", "--read-seconds", "1", "--verbose",
        "--allowed-host", "street.example",
    ]  # fmt: skip
    with process(folder, *options) as (started, url), httpx.Client(base_url=url) as visitor:
        for host, status in (("rebound.example", 400), ("street.example", 200)):
            assert visitor.get("/readyz", headers={"host": host}).status_code == status

        def version() -> int:
            response = visitor.post("/v1/segment", content=body)
            number = int(response.headers["x-model-version"])
            assert (decoded(response.content) == expected(image, number - 1)).all()
            return number

        assert version() == 1
        write_model(folder / "2", shift=1)
        until(lambda: version() == 2)
        (folder / "3").mkdir()
        until(lambda: "alignseg_broken_versions_total 1.0" in visitor.get("/metrics").text)
        assert version() == 2

        began = time.monotonic()
        with connected(url, HEAD) as silent:
            assert silent.recv(100) == b""  # it was closed
        assert 0.8 < time.monotonic() - began < 5
        for sent, status in (
            (HEAD + b"content-length: 100\r\n\r\nx", 408),
            (HEAD + b"content-length: 99999999\r\n\r\nx", 413),
            (b"\0\1\2 nothing\r\n\r\n", 400),
        ):
            with connected(url, sent) as client:
                assert client.recv(1000).startswith(b"HTTP/1.1 %d " % status)

        # Requests that are there at the end: their bodies are not.
        half = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body[:-1]
        late = [connected(url, half) for _ in range(3)]
        time.sleep(0.3)
        started.send_signal(signal.SIGTERM)
        until(lambda: not_listening(url))
        for each in late:
            each.sendall(body[-1:])
        answers = [read_all(each) for each in late]
        log = started.stderr.read()
        assert started.wait(SECONDS) == 0
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 ")
        class_map = decoded(answer.partition(b"\r\n\r\n")[2])
        assert (class_map == expected(image, 1)).all()
    for part in (
        "version 2 serves instead of 1", "version 1 is unloaded", "version 3 does not load",
        "SIGTERM: no new requests are taken", "INFO stopped", "POST '/v1/segment' 200 ",
    ):  # fmt: skip
        assert part in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_slow_and_hostile_clients_do_not_hold_up_others(tmp_path):
    folder = write_model(tmp_path / "street" / "1").parent
    body = encoded(noise_image())
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    with process(folder, "--drain-seconds", "10", "--read-seconds", "5") as (started, url):
        stop = threading.Event()

        def chunks_of_one_byte():
            while not stop.is_set():
                with contextlib.suppress(OSError), connected(url, chunked) as client:
                    while not stop.is_set():
                        client.sendall(b"1\r\na\r\n" * 1000)
                        time.sleep(0.01)  # the machine is for the server

        threads = [threading.Thread(target=chunks_of_one_byte, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        slow = [connected(url, HEAD + b"content-length: 9\r\n\r\nx") for _ in range(128)]
        slow += [connected(url, HEAD) for _ in range(128)]
        try:
            assert httpx.get(f"{url}/healthz", timeout=SECONDS).status_code == 200
            assert httpx.post(f"{url}/v1/segment", content=body, timeout=SECONDS).status_code == 200
        finally:
            stop.set()
            for each in slow:
                each.close()
        for thread in threads:
            thread.join(SECONDS)
        # Nothing is left of connections whose body was not read.
        files = Path(f"/proc/{started.pid}/fd")
        until(lambda: sum("socket:" in target(link) for link in files.iterdir()) < 30)
        started.send_signal(signal.SIGTERM)
        assert started.wait(SECONDS) == 0


def target(link) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


@pytest.mark.slow
def test_the_end_does_not_wait_for_bodies_and_decoders(tmp_path):
    """A run-length coded BMP is decoded in Python, a second for each megabyte."""
    folder = write_model(tmp_path / "street" / "1").parent
    slow_image = run_length_bmp(2000, 500_000)
    options = ["--drain-seconds", "1", "--decode-seconds", "600", "--request-seconds", "600"]
    head = HEAD + b"content-length: %d\r\n\r\n" % len(slow_image)
    with process(folder, *options) as (started, url), contextlib.ExitStack() as links:
        for body in [slow_image] * 40 + [b""]:
            links.enter_context(connected(url, head + body))
        time.sleep(0.5)
        began = time.monotonic()
        started.send_signal(signal.SIGTERM)
        log = started.stderr.read()
        assert started.wait(SECONDS) == 1
        assert time.monotonic() - began < 15
    assert "requests were cut off" in log


def run_length_bmp(side: int, pairs: int) -> bytes:
    """A BMP of runs of one pixel."""
    rows = b"\1\0" * pairs
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(head) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + bytes(1024) + rows


def test_errors_at_the_start_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    folder = tmp_path / "street"

    def error(*options: str) -> str:
        assert main(["serve", str(folder), "--port", "0", *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    assert "street: expected a folder of numbered versions" in error()
    folder.mkdir()
    assert "street: no version; expected folders named by numbers" in error()
    (folder / "1").mkdir()
    assert "street: none of its versions loads" in error()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        message = error("--port", port)
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in message
    (tmp_path / "token").write_text("\n")
    for option, value, message in (
        ("--port", "70000", "`port` must be 0 to 65535. Received: 70000"),
        ("--host", "no.such.host.invalid", "cannot listen at no.such.host.invalid"),
        ("--max-queue", "0", "`max_queue` must be positive. Received: 0"),
        ("--address-share", "1.5", "`address_share` must be at most 1. Received: 1.5"),
        ("--max-queue-pixels", "99", "`max_queue_pixels` must be at least `max_pixels`, 4194304."),
        ("--litert", "gone", "gone: no such folder; expected the files of LiteRT.js"),
        ("--token-file", str(tmp_path / "token"), "token: expected a token of printable ASCII"),
    ):
        assert message in error(option, value)
    monkeypatch.setenv(TOKEN_VARIABLE, "two words")
    assert f"{TOKEN_VARIABLE}: expected a token" in error()


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "alignseg_tf.serving.server")
    monkeypatch.setitem(sys.modules, "hypercorn", None)
    monkeypatch.delitem(sys.modules, "hypercorn.asyncio", raising=False)
    assert main(["serve", "savedmodels/x"]) == 2
    assert (
        "error: the server needs hypercorn.asyncio: pip install 'alignseg"
        in capsys.readouterr().err
    )


def test_options_are_the_settings_and_documented():
    parsed = build_parser().parse_args(["serve", "savedmodels/x", "--read-seconds", "0.5"])
    assert settings_from_arguments(parsed) == Settings(read_seconds=0.5)
    text = (ROOT / "docs" / "serving.md").read_text()
    for name, value in vars(Settings()).items():
        row = f"| `--{name.replace('_', '-')}` | {value:.9g} |"
        assert row in text, row


def hosts(asked: str, *more: str) -> list[str]:
    with server.listening_socket(asked, 0, 1.0) as taken:
        return server.allowed_hosts(asked, taken, more)


def test_hosts_are_the_bound_address_and_the_allowed_ones():
    assert hosts("127.0.0.1") == ["127.0.0.1", "[::1]", "localhost"]
    assert hosts("localhost", "street.example") == [
        "127.0.0.1", "[::1]", "localhost", "street.example",
    ]  # fmt: skip
    everywhere = hosts("0.0.0.0")
    assert {"127.0.0.1", "localhost", socket.gethostname()} <= set(everywhere)
    assert "*" not in everywhere
    assert all(map(server.is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(server.is_loopback, ("0.0.0.0", "::", "street.example")))
