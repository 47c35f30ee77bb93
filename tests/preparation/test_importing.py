import base64
import json
import os
import shutil
import sys
import unicodedata
import zipfile
from functools import partial

import numpy as np
import pytest
from conftest import random_images
from data_fixtures import (
    ANNOTATED,
    CVAT_LABELMAP,
    CVAT_MASK,
    CocoFile,
    contents,
    cvat_export,
    cvat_label,
    encoded,
    labelme_file,
    photograph,
    rle,
    save,
    square,
    with_palette,
)
from PIL import Image

from alignseg_tf.__main__ import main
from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.readers import load_image
from alignseg_tf.data.sources import open_data
from alignseg_tf.preparation.annotation_files import Invalid
from alignseg_tf.preparation.annotations import read_coco, read_cvat, read_labelme
from alignseg_tf.preparation.importing import ImportOptions, write_import

mask = pytest.importorskip("pycocotools.mask")

fails = partial(pytest.raises, DataError)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def coco(tmp_path):
    return CocoFile(tmp_path)


@pytest.fixture
def cvat(tmp_path):
    return cvat_export(tmp_path / "export")


def written(annotations, output, **options):
    return write_import(annotations, output, ImportOptions(**{"split": "train", **options}))


def run(coco, output, skip=False, **options):
    return written(read_coco(coco.write(), coco.images, Invalid(skip)), output, **options)


def label_of(root, name, split="train"):
    return np.asarray(Image.open(root / "labels" / split / f"{name}.png"))


def expected_label(*boxes):
    """A label of boxes (top, bottom, left, right, id), the later over the earlier."""
    label = np.zeros(ANNOTATED, np.uint8)
    for top, bottom, left, right, value in boxes:
        label[top:bottom, left:right] = value
    return label


def command(coco, output, *arguments):
    given = ["--annotations", str(coco.write()), "--images", str(coco.images)]
    return main(["import", "coco", *given, "--output", str(output), *arguments])


# COCO


def test_coco_becomes_a_folder_that_passes_the_check(coco, out):
    report = run(coco, out)
    expected = expected_label(
        (30, 40, 50, 60, 255), (4, 20, 4, 40, 1), (6, 9, 10, 14, 2), (6, 9, 20, 22, 2)
    )
    for name, label in (("0", expected), ("1", np.ones(ANNOTATED)), ("2", np.zeros(ANNOTATED))):
        np.testing.assert_array_equal(label_of(out, f"city/{name}"), label)
    assert contents(out / "images/train") == contents(coco.images)

    data = open_data(out)
    assert data.label_space.classes == ("background", "table", "cup")
    assert data.label_space.palette[0] == (0, 0, 0)
    summary = check_samples(data.samples("train"), data.label_space)
    np.testing.assert_array_equal(summary.pixels, report.pixels)
    assert summary.all_counts[:, -1].sum() == report.ignored == 100
    assert report.images == {"train": 3}


def test_small_objects_lie_over_large_ones_and_over_a_crowd(coco, out):
    annotations = coco.content["annotations"]
    annotations[2]["segmentation"] = rle(expected_label((15, 25, 30, 34, 1)))
    annotations.reverse()
    run(coco, out)
    label = label_of(out, "city/0")
    assert label[7, 12] == 2
    assert (label[15:20, 30:34] == 1).all()
    assert (label[20:25, 30:34] == 255).all()


def test_unlabelled_and_void_classes(coco, out, tmp_path):
    report = run(coco, out, unlabelled="void")
    assert report.label_space.classes == ("table", "cup")
    assert label_of(out, "city/0")[[0, 5, 7], [0, 5, 12]].tolist() == [255, 0, 1]
    assert "Left out: 1 images" in report.text()
    assert not (out / "images/train/city/2.png").exists()
    report = run(coco, tmp_path / "void", void=("table",))
    assert report.label_space.classes == ("background", "cup")
    label = label_of(tmp_path / "void", "city/0")
    assert label[[5, 7, 0], [5, 12, 0]].tolist() == [255, 1, 0]
    with fails(match="--void: expected names of classes: table, cup. Received: .'chair'"):
        run(coco, tmp_path / "out2", void=("chair",))


