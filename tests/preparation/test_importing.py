import base64
import io
import json
import os
import shutil
import sys
import unicodedata
import zipfile

import numpy as np
import pytest
from conftest import random_images
from PIL import ExifTags, Image

from alignseg_tf.__main__ import main
from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.readers import load_image
from alignseg_tf.data.sources import open_data
from alignseg_tf.preparation.annotation_files import Invalid
from alignseg_tf.preparation.annotations import read_coco, read_cvat, read_labelme
from alignseg_tf.preparation.importing import ImportOptions, write_import
from alignseg_tf.system.files import RECORD_FILE

mask = pytest.importorskip("pycocotools.mask")

SIZE = (48, 64)


def save_image(path, size=SIZE, seed=0, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_images(1, *size, seed=seed)[0]).save(path, exif=exif)
    return path


def square(left, top, right, bottom):
    """A polygon along the edges of pixels."""
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(region):
    """COCO's uncompressed RLE, column after column, off first."""
    flat = np.concatenate([[0], region.T.ravel()])
    ends = np.flatnonzero(np.diff(flat))
    return np.diff([0, *ends, region.size]).tolist()


def files(root):
    """The contents of the files below a folder, but for the record of what was written."""
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name != RECORD_FILE}


def label_of(root, name, split="train"):
    return np.asarray(Image.open(root / "labels" / split / f"{name}.png"))


@pytest.fixture
def coco(tmp_path):
    """Three images, a table, a cup on it, a crowd: (write the file, its content, images)."""
    for number in range(3):
        save_image(tmp_path / "images" / "city" / f"{number}.png", seed=number)
    crowd = np.zeros(SIZE, np.uint8)
    crowd[30:40, 50:60] = 1
    rows = (
        (10, 3, 0, [square(10, 6, 14, 9), square(20, 6, 22, 9)]),
        (10, 7, 0, [square(4, 4, 40, 20)]),
        (10, 3, 1, {"size": list(SIZE), "counts": run_lengths(crowd)}),
        (11, 7, 0, [square(0, 0, 64, 48)]),
    )
    keys = ("id", "image_id", "category_id", "iscrowd", "segmentation")
    content = {
        "images": [
            {"id": 10 + i, "file_name": f"city/{i}.png", "height": 48, "width": 64}
            for i in range(3)
        ],
        "categories": [{"id": 7, "name": "table"}, {"id": 3, "name": "cup"}],
        "annotations": [
            dict(zip(keys, (i, *row), strict=True)) for i, row in enumerate(rows, start=1)
        ],
    }

    def write():
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path

    return write, content, tmp_path / "images"


def run(coco, output, invalid=None, **options):
    write, _, images = coco
    options = ImportOptions(**{"split": "train", **options})
    return write_import(read_coco(write(), images, invalid), output, options)


def fails(message):
    return pytest.raises(DataError, match=message)


def test_coco_becomes_a_folder_that_passes_the_check(coco, tmp_path):
    output = tmp_path / "out"
    report = run(coco, output)
    expected = np.zeros(SIZE, np.uint8)
    expected[30:40, 50:60] = 255
    expected[4:20, 4:40] = 1
    expected[6:9, 10:14] = expected[6:9, 20:22] = 2
    np.testing.assert_array_equal(label_of(output, "city/0"), expected)
    np.testing.assert_array_equal(label_of(output, "city/1"), np.ones(SIZE))
    np.testing.assert_array_equal(label_of(output, "city/2"), np.zeros(SIZE))
    assert files(output / "images/train") == files(coco[2])

    data = open_data(output)
    assert data.label_space.classes == ("background", "table", "cup")
    assert data.label_space.palette[0] == (0, 0, 0)
    summary = check_samples(data.samples("train"), data.label_space)
    np.testing.assert_array_equal(summary.pixels, report.pixels)
    assert summary.all_counts[:, -1].sum() == report.ignored == 100
    assert report.images == {"train": 3}


def test_small_objects_lie_over_large_ones_and_over_a_crowd(coco, tmp_path):
    crowd = np.zeros(SIZE, np.uint8)
    crowd[15:25, 30:34] = 1
    coco[1]["annotations"][2]["segmentation"]["counts"] = run_lengths(crowd)
    coco[1]["annotations"].reverse()
    run(coco, tmp_path / "out")
    label = label_of(tmp_path / "out", "city/0")
    assert label[7, 12] == 2
    assert (label[15:20, 30:34] == 1).all()
    assert (label[20:25, 30:34] == 255).all()


def test_unlabelled_and_void_classes(coco, tmp_path):
    report = run(coco, tmp_path / "out", unlabelled="void")
    assert report.label_space.classes == ("table", "cup")
    label = label_of(tmp_path / "out", "city/0")
    assert [label[0, 0], label[5, 5], label[7, 12]] == [255, 0, 1]
    assert "Left out: 1 images" in report.text()
    assert not (tmp_path / "out/images/train/city/2.png").exists()
    report = run(coco, tmp_path / "void", void=("table",))
    assert report.label_space.classes == ("background", "cup")
    label = label_of(tmp_path / "void", "city/0")
    assert [label[5, 5], label[7, 12], label[0, 0]] == [255, 1, 0]
    with fails("--void: expected names of classes: table, cup. Received: .'chair'"):
        run(coco, tmp_path / "out2", void=("chair",))


