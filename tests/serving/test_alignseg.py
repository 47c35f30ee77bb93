"""The server on a SavedModel that `export` wrote."""

import numpy as np
import pytest
from conftest import CLASSES, random_images, shared_tiny_model
from serving_fixtures import decoded, encoded, running

from alignseg_tf import Predictor
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.export import export_saved_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [{}, {"image_size": (64, 96)}, {"image_size": (64, 96), "operations": "fused"}],
    ids=["any size", "one size", "fused"],
)
def test_every_form_that_export_writes_is_served(tmp_path, options):
    model = shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    export_saved_model(model, tmp_path / "street" / "1", **options)
    images, other = random_images(2, 64, 96), random_images(1, 50, 33)[0]
    predictor = Predictor(model)
    with running(tmp_path / "street") as (client, _):
        (described,) = client.get("/v1/models").json()["models"]
        assert [each["name"] for each in described["classes"]] == list(CLASSES)
        requests = [("POST", "/v1/segment", {"content": encoded(x)}) for x in (*images, other)]
        *answers, last = client.together(*requests)
        for answer, image in zip(answers, images, strict=True):
            class_map = predictor.class_map(image)
            assert len(np.unique(class_map)) > 1
            assert (decoded(answer.content) == class_map).mean() > 0.999
        if "offsets" in described["signatures"]:
            fields = client.post("/v1/offsets", encoded(images[0])).json()["fields"]
            assert fields
            for field in fields:
                shape = (field["height"], field["width"], 2)
                assert np.shape(field["vectors"]) == shape
                assert max(shape[:2]) <= 64
        if "image_size" in options:
            assert described["input"]["size"] == [64, 96]
            assert last.status_code == 422
            assert "Expected an image of 96 x 64 pixels" in last.json()["error"]
        else:
            assert described["input"]["size"] is None
            assert (decoded(last.content) == predictor.class_map(other)).mean() > 0.999