def test_compressed_and_plain_rle_are_the_same(coco, tmp_path):
    region = (random_images(1, *ANNOTATED)[0, ..., 0] > 128).astype(np.uint8)
    region ^= np.random.default_rng(1).random(ANNOTATED) < 0.02
    packed = mask.encode(np.asfortranarray(region))["counts"].decode()
    for name, shape in (("plain", rle(region)), ("packed", {**rle(region), "counts": packed})):
        coco.content["annotations"][3]["segmentation"] = shape
        run(coco, tmp_path / name)
        np.testing.assert_array_equal(label_of(tmp_path / name, "city/1"), region)


def test_polygons_become_the_pixels_whose_centres_they_hold(coco, out):
    """A convex polygon against half planes; pycocotools may round within a pixel of the edge."""
    y, x = np.mgrid[: ANNOTATED[0], : ANNOTATED[1]] + 0.5
    angles = np.sort(np.random.default_rng(2).uniform(0, 2 * np.pi, 7))
    corners = np.stack([32 + 25 * np.cos(angles), 24 + 20 * np.sin(angles)], 1)
    distance = np.full(ANNOTATED, np.inf)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        side = ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0)
        distance = np.minimum(distance, side)
    polygons = [corners.ravel().tolist()]
    coco.content["annotations"][3]["segmentation"] = polygons
    run(coco, out)
    label = label_of(out, "city/1")
    assert (distance > 1).sum() > 200
    assert label[distance > 1].all()
    assert not label[distance < -1].any()
    reference = mask.decode(mask.frPyObjects(polygons, *ANNOTATED))[..., 0]
    np.testing.assert_array_equal(label, reference)


def rle_of(*counts, size=(48, 64)):
    return {"size": [*size], "counts": counts[0] if isinstance(counts[0], str) else [*counts]}


REMOVED = object()


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("images", "file_name", "gone.png", "id 11: the image 'gone.png' is not"),
        ("images", "file_name", "../a.png", "id 11: file_name: expected a path below"),
        ("images", "file_name", None, "id 11: file_name: expected a path below"),
        ("images", "file_name", "city/.1.png", r"id 11: .* not hidden. Received: 'city/\.1\.png"),
        ("images", "file_name", "city/0.png", "a second image city/0.png, beside"),
        ("images", "height", 50, r"id 11: .*\(48, 64\). Received: \(50, 64\)$"),
        ("images", "height", "x", "id 11: expected whole height and width. Received: .'x', 64"),
        ("images", "id", 10, r"images\[1\], id 10: expected an id that no row"),
        ("images", "id", REMOVED, r"images\[1\] has no id"),
        ("categories", "name", "table", "the categories 7 and 3 are both 'table'"),
        ("categories", None, REMOVED, "expected a list 'categories'"),
        ("annotations", "category_id", 5, r"\[3\], id 4: .* a category, one of 7, 3. Rec.*: 5"),
        ("annotations", "category_id", [], r"the id of a category, .* Received: \[\]"),
        ("annotations", "image_id", 5, r"annotations\[3\], id 4: .* id of an image, .*: 5$"),
        ("annotations", "iscrowd", "0", "id 4: expected iscrowd 0 or 1. Received: '0'"),
        *(
            ("annotations", "segmentation", shape, f"id 4: .*{message}")
            for shape, message in (
                ([], "expected a segmentation.*only a box"),
                ([[1, 1, 3, 3]], "expected at least 3 points. Received: 2"),
                ([[1, 1, 3, 3, 1]], "expected a polygon as"),
                ([square(0, 0, 640, 480)],
                 r"near the image of 64 x 48 pixels. Received: \[\[640.0, 0.0\]\]"),
                ([[1, 1, 3, 3, float("nan"), 1]], r"Received: \[\[nan, 1"),
                ([[0, 0, 64, 48] * 80_000], "expected an outline of at most 10000000 pixels"),
                ([[1, 1, 3, 3, 10**400, 1]], "expected points as pairs of numbers"),
                (rle_of(1000, 2), r"add up to 48 \* 64 pixels. Received: \[1000, 2\]"),
                (rle_of(2**63 - 1, 2**63 - 1, 2 + 48 * 64),  # 48 * 64 in 64 bits
                 "that add up to 48 . 64 pixels"),
                (rle_of(-1, 3073), "whole numbers from 0 on"),
                (rle_of(1.5, 3070.5), r"whole numbers .* Received: \[1.5"),
                (rle_of("~~"), r"broken RLE \(character 0x7e"),
                (rle_of("o" * 10**6), r"broken RLE \(character 0x6f"),
                (rle_of("o"), "broken RLE .the last number is cut short"),
                (rle_of("a", size=(64, 48)), r"expected an RLE of size \[48, 64\]"),
                ({"size": 48, "counts": [3072]}, "expected an RLE of size"),
            )
        ),
    ],
)  # fmt: skip
def test_coco_problems_are_named_and_nothing_is_written(
    coco, tmp_path, table, key, value, message
):  # fmt: skip
    row = coco.content[table][3 if table == "annotations" else 1]
    if value is not REMOVED:
        row[key] = value
    elif key:
        del row[key]
    else:
        del coco.content[table]
    shutil.copy(coco.images / "city/1.png", coco.images / "city/.1.png")
    with fails(match=message) as error:
        run(coco, tmp_path / "out")
    assert "instances.json" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "instances.json"]