def test_compressed_and_plain_rle_are_the_same(coco, tmp_path):
    rng = np.random.default_rng(1)
    region = (random_images(1, *SIZE)[0, ..., 0] > 128).astype(np.uint8)
    region ^= rng.random(SIZE) < 0.02
    row = coco[1]["annotations"][3]
    for name, counts in (
        ("plain", run_lengths(region)),
        ("packed", mask.encode(np.asfortranarray(region))["counts"].decode()),
    ):
        row["segmentation"] = {"size": list(SIZE), "counts": counts}
        run(coco, tmp_path / name)
        np.testing.assert_array_equal(label_of(tmp_path / name, "city/1"), region)


def test_polygons_become_the_pixels_whose_centres_they_hold(coco, tmp_path):
    """A convex polygon against half planes; pycocotools may round within a pixel of the edge."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    angles = np.sort(np.random.default_rng(2).uniform(0, 2 * np.pi, 7))
    corners = np.stack([32 + 25 * np.cos(angles), 24 + 20 * np.sin(angles)], 1)
    distance = np.full(SIZE, np.inf)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        side = ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0)
        distance = np.minimum(distance, side)
    coco[1]["annotations"][3]["segmentation"] = [corners.ravel().tolist()]
    run(coco, tmp_path / "out")
    label = label_of(tmp_path / "out", "city/1")
    assert (distance > 1).sum() > 200
    assert label[distance > 1].all()
    assert not label[distance < -1].any()
    reference = mask.decode(mask.frPyObjects([corners.ravel().tolist()], *SIZE))[..., 0]
    np.testing.assert_array_equal(label, reference)


POLYGON = [square(4, 4, 40, 20)]
SEGMENTATIONS = {
    "expected a segmentation.*only a box": [],
    "expected at least 3 points. Received: 2": [[1, 1, 3, 3]],
    "expected a polygon as": [[1, 1, 3, 3, 1]],
    r"near the image of 64 x 48 pixels. Received: \[\[640.0, 0.0\]\]": [square(0, 0, 640, 480)],
    r"Received: \[\[nan, 1": [[1, 1, 3, 3, float("nan"), 1]],
    "expected an outline of at most 10000000 pixels": [[0, 0, 64, 48] * 80_000],
    "expected points as pairs of numbers": [[1, 1, 3, 3, 10**400, 1]],
    r"add up to 48 \* 64 pixels. Received: \[1000, 2\]": {"size": [48, 64], "counts": [1000, 2]},
    # 48 * 64 in 64 bits
    "that add up to 48 . 64 pixels": {
        "size": [48, 64], "counts": [2**63 - 1, 2**63 - 1, 2 + 48 * 64]
    },
    "whole numbers from 0 on": {"size": [48, 64], "counts": [-1, 3073]},
    r"whole numbers .* Received: \[1.5": {"size": [48, 64], "counts": [1.5, 3070.5]},
    r"broken RLE \(character 0x7e": {"size": [48, 64], "counts": "~~"},
    r"broken RLE \(character 0x6f": {"size": [48, 64], "counts": "o" * 10**6},
    "broken RLE .the last number is cut short": {"size": [48, 64], "counts": "o"},
    r"expected an RLE of size \[48, 64\]": {"size": [64, 48], "counts": "a"},
    "expected an RLE of size": {"size": 48, "counts": [3072]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ("images", {"file_name": "gone.png"}, "id 11: the image 'gone.png' is not"),
        ("images", {"file_name": "../a.png"}, "id 11: file_name: expected a path below"),
        ("images", {"file_name": None}, "id 11: file_name: expected a path below"),
        ("images", {"file_name": "city/.1.png"}, r"id 11: .* not hidden. Received: 'city/\.1\.png"),
        ("images", {"file_name": "city/0.png"}, "a second image city/0.png, beside"),
        ("images", {"height": 50}, r"id 11: .*\(48, 64\). Received: \(50, 64\)$"),
        ("images", {"height": "x"}, "id 11: expected whole height and width. Received: .'x', 64"),
        ("images", {"id": 10}, r"images\[1\], id 10: expected an id that no row"),
        ("categories", {"name": "table"}, "the categories 7 and 3 are both 'table'"),
        ("annotations", {"category_id": 5}, r"\[3\], id 4: .* a category, one of 7, 3. Rec.*: 5"),
        ("annotations", {"category_id": []}, r"the id of a category, .* Received: \[\]"),
        ("annotations", {"image_id": 5}, r"annotations\[3\], id 4: .* id of an image, .*: 5$"),
        ("annotations", {"iscrowd": "0"}, "id 4: expected iscrowd 0 or 1. Received: '0'"),
        *(
            ("annotations", {"segmentation": shape}, f"id 4: .*{message}")
            for message, shape in SEGMENTATIONS.items()
        ),
    ],
)
def test_coco_problems_are_named_and_nothing_is_written(coco, tmp_path, table, values, message):
    coco[1][table][3 if table == "annotations" else 1].update(values)
    shutil.copy(coco[2] / "city/1.png", coco[2] / "city/.1.png")
    with fails(message) as error:
        run(coco, tmp_path / "out")
    assert "instances.json" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "instances.json"]


def test_missing_tables_and_keys_are_named(coco, tmp_path):
    del coco[1]["images"][0]["id"]
    with fails(r"images\[0\] has no id"):
        run(coco, tmp_path / "out")
    del coco[1]["categories"]
    with fails("expected a list 'categories'"):
        run(coco, tmp_path / "out")


def test_whole_floats_are_numbers_and_ids_of_annotations_do_not_matter(coco, tmp_path):
    run(coco, tmp_path / "out")
    annotations = coco[1]["annotations"]
    for row in coco[1]["images"]:
        row.update(id=float(row["id"]), height=48.0, width=64.0)
    for row in annotations:
        row["category_id"] = float(row["category_id"])
    crowd = annotations[2]["segmentation"]
    crowd.update(size=[48.0, 64.0], counts=[float(run) for run in crowd["counts"]])
    annotations[0]["id"] = annotations[1]["id"]
    del annotations[2]["id"]
    run(coco, tmp_path / "floats")
    assert files(tmp_path / "floats") == files(tmp_path / "out")


def test_a_root_category_is_no_class_unless_it_is_used(coco, tmp_path):
    categories = coco[1]["categories"]
    for row in categories:
        row["supercategory"] = "things"
    root = {"id": 0, "name": "things", "supercategory": "none"}
    lamp = {"id": 9, "name": "lamp", "supercategory": "none"}
    coco[1]["categories"] = [root, *categories, lamp]
    report = run(coco, tmp_path / "out")
    assert report.label_space.classes == ("background", "table", "cup", "lamp")
    coco[1]["annotations"][3]["category_id"] = 0
    assert "things" in run(coco, tmp_path / "used").label_space.classes


@pytest.mark.parametrize(
    "name", ["CITY\\Straße.JPG", "/data/city/Straße.jpg", "C:\\city\\Straße.jpg"]
)
def test_images_of_coco_are_found_by_names_of_other_systems(coco, tmp_path, name):
    there = coco[2] / "city" / f"{unicodedata.normalize('NFD', 'Straße')}.jpg"
    (coco[2] / "city/1.png").rename(there)
    coco[1]["images"][1]["file_name"] = name
    run(coco, tmp_path / "out")
    assert (label_of(tmp_path / "out", "city/Straße") == 1).all()


def test_a_folder_of_images_one_level_off_is_named(coco, tmp_path):
    for row in coco[1]["images"]:
        row["file_name"] = row["file_name"].removeprefix("city/")
    with fails(r"there is .*city/0\.png, so try --images .*city$"):
        run(coco, tmp_path / "out")
    with fails("gone: no such folder"):
        read_coco(coco[0](), tmp_path / "gone")


def test_several_coco_files_are_one_import(coco, tmp_path):
    _, content, images = coco
    run(coco, tmp_path / "out")
    parts = []
    for number, image in enumerate(content["images"]):
        of_image = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        part = {**content, "images": [image], "annotations": of_image}
        parts.append(tmp_path / f"{number}.json")
        parts[-1].write_text(json.dumps(part))
    arguments = ["import", "coco", "--annotations", *map(str, parts), "--images", str(images)]
    assert main([*arguments, "--split", "train", "--output", str(tmp_path / "parts")]) == 0
    assert files(tmp_path / "parts/labels") == files(tmp_path / "out/labels")


# Skipping what is invalid


def test_invalid_annotations_are_skipped_when_asked(coco, tmp_path, capsys):
    write, content, images = coco
    content["annotations"][0]["segmentation"] = []
    content["annotations"].append({"id": 9, "image_id": 99, "category_id": 3})
    content["annotations"].append("nothing")
    (images / "city/2.png").unlink()
    (images / "city/1.png").write_bytes(b"nothing")
    arguments = [
        "import", "coco", "--annotations", str(write()), "--images", str(images),
        "--split", "train", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(arguments) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert main([*arguments, "--skip-invalid"]) == 1
    printed = capsys.readouterr().out
    assert "Skipped as invalid: 5" in printed
    skipped = json.loads((tmp_path / "out/import.json").read_text())["imports"][0]["skipped"]
    for place in ("annotations[0]", "annotations[4]", "annotations[5]", "images[1]", "images[2]"):
        assert any(place in problem for problem in skipped)
        assert place in printed
    label = label_of(tmp_path / "out", "city/0")
    assert label[10, 20] == 1
    assert not (label == 2).any()
    assert [path.name for path in (tmp_path / "out/images/train/city").iterdir()] == ["0.png"]


def test_nothing_but_invalid_images_is_an_error(coco, tmp_path):
    for path in (coco[2] / "city").iterdir():
        path.write_bytes(b"nothing")
    with fails(r"(?s)pixel with a class; skipped as invalid:.*id 10"):
        run(coco, tmp_path / "out", Invalid(skip=True))
    assert not (tmp_path / "out").exists()
    shutil.rmtree(coco[2] / "city")
    with fails(r"(?s)no images to import; skipped as invalid:.*id 10"):
        run(coco, tmp_path / "out", Invalid(skip=True))


def test_an_image_that_is_skipped_late_leaves_nothing(coco, tmp_path):
    save_image(coco[2] / "city/2.png", (24, 64))
    coco[1]["images"][2]["height"] = 24
    report = run(coco, tmp_path / "out", Invalid(skip=True))
    assert "network needs at least 32" in report.skipped[0]
    assert str(tmp_path / "out/images") in report.skipped[0]
    assert len(open_data(tmp_path / "out").samples("train")) == report.images["train"] == 2


def test_more_classes_than_a_label_holds_are_refused(coco, tmp_path):
    coco[1]["categories"] += [{"id": 100 + i, "name": f"c{i}"} for i in range(253)]
    with fails("1 to 255 names. Received: 256"):
        run(coco, tmp_path / "out")
    coco[1]["categories"].pop()
    assert run(coco, tmp_path / "out").label_space.num_classes == 255


def test_importing_twice_gives_the_same(coco, tmp_path):
    share = {"split": None, "val_share": 0.3}
    run(coco, tmp_path / "out", **share)
    first = files(tmp_path / "out")
    coco[1]["images"].reverse()  # the share is chosen by name
    run(coco, tmp_path / "out", **share)
    assert files(tmp_path / "out") == first
    data = open_data(tmp_path / "out")
    assert [len(data.samples(split)) for split in ("train", "val")] == [2, 1]
    with fails("no splits: give --split"):
        run(coco, tmp_path / "c", split=None)
    with fails("train and val were imported together"):
        run(coco, tmp_path / "out", split="val")


def second(coco, names):
    """Another file of the same categories, in another order, with one image."""
    content = coco[1]
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    content["images"] = [{"id": 1, "file_name": "other.png"}]
    content["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": names.index("cup"), "segmentation": POLYGON}
    ]
    save_image(coco[2] / "other.png", seed=9)


def test_a_second_split_keeps_the_first_and_its_classes(coco, tmp_path):
    run(coco, tmp_path / "out")
    first = files(tmp_path / "out")
    second(coco, ["cup", "table"])
    report = run(coco, tmp_path / "out", split="val")
    now = files(tmp_path / "out")
    assert set(now) - set(first) == {"images/val/other.png", "labels/val/other.png"}
    assert {k for k in first if now[k] != first[k]} == {"import.json"}
    assert label_of(tmp_path / "out", "other", "val")[10, 10] == 2
    assert report.images == {"val": 1}
    run(coco, tmp_path / "out", split="val")
    assert files(tmp_path / "out") == now


def test_a_second_split_must_fit(coco, tmp_path):
    run(coco, tmp_path / "out")
    before = files(tmp_path / "out")
    with fails(r"city/0\.png: what is in train must not be in val"):
        run(coco, tmp_path / "out", split="val")
    second(coco, ["cup", "lamp"])
    with fails("same classes in both imports: background, table, cup. Received: .*lamp"):
        run(coco, tmp_path / "out", split="val")
    second(coco, ["cup"])
    with fails("train images were imported with --unlabelled backgr"):
        run(coco, tmp_path / "out", split="val", unlabelled="void")
    assert files(tmp_path / "out") == before
    run(coco, tmp_path / "out", split="train")  # all is replaced, so any classes do
    assert open_data(tmp_path / "out").label_space.classes == ("background", "cup")


def test_what_was_done_to_an_import_by_hand_is_kept(coco, tmp_path):
    """A corrected label and an image that was added, unless the other split is imported."""
    out = tmp_path / "out"
    run(coco, out)
    label = next((out / "labels" / "train").rglob("*.png"))
    Image.fromarray(np.zeros_like(np.asarray(Image.open(label)))).save(label)
    label.with_name("mine.png").write_bytes(label.read_bytes())
    before = files(out)
    name = label.relative_to(out).as_posix()
    with pytest.raises(ValueError, match=rf"{name} \(changed since\), .*mine.png; .*--overwrite"):
        run(coco, out)
    assert files(out) == before


def test_other_folders_are_not_touched(coco, tmp_path, folder):
    with fails("data: expected a new or empty folder.*classes.json"):
        run(coco, folder)
    run(coco, tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    with fails("from an import. Received: one with notes.txt"):
        run(coco, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    run(coco, tmp_path / "empty")
    (tmp_path / "empty" / "import.json").write_text('{"imported": "by another program"}')
    with fails("expected a new or empty folder.*--overwrite"):
        run(coco, tmp_path / "empty")
    with fails("instances.json: expected a new or empty folder"):
        run(coco, coco[0]())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "training"}, "--split: expected one of train, val, test. Rec.*'training'"),
        ({"split": None, "val_share": 1.0}, "--val-share: expected a number between 0 and 1"),
        ({"val_share": 0.5}, "not both"),
        ({"unlabelled": "other"}, "--unlabelled: expected one of background, void"),
        ({"void": ("background",)}, "--void background is --unlabelled void"),
        ({"annotated_on": "screen"}, "--annotated-on: expected one of"),
    ],
)
def test_options_are_checked(options, message):
    with fails(message):
        ImportOptions(**{"split": "train", **options})


@pytest.mark.parametrize(
    ("orientation", "suffix"),
    [(1, "png"), (3, "png"), (5, "png"), (6, "png"), (8, "png"), (6, "tif")],
)
def test_labels_follow_the_orientation_of_exif(coco, tmp_path, orientation, suffix):
    """Annotated as shown or as stored: the label lies on the image as it is read.

    Pillow gives the size of a TIFF as it is shown, of other files as it is stored.
    """
    path = save_image(coco[2] / f"city/1.{suffix}", orientation=orientation)
    images = {"stored": random_images(1, *SIZE)[0], "upright": load_image(path)}
    bright = {how: image[..., 0] > 150 for how, image in images.items()}
    assert bright["stored"].any()
    row, shape = coco[1]["images"][1], coco[1]["annotations"][3]
    row["file_name"] = f"city/1.{suffix}"
    for how, region in bright.items():
        row.update(height=region.shape[0], width=region.shape[1])
        shape["segmentation"] = {"size": list(region.shape), "counts": run_lengths(region)}
        run(coco, tmp_path / how, annotated_on=how)
        np.testing.assert_array_equal(label_of(tmp_path / how, "city/1"), bright["upright"])
    if orientation >= 5:
        row.update(height=SIZE[0], width=SIZE[1])
        with fails("so try --annotated-on stored"):
            run(coco, tmp_path / "out")


# CVAT

LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
table:128,0,0::
cup:0,128,64:handle:
"""


