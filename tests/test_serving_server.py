import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from conftest import ROOT
from serving_fixtures import decoded, encoded, expected, picture, write_model

from alignseg_tf.__main__ import build_parser, main
from alignseg_tf.serving import server
from alignseg_tf.serving.settings import TOKEN_VARIABLE, Settings, settings_from_arguments

httpx = pytest.importorskip("httpx")

SECONDS = 30


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


def connected(url: str, sent: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    opened = socket.create_connection((host, int(port)), SECONDS)
    opened.sendall(sent)
    return opened


@pytest.mark.smoke
def test_the_life_of_a_server(tmp_path):
    """One process: clients that are slow or many, a new version, a broken one, the end."""
    folder = tmp_path / "street"
    folder.mkdir()
    write_model(folder / "1")
    image = picture()
    # A picture waits a second for others of its size, so that requests are there at the end.
    options = [
        "--max-wait-ms", "1000", "--poll-seconds", "0.2", "--header-seconds", "1",
        "--read-seconds", "1", "--max-connections", "8", "--verbose",
    ]  # fmt: skip
    with process(folder, *options) as (started, url), httpx.Client(base_url=url) as client:
        assert client.get("/readyz").status_code == 200

        def version() -> int:
            response = client.post("/v1/segment", content=encoded(image))
            number = int(response.headers["x-model-version"])
            assert (decoded(response.content) == expected(image, number - 1)).all()
            return number

        assert version() == 1
        write_model(folder / "2", shift=1)
        until(lambda: version() == 2)
        (folder / "3").mkdir()
        until(lambda: "alignseg_broken_versions_total 1.0" in client.get("/metrics").text)
        assert version() == 2

        head = b"POST /v1/segment HTTP/1.1\r\nhost: here\r\n"
        began = time.monotonic()
        with connected(url, head) as silent:
            assert silent.recv(100) == b""  # it was closed
        assert 0.8 < time.monotonic() - began < 5
        with connected(url, head + b"content-length: 100\r\n\r\nx") as slow:
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        with connected(
            url, head + b"expect: 100-continue\r\ncontent-length: 99999999\r\n\r\n"
        ) as big:
            assert big.recv(1000).startswith(b"HTTP/1.1 413 ")
        many = [connected(url, b"") for _ in range(8)]
        refused = [answer for answer in (each.recv(300) for each in many) if answer]
        assert refused
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)
        body = refused[0].partition(b"\r\n\r\n")[2]
        assert json.loads(body) == {"error": "Too many connections"}
        for each in many:
            each.close()

        answers = []

        def ask(seed: int) -> None:
            content = encoded(picture(seed=seed))
            answers.append((seed, httpx.post(f"{url}/v1/segment", content=content)))

        threads = [threading.Thread(target=ask, args=[seed]) for seed in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: "alignseg_queue_length 3.0" in client.get("/metrics").text)
        started.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        try:
            late = httpx.post(f"{url}/v1/segment", content=encoded(image))
            assert late.status_code == 503
        except httpx.ConnectError:
            pass
        for thread in threads:
            thread.join(SECONDS)
        assert len(answers) == 3
        for seed, response in answers:
            assert response.status_code == 200
            assert (decoded(response.content) == expected(picture(seed=seed), 1)).all()
        log = started.stderr.read()
        assert started.wait(SECONDS) == 0
    for part in (
        "version 2 serves instead of 1", "version 1 is unloaded", "version 3 does not load",
        "SIGTERM: no new requests are taken", "INFO stopped", "POST '/v1/segment' 200 ",
    ):  # fmt: skip
        assert part in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_requests_that_do_not_end_are_cut_off(tmp_path):
    folder = tmp_path / "street"
    folder.mkdir()
    write_model(folder / "1")
    with process(folder, "--drain-seconds", "1") as (started, url):
        head = b"POST /v1/segment HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n"
        with connected(url, head):
            time.sleep(0.5)
            began = time.monotonic()
            started.send_signal(signal.SIGTERM)
            log = started.stderr.read()
            assert started.wait(SECONDS) == 1
            assert time.monotonic() - began < 10
    assert "1 requests were cut off" in log


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

    assert "street: no such folder" in error()
    folder.mkdir()
    assert "street: no version; expected folders named by numbers" in error()
    (folder / "1").mkdir()
    assert "street: none of its versions loads" in error()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = error("--port", str(port))
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in message
    assert "`port` must be 0 to 65535. Received: 70000" in error("--port", "70000")
    assert "cannot listen at no.such.host.invalid" in error("--host", "no.such.host.invalid")
    assert "`max_batch` must be positive. Received: 0" in error("--max-batch", "0")
    message = error("--max-pixels", "100", "--max-queue-pixels", "99")
    assert "`max_queue_pixels` must be at least `max_pixels`, 100. Received: 99" in message
    assert "gone: no such folder; expected the files of LiteRT.js" in error("--litert", "gone")
    (tmp_path / "token").write_text("\n")
    assert "expected a token" in error("--token-file", str(tmp_path / "token"))
    monkeypatch.setenv(TOKEN_VARIABLE, "two words")
    assert f"{TOKEN_VARIABLE}: expected a token" in error()


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "alignseg_tf.serving.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "savedmodels/x"]) == 2
    assert "error: the server needs uvicorn: pip install 'alignseg" in capsys.readouterr().err


def test_options_are_the_settings():
    parsed = build_parser().parse_args(["serve", "savedmodels/x"])
    assert settings_from_arguments(parsed) == Settings()
    parsed = build_parser().parse_args(["serve", "savedmodels/x", "--max-wait-ms", "0.5"])
    assert settings_from_arguments(parsed).max_wait_ms == 0.5
    assert parsed.host == "127.0.0.1"


def test_the_documentation_has_every_setting_and_its_default():
    text = (ROOT / "docs" / "serving.md").read_text()
    for name, value in vars(Settings()).items():
        row = f"| `--{name.replace('_', '-')}` | {value:.9g} |"
        assert row in text, row


def test_other_addresses_than_this_machine():
    assert server.is_loopback("127.0.0.1")
    assert server.is_loopback("::1")
    assert server.is_loopback("localhost")
    assert not server.is_loopback("0.0.0.0")
    assert not server.is_loopback("::")