def test_whole_floats_are_numbers_and_ids_of_annotations_do_not_matter(coco, out, tmp_path):
    run(coco, out)
    annotations = coco.content["annotations"]
    for row in coco.content["images"]:
        row.update(id=float(row["id"]), height=48.0, width=64.0)
    for row in annotations:
        row["category_id"] = float(row["category_id"])
    crowd = annotations[2]["segmentation"]
    crowd.update({key: [float(number) for number in crowd[key]] for key in crowd})
    annotations[0]["id"] = annotations[1]["id"]
    del annotations[2]["id"]
    run(coco, tmp_path / "floats")
    assert contents(tmp_path / "floats") == contents(out)


def test_a_root_category_is_no_class_unless_it_is_used(coco, out, tmp_path):
    categories = coco.content["categories"]
    for row in categories:
        row["supercategory"] = "things"
    root = {"id": 0, "name": "things", "supercategory": "none"}
    lamp = {"id": 9, "name": "lamp", "supercategory": "none"}
    coco.content["categories"] = [root, *categories, lamp]
    assert run(coco, out).label_space.classes == ("background", "table", "cup", "lamp")
    coco.content["annotations"][3]["category_id"] = 0
    assert "things" in run(coco, tmp_path / "used").label_space.classes


@pytest.mark.parametrize(
    "name", ["CITY\\Straße.JPG", "/data/city/Straße.jpg", "C:\\city\\Straße.jpg"]
)
def test_images_of_coco_are_found_by_names_of_other_systems(coco, out, name):
    there = coco.images / "city" / f"{unicodedata.normalize('NFD', 'Straße')}.jpg"
    (coco.images / "city/1.png").rename(there)
    coco.content["images"][1]["file_name"] = name
    run(coco, out)
    assert (label_of(out, "city/Straße") == 1).all()


def test_a_folder_of_images_one_level_off_is_named(coco, out, tmp_path):
    for row in coco.content["images"]:
        row["file_name"] = row["file_name"].removeprefix("city/")
    with fails(match=r"there is .*city/0\.png, so try --images .*city$"):
        run(coco, out)
    with fails(match="gone: no such folder"):
        read_coco(coco.write(), tmp_path / "gone")


def test_several_coco_files_are_one_import(coco, out, tmp_path):
    run(coco, out)
    whole, parts = coco.content, []
    for number, image in enumerate(whole["images"]):
        of_image = [row for row in whole["annotations"] if row["image_id"] == image["id"]]
        parts.append(tmp_path / f"{number}.json")
        parts[-1].write_text(json.dumps({**whole, "images": [image], "annotations": of_image}))
    # The later --annotations counts.
    arguments = ["--annotations", *map(str, parts), "--split", "train"]
    assert command(coco, tmp_path / "parts", *arguments) == 0
    assert contents(tmp_path / "parts/labels") == contents(out / "labels")


def test_coco_without_pycocotools_says_what_to_install(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ImportError, match=r"pip install 'alignseg_tf\[import\]'"):
        read_coco(coco.write(), coco.images)


@pytest.mark.parametrize(
    ("orientation", "suffix"),
    [(1, "png"), (3, "png"), (5, "png"), (6, "png"), (8, "png"), (6, "tif")],
)
def test_labels_follow_the_orientation_of_exif(coco, out, tmp_path, orientation, suffix):
    """Annotated as shown or as stored: the label lies on the image as it is read.

    Pillow gives the size of a TIFF as it is shown, of other files as it is stored.
    """
    path = photograph(coco.images / f"city/1.{suffix}", orientation=orientation)
    images = {"stored": random_images(1, *ANNOTATED)[0], "upright": load_image(path)}
    bright = {how: image[..., 0] > 150 for how, image in images.items()}
    assert bright["stored"].any()
    row, shape = coco.content["images"][1], coco.content["annotations"][3]
    row["file_name"] = f"city/1.{suffix}"
    for how, region in bright.items():
        row.update(height=region.shape[0], width=region.shape[1])
        shape["segmentation"] = rle(region)
        run(coco, tmp_path / how, annotated_on=how)
        np.testing.assert_array_equal(label_of(tmp_path / how, "city/1"), bright["upright"])
    if orientation >= 5:
        row.update(height=ANNOTATED[0], width=ANNOTATED[1])
        with fails(match="so try --annotated-on stored"):
            run(coco, out)