@pytest.fixture
def cvat(tmp_path):
    root = tmp_path / "export"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "SegmentationClass/a").mkdir(parents=True)
    (root / "labelmap.txt").write_text(LABELMAP)
    (root / "ImageSets/Segmentation/default.txt").write_text("a/frame 1.000\nblank\n\n")
    save_image(root / "JPEGImages/a/frame 1.000.png", seed=1)
    save_image(root / "JPEGImages/blank.jpg", seed=2)
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[10:20, 10:20] = (128, 0, 0)
    colors[12:14, 12:14] = (0, 128, 64)
    Image.fromarray(colors).save(root / "SegmentationClass/a/frame 1.000.png")
    return root


def cvat_label():
    expected = np.zeros(SIZE, np.uint8)
    expected[10:20, 10:20] = 1
    expected[12:14, 12:14] = 2
    return expected


def run_cvat(cvat, output, split="train", unlabelled="background"):
    return write_import(read_cvat(cvat), output, ImportOptions(split, unlabelled=unlabelled))


def test_cvat(cvat, tmp_path):
    report = run_cvat(cvat, tmp_path / "out", "val")
    np.testing.assert_array_equal(label_of(tmp_path / "out", "a/frame 1.000", "val"), cvat_label())
    assert not label_of(tmp_path / "out", "blank", "val").any()
    assert report.label_space.classes == ("background", "table", "cup")
    assert report.label_space.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 64))
    assert files(tmp_path / "out/images/val") == files(cvat / "JPEGImages")


