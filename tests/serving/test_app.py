import asyncio
import contextlib
import json
import logging
import re
import shutil
import socket
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "street"
    write_model(folder / "1")
    (folder / "street.tflite").write_bytes(bytes(range(100)))
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
    image = noise_image()
    data = encoded(image)
    response = client.post("/v1/segment", data, headers={"content-type": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-model-version"] == "1"
    assert len(response.headers["x-request-id"]) == 16
    others = (
        {"content": data},
        {"content": data, "headers": {"content-type": "application/octet-stream"}},
        {"files": {"image": ("a.png", data, "image/png")}},
        {"files": {"other": ("a.png", data)}, "data": {"note": "x"}},
    )
    for each in (response, *client.together(*(("POST", "/v1/segment", o) for o in others))):
        assert each.status_code == 200
        assert (decoded(each.content) == expected(image)).all()


def test_segment_in_other_forms(client):
    image = noise_image()
    data = encoded(image)
    overlay = client.post("/v1/segment?format=overlay", data)
    painted = visualization.overlay(image, expected(image), SPACE.palette)
    assert (decoded(overlay.content) == painted).all()
    made = client.post("/v1/segment?format=json", data)
    assert made.headers["content-type"] == "application/json"
    content = made.json()
    assert (content["model"], content["version"]) == ("street", "1")
    assert [each["name"] for each in content["classes"]] == list(SPACE.classes)
    check_error(client.post("/v1/segment?format=gif", data), 422, "format", "'overlay'")


def test_segment_says_what_was_wrong(client):
    data = encoded(noise_image())
    before = number(client, 'alignseg_rejected_total{reason="damaged"}')
    check_error(client.post("/v1/segment"), 422, "an empty body")
    check_error(client.post("/v1/segment", data[:200]), 422, "truncated or damaged")
    check_error(client.post("/v1/segment", b"GIF89a"), 415, "Expected JPEG, PNG")
    json_type = {"content-type": "application/json"}
    check_error(
        client.post("/v1/segment", b"{}", headers=json_type), 415, "Content-Type image/jpeg"
    )
    small = encoded(noise_image(20, 90))
    check_error(client.post("/v1/segment", small), 422, "least 32", "90 x 20")
    assert number(client, 'alignseg_rejected_total{reason="damaged"}') == before + 2


def test_only_the_image_that_the_model_refuses_fails(client):
    before = number(client, "alignseg_images_total")
    images = [noise_image(seed=seed) for seed in range(4)]
    images[0][0, 0] = POISON
    requests = [("POST", "/v1/segment", {"content": encoded(image)}) for image in images]
    bad, *good = client.together(*requests)
    for response, image in zip(good, images[1:], strict=True):
        assert (decoded(response.content) == expected(image)).all()
    check_error(bad, 422, "The model refuses this", "poison")
    assert number(client, "alignseg_images_total") == before + 3
    assert number(client, "alignseg_inference_seconds_count") == before + 3


def test_logits_that_are_not_finite_are_an_error_with_model_and_image(client, caplog):
    response = client.post("/v1/segment", encoded(np.full((40, 56, 3), 200, np.uint8)))
    assert (decoded(response.content) == 3).all()
    response = client.post("/v1/segment", encoded(np.full((40, 56, 3), NOT_FINITE, np.uint8)))
    check_error(response, 500, "street, version 1", "finite outputs", "56 x 40 pixels")
    assert "street, version 1: expected finite outputs" in caplog.text


def test_offsets(client):
    data = encoded(noise_image(200, 120))
    made = client.post("/v1/offsets", data).json()
    assert (made["width"], made["height"], made["model"]) == (120, 200, "street")
    fields = {field["name"]: np.asarray(field["vectors"]) for field in made["fields"]}
    assert fields["coarse"].shape == (25, 15, 2)
    assert fields["coarse"][-1, -1].tolist() == [112, 192]
    assert fields["fine"].shape == (64, 64, 2)
    assert fields["fine"][-1, -1].tolist() == [119, 199]
    binary = client.post("/v1/offsets?format=binary", data)
    assert binary.headers["content-type"] == "application/octet-stream"
    assert len(binary.content) > 8 * (25 * 15 + 64 * 64)


def test_models_without_offsets_say_so(tmp_path):
    write_model(tmp_path / "plain" / "1", offsets=False)
    with running(tmp_path / "plain") as (client, _):
        response = client.post("/v1/offsets", encoded(noise_image()))
        check_error(response, 404, "no signature 'offsets', only logits, serve_bytes, serving_def")


def test_models(client):
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["active"]) == ("street", "1")
    assert model["versions"] == [{"version": "1", "state": "active"}]
    assert [each["name"] for each in model["classes"]] == list(SPACE.classes)
    assert model["signatures"] == ["logits", "offsets", "serve_bytes", "serving_default"]
    assert model["input"]["min_side"] == 32
    assert model["input"]["max_pixels"] == Settings().max_pixels
    (file,) = model["files"]
    assert (file["name"], file["bytes"]) == ("street.tflite", 100)
    assert client.get(file["url"]).content == bytes(range(100))
    part = client.get(file["url"], headers={"range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == bytes(range(10, 20))
    assert client.get(file["url"], headers={"range": "bytes=200-"}).status_code == 416


def test_paths_lead_nowhere_else(client):
    for path in (
        "/v1/models/street/files/MODEL_CARD.md",
        "/v1/models/street/files/..%2f..%2fx.tflite",
        "/v1/models/street/files/../MODEL_CARD.md",
        "/v1/models/other/files/street.tflite",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2f%2e%2e%2fmodel.py",
        "/static//etc/passwd",
        "/litert/x",
        "/docs",
        "/nothing",
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
    with running(folder, Settings(max_bytes=1000)) as (client, service):
        check_error(
            client.post("/v1/segment", bytes(1001)), 413,
            "Expected a body of at most 1000 bytes. Received: Content-Length: 1001",
        )  # fmt: skip
        sent = []

        async def endless():
            while True:
                sent.append(1)
                yield bytes(300)

        # The rest is read for a while, so that the client gets to read the answer.
        response = client.post("/v1/segment", endless())
        check_error(response, 413, "at most 1000 bytes. Received: more")
        assert response.headers["connection"] == "close"
        assert 100 < len(sent) < 300_000
        assert service.bodies.total == 0


def test_slow_bodies_are_refused(folder):
    async def slow():
        yield b"\x89PNG"
        await asyncio.sleep(60)
        yield b""

    with running(folder, Settings(read_seconds=0.2)) as (client, _):
        response = client.post("/v1/segment", slow())
        check_error(response, 408, "within 0.2 s. Received: 4 bytes")


def test_memory_of_bodies_is_limited_over_all_requests(folder):
    async def slow():
        for _ in range(3):
            yield bytes(400)
            await asyncio.sleep(0.2)

    settings = Settings(max_bytes=1500, max_body_memory=1500, read_seconds=10)
    with running(folder, settings) as (client, service):
        codes = [
            response.status_code
            for response in client.together(
                *(("POST", "/v1/segment", {"content": slow()}) for _ in range(2))
            )
        ]
        assert sorted(codes) == [415, 503]
        assert service.bodies.total == 0


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
    data = encoded(noise_image(40, 56))
    settings = Settings(**limits, request_seconds=1, address_share=1)
    with running(folder, settings) as (client, service):
        go = hold(service)
        responses = client.together(*[("POST", "/v1/segment", {"content": data})] * 3)
        go.set()
        assert sorted(response.status_code for response in responses) == [429, 504, 504]
        full = next(response for response in responses if response.status_code == 429)
        check_error(full, 429, message)
        assert full.headers["retry-after"] == "1"
        assert service.images.total == service.pixels.total == 0
        assert client.post("/v1/segment", data).status_code == 200
        assert number(client, 'alignseg_rejected_total{reason="time"}') == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://elsewhere.example"}, 403), ({"origin": "null"}, 403),
        ({"origin": "http://here:8081"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://here"}, 403),
        ({}, 200), ({"origin": "http://here"}, 200), ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)  # fmt: skip
def test_pages_of_other_sites_do_not_use_the_server(client, headers, status):
    form = {"files": {"image": ("a.png", encoded(noise_image()))}}
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
            for path in ("/v1/models", "/metrics", "/", "/v1/models/street/files/street.tflite"):
                response = client.get(path, headers={"host": host})
                assert response.status_code == 400, (host, path)


def test_one_address_leaves_room_for_others(folder):
    """Each limit has a part that one address cannot use; probes need no place."""
    settings = Settings(max_requests=4, max_body_memory=4000, max_bytes=2000, read_seconds=5)
    with running(folder, settings) as (client, service):
        app = create_app(service)

        def asked(address: str) -> Client:
            return Client(app, client._runner, (address, 1))

        held = threading.Event()

        async def slow(size: int):
            yield bytes(size)
            while not held.is_set():
                await asyncio.sleep(0.01)

        async def many():
            first, second = asked("192.0.2.1")._client, asked("192.0.2.2")._client
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

        codes, slow_codes = client._runner.run(many())
        assert codes == [503, 200, 200, 415]
        assert slow_codes == [415, 415]
        assert service.requests.total == service.bodies.total == 0


def test_addresses_of_one_network_count_as_one():
    assert address_of(("192.0.2.7", 1)) == "192.0.2.7"
    assert address_of(("::ffff:192.0.2.7", 1)) == "192.0.2.7"
    one, two = address_of(("2001:db8::1", 1)), address_of(("2001:db8::2:1", 1))
    assert one == two
    assert address_of(("2001:db8:0:1::1", 1)) != one
    assert address_of(("fe80::1%eth0", 1)) == "fe80::/64"
    assert address_of(None) == address_of(("", 0)) == ""


# Starlette leaves the file of a truncated form to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_forms_that_are_refused(client):
    data = encoded(noise_image())
    one = ("image", ("a.png", data))
    for options, message in (
        ({"files": [one, one]}, "Too many files"),
        ({"files": [("a", (None, "no file"))]}, "0 files"),
        ({"files": [one], "data": {str(n): "x" for n in range(20)}}, "Too many fields"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}},
            "Expected a form with one file",
        ),
    ):
        check_error(client.together(("POST", "/v1/segment", options))[0], 422, message)
    whole = client._client.build_request("POST", "/v1/segment", files=[one])
    truncated = client.post(
        "/v1/segment", whole.read()[:200], headers={"content-type": whole.headers["content-type"]}
    )
    check_error(truncated, 422, "Expected a form with one file")


def test_names_in_addresses_are_quoted(folder, tmp_path):
    odd = tmp_path / "a street?"
    shutil.copytree(folder, odd)
    (odd / "50% #1.tflite").write_bytes(b"odd")
    with running(odd) as (client, _):
        files = {f["name"]: f["url"] for f in client.get("/v1/models").json()["models"][0]["files"]}
        assert files["50% #1.tflite"] == "/v1/models/a%20street%3F/files/50%25%20%231.tflite"
        assert client.get(files["50% #1.tflite"]).content == b"odd"


def test_a_folder_that_is_away_leaves_the_loaded_version(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "street")
    with running(tmp_path / "street") as (client, service):
        (tmp_path / "street").rename(tmp_path / "away")
        service.models.update()
        service.models.update()
        (model,) = client.get("/v1/models").json()["models"]
        assert model["versions"] == [{"version": "1", "state": "active"}]
        assert model["files"] == []
        assert client.post("/v1/segment", encoded(noise_image())).status_code == 200


def test_clients_that_go_away_are_not_served(server, monkeypatch):
    client, service = server
    go = hold(service)
    before = number(client, "alignseg_images_total")
    gone = number(client, 'alignseg_requests_total{route="/v1/segment",status="499"}')

    async def leave():
        messages = [{"type": "http.request", "body": encoded(noise_image()), "more_body": False}]
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
        await create_app(service)(scope, receive, send)
        return sent

    assert client._runner.run(leave()) == []
    go.set()
    assert client.post("/v1/segment", encoded(noise_image())).status_code == 200
    assert number(client, "alignseg_images_total") == before + 1
    name = 'alignseg_requests_total{route="/v1/segment",status="499"}'
    assert number(client, name) == gone + 1


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
    response = client.post("/v1/segment", encoded(noise_image()))
    request_id = response.headers["x-request-id"]
    check_error(response, status, message or request_id)
    assert (f"request {request_id} failed" in caplog.text) == (status == 500)


def test_the_token(folder):
    with running(folder, token=b"secret-1") as (client, _):
        for path in ("/", "/healthz", "/readyz", "/static/index.html"):
            assert client.get(path).status_code == 200, path
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
            check_error(client.get(path), 401, "Authorization: Bearer")
        response = client.post("/v1/segment", encoded(noise_image()))
        check_error(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer secret-2", "Bearer ", "secret-1", "Basic secret-1", "Bearer é"):
            headers = {"authorization": given.encode("latin-1")}
            assert client.get("/v1/models", headers=headers).status_code == 401, given
        headers = {"authorization": "Bearer secret-1"}
        document = client.get("/openapi.json", headers=headers).json()
        assert document["security"] == [{"token": []}]
        assert document["paths"]["/readyz"]["get"]["security"] == []
        assert client.get("/v1/models", headers=headers).status_code == 200
        assert (
            client.post("/v1/segment", encoded(noise_image()), headers=headers).status_code == 200
        )


def test_a_server_that_is_about_to_stop(folder):
    with running(folder) as (client, service):
        assert client.get("/readyz").status_code == 200
        service.draining = True
        check_error(client.get("/readyz"), 503, "about to stop")
        assert client.get("/healthz").status_code == 200
        response = client.post("/v1/segment", encoded(noise_image()))
        check_error(response, 503, "about to stop")
        assert response.headers["connection"] == "close"


def test_a_new_version_serves_without_a_lost_request(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "street")
    with running(tmp_path / "street", Settings(address_share=1)) as (client, service):
        image = noise_image()
        write_model(tmp_path / "street" / "2", shift=1)
        requests = [("POST", "/v1/segment", {"content": encoded(image)})] * 60
        thread = threading.Thread(target=service.models.update)
        seen = set()
        while True:
            last = thread.ident is not None and not thread.is_alive()
            for response in client.together(*requests):
                version = int(response.headers["x-model-version"])
                seen.add(version)
                assert (decoded(response.content) == expected(image, version - 1)).all()
            if last:
                break
            if len(seen) == 1 and thread.ident is None:
                thread.start()
        assert seen == {1, 2}
        assert number(client, 'alignseg_model_version{model="street"}') == 2
        service.models.update()
        assert service.models.states() == {1: "idle", 2: "active"}


def test_the_log_has_a_line_a_request_if_it_is_asked_for(folder, caplog):
    caplog.set_level(logging.INFO, "alignseg_tf.serving")
    with running(folder, verbose=True) as (client, _):
        client.get("/healthz%0aINFO forged")
        assert "GET '/healthz\\nINFO forged' 404" in caplog.text
    caplog.clear()
    with running(folder) as (client, _):
        client.get("/healthz")
    assert "healthz" not in caplog.text


def test_the_description_is_complete(client):
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {
        "/healthz", "/readyz", "/metrics", "/v1/segment", "/v1/offsets", "/v1/models",
        "/v1/models/{name}/files/{file}",
    }  # fmt: skip
    segment = api["paths"]["/v1/segment"]["post"]
    assert set(segment["responses"]["200"]["content"]) == {"image/png", "application/json"}
    assert {"408", "413", "415", "422", "429", "503", "504"} <= set(segment["responses"])
    for path in api["paths"].values():
        for operation in path.values():
            assert "HTTPValidationError" not in json.dumps(operation)


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

    app = create_app(service)
    run = hypercorn.serve(app, config, shutdown_trigger=until_stop)
    thread = threading.Thread(target=asyncio.run, args=[run])
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def test_clients_that_do_not_read_their_answer_are_cut_off(tmp_path):
    write_model(tmp_path / "street" / "1")
    (tmp_path / "street" / "big.tflite").write_bytes(bytes(12_000_000))
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3)).astype(np.uint8)
    data = encoded(noise)
    requests = (
        b"GET /v1/models/street/files/big.tflite HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/segment?format=overlay HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        % len(data) + data,
    )  # fmt: skip
    settings = Settings(send_seconds=0.5)
    with running(tmp_path / "street", settings) as (_, service), listening(service) as url:
        for request in requests:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                client.settimeout(30)
                host, port = url.removeprefix("http://").split(":")
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
        answer = httpx.post(f"{url}/v1/segment?format=overlay", content=data, timeout=60)
        assert answer.status_code == 200


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
                there = {"name": "street", "version": "1", "file": "street.tflite"}
                if known:
                    case.path_parameters.update(
                        {key: there[key] for key in case.path_parameters or {}}
                    )
                response = case.call_and_validate(
                    checks=[
                        not_a_server_error, status_code_conformance, content_type_conformance,
                        response_schema_conformance,
                    ]
                )  # fmt: skip
                asked.add((case.operation.path, response.status_code))

            ask()
        document = httpx.get(f"{url}/openapi.json").json()
    assert {path for path, _ in asked} == set(document["paths"])
    assert {status for _, status in asked} >= {200, 404, 422}