# Skipping what is invalid


def test_invalid_annotations_are_skipped_when_asked(coco, out, capsys):
    annotations = coco.content["annotations"]
    annotations[0]["segmentation"] = []
    annotations += [{"id": 9, "image_id": 99, "category_id": 3}, "nothing"]
    (coco.images / "city/2.png").unlink()
    (coco.images / "city/1.png").write_bytes(b"nothing")
    assert command(coco, out, "--split", "train") == 2
    assert not out.exists()
    capsys.readouterr()
    assert command(coco, out, "--split", "train", "--skip-invalid") == 1
    printed = capsys.readouterr().out
    assert "Skipped as invalid: 5" in printed
    skipped = json.loads((out / "import.json").read_text())["imports"][0]["skipped"]
    for place in ("annotations[0]", "annotations[4]", "annotations[5]", "images[1]", "images[2]"):
        assert any(place in problem for problem in skipped)
        assert place in printed
    label = label_of(out, "city/0")
    assert label[10, 20] == 1
    assert not (label == 2).any()
    assert [path.name for path in (out / "images/train/city").iterdir()] == ["0.png"]


def test_nothing_but_invalid_images_is_an_error(coco, out):
    for path in (coco.images / "city").iterdir():
        path.write_bytes(b"nothing")
    with fails(match=r"(?s)pixel with a class; skipped as invalid:.*id 10"):
        run(coco, out, skip=True)
    assert not out.exists()
    shutil.rmtree(coco.images / "city")
    with fails(match=r"(?s)no images to import; skipped as invalid:.*id 10"):
        run(coco, out, skip=True)


def test_an_image_that_is_skipped_late_leaves_nothing(coco, out):
    photograph(coco.images / "city/2.png", (24, 64))
    coco.content["images"][2]["height"] = 24
    report = run(coco, out, skip=True)
    assert "network needs at least 32" in report.skipped[0]
    assert str(out / "images") in report.skipped[0]
    assert len(open_data(out).samples("train")) == report.images["train"] == 2


# The folder that is written


def test_more_classes_than_a_label_holds_are_refused(coco, out):
    coco.content["categories"] += [{"id": 100 + i, "name": f"c{i}"} for i in range(253)]
    with fails(match="1 to 255 names. Received: 256"):
        run(coco, out)
    coco.content["categories"].pop()
    assert run(coco, out).label_space.num_classes == 255


def test_importing_twice_gives_the_same(coco, out, tmp_path):
    share = {"split": None, "val_share": 0.3}
    run(coco, out, **share)
    first = contents(out)
    coco.content["images"].reverse()  # the share is chosen by name
    run(coco, out, **share)
    assert contents(out) == first
    data = open_data(out)
    assert [len(data.samples(split)) for split in ("train", "val")] == [2, 1]
    with fails(match="no splits: give --split"):
        run(coco, tmp_path / "c", split=None)
    with fails(match="train and val were imported together"):
        run(coco, out, split="val")


def second(coco, names):
    """Another file of the same categories, in another order, with one image."""
    row = {"image_id": 1, "category_id": names.index("cup"), "segmentation": [square(4, 4, 40, 20)]}
    photograph(coco.images / "other.png", seed=9)
    coco.content.update(
        categories=[{"id": i, "name": name} for i, name in enumerate(names)],
        images=[{"id": 1, "file_name": "other.png"}],
        annotations=[row],
    )


def test_a_second_split_keeps_the_first_and_its_classes(coco, out):
    run(coco, out)
    first = contents(out)
    second(coco, ["cup", "table"])
    report = run(coco, out, split="val")
    now = contents(out)
    assert set(now) - set(first) == {"images/val/other.png", "labels/val/other.png"}
    assert {name for name in first if now[name] != first[name]} == {"import.json"}
    assert label_of(out, "other", "val")[10, 10] == 2
    assert report.images == {"val": 1}
    run(coco, out, split="val")
    assert contents(out) == now