def test_cvat_with_void_and_a_palette_file(cvat, tmp_path):
    indices = Image.fromarray(cvat_label())
    indices.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 64])
    indices.save(cvat / "SegmentationClass/a/frame 1.000.png")
    report = run_cvat(cvat, tmp_path / "out", unlabelled="void")
    expected = np.array([255, 0, 1], np.uint8)[cvat_label()]
    np.testing.assert_array_equal(label_of(tmp_path / "out", "a/frame 1.000"), expected)
    assert report.left_out == 1


def test_cvat_background_of_another_colour(cvat, tmp_path):
    path = cvat / "SegmentationClass/a/frame 1.000.png"
    colors = np.array(Image.open(path))
    colors[(colors == 0).all(-1)] = (0, 128, 0)
    colors[0] = 0
    Image.fromarray(colors).save(path)
    (cvat / "labelmap.txt").write_text(LABELMAP.replace("0,0,0:", "0,128,0:"))
    run_cvat(cvat, tmp_path / "out")
    np.testing.assert_array_equal(label_of(tmp_path / "out", "a/frame 1.000"), cvat_label())


def test_cvat_subsets_are_splits(cvat, tmp_path):
    lists = cvat / "ImageSets/Segmentation"
    (lists / "default.txt").unlink()
    (lists / "Train.txt").write_text("a/frame 1.000\n")
    (lists / "Validation.txt").write_text("blank\n")
    report = write_import(read_cvat(cvat), tmp_path / "out")
    assert report.images == {"train": 1, "val": 1}
    (lists / "other.txt").write_text("blank\n")
    with fails(r"other\.txt: 'blank' is also in Validation\.txt"):
        read_cvat(cvat)


