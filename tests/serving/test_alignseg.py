"""The server on a SavedModel that `export` wrote."""

import numpy as np
import pytest
from conftest import CLASSES, random_images, tiny_model
from serving_fixtures import decoded, encoded, running

from alignseg_tf import Predictor
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.export import export_saved_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "street"
    model = tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    export_saved_model(model, folder / "1")
    return folder, Predictor(model)


def test_answers_are_those_of_the_model(exported):
    folder, predictor = exported
    with running(folder) as (client, _):
        (described,) = client.get("/v1/models").json()["models"]
        assert [each["name"] for each in described["classes"]] == list(CLASSES)
        assert {"serving_default", "serve_bytes", "logits"} <= set(described["signatures"])
        images = [*random_images(3, 64, 96), random_images(1, 50, 33)[0]]
        truth = [predictor.class_map(image) for image in images]
        assert len(np.unique(truth[0])) > 1
        requests = [("POST", "/v1/segment", {"content": encoded(image)}) for image in images]
        for response, class_map in zip(client.together(*requests), truth, strict=True):
            assert (decoded(response.content) == class_map).mean() > 0.999
        if "offsets" in described["signatures"]:
            fields = client.post("/v1/offsets", encoded(images[0])).json()["fields"]
            assert fields
            for field in fields:
                shape = (field["height"], field["width"], 2)
                assert np.shape(field["vectors"]) == shape
                assert max(shape[:2]) <= 64


@pytest.mark.parametrize(
    "options",
    [{}, {"image_size": (64, 96)}, {"image_size": (64, 96), "operations": "fused"}],
    ids=["any size", "one size", "fused"],
)
def test_every_form_that_export_writes_is_served(tmp_path, options):
    model = tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    export_saved_model(model, tmp_path / "street" / "1", **options)
    image, predictor = random_images(1, 64, 96)[0], Predictor(model)
    with running(tmp_path / "street") as (client, _):
        answer = client.post("/v1/segment", encoded(image))
        assert (decoded(answer.content) == predictor.class_map(image)).mean() > 0.999
        (described,) = client.get("/v1/models").json()["models"]
        other = client.post("/v1/segment", encoded(random_images(1, 64, 97)[0]))
        if "image_size" in options:
            assert described["input"]["size"] == [64, 96]
            assert other.status_code == 422
            assert "Expected an image of 96 x 64 pixels" in other.json()["error"]
        else:
            assert described["input"]["size"] is None
            assert other.status_code == 200