def test_a_second_split_must_fit(coco, out):
    run(coco, out)
    before = contents(out)
    with fails(match=r"city/0\.png: what is in train must not be in val"):
        run(coco, out, split="val")
    second(coco, ["cup", "lamp"])
    with fails(match="same classes in both imports: background, table, cup. Received: .*lamp"):
        run(coco, out, split="val")
    second(coco, ["cup"])
    with fails(match="train images were imported with --unlabelled backgr"):
        run(coco, out, split="val", unlabelled="void")
    assert contents(out) == before
    run(coco, out, split="train")  # all is replaced, so any classes do
    assert open_data(out).label_space.classes == ("background", "cup")


def test_what_was_done_to_an_import_by_hand_is_kept(coco, out):
    """A corrected label and an image that was added, unless the other split is imported."""
    run(coco, out)
    label = next((out / "labels" / "train").rglob("*.png"))
    save(np.zeros(ANNOTATED, np.uint8), label)
    shutil.copy(label, label.with_name("mine.png"))
    before = contents(out)
    name = label.relative_to(out).as_posix()
    with pytest.raises(ValueError, match=rf"{name} \(changed since\), .*mine.png; .*--overwrite"):
        run(coco, out)
    assert contents(out) == before


def test_other_folders_are_not_touched(coco, out, tmp_path, folder):
    with fails(match="data: expected a new or empty folder.*classes.json"):
        run(coco, folder)
    run(coco, out)
    (out / "notes.txt").write_text("mine")
    with fails(match="from an import. Received: one with notes.txt"):
        run(coco, out)
    (tmp_path / "empty").mkdir()
    run(coco, tmp_path / "empty")
    (tmp_path / "empty" / "import.json").write_text('{"imported": "by another program"}')
    with fails(match="expected a new or empty folder.*--overwrite"):
        run(coco, tmp_path / "empty")
    with fails(match="instances.json: expected a new or empty folder"):
        run(coco, coco.write())


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
    with fails(match=message):
        ImportOptions(**{"split": "train", **options})


def test_the_command_says_what_it_wrote_and_what_is_next(coco, out, capsys):
    assert command(coco, out, "--val-share", "0.3") == 0
    printed = capsys.readouterr().out
    assert "2 train and 1 val images" in printed
    assert f"python -m alignseg_tf inspect {out}" in printed
    assert "255  (void)" in printed
    total = 3 * ANNOTATED[0] * ANNOTATED[1]
    assert f"{100 * (16 * 36 - 18 + total / 3) / total:6.2f} % of the pixels" in printed
    coco.content["annotations"][0]["category_id"] = 99
    assert command(coco, out, "--split", "train") == 2
    assert "id 1: expected the id of a category, one of 7, 3. Rec" in capsys.readouterr().err


# CVAT


def test_cvat(cvat, out):
    report = written(read_cvat(cvat), out, split="val")
    np.testing.assert_array_equal(label_of(out, "a/frame 1.000", "val"), cvat_label())
    assert not label_of(out, "blank", "val").any()
    assert report.label_space.classes == ("background", "table", "cup")
    assert report.label_space.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 64))
    assert contents(out / "images/val") == contents(cvat / "JPEGImages")


def test_cvat_with_void_and_a_palette_file(cvat, out):
    save(with_palette(cvat_label(), [0, 0, 0, 128, 0, 0, 0, 128, 64]), cvat / CVAT_MASK)
    assert written(read_cvat(cvat), out, unlabelled="void").left_out == 1
    expected = np.array([255, 0, 1], np.uint8)[cvat_label()]
    np.testing.assert_array_equal(label_of(out, "a/frame 1.000"), expected)


def test_cvat_background_of_another_colour(cvat, out):
    colors = np.array([(0, 128, 0), (128, 0, 0), (0, 128, 64)], np.uint8)[cvat_label()]
    colors[0] = 0  # black is background too
    save(colors, cvat / CVAT_MASK)
    (cvat / "labelmap.txt").write_text(CVAT_LABELMAP.replace("0,0,0:", "0,128,0:"))
    written(read_cvat(cvat), out)
    np.testing.assert_array_equal(label_of(out, "a/frame 1.000"), cvat_label())