def test_a_zip_is_unpacked(cvat, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for name, content in files(cvat).items():
            archive.writestr(name, content)
    arguments = ["import", "cvat", "--export", str(tmp_path / "export.zip"), "--val-share", "0.5"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert "1 train and 1 val images" in capsys.readouterr().out
    (tmp_path / "export.zip").write_bytes(b"no zip")
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "export.zip: expected a folder or a .zip file" in capsys.readouterr().err


def test_cvat_reads_no_derived_files(cvat, tmp_path):
    for name in (
        "ImageSets/Segmentation/._default.txt", "JPEGImages/._blank.jpg",
        "JPEGImages/.ipynb_checkpoints/blank-checkpoint.jpg", "SegmentationClass/Thumbs.db",
    ):  # fmt: skip
        (cvat / name).parent.mkdir(exist_ok=True)
        (cvat / name).write_bytes(b"\x00\xff")
    assert run_cvat(cvat, tmp_path / "out", "val").images == {"val": 2}
    (cvat / "ImageSets/Segmentation/default.txt").write_text(
        "blank\n.ipynb_checkpoints/blank-checkpoint\n"
    )
    with fails(r"not hidden. Received: .*blank-checkpoint\.jpg"):
        run_cvat(cvat, tmp_path / "out", "val")


def test_invalid_images_of_cvat_are_skipped_when_asked(cvat, tmp_path):
    (cvat / "ImageSets/Segmentation/default.txt").write_text("a/frame 1.000\nblank\ngone\n../x\n")
    (cvat / "SegmentationClass/blank.png").write_bytes(b"nothing")
    annotations = read_cvat(cvat, invalid=Invalid(skip=True))
    report = write_import(annotations, tmp_path / "out", ImportOptions(split="train"))
    assert report.images == {"train": 1}
    assert len(report.skipped) == 3
    np.testing.assert_array_equal(label_of(tmp_path / "out", "a/frame 1.000"), cvat_label())


def test_cvat_without_images(cvat, tmp_path):
    (cvat / "JPEGImages").rename(tmp_path / "mine")
    with fails("no folder JPEGImages; .* --images"):
        read_cvat(cvat)
    assert len(read_cvat(cvat, tmp_path / "mine").images) == 2


MASK = "SegmentationClass/a/frame 1.000.png"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labelmap.txt", "table::\n", r"labelmap\.txt, line 1: expected label:red,green,blue"),
        ("labelmap.txt", "background:0,0,0::\n", "expected labels besides the background"),
        ("labelmap.txt", "table:128,0,0::", r"1\.000\.png: unknown label colours \[\(0, 128"),
        ("labelmap.txt", None, r"labelmap\.txt: no such file"),
        ("SegmentationClass", None, "Class: no such folder"),
        ("ImageSets", None, "no list ImageSets/Segmentation"),
        ("JPEGImages/blank.jpg", None, r"default\.txt: expected one image .*blank\.\*.*: none"),
        ("JPEGImages/blank.png", SIZE, "Rec.*: blank.jpg, blank.png"),
        ("JPEGImages/a/frame 1.000.png", (48, 60), r"its image, \(48, 60\). Rec.*: \(48, 64\)"),
        (MASK, "x", r"frame 1\.000\.png: not readable as a mask"),
    ],
)
def test_cvat_problems_are_named(cvat, tmp_path, name, content, message):
    path = cvat / name
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        save_image(path, content)
    with fails(message):
        run_cvat(cvat, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# LabelMe


def png(values):
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


SQUARE = ("car", "rectangle", [[3, 3], [20, 30]], {})


def write_labelme(tmp_path, *shapes, name="one", **content):
    image = save_image(tmp_path / "images" / f"{name}.png")
    folder = tmp_path / "labels"
    folder.mkdir(exist_ok=True)
    content = {
        "imagePath": f"..\\images\\{image.name}", "imageData": None,
        "imageHeight": SIZE[0], "imageWidth": SIZE[1],
        "shapes": [
            {"label": label, "shape_type": kind, "points": points, **more}
            for label, kind, points, more in shapes
        ],
        **content,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def import_labelme(folder, output, unlabelled="background", **reading):
    options = ImportOptions("train", unlabelled=unlabelled)
    return write_import(read_labelme(folder, **reading), output, options)


def test_labelme_shapes_are_drawn_in_order(tmp_path):
    hole = np.array([[255, 0], [255, 255]], np.uint8)
    folder = write_labelme(
        tmp_path,
        ("car", "rectangle", [[30, 20], [10, 5]], {}),
        ("car", "polygon", [[40, 30], [50, 30], [50, 40], [40, 40]], {}),
        ("_background_", "rectangle", [[12, 8], [14, 10]], {}),
        ("tree", "mask", [[20, 10], [21, 11]], {"mask": base64.b64encode(png(hole)).decode()}),
        ("__ignore__", None, [[0, 0], [3, 0], [3, 3], [0, 3]], {}),
    )
    report = import_labelme(folder, tmp_path / "out")
    # Pillow draws the pixels of both ends.
    expected = np.zeros(SIZE, np.uint8)
    expected[5:21, 10:31] = 1
    expected[30:41, 40:51] = 1
    expected[8:11, 12:15] = 0
    expected[10, 20] = expected[11, 20] = expected[11, 21] = 2
    expected[:4, :4] = 255
    np.testing.assert_array_equal(label_of(tmp_path / "out", "one"), expected)
    assert report.label_space.classes == ("background", "car", "tree")


def test_labelme_circles_and_lines(tmp_path):
    folder = write_labelme(
        tmp_path,
        ("disc", "circle", [[30, 24], [42, 24]], {}),
        ("wire", "line", [[5, 40], [60, 40]], {}),
        ("dot", "point", [[56, 8]], {}),
    )
    with fails(r"one\.json: shape 1, 'wire': a line has no area; give"):
        import_labelme(folder, tmp_path / "out")
    names = import_labelme(folder, tmp_path / "out", line_width=4).label_space.classes
    label = label_of(tmp_path / "out", "one")
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for name, centre, radius in (("disc", (30, 24), 12), ("dot", (56, 8), 2)):
        found = label == names.index(name)
        distance = np.hypot(x - centre[0], y - centre[1])
        assert found[distance < radius - 1].all()
        assert not found[distance > radius + 1].any()
    rows = np.flatnonzero((label == names.index("wire")).any(1))
    assert len(rows) == 4
    assert abs(rows.mean() - 40) <= 0.5


def test_labelme_classes_can_be_given(tmp_path):
    folder = write_labelme(tmp_path, SQUARE, name="yard.7")
    report = import_labelme(folder, tmp_path / "out", classes=["tree", "car"], unlabelled="void")
    assert report.label_space.classes == ("tree", "car")
    assert label_of(tmp_path / "out", "yard.7")[5, 5] == 1
    assert "Warning: no pixel has the classes: tree" in report.text()
    with fails(r"shape 0: expected a label of tree. Rec.*'car'"):
        read_labelme(folder, ["tree"])


def test_labelme_takes_the_image_within_where_there_is_no_file(tmp_path):
    stored = png(random_images(1, *SIZE, seed=4)[0])
    inside = {"imagePath": "gone.jpg", "imageData": base64.b64encode(stored).decode()}
    import_labelme(write_labelme(tmp_path, SQUARE, **inside), tmp_path / "out")
    assert (tmp_path / "out/images/train/one.png").read_bytes() == stored
    with fails(r"one\.json: the image 'gone\.jpg' is not there, nor"):
        read_labelme(write_labelme(tmp_path, imagePath="gone.jpg"))


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        (("a", "polygon", [[1, 1], [5, 5]], {}), {}, "shape 0, 'a': expected at least 3 points"),
        (("a", "rectangle", [[1, 1]], {}), {}, "expected 2 points. Received: 1"),
        (("a", "rectangle", [[1, 1]] * 3, {}), {}, "expected 2 points. Received: 3"),
        (("a", ["rectangle"], [[1, 1]], {}), {}, "expected a shape_type of"),
        ((" ", "rectangle", [[1, 1]], {}), {}, "shape 0: label: expected a name"),
        (("a", "cuboid", [[1, 1]], {}), {}, "a shape_type of .* Received: 'cuboid'"),
        (("a", "polygon", [[1], [5, 5], [1, 2]], {}), {}, "expected points as pairs of numbers"),
        (("a", "polygon", [[1, 1], [999, 5], [1, 5]], {}), {}, r"near the image .*\[\[999.0, 5.0"),
        (("a", "mask", [[1, 1], [5, 5]], {"mask": "?"}), {}, "'a': mask is no base64"),
        (("a", "mask", [[1, 1], [5, 5]], {"mask": "AAAA"}), {}, "'a': not readable as a mask"),
        (
            ("a", "mask", [[1, 1], [5, 5]],
             {"mask": base64.b64encode(png(np.ones((2, 2), np.uint8))).decode()}),
            {}, r"a mask of height and width \(5, 5\).* Received: \(2, 2\)",
        ),
        ((None, "polygon", [], {}), {}, "shape 0 has no label"),
        (("a", "rectangle", [[1, 1], [5, 5]], {}), {"imageHeight": 40}, r"Received: \(40, 64\)"),
        (("a", "rectangle", [[1, 1], [5, 5]], {}), {"shapes": None}, "expected a list 'shapes'"),
    ],
)  # fmt: skip
def test_labelme_problems_are_named(tmp_path, shape, content, message):
    folder = write_labelme(tmp_path, shape, **content)
    with fails(message) as error:
        import_labelme(folder, tmp_path / "out")
    assert "one.json" in str(error.value)
    assert not (tmp_path / "out").exists()


