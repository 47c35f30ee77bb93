import base64
import json

import numpy as np
import pytest
from serving_fixtures import (
    POISON,
    decoded,
    encoded,
    expected,
    picture,
    running,
    write_model,
)

from alignseg_tf.serving.settings import Settings
from alignseg_tf.serving.tf_serving import pixels_of

URL = "/v1/models/street:predict"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "street"
    folder.mkdir()
    write_model(folder / "3")
    with running(folder, Settings(max_pixels=100 * 100)) as (client, service):
        yield client, service


@pytest.fixture(scope="module")
def client(server):
    return server[0]


def ask(client, content, url=URL):
    body = content if isinstance(content, bytes) else json.dumps(content)
    return client.post(url, body, headers={"content-type": "application/json"})


def b64(data: bytes) -> dict:
    return {"b64": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("key", "named", "answer"),
    [
        ("instances", False, "predictions"),
        ("instances", True, "predictions"),
        ("inputs", False, "outputs"),
        ("inputs", True, "outputs"),
    ],
)
def test_pictures_as_lists(client, key, named, answer):
    images = np.stack([picture(32, 40), picture(32, 40, seed=1)])
    values = images.tolist()
    if named:
        values = [{"images": row} for row in values] if key == "instances" else {"images": values}
    for url in (URL, "/v1/models/street/versions/3:predict"):
        response = ask(client, {key: values}, url)
        assert response.status_code == 200, response.text
        assert list(response.json()) == [answer]
        assert (np.array(response.json()[answer]) == expected(images)).all()


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_pictures_as_bytes(client, key, named):
    images = picture(32, 40), picture(50, 33, seed=1)
    values = [b64(encoded(image)) for image in images]
    if named and key == "instances":
        values = [{"image_bytes": value} for value in values]
    elif named:
        values = {"image_bytes": values}
    response = ask(client, {"signature_name": "serve_bytes", key: values})
    assert response.status_code == 200, response.text
    (made,) = response.json().values()
    for entry, image in zip(made, images, strict=True):
        assert list(entry) == ["b64"]
        assert (decoded(base64.b64decode(entry["b64"])) == expected(image)).all()


def test_several_outputs_have_names(client):
    images = picture(32, 40)[None]
    rows = ask(client, {"signature_name": "offsets", "instances": images.tolist()}).json()
    assert set(rows["predictions"][0]) == {"coarse", "fine"}
    assert np.shape(rows["predictions"][0]["fine"]) == (32, 40, 2)
    columns = ask(client, {"signature_name": "offsets", "inputs": images.tolist()}).json()
    assert np.shape(columns["outputs"]["fine"]) == (1, 32, 40, 2)


def test_floating_point_inputs(client):
    images = picture(32, 40)[None] / 2
    response = ask(client, {"signature_name": "logits", "instances": images.tolist()})
    assert np.allclose(response.json()["predictions"], images[:, ::4, ::4] / 256)