def test_cvat_subsets_are_splits(cvat, out):
    lists = cvat / "ImageSets/Segmentation"
    (lists / "default.txt").unlink()
    (lists / "Train.txt").write_text("a/frame 1.000\n")
    (lists / "Validation.txt").write_text("blank\n")
    assert written(read_cvat(cvat), out, split=None).images == {"train": 1, "val": 1}
    (lists / "other.txt").write_text("blank\n")
    with fails(match=r"other\.txt: 'blank' is also in Validation\.txt"):
        read_cvat(cvat)


def test_a_zip_is_unpacked(cvat, out, tmp_path, capsys):
    export = tmp_path / "export.zip"
    with zipfile.ZipFile(export, "w") as archive:
        for name, content in contents(cvat).items():
            archive.writestr(name, content)
    arguments = ["import", "cvat", "--export", str(export), "--output", str(out)]
    assert main([*arguments, "--val-share", "0.5"]) == 0
    assert "1 train and 1 val images" in capsys.readouterr().out


def test_cvat_reads_no_derived_files(cvat, out):
    for name in (
        "ImageSets/Segmentation/._default.txt", "JPEGImages/._blank.jpg",
        "JPEGImages/.ipynb_checkpoints/blank-checkpoint.jpg", "SegmentationClass/Thumbs.db",
    ):  # fmt: skip
        (cvat / name).parent.mkdir(exist_ok=True)
        (cvat / name).write_bytes(b"\x00\xff")
    assert written(read_cvat(cvat), out).images == {"train": 2}
    listed = "blank\n.ipynb_checkpoints/blank-checkpoint\n"
    (cvat / "ImageSets/Segmentation/default.txt").write_text(listed)
    with fails(match=r"not hidden. Received: .*blank-checkpoint\.jpg"):
        written(read_cvat(cvat), out)


def test_invalid_images_of_cvat_are_skipped_when_asked(cvat, out):
    (cvat / "ImageSets/Segmentation/default.txt").write_text("a/frame 1.000\nblank\ngone\n../x\n")
    (cvat / "SegmentationClass/blank.png").write_bytes(b"nothing")
    report = written(read_cvat(cvat, invalid=Invalid(skip=True)), out)
    assert report.images == {"train": 1}
    assert len(report.skipped) == 3
    np.testing.assert_array_equal(label_of(out, "a/frame 1.000"), cvat_label())


def test_images_of_cvat_may_lie_elsewhere(cvat, tmp_path):
    (cvat / "JPEGImages").rename(tmp_path / "mine")
    assert len(read_cvat(cvat, tmp_path / "mine").images) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labelmap.txt", "table::\n", r"labelmap\.txt, line 1: expected label:red,green,blue"),
        ("labelmap.txt", "background:0,0,0::\n", "expected labels besides the background"),
        ("labelmap.txt", "table:128,0,0::", r"1\.000\.png: unknown label colours \[\(0, 128"),
        ("labelmap.txt", None, r"labelmap\.txt: no such file"),
        ("SegmentationClass", None, "Class: no such folder"),
        ("ImageSets", None, "no list ImageSets/Segmentation"),
        ("JPEGImages", None, "no folder JPEGImages; .* --images"),
        ("JPEGImages/blank.jpg", None, r"default\.txt: expected one image .*blank\.\*.*: none"),
        ("JPEGImages/blank.png", ANNOTATED, "Rec.*: blank.jpg, blank.png"),
        ("JPEGImages/a/frame 1.000.png", (48, 60), r"its image, \(48, 60\). Rec.*: \(48, 64\)"),
        (CVAT_MASK, "x", r"frame 1\.000\.png: not readable as a mask"),
    ],
)
def test_cvat_problems_are_named(cvat, out, name, content, message):
    path = cvat / name
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        photograph(path, content)
    with fails(match=message):
        written(read_cvat(cvat), out)
    assert not out.exists()


# LabelMe

SQUARE = ("car", "rectangle", [[3, 3], [20, 30]], {})


def base64_png(values):
    return base64.b64encode(encoded(values)).decode()