def apart(tmp_path, image_path, folder="elsewhere", name="one.png"):
    """A LabelMe file in a/labels/left and its image in another folder."""
    labels = tmp_path / "a/labels/left"
    labels.mkdir(parents=True)
    source = write_labelme(tmp_path, SQUARE, imagePath=image_path)
    (source / "one.json").rename(labels / "one.json")
    image = tmp_path / "a" / folder / name
    image.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "images/one.png").rename(image)
    return labels.parent, image


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("one.png", "left/one.png"),
        ("C:\\Users\\me\\one.png", "ONE.PNG"),
        ("/home/one.png", "one.png"),
    ],
)
def test_labelme_files_apart_from_their_images(tmp_path, path, name):
    folder, image = apart(tmp_path, path, name=name)
    with fails(r"there is .*, so try --images|give the folder of"):
        read_labelme(folder)
    (annotated,) = read_labelme(folder, images=tmp_path / "a/elsewhere").images
    assert annotated.file_name == f"left/one{image.suffix}"
    assert annotated.image.samefile(image)


@pytest.mark.parametrize("place", ["images", "pictures/left", "labels/left"])
def test_labelme_images_are_found_where_they_usually_are(tmp_path, place):
    folder, image = apart(tmp_path, "D:\\data\\One.png", folder=place)
    (annotated,) = read_labelme(folder).images
    assert annotated.image.samefile(image)


