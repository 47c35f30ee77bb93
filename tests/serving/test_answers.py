import json
import struct

import numpy as np
import pytest
from serving_fixtures import SPACE, decoded

from alignseg_tf import visualization
from alignseg_tf.serving.answers import (
    MAX_VECTORS,
    fewer_vectors,
    offsets_answer,
    segment_answer,
)

coco = pytest.importorskip("pycocotools.mask")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (9, 7, 3)).astype(np.uint8)
CLASS_MAP = RNG.choice(np.array([0, 3], np.uint8), (9, 7))


def test_images():
    assert (decoded(segment_answer("classes", IMAGE, CLASS_MAP, SPACE, "m", 1)) == CLASS_MAP).all()
    overlay = decoded(segment_answer("overlay", IMAGE, CLASS_MAP, SPACE, "m", 1))
    assert (overlay == visualization.overlay(IMAGE, CLASS_MAP, SPACE.palette)).all()


def test_json_has_the_classes_that_occur_and_masks_that_coco_reads():
    made = json.loads(segment_answer("json", IMAGE, CLASS_MAP, SPACE, "street", 12))
    assert (made["model"], made["version"]) == ("street", "12")
    assert (made["width"], made["height"]) == (7, 9)
    assert [each["id"] for each in made["classes"]] == [0, 3]
    assert sum(each["share"] for each in made["classes"]) == pytest.approx(1)
    for each in made["classes"]:
        mask = each["id"] == CLASS_MAP
        assert each["name"] == SPACE.classes[each["id"]]
        assert tuple(each["color"]) == SPACE.palette[each["id"]]
        assert each["share"] == pytest.approx(mask.mean())
        code = coco.frPyObjects(each["segmentation"], 9, 7)
        assert (coco.decode(code) == mask).all()


def test_fields_become_smaller_and_keep_their_corners():
    y, x = np.mgrid[0:200, 0:90]
    field = np.stack([2.0 * x, 3.0 * y], -1).astype(np.float32)
    fewer = fewer_vectors(field)
    assert (fewer.shape, fewer.dtype) == ((MAX_VECTORS, MAX_VECTORS, 2), np.float32)
    y, x = np.mgrid[0:199:64j, 0:89:64j]
    assert np.allclose(fewer, np.stack([2 * x, 3 * y], -1), atol=1e-3)
    small = field[:5, :64]
    assert (fewer_vectors(small) == small).all()


def test_offsets_in_both_forms():
    fields = {
        "coarse": RNG.normal(size=(3, 5, 2)).astype(np.float32),
        "fine": RNG.normal(size=(4, 6, 2)).astype(np.float32),
    }
    made = json.loads(offsets_answer("json", fields, 60, 40, "street", 2))
    assert (made["width"], made["height"], made["version"]) == (60, 40, "2")
    assert [field.pop("name") for field in made["fields"]] == ["coarse", "fine"]
    for field, true in zip(made["fields"], fields.values(), strict=True):
        assert np.asarray(field["vectors"]).shape == (field["height"], field["width"], 2)
        assert np.allclose(field["vectors"], true, atol=5e-4)
    data = offsets_answer("binary", fields, 60, 40, "street", 2)
    (length,) = struct.unpack_from("<I", data)
    assert length % 4 == 0
    head = json.loads(data[4 : 4 + length])
    place = 4 + length
    for described, true in zip(head["fields"], fields.values(), strict=True):
        count = described["height"] * described["width"] * 2
        assert (np.frombuffer(data, "<f4", count, place) == true.ravel()).all()
        place += 4 * count
    assert place == len(data)