def test_labelme_shapes_are_drawn_in_order(tmp_path, out):
    hole = np.array([[255, 0], [255, 255]], np.uint8)
    folder = labelme_file(
        tmp_path,
        ("car", "rectangle", [[30, 20], [10, 5]], {}),
        ("car", "polygon", [[40, 30], [50, 30], [50, 40], [40, 40]], {}),
        ("_background_", "rectangle", [[12, 8], [14, 10]], {}),
        ("tree", "mask", [[20, 10], [21, 11]], {"mask": base64_png(hole)}),
        ("__ignore__", None, [[0, 0], [3, 0], [3, 3], [0, 3]], {}),
    )
    report = written(read_labelme(folder), out)
    # Pillow draws the pixels of both ends.
    expected = expected_label(
        (5, 21, 10, 31, 1), (30, 41, 40, 51, 1), (8, 11, 12, 15, 0), (0, 4, 0, 4, 255),
        (10, 12, 20, 21, 2), (11, 12, 21, 22, 2),
    )  # fmt: skip
    np.testing.assert_array_equal(label_of(out, "one"), expected)
    assert report.label_space.classes == ("background", "car", "tree")


def test_labelme_circles_and_lines(tmp_path, out):
    folder = labelme_file(
        tmp_path,
        ("disc", "circle", [[30, 24], [42, 24]], {}),
        ("wire", "line", [[5, 40], [60, 40]], {}),
        ("dot", "point", [[56, 8]], {}),
    )
    with fails(match=r"one\.json: shape 1, 'wire': a line has no area; give"):
        written(read_labelme(folder), out)
    names = written(read_labelme(folder, line_width=4), out).label_space.classes
    label = label_of(out, "one")
    y, x = np.mgrid[: ANNOTATED[0], : ANNOTATED[1]]
    for name, centre, radius in (("disc", (30, 24), 12), ("dot", (56, 8), 2)):
        found = label == names.index(name)
        distance = np.hypot(x - centre[0], y - centre[1])
        assert found[distance < radius - 1].all()
        assert not found[distance > radius + 1].any()
    rows = np.flatnonzero((label == names.index("wire")).any(1))
    assert len(rows) == 4
    assert abs(rows.mean() - 40) <= 0.5


@pytest.mark.parametrize("kind", ["rectangle", "rotation", "oriented_rectangle"])
def test_rectangles_of_four_points(tmp_path, out, kind):
    folder = labelme_file(tmp_path, ("car", kind, [[3, 5], [20, 5], [20, 30], [3, 30]], {}))
    written(read_labelme(folder), out)
    np.testing.assert_array_equal(label_of(out, "one"), expected_label((5, 31, 3, 21, 1)))


def test_labelme_classes_can_be_given(tmp_path, out):
    folder = labelme_file(tmp_path, SQUARE, name="yard.7")
    report = written(read_labelme(folder, ["tree", "car"]), out, unlabelled="void")
    assert report.label_space.classes == ("tree", "car")
    assert label_of(out, "yard.7")[5, 5] == 1
    assert "Warning: no pixel has the classes: tree" in report.text()
    with fails(match=r"shape 0: expected a label of tree. Rec.*'car'"):
        read_labelme(folder, ["tree"])


def test_labelme_labels_in_other_unicode_forms_are_one_class(tmp_path):
    names = [unicodedata.normalize(form, "Tür") for form in ("NFC", "NFD")]
    folder = labelme_file(tmp_path, *[(name, *SQUARE[1:]) for name in names])
    assert read_labelme(folder).classes == read_labelme(folder, names[1:]).classes == ("Tür",)


def test_labelme_takes_the_image_within_where_there_is_no_file(tmp_path, out):
    stored = encoded(random_images(1, *ANNOTATED, seed=4)[0])
    inside = {"imagePath": "gone.jpg", "imageData": base64.b64encode(stored).decode()}
    written(read_labelme(labelme_file(tmp_path, SQUARE, **inside)), out)
    assert (out / "images/train/one.png").read_bytes() == stored
    with fails(match=r"one\.json: the image 'gone\.jpg' is not there, nor"):
        read_labelme(labelme_file(tmp_path, imagePath="gone.jpg"))


