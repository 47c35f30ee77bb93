import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from alignseg_tf.data.datasets.cityscapes import CITYSCAPES
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.outputs import (
    KINDS,
    Prediction,
    check_kinds,
    coco_data_set,
    polygons,
    run_lengths,
)
from alignseg_tf.preparation.annotations import read_coco
from alignseg_tf.preparation.importing import ImportOptions, write_import

SPACE = LabelSpace(("ground", "box", "disc"), ((90, 110, 90), (200, 60, 50), (60, 80, 220)))


@pytest.fixture
def prediction():
    rng = np.random.default_rng(0)
    class_map = np.kron(rng.integers(0, 2, (5, 7)), np.ones((3, 4), int)).astype(np.uint8) * 2
    class_map[4:6, 5:9] = 1
    image = rng.integers(0, 256, (*class_map.shape, 3)).astype(np.uint8)
    scores = rng.random((*class_map.shape, 3)).astype(np.float32)
    return Prediction(
        image, class_map, SPACE, scores.max(-1), _compute_probabilities=lambda image: scores
    )


def test_every_kind_is_written_and_holds_the_prediction(prediction, tmp_path):
    kinds = [kind for kind in KINDS if kind != "cityscapes"]
    written = prediction.save(tmp_path / "out", "street", kinds)
    assert [path.name for path in written] == [
        "street_classes.png", "street_color.png", "street_overlay.png", "street_side_by_side.png",
        "street_probabilities.npz", "street_coco.json", "street_polygons.geojson",
    ]  # fmt: skip
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)  # no temporary file is left
    with Image.open(written[0]) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), prediction.class_map)
    drawn = (
        np.array(SPACE.palette)[prediction.class_map],
        prediction.overlay(),
        prediction.side_by_side(),
    )
    for path, expected in zip(written[1:4], drawn, strict=True):
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)
    assert prediction.side_by_side().shape[1] == 2 * 28 + 4
    with np.load(written[4], allow_pickle=False) as content:
        np.testing.assert_allclose(content["probabilities"], prediction.probabilities, atol=1e-3)
        assert content["classes"].tolist() == list(SPACE.classes)
    assert json.loads(written[5].read_text())["images"][0]["file_name"] == "street"
    assert json.loads(written[6].read_text())["type"] == "FeatureCollection"


def test_run_lengths():
    assert run_lengths(np.zeros((2, 3), bool)) == [6]
    assert run_lengths(np.ones((2, 3), bool)) == [0, 6]
    assert run_lengths(np.array([[0, 1, 1], [0, 0, 1]], bool)) == [2, 1, 1, 2]


def test_coco_is_what_pycocotools_reads(prediction, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    (path,) = prediction.save(tmp_path, "street", ["coco"])
    opened = coco.COCO(str(path))
    names = [category["name"] for category in opened.loadCats(opened.getCatIds())]
    assert names == list(SPACE.classes)
    found = np.full(prediction.class_map.shape, 255, np.uint8)
    for annotation in opened.loadAnns(opened.getAnnIds()):
        assert annotation["iscrowd"] == 0
        mask = opened.annToMask(annotation).astype(bool)
        assert mask.sum() == annotation["area"]
        left, top, width, height = annotation["bbox"]
        inside = np.zeros_like(mask)
        inside[top : top + height, left : left + width] = True
        assert not (mask & ~inside).any()
        found[mask] = annotation["category_id"] - 1
    np.testing.assert_array_equal(found, prediction.class_map)
    prediction.class_map[prediction.class_map == 1] = 0
    annotations = coco_data_set(prediction)["annotations"]
    assert [(a["id"], a["category_id"]) for a in annotations] == [(1, 1), (2, 3)]


def test_coco_is_imported_as_the_same_labels(prediction, tmp_path):
    enlarged = np.kron(prediction.class_map, np.ones((4, 4), np.uint8))
    image = np.kron(prediction.image, np.ones((4, 4, 1), np.uint8))
    (tmp_path / "images/city").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "images/city/street.png")
    made = replace(prediction, image=image, class_map=enlarged, file_name="city/street.png")
    (path,) = made.save(tmp_path, "street", ["coco"])
    options = ImportOptions(split="train", unlabelled="void")
    report = write_import(read_coco(path, tmp_path / "images"), tmp_path / "out", options)
    with Image.open(tmp_path / "out/labels/train/city/street.png") as label:
        np.testing.assert_array_equal(np.asarray(label), enlarged)
    assert report.label_space.classes == SPACE.classes


def test_polygons_cover_the_image_exactly(prediction):
    features = pytest.importorskip("rasterio.features")
    content = polygons(prediction.class_map, SPACE)
    shapes = [(f["geometry"], f["properties"]["class_id"]) for f in content["features"]]
    drawn = features.rasterize(shapes, prediction.class_map.shape, fill=255)
    np.testing.assert_array_equal(drawn, prediction.class_map)
    areas = np.zeros(3)
    for feature in content["features"]:
        assert feature["properties"]["class"] == SPACE.classes[feature["properties"]["class_id"]]
        areas[feature["properties"]["class_id"]] += feature["properties"]["area"]
    np.testing.assert_array_equal(areas, np.bincount(prediction.class_map.ravel(), minlength=3))


def test_polygons_know_holes():
    pytest.importorskip("rasterio")
    class_map = np.zeros((6, 8), np.uint8)
    class_map[1:5, 2:6] = 1
    class_map[2:4, 3:5] = 0
    features = polygons(class_map, SPACE)["features"]
    (ring,) = (feature for feature in features if feature["properties"]["class_id"] == 1)
    outer, inner = (np.array(x) for x in ring["geometry"]["coordinates"])
    assert ring["properties"]["area"] == 12
    np.testing.assert_array_equal(outer.min(0), [2, 1])  # x first, along the pixels' edges
    np.testing.assert_array_equal(outer.max(0), [6, 5])
    np.testing.assert_array_equal(inner.min(0), [3, 2])


def test_cityscapes_ids(tmp_path):
    class_map = np.arange(19, dtype=np.uint8).reshape(1, 19)
    prediction = Prediction(np.zeros((1, 19, 3), np.uint8), class_map, CITYSCAPES)
    (path,) = prediction.save(tmp_path, "bonn_000000_000019_leftImg8bit", ["cityscapes"])
    assert path.name == "bonn_000000_000019_leftImg8bit_labelIds.png"
    with Image.open(path) as image:
        expected = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
        assert np.asarray(image)[0].tolist() == expected


def test_kinds_that_cannot_be_written_are_refused_before_anything_is(
    prediction, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match="`kinds` must be of classes, .* Received: image"):
        prediction.save(tmp_path, "a", ["classes", "image"])
    with pytest.raises(ValueError, match="must have its 19 classes. Received: ground, box, disc"):
        prediction.save(tmp_path, "a", ["classes", "cityscapes"])
    with pytest.raises(ValueError, match="`probabilities` needs a model with logits"):
        check_kinds(["probabilities"], SPACE, gives_probabilities=False)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImportError, match="pip install rasterio"):
        prediction.save(tmp_path, "a", ["classes", "polygons"])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(prediction, tmp_path, monkeypatch):
    (path,) = prediction.save(tmp_path, "a", ["classes"])
    before = path.read_bytes()

    def fail(self, *arguments, **options):
        raise OSError("no luck")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no luck"):
        prediction.save(tmp_path, "a", ["classes"])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a_classes.png"]
