import asyncio
import contextlib
import json
import logging
import re
import shutil
import socket
import struct
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from serving_fixtures import (
    NOT_FINITE,
    POISON,
    SPACE,
    Client,
    decoded,
    encoded,
    expected,
    noise_image,
    running,
    write_model,
)

from alignseg_tf import visualization
from alignseg_tf.serving import server as serving_server
from alignseg_tf.serving.app import create_app
from alignseg_tf.serving.service import address_of
from alignseg_tf.serving.settings import Settings

httpx = pytest.importorskip("httpx")
hypercorn = pytest.importorskip("hypercorn.asyncio")

IMAGE = noise_image()
DATA = encoded(IMAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "a street?"
    write_model(folder / "1")
    (folder / "50% #1.tflite").write_bytes(bytes(range(100)))
    (folder / "MODEL_CARD.md").write_text("not served")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running(folder) as (client, service):
        yield client, service


@pytest.fixture(scope="module")
def client(server):
    return server[0]


def check_error(response, status: int, *parts: str):
    assert response.status_code == status, response.text
    content = response.json()
    assert list(content) == ["error"]
    for part in parts:
        assert part in content["error"]


def number(client, line: str) -> float:
    """The value of a line of /metrics; 0 where there is none."""
    text = client.get("/metrics").text
    return next((float(t.split()[-1]) for t in text.splitlines() if t.startswith(f"{line} ")), 0.0)


def test_segment_gives_class_ids(client):
    for options in (
        {"content": DATA, "headers": {"content-type": "image/png"}},
        {"content": DATA},
        {"content": DATA, "headers": {"content-type": "application/octet-stream"}},
        {"files": {"other": ("a.png", DATA)}, "data": {"note": "x"}},
    ):
        (response,) = client.together(("POST", "/v1/segment", options))
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-model-version"] == "1"
        assert len(response.headers["x-request-id"]) == 16
        assert (decoded(response.content) == expected(IMAGE)).all()


def test_segment_in_other_forms(client):
    coco = pytest.importorskip("pycocotools.mask")
    class_map = expected(IMAGE) % 3 * 2 % 4  # classes 0 and 2 only
    image = np.where(class_map[..., None] == 2, [150, 9, 8], 3).astype(np.uint8)
    overlay = client.post("/v1/segment?format=overlay", encoded(image))
    painted = visualization.overlay(image, class_map, SPACE.palette)
    assert (decoded(overlay.content) == painted).all()
    response = client.post("/v1/segment?format=json", encoded(image))
    assert response.headers["content-type"] == "application/json"
    made = response.json()
    assert (made["model"], made["version"]) == ("a street?", "1")
    assert (made["width"], made["height"]) == (56, 40)
    assert [each["id"] for each in made["classes"]] == [0, 2]
    for each in made["classes"]:
        mask = each["id"] == class_map
        assert each["name"] == SPACE.classes[each["id"]]
        assert tuple(each["color"]) == SPACE.palette[each["id"]]
        assert each["share"] == pytest.approx(mask.mean())
        code = coco.frPyObjects(each["segmentation"], 40, 56)
        assert (coco.decode(code) == mask).all()
    check_error(client.post("/v1/segment?format=gif", DATA), 422, "format", "'overlay'")


def test_segment_says_what_was_wrong(client):
    before = number(client, 'alignseg_rejected_total{reason="damaged"}')
    check_error(client.post("/v1/segment"), 422, "an empty body")
    check_error(client.post("/v1/segment", DATA[:200]), 422, "the body: not readable as an image")
    json_type = {"content-type": "application/json"}
    check_error(client.post("/v1/segment", b"{}", headers=json_type), 415, "Content-Type image")
    assert number(client, 'alignseg_rejected_total{reason="damaged"}') == before + 2


def test_only_the_image_that_the_model_refuses_fails(client, caplog):
    before = number(client, "alignseg_images_total")
    images = [noise_image(seed=seed) for seed in range(3)]
    images[0][0, 0] = POISON
    images[1][:] = NOT_FINITE
    requests = [("POST", "/v1/segment", {"content": encoded(image)}) for image in images]
    refused, not_finite, good = client.together(*requests)
    check_error(refused, 422, "The model refuses this", "poison")
    check_error(not_finite, 500, "version 1: expected finite outputs", "56 x 40 pixels")
    assert "a street?, version 1: expected finite outputs" in caplog.text
    assert (decoded(good.content) == expected(images[2])).all()
    assert number(client, "alignseg_images_total") == before + 1


def test_offsets(server, monkeypatch):
    client, service = server
    data = encoded(noise_image(200, 120))
    made = client.post("/v1/offsets", data).json()
    assert (made["width"], made["height"], made["version"]) == (120, 200, "1")
    fields = {field["name"]: np.asarray(field["vectors"]) for field in made["fields"]}
    assert fields["coarse"].shape == (25, 15, 2)
    assert fields["coarse"][-1, -1].tolist() == [112, 192]
    assert fields["fine"].shape == (64, 64, 2)
    y, x = np.mgrid[0:199:64j, 0:119:64j]
    assert np.allclose(fields["fine"], np.stack([x, y], -1), atol=1e-3)
    binary = client.post("/v1/offsets?format=binary", data)
    assert binary.headers["content-type"] == "application/octet-stream"
    (length,) = struct.unpack_from("<I", binary.content)
    place = 4 + length
    assert length % 4 == 0
    for field in json.loads(binary.content[4:place])["fields"]:
        shape = field["height"], field["width"], 2
        vectors = np.frombuffer(binary.content, "<f4", np.prod(shape), place).reshape(shape)
        assert np.allclose(vectors, fields[field["name"]], atol=5e-4)
        place += vectors.nbytes
    assert place == len(binary.content)
    monkeypatch.delitem(service.models.active.signatures, "offsets")
    check_error(client.post("/v1/offsets", data), 404, "no signature 'offsets', only logits, serv")


def test_models(client):
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["active"]) == ("a street?", "1")
    assert model["versions"] == [{"version": "1", "state": "active"}]
    assert [each["name"] for each in model["classes"]] == list(SPACE.classes)
    assert model["signatures"] == ["logits", "offsets", "serving_default"]
    assert model["input"]["min_side"] == 32
    assert model["input"]["max_pixels"] == Settings().max_pixels
    (file,) = model["files"]
    assert (file["name"], file["bytes"]) == ("50% #1.tflite", 100)
    assert file["url"] == "/v1/models/a%20street%3F/files/50%25%20%231.tflite"
    assert client.get(file["url"]).content == bytes(range(100))
    part = client.get(file["url"], headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    assert client.get(file["url"], headers={"range": "bytes=200-"}).status_code == 416


def test_paths_lead_nowhere_else(client):
    for path in (
        "/v1/models/a%20street%3F/files/MODEL_CARD.md",
        "/v1/models/a%20street%3F/files/..%2f..%2fx.tflite",
        "/v1/models/other/files/50%25%20%231.tflite",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/litert/x",
        "/docs",
    ):
        check_error(client.get(path), 404)
    response = client.get("/v1/segment")
    check_error(response, 405)
    assert response.headers["allow"] == "POST"


def test_pages_and_their_headers(client, folder, tmp_path):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert client.get("/static/index.html").content == page.content
    for response in (page, client.get("/nothing"), client.post("/v1/segment")):
        assert response.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert response.headers["x-content-type-options"] == "nosniff"
    (tmp_path / "wasm").mkdir()
    (tmp_path / "wasm" / "a.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret").touch()
    (tmp_path / "wasm" / "link").symlink_to(tmp_path / "secret")
    with running(folder, litert=tmp_path / "wasm") as (other, _):
        response = other.get("/litert/a.wasm")
        assert response.headers["content-type"] == "application/wasm"
        assert other.get("/litert/link").status_code == 404
        assert other.get("/litert/%2e%2e/secret").status_code == 404


def test_bodies_are_limited_while_they_come(folder):
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield bytes(300)

    async def slow(size=4):
        yield bytes(size)
        await asyncio.sleep(0.4)
        yield b"x"

    settings = Settings(max_bytes=1000, max_body_memory=1000, read_seconds=0.2)
    with running(folder, settings) as (client, service):
        response = client.post("/v1/segment", bytes(1001))
        check_error(response, 413, "at most 1000 bytes. Received: Content-Length: 1001")
        # The rest is read for a while, so that the client gets to read the answer.
        response = client.post("/v1/segment", endless())
        check_error(response, 413, "at most 1000 bytes. Received: more")
        assert response.headers["connection"] == "close"
        assert 100 < len(sent) < 300_000
        check_error(client.post("/v1/segment", slow()), 408, "within 0.2 s. Received: 4 bytes")
        two = [("POST", "/v1/segment", {"content": slow(600)}) for _ in range(2)]
        assert sorted(response.status_code for response in client.together(*two)) == [408, 503]
        assert service.bodies.total == 0


def test_bodies_in_tiny_chunks_are_refused(client):
    data = encoded(noise_image())
    assert len(data) > 100 * 64

    async def chunks(size):
        for start in range(0, len(data), size):
            yield data[start : start + size]

    assert client.post("/v1/segment", chunks(80)).status_code == 200
    check_error(client.post("/v1/segment", chunks(32)), 400, "chunks of at least 64", "smaller")


def hold(service):
    """Keep the thread of TensorFlow busy until the event that is returned is set."""
    go = threading.Event()
    service.run(lambda: go.wait(20))
    return go


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_queue": 2}, "The queue is full: 2 images are there"),
        ({"max_pixels": 2240, "max_queue_pixels": 4481}, "The queue is full: 4480 pixels"),
    ],
)
def test_a_full_queue_asks_to_come_again(folder, limits, message):
    settings = Settings(**limits, request_seconds=1, address_share=1)
    with running(folder, settings) as (client, service):
        go = hold(service)
        responses = client.together(*[("POST", "/v1/segment", {"content": DATA})] * 3)
        go.set()
        full, *late = sorted(responses, key=lambda response: response.status_code)
        check_error(full, 429, message)
        for response in late:
            check_error(response, 504, "Not done within 1 s")
        assert full.headers["retry-after"] == "1"
        assert service.images.total == service.pixels.total == 0
        assert client.post("/v1/segment", DATA).status_code == 200
        assert number(client, 'alignseg_rejected_total{reason="time"}') == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://elsewhere.example"}, 403), ({"origin": "null"}, 403),
        ({"origin": "http://here:8081"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://here"}, 403),
        ({"origin": "http://here"}, 200), ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)  # fmt: skip
def test_pages_of_other_sites_do_not_use_the_server(client, headers, status):
    form = {"files": {"image": ("a.png", DATA)}}
    response = client.together(("POST", "/v1/segment", {"headers": headers, **form}))[0]
    assert response.status_code == status
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    if status == 403:
        check_error(response, 403, "this server's own pages")


def test_other_hosts_are_refused(folder):
    with running(folder, hosts=["here", "127.0.0.1", "[::1]"]) as (client, _):
        for host in ("here", "here:8080", "127.0.0.1:80", "[::1]:8080"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200, host
        for host in ("rebound.example", "rebound.example:8080", "here.example", "x@here", ""):
            for path in ("/v1/models", "/metrics", "/"):
                response = client.get(path, headers={"host": host})
                assert response.status_code == 400, (host, path)


def test_one_address_leaves_room_for_others(folder):
    """Each limit has a part that one address cannot use; probes need no place."""
    settings = Settings(max_requests=4, max_body_memory=4000, max_bytes=2000, read_seconds=5)
    with running(folder, settings) as (client, service):
        app, held = create_app(service), threading.Event()
        first, second = (
            Client(app, client._runner, (f"192.0.2.{n}", 1))._client for n in (1, 2)
        )  # fmt: skip

        async def slow(size: int):
            yield bytes(size)
            while not held.is_set():
                await asyncio.sleep(0.01)

        async def many():
            tasks = [
                asyncio.ensure_future(first.post("/v1/segment", content=slow(900)))
                for _ in range(2)
            ]
            await asyncio.sleep(0.2)
            codes = [
                (await first.get("/v1/models")).status_code,
                (await first.get("/healthz")).status_code,
                (await second.get("/v1/models")).status_code,
                (await second.post("/v1/segment", content=bytes(1900))).status_code,
            ]
            held.set()
            return codes, [(await task).status_code for task in tasks]

        assert client._runner.run(many()) == ([503, 200, 200, 415], [415, 415])
        assert service.requests.total == service.bodies.total == 0


def test_addresses_of_one_network_count_as_one():
    for host, address in (
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("", ""),
        ("2001:db8::2:1", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64"),
    ):  # fmt: skip
        assert address_of((host, 1)) == address


# Starlette leaves the file of a truncated form to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_forms_that_are_refused(client):
    one = ("image", ("a.png", DATA))
    whole = client._client.build_request("POST", "/v1/segment", files=[one])
    for options, message in (
        ({"files": [one, one]}, "Too many files"),
        ({"files": [("a", (None, "no file"))]}, "0 files"),
        ({"files": [one], "data": {str(n): "x" for n in range(20)}}, "Too many fields"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        (
            {"content": whole.read()[:200],
             "headers": {"content-type": whole.headers["content-type"]}},
            "Expected a form with one file",
        ),
    ):  # fmt: skip
        check_error(client.together(("POST", "/v1/segment", options))[0], 422, message)


def test_clients_that_go_away_are_not_served(server):
    client, service = server
    go = hold(service)
    gone = 'alignseg_requests_total{route="/v1/segment",status="499"}'
    before = [number(client, name) for name in ("alignseg_images_total", gone)]
    messages = [{"type": "http.request", "body": DATA, "more_body": False}]
    sent = []

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/segment", "raw_path": b"/v1/segment",
        "query_string": b"", "headers": [(b"host", b"here")], "scheme": "http",
        "http_version": "1.1", "asgi": {"version": "3.0"}, "root_path": "",
    }  # fmt: skip
    client._runner.run(create_app(service)(scope, receive, send))
    assert not sent
    go.set()
    assert client.post("/v1/segment", DATA).status_code == 200
    after = [number(client, name) for name in ("alignseg_images_total", gone)]
    assert after == [value + 1 for value in before]


@pytest.mark.parametrize(
    ("error", "status", "message"), [(ZeroDivisionError, 500, ""), (MemoryError, 503, "No memory")]
)
def test_failures_of_the_server_are_logged_under_the_id_that_the_client_gets(
    server, monkeypatch, caplog, error, status, message
):
    client, service = server

    def fail(*_):
        raise error

    monkeypatch.setattr(type(service.models.active), "class_map", fail)
    response = client.post("/v1/segment", DATA)
    request_id = response.headers["x-request-id"]
    check_error(response, status, message or request_id)
    assert (f"request {request_id} failed" in caplog.text) == (status == 500)


def test_the_token(folder):
    with running(folder, token=b"secret-1") as (client, _):
        for path in ("/", "/healthz", "/readyz", "/static/index.html"):
            assert client.get(path).status_code == 200, path
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
            check_error(client.get(path), 401, "Authorization: Bearer")
        response = client.post("/v1/segment", DATA)
        check_error(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer secret-2", "Bearer ", "secret-1", "Basic secret-1", "Bearer é"):
            headers = {"authorization": given.encode("latin-1")}
            assert client.get("/v1/models", headers=headers).status_code == 401, given
        headers = {"authorization": "Bearer secret-1"}
        paths = client.get("/openapi.json", headers=headers).json()["paths"]
        assert paths["/v1/segment"]["post"]["security"] == [{"token": []}]
        assert paths["/metrics"]["get"]["security"] == [{"token": []}]
        assert "security" not in paths["/readyz"]["get"]
        assert client.post("/v1/segment", DATA, headers=headers).status_code == 200


def test_a_server_that_is_about_to_stop(folder):
    with running(folder) as (client, service):
        assert client.get("/readyz").status_code == 200
        service.draining = True
        check_error(client.get("/readyz"), 503, "about to stop")
        assert client.get("/healthz").status_code == 200
        response = client.post("/v1/segment", DATA)
        check_error(response, 503, "about to stop")
        assert response.headers["connection"] == "close"


def test_a_new_version_serves_without_a_lost_request(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "street")
    with running(tmp_path / "street", Settings(address_share=1)) as (client, service):
        write_model(tmp_path / "street" / "2", shift=1)
        requests = [("POST", "/v1/segment", {"content": DATA})] * 30
        thread = threading.Thread(target=service.models.update)
        seen = set()
        while True:
            last = thread.ident is not None and not thread.is_alive()
            for response in client.together(*requests):
                version = int(response.headers["x-model-version"])
                seen.add(version)
                assert (decoded(response.content) == expected(IMAGE, version - 1)).all()
            if last:
                break
            if thread.ident is None:
                thread.start()
        assert seen == {1, 2}
        assert number(client, 'alignseg_model_version{model="street"}') == 2
        service.models.update()
        assert service.models.states() == {1: "idle", 2: "active"}


def test_the_log_has_a_line_a_request_if_it_is_asked_for(folder, caplog):
    caplog.set_level(logging.INFO, "alignseg_tf.serving")
    for verbose in (True, False):
        caplog.clear()
        with running(folder, verbose=verbose) as (client, _):
            client.get("/healthz%0aINFO forged")
        assert ("GET '/healthz\\nINFO forged' 404" in caplog.text) == verbose


@contextmanager
def listening(service):
    """The same with connections, in a thread; yields the address."""
    taken = serving_server.listening_socket("127.0.0.1", 0, service.settings.send_seconds)
    port = taken.getsockname()[1]
    config = serving_server.configuration(taken, service.settings)
    stop = threading.Event()

    async def until_stop():
        while not stop.is_set():
            await asyncio.sleep(0.02)

    run = hypercorn.serve(create_app(service), config, shutdown_trigger=until_stop)
    thread = threading.Thread(target=asyncio.run, args=[run])
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def test_clients_that_do_not_read_their_answer_are_cut_off(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "street")
    (tmp_path / "street" / "big.tflite").write_bytes(bytes(12_000_000))
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3)).astype(np.uint8)
    data = encoded(noise, compress_level=1)
    requests = (
        b"GET /v1/models/street/files/big.tflite HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/segment?format=overlay HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        % len(data) + data,
    )  # fmt: skip
    settings = Settings(send_seconds=0.5)
    with running(tmp_path / "street", settings) as (_, service), listening(service) as url:
        host, port = url.removeprefix("http://").split(":")
        for request in requests:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                client.settimeout(30)
                client.connect((host, int(port)))
                client.sendall(request)
                answer = client.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200")
                time.sleep(1.5)
                length = int(re.search(rb"content-length: (\d+)", answer)[1])
                with contextlib.suppress(ConnectionResetError):
                    while part := client.recv(2**20):
                        answer += part
                assert len(answer) < length
        answer = httpx.get(f"{url}/v1/models/street/files/big.tflite")
        assert len(answer.content) == 12_000_000
        assert httpx.post(f"{url}/v1/segment", content=data, timeout=60).status_code == 200


def test_what_comes_is_what_the_description_says(folder):
    """Bodies, parameters and headers that Schemathesis makes up, a few a route."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as few
    from hypothesis import strategies as st
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error, status_code_conformance, content_type_conformance,
        response_schema_conformance,
    ]  # fmt: skip
    there = {"name": "a street?", "version": "1", "file": "50% #1.tflite"}
    asked = set()
    both = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    with running(folder) as (_, service), listening(service) as url:
        api = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for result in api.get_all_operations():
            operation = result.ok()
            good, bad = (operation.as_strategy(generation_mode=mode) for mode in both)

            @few(
                max_examples=10, deadline=None, database=None, derandomize=True,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=good | bad, known=st.booleans())
            def ask(case, known):
                if known:
                    case.path_parameters.update({k: there[k] for k in case.path_parameters or {}})
                response = case.call_and_validate(checks=checks)
                asked.add((case.operation.path, response.status_code))

            ask()
    assert {path for path, _ in asked} == {
        "/healthz", "/readyz", "/metrics", "/v1/segment", "/v1/offsets", "/v1/models",
        "/v1/models/{name}/files/{file}",
    }  # fmt: skip
    assert {status for _, status in asked} >= {200, 404, 422}