def test_labelme_reads_no_derived_files(tmp_path):
    stored = base64.b64encode(png(random_images(1, *SIZE)[0])).decode()
    folder = write_labelme(tmp_path, SQUARE, imagePath="one.png", imageData=stored)
    for name in ("._one.json", ".ipynb_checkpoints/one-checkpoint.json", "__MACOSX/one.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "one.json", folder / name)
    (folder / "folder.json").mkdir()
    assert [image.name for image in read_labelme(folder).images] == ["one"]


@pytest.mark.parametrize("kind", ["rectangle", "rotation", "oriented_rectangle"])
def test_rectangles_of_four_points(tmp_path, kind):
    folder = write_labelme(tmp_path, ("car", kind, [[3, 5], [20, 5], [20, 30], [3, 30]], {}))
    import_labelme(folder, tmp_path / "out")
    expected = np.zeros(SIZE, np.uint8)
    expected[5:31, 3:21] = 1
    np.testing.assert_array_equal(label_of(tmp_path / "out", "one"), expected)


def test_labelme_labels_in_other_unicode_forms_are_one_class(tmp_path):
    names = [unicodedata.normalize(form, "Tür") for form in ("NFC", "NFD")]
    folder = write_labelme(tmp_path, *[(name, *SQUARE[1:]) for name in names])
    assert read_labelme(folder).classes == read_labelme(folder, names[1:]).classes == ("Tür",)


def test_invalid_shapes_and_files_of_labelme_are_skipped_when_asked(tmp_path):
    folder = write_labelme(
        tmp_path, SQUARE, ("tree", "polygon", [[1, 1]], {}), (None, "polygon", [], {})
    )
    write_labelme(tmp_path, SQUARE, name="two", imagePath="gone.png")
    (folder / "three.json").write_text("{")
    report = import_labelme(folder, tmp_path / "out", invalid=Invalid(skip=True))
    assert report.images == {"train": 1}
    assert [problem.split(": ")[0].rpartition("/")[2] for problem in report.skipped] == [
        "one.json", "one.json", "three.json", "two.json",
    ]  # fmt: skip
    assert label_of(tmp_path / "out", "one")[10, 10] == 1


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    folder = write_labelme(tmp_path, SQUARE)
    (folder / "one.json").rename(folder / os.fsdecode(b"\xff.json"))
    with fails(r"expected a name in UTF-8. Received: .*udcff\.png"):
        import_labelme(folder, tmp_path / "out")


def test_a_folder_without_labelme_files(tmp_path):
    with fails("gone: no such folder"):
        read_labelme(tmp_path / "gone")
    with fails("--line-width: expected 1 or more. Received: 0"):
        read_labelme(tmp_path, line_width=0)
    with fails(r"no \.json files"):
        read_labelme(tmp_path)


# The command line


def test_the_command_says_what_it_wrote_and_what_is_next(coco, tmp_path, capsys):
    write, content, images = coco
    arguments = [
        "import", "coco", "--annotations", str(write()), "--images", str(images),
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main([*arguments, "--val-share", "0.3"]) == 0
    printed = capsys.readouterr().out
    assert "2 train and 1 val images" in printed
    assert f"python -m alignseg_tf inspect {tmp_path / 'out'}" in printed
    assert "255  (void)" in printed
    total = 3 * SIZE[0] * SIZE[1]
    assert f"{100 * (16 * 36 - 18 + total / 3) / total:6.2f} % of the pixels" in printed
    content["annotations"][0]["category_id"] = 99
    write()
    assert main([*arguments, "--split", "train"]) == 2
    assert "id 1: expected the id of a category, one of 7, 3. Rec" in capsys.readouterr().err


def test_coco_without_pycocotools_says_what_to_install(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ImportError, match=r"pip install 'alignseg_tf\[import\]'"):
        read_coco(coco[0](), coco[2])