GOOD = np.zeros((1, 32, 32, 3), int).tolist()


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "Expected JSON"),
        (b"\xff", 400, "Expected JSON"),
        (b"[" * 100_000, 400, "Expected JSON"),
        (b'{"instances": [' + b"1" * 5000 + b"]}", 400, "Expected JSON"),
        ([], 400, "'instances' or 'inputs'. Received: list"),
        ({}, 400, "'instances' or 'inputs'"),
        ({"instances": GOOD, "inputs": GOOD}, 400, "'instances' or 'inputs'"),
        ({"instances": []}, 400, "one row or more"),
        ({"instances": {}}, 400, "one row or more"),
        ({"inputs": GOOD, "signature_name": 3}, 400, "Expected a text"),
        ({"inputs": GOOD, "signature_name": "x"}, 400, "a signature of logits, offsets, serve_b"),
        ({"inputs": {"other": GOOD}}, 400, "Expected the inputs ['images']. Received: ['other']"),
        ({"instances": [{"images": GOOD[0]}, 3]}, 400, "Expected the inputs ['images']"),
        ({"inputs": "text"}, 400, "images: expected whole numbers"),
        ({"inputs": None}, 400, "images: expected whole numbers"),
        ({"inputs": 5}, 400, "expected the shape (None, None, None, 3). Received: []"),
        ({"inputs": [[[[1, 2], [3]]]]}, 400, "numbers of one shape"),
        ({"inputs": np.full((1, 32, 32, 3), 256).tolist()}, 400, "0 to 255. Received: 256 to 256"),
        ({"inputs": np.full((1, 32, 32, 3), -1).tolist()}, 400, "0 to 255"),
        ({"inputs": np.full((1, 32, 32, 3), 0.5).tolist()}, 400, "expected whole numbers"),
        ({"inputs": np.full((1, 32, 32, 3), True).tolist()}, 400, "expected whole numbers"),
        ({"inputs": np.zeros((1, 32, 32, 4), int).tolist()}, 400, "expected the shape"),
        ({"inputs": np.zeros((1, 31, 32, 3), int).tolist()}, 400, "sides of 32 pixels at least"),
        ({"inputs": np.zeros((10, 32, 32, 3), int).tolist()}, 413, "10000 pixels at most"),
        ({"inputs": [[[[10**30, 0, 0]]]]}, 400, "images: expected"),
    ],
)
def test_bodies_that_are_refused(client, content, status, message):
    response = ask(client, content)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("value", "status", "message"),
    [
        (b64(b""), 422, "empty"),
        (b64(b"GIF89a"), 415, "Expected JPEG, PNG, BMP"),
        (b64(encoded(picture(101, 100))), 413, "100 x 101 = 10100 pixels"),
        (b64(encoded(picture(30, 40))), 422, "sides of 32"),
        (b64(encoded(picture()))["b64"], 400, "expected {'b64': ...}. Received: str"),
        ({"b64": "*"}, 400, "expected base64"),
        ({"b64": 5}, 400, "expected {'b64': ...}"),
        (5, 400, "expected {'b64': ...}"),
        (b64(encoded(picture())[:300]), 400, "The model refuses this"),
    ],
)
def test_bytes_that_are_refused(client, value, status, message):
    response = ask(client, {"signature_name": "serve_bytes", "instances": [value]})
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


def test_pixels_of_all_pictures_count_together(client):
    values = [b64(encoded(picture(60, 60)))] * 3
    response = ask(client, {"signature_name": "serve_bytes", "inputs": values})
    assert response.status_code == 413
    assert "10000 pixels at most in all" in response.json()["error"]


def test_requests_wait_in_the_same_queue(server):
    client, service = server
    assert pixels_of({"images": np.zeros((2, 5, 7, 3), np.uint8)}) == 70
    assert pixels_of({"images": np.zeros((2, 5, 7, 3), np.float32)}) == 280
    assert pixels_of({"image_bytes": np.array([b"123", b"123456"], object)}) == 3
    with service.room(Settings().max_queue_pixels - 100):
        response = ask(client, {"inputs": GOOD})
    assert response.status_code == 429
    assert ask(client, {"inputs": GOOD}).status_code == 200


def test_what_the_model_refuses_is_the_clients_mistake(client):
    image = picture(32, 32)
    image[0, 0] = POISON
    response = ask(client, {"inputs": image[None].tolist()})
    assert response.status_code == 400
    assert "poison" in response.json()["error"]


def test_other_models_and_versions_are_not_there(client):
    for url in ("/v1/models/other:predict", "/v1/models/street/versions/4:predict",
                "/v1/models/street/versions/x:predict", "/v1/models/street/versions/³:predict",
                f"/v1/models/street/versions/{'9' * 5000}:predict"):  # fmt: skip
        response = ask(client, {"inputs": GOOD}, url)
        assert response.status_code == 404, url
        assert list(response.json()) == ["error"]
    for url in ("/v1/models/other", "/v1/models/street/versions/4", "/v1/models/other/metadata",
                "/v1/models/street/versions/4/metadata"):  # fmt: skip
        assert client.get(url).status_code == 404, url


def test_status(client):
    state = {"version": "3", "state": "AVAILABLE"}
    state["status"] = {"error_code": "OK", "error_message": ""}
    for url in ("/v1/models/street", "/v1/models/street/versions/3"):
        assert client.get(url).json() == {"model_version_status": [state]}


def test_metadata(client):
    for url in ("/v1/models/street/metadata", "/v1/models/street/versions/3/metadata"):
        content = client.get(url).json()
        assert content["model_spec"] == {"name": "street", "signature_name": "", "version": "3"}
        signatures = content["metadata"]["signature_def"]["signature_def"]
        assert set(signatures) == {"serving_default", "serve_bytes", "logits", "offsets"}
        images = signatures["serving_default"]["inputs"]["images"]
        assert images["dtype"] == "DT_UINT8"
        assert [dim["size"] for dim in images["tensor_shape"]["dim"]] == ["-1", "-1", "-1", "3"]
        assert signatures["logits"]["outputs"]["logits"]["dtype"] == "DT_FLOAT"
        assert signatures["serve_bytes"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