@pytest.mark.parametrize(
    ("label", "kind", "points", "more", "message"),
    [
        ("a", "polygon", [[1, 1], [5, 5]], {}, "shape 0, 'a': expected at least 3 points"),
        ("a", "rectangle", [[1, 1]], {}, "expected 2 points. Received: 1"),
        ("a", "rectangle", [[1, 1]] * 3, {}, "expected 2 points. Received: 3"),
        ("a", ["rectangle"], [[1, 1]], {}, "expected a shape_type of"),
        (" ", "rectangle", [[1, 1]], {}, "shape 0: label: expected a name"),
        ("a", "cuboid", [[1, 1]], {}, "a shape_type of .* Received: 'cuboid'"),
        ("a", "polygon", [[1], [5, 5], [1, 2]], {}, "expected points as pairs of numbers"),
        ("a", "polygon", [[1, 1], [999, 5], [1, 5]], {}, r"near the image .*\[\[999.0, 5.0"),
        ("a", "mask", [[1, 1], [5, 5]], {"mask": "?"}, "'a': mask is no base64"),
        ("a", "mask", [[1, 1], [5, 5]], {"mask": "AAAA"}, "'a': not readable as a mask"),
        ("a", "mask", [[1, 1], [5, 5]], {"mask": base64_png(np.ones((2, 2), np.uint8))},
         r"a mask of height and width \(5, 5\).* Received: \(2, 2\)"),
        (None, "polygon", [], {}, "shape 0 has no label"),
        (*SQUARE, r"Received: \(40, 64\)"),
    ],
)  # fmt: skip
def test_labelme_problems_are_named(tmp_path, out, label, kind, points, more, message):
    height = 40 if label == "car" else 48
    folder = labelme_file(tmp_path, (label, kind, points, more), imageHeight=height)
    with fails(match=rf"one\.json.*{message}"):
        written(read_labelme(folder), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("stated", "there"),
    [
        ("one.png", "elsewhere/left/one.png"),
        ("C:\\Users\\me\\one.png", "elsewhere/ONE.PNG"),
        ("/home/one.png", "elsewhere/one.png"),
        ("D:\\data\\One.png", "images/one.png"),
        ("D:\\data\\One.png", "pictures/left/one.png"),
        ("D:\\data\\One.png", "labels/left/one.png"),
    ],
)
def test_labelme_images_are_found_in_usual_folders_and_in_a_given_one(tmp_path, stated, there):
    """Of a file in labels/left; a folder elsewhere has to be given."""
    source = labelme_file(tmp_path / "from", SQUARE, imagePath=stated)
    labels, image, elsewhere = (tmp_path / name for name in ("labels", there, "elsewhere"))
    for old, new in ((source / "one.json", labels / "left/one.json"),
                     (source.parent / "images/one.png", image)):  # fmt: skip
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    if elsewhere.exists():
        with fails(match=r"there is .*, so try --images|give the folder of"):
            read_labelme(labels)
    (annotated,) = read_labelme(labels, images=elsewhere if elsewhere.exists() else None).images
    assert annotated.file_name == f"left/one{image.suffix}"
    assert annotated.image.samefile(image)


def test_labelme_reads_no_derived_files(tmp_path):
    stored = base64_png(random_images(1, *ANNOTATED)[0])
    folder = labelme_file(tmp_path, SQUARE, imagePath="one.png", imageData=stored)
    for name in ("._one.json", ".ipynb_checkpoints/one-checkpoint.json", "__MACOSX/one.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "one.json", folder / name)
    (folder / "folder.json").mkdir()
    assert [image.name for image in read_labelme(folder).images] == ["one"]


def test_invalid_shapes_and_files_of_labelme_are_skipped_when_asked(tmp_path, out):
    invalid = (("tree", "polygon", [[1, 1]], {}), (None, "polygon", [], {}))
    folder = labelme_file(tmp_path, SQUARE, *invalid)
    labelme_file(tmp_path, SQUARE, name="two", imagePath="gone.png")
    (folder / "three.json").write_text("{")
    report = written(read_labelme(folder, invalid=Invalid(skip=True)), out)
    assert report.images == {"train": 1}
    names = [problem.split(": ")[0].rpartition("/")[2] for problem in report.skipped]
    assert names == ["one.json", "one.json", "three.json", "two.json"]
    assert label_of(out, "one")[10, 10] == 1


def test_a_file_that_is_not_utf_8_is_named(tmp_path, out):
    folder = labelme_file(tmp_path, SQUARE)
    (folder / "one.json").rename(folder / os.fsdecode(b"\xff.json"))
    with fails(match=r"expected a name in UTF-8. Received: .*udcff\.png"):
        written(read_labelme(folder), out)


def test_what_is_no_folder_of_labelme_is_refused(tmp_path):
    with fails(match="gone: no such folder"):
        read_labelme(tmp_path / "gone")
    with fails(match=r"one\.json: expected a list 'shapes'"):
        read_labelme(labelme_file(tmp_path / "a", shapes=None))
    with fails(match="--line-width: expected 1 or more. Received: 0"):
        read_labelme(tmp_path, line_width=0)
    with fails(match=r"no \.json files"):
        read_labelme(tmp_path / "a/images")
