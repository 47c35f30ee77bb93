"""Each data set in its own layout: what is read, and what is wrong with it."""

import json
import os
import shutil
import unicodedata

import data_fixtures
import numpy as np
import pytest
from conftest import SHARED
from data_fixtures import FIXTURES, train_and_evaluate
from PIL import Image

from alignseg_tf.data import IGNORE, DataError, check_samples, load_label
from alignseg_tf.data.datasets.camvid import _camvid_split
from alignseg_tf.data.datasets.catalog import LAYOUTS, find_layout
from alignseg_tf.data.readers import load_sample
from alignseg_tf.data.sources import open_data


@pytest.mark.parametrize("name", FIXTURES)
def test_a_data_set_is_told_from_its_files(tmp_path, name):
    assert set(FIXTURES) == set(LAYOUTS)
    data = open_data(FIXTURES[name](tmp_path))
    assert data.layout.name == name
    names = {}
    for split in ("train", "val"):
        samples = data.samples(split)
        check_samples(samples, data.label_space)
        names[split] = {sample.image.relative_to(tmp_path) for sample in samples}
        assert samples == sorted(samples, key=lambda sample: sample.image)
    assert len(names["train"]) >= 2
    assert len(names["val"]) >= 1
    assert not names["train"] & names["val"]
    assert open_data(data.root, layout=name).samples("val") == data.samples("val")


@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(FIXTURES))
def test_a_data_set_trains_and_evaluates(layout, tmp_path):
    data = FIXTURES[layout](tmp_path / "data")
    report = train_and_evaluate(["--data", str(data), "--layout", layout], tmp_path)
    source = open_data(data)
    assert list(report["iou"]) == list(source.label_space.classes)
    assert report["images"] == len(source.samples("val"))


def fails(message):
    return pytest.raises(DataError, match=message)


def first_columns(data, split="train"):
    """The class at the left border of each image of a split, by the image's name."""
    return {
        sample.image.stem: int(load_sample(sample, data.label_space)[1][0, 0])
        for sample in data.samples(split)
    }


def classes_of(data, index=0, split="train"):
    """The classes of an image's stripes, from left to right."""
    row = load_sample(data.samples(split)[index], data.label_space)[1][0]
    return row[np.flatnonzero(np.diff(row, prepend=-1))].tolist()


CITYSCAPES_LABEL = "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png"
VOC_LISTS = "VOC2012/ImageSets/Segmentation"
CONTEXT_LISTS = "ImageSets/SegmentationContext"
CAMVID_LABEL = "LabeledApproved_full/0016E5_07959_L.png"


@pytest.mark.parametrize(
    ("layout", "path", "content", "split", "message"),
    [
        ("cityscapes", None, "", "test", "Cityscapes's test images are not public"),
        ("ade20k", None, "", "test", "ADE20K's test images are not public"),
        ("pascal_voc", None, "", "test", "PASCAL VOC's test images are not public"),
        ("camvid_color", None, "", "other", "full: expected images of the split. Rec.*'other'"),
        ("segnet_camvid", None, "", "trainval", "trainval: no such folder"),
        ("cityscapes", CITYSCAPES_LABEL, None, "train", f"{CITYSCAPES_LABEL}: no such label$"),
        ("ade20k", "annotations/training/*", None, "train",
         r"(?s)3 problems:.*training/ADE_train_00000001.png: no such label"),
        ("ade20k", "images/validation", None, "val", "images/validation: no such folder"),
        ("camvid_color", CAMVID_LABEL, None, "val", "0016E5_07959_L.png: no such label"),
        ("camvid_color", "701_StillsRaw_full/holiday.png", "", "val",
         "holiday.png: not a name that CamVid has, such as 0001TP"),
        ("segnet_camvid", "valannot/0016E5_07959.png", None, "val",
         "valannot/0016E5_07959.png: no such label"),
        ("pascal_voc", f"{VOC_LISTS}/trainaug.txt", "2007_000032\n2007_000033\n", "train",
         r"trainaug.txt: lists 1 images that val.txt lists too, .* 2007_000033"),
        ("pascal_voc", f"{VOC_LISTS}/trainaug.txt", None, "train",
         r"trainaug.txt: no such file; SegmentationClassAug is"),
        ("pascal_voc", f"{VOC_LISTS}/val.txt", "\n", "val", "val.txt: expected names of images"),
        ("pascal_voc", f"{VOC_LISTS}/val.txt", "2007_999999\n", "val",
         r"JPEGImages/2007_999999.jpg: no such image"),
        ("pascal_voc", f"{VOC_LISTS}/val.txt", None, "val",
         r"val.txt: no such file; it lists the names"),
        ("pascal_context", f"{CONTEXT_LISTS}/train.txt", "2008_000026\n", "train",
         r"train.txt: lists 1 images that val.txt lists too"),
    ],
)  # fmt: skip
def test_problems_of_a_split_are_named(tmp_path, layout, path, content, split, message):
    """Of files that are removed (None) or have another content."""
    root = FIXTURES[layout](tmp_path)
    data = open_data(root)
    if content is not None and path:
        (root / path).write_text(content)
    for there in [] if content is not None else root.glob(path):
        shutil.rmtree(there) if there.is_dir() else there.unlink()
    with fails(message):
        data.samples(split)


@pytest.mark.parametrize(
    ("layout", "train", "val"),
    [
        ("cityscapes", [0, 1, 2, 10, 13, 18, IGNORE], {"munster_000000_000019_leftImg8bit": 10}),
        ("ade20k", [0, 1, 2, IGNORE, 149], {"ADE_val_00000001": IGNORE}),
        # Indices, not colours.
        ("pascal_voc", [0, 1, IGNORE, 15, 20], {"2007_000033": IGNORE}),
        ("pascal_context", [IGNORE, 0, 58, 45], {"2008_000026": 45}),
        # Sky; an archway is a building; a bus is a car; the pavement; markings are road; void.
        ("camvid_color", [0, 1, 8, 4, 3, IGNORE], {"0016E5_07959": 4}),
        ("segnet_camvid", [0, 3, 10, IGNORE], {"0016E5_07959": IGNORE}),
    ],
)
def test_the_values_of_labels_become_classes(tmp_path, layout, train, val):
    """All stripes of the first image; the first stripe of the i-th has the i-th value."""
    data = open_data(FIXTURES[layout](tmp_path))
    assert classes_of(data) == train
    assert first_columns(data, "val") == val


def test_cityscapes_with_train_ids(tmp_path):
    ids = open_data(data_fixtures.cityscapes(tmp_path / "a"))
    train_ids = open_data(data_fixtures.cityscapes(tmp_path / "b", "labelTrainIds"))
    assert train_ids.label_space != ids.label_space
    assert classes_of(train_ids) == classes_of(ids)
    assert first_columns(train_ids) == first_columns(ids)
    data_fixtures.cityscapes(tmp_path / "b")  # with both, the downloaded files count
    assert open_data(tmp_path / "b").label_space == ids.label_space
    for path in (tmp_path / "a").glob("gtFine/*/*/*_labelIds.png"):
        path.unlink()
    with fails(r"gtFine: no labels; expected .*labelIds.png or"):
        open_data(tmp_path / "a")


def test_pascal_voc(tmp_path):
    devkit = data_fixtures.pascal_voc(tmp_path)
    data = open_data(devkit)
    # VOC's own label, with its border, comes before SBD's.
    assert classes_of(data, 2) == [15, 20, 0, 1, 0]
    assert [sample.label.parent.name for sample in data.samples("train")] == [
        "SegmentationClass", "SegmentationClass", "SegmentationClassAug",
    ]  # fmt: skip
    for root in (tmp_path, devkit / "VOC2012"):
        assert open_data(root).samples("train") == data.samples("train")


def test_pascal_voc_without_the_augmented_labels(tmp_path):
    data = open_data(data_fixtures.pascal_voc(tmp_path, augmented=False))
    # A list alone adds nothing.
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text("2007_000032\n2007_000039\n2008_000002\n")
    assert list(first_columns(data)) == ["2007_000032", "2007_000039"]


def test_pascal_voc_with_augmented_labels_only(tmp_path):
    """As some distribute it: all labels in grey, and lists of paths."""
    data = open_data(data_fixtures.pascal_voc(tmp_path))
    root = tmp_path / "VOCdevkit" / "VOC2012"
    own, augmented = root / "SegmentationClass", root / "SegmentationClassAug"
    (own / "2007_000033.png").rename(augmented / "2007_000033.png")
    shutil.rmtree(own)
    for path in (root / "ImageSets" / "Segmentation").iterdir():
        line = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"
        path.write_text("".join(map(line.format, path.read_text().split())))
    assert open_data(tmp_path).layout.name == "pascal_voc"
    assert {s.label.parent.name for s in data.samples("train")} == {"SegmentationClassAug"}
    assert list(first_columns(data, "val")) == ["2007_000033"]


def test_pascal_context(tmp_path):
    """VOC's own labels, which lie in the same folder, are read when asked for."""
    root = data_fixtures.pascal_context(tmp_path)
    data = open_data(root)
    for parent in (tmp_path, tmp_path / "VOCdevkit"):
        assert open_data(parent).samples("val") == data.samples("val")
    sample = open_data(root, layout="pascal_voc").samples("val")[0]
    assert sample.label.parent.name == "SegmentationClass"


def test_voc_and_context_in_one_folder(tmp_path):
    data_fixtures.pascal_voc(tmp_path)
    data_fixtures.pascal_context(tmp_path)
    with fails("has the layouts pascal_voc, pascal_context; say which one with --layout"):
        open_data(tmp_path / "VOCdevkit")
    for name, count in (("pascal_voc", 21), ("pascal_context", 59)):
        data = open_data(tmp_path / "VOCdevkit", layout=name)
        assert data.label_space.num_classes == count
        assert data.samples("train")


@pytest.mark.parametrize("form", ["original", "split"])
def test_camvid_in_colours(tmp_path, form):
    data = open_data(data_fixtures.camvid_color(tmp_path, form))
    assert data.layout.name == "camvid_color"
    assert classes_of(data) == [0, 1, 8, 4, 3, IGNORE]
    found = {
        name: split for split in ("train", "val", "test") for name in first_columns(data, split)
    }
    assert found == data_fixtures.CAMVID_NAMES
    label = load_label(data.samples("train")[0].label, data.label_space)
    assert label[-1, -1] == IGNORE
    assert (label != IGNORE).mean() > 0.8


def test_the_segnet_folder_has_images_to_test_on(tmp_path):
    assert len(open_data(data_fixtures.segnet_camvid(tmp_path)).samples("test")) == 2


def test_folders_that_are_not_camvid(tmp_path):
    root = data_fixtures.camvid_color(tmp_path, "split")
    with fails("expected 701_StillsRaw_full and LabeledApproved_full"):
        open_data(root / "train", layout="camvid_color").samples("val")
    (root / "class_dict.csv").write_text("name,r,g,b\nurban_land,0,255,255\n")
    with fails("no known layout"):  # the classes of another data set
        open_data(root)


def test_camvid_is_split_as_segnet_splits_it():
    """The names that SegNet lists: 62 of 0001TP to test on, and all 171 of Seq05VD."""
    folder = SHARED / "data" / "camvid" / "images"
    if not folder.is_dir():
        pytest.skip("the CamVid images, ../shared/data, are not here")
    for split, count in (("train", 367), ("val", 101)):
        images = sorted((folder / split).iterdir())
        assert len(images) == count
        assert {_camvid_split(image) for image in images} == {split}


def test_an_unknown_folder(tmp_path):
    with fails("nowhere: no such file or folder"):
        find_layout(tmp_path / "nowhere")
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(DataError) as error:
        find_layout(inside)
    for name, layout in LAYOUTS.items():
        assert f"\n  {name}: {layout.known_by}" in str(error.value)
    assert "but" not in str(error.value)
    data_fixtures.ade20k(inside / "ADEChallengeData2016")
    with fails("ADEChallengeData2016 has the layout ade20k"):
        find_layout(inside)
    with fails("but .*ADEChallengeData2016 has the layout ade20k"):
        find_layout(inside / "ADEChallengeData2016" / "images")


@pytest.mark.parametrize("name", ["cityscapes", "pascal_voc", "camvid_color"])
def test_a_file_that_states_the_classes_comes_before_the_layout(name, tmp_path):
    root = FIXTURES[name](tmp_path)
    (root / "classes.json").write_text('{"classes": ["background", "crack"]}')
    data = open_data(root)
    assert data.label_space.classes == ("background", "crack")
    assert data.classes_file == root / "classes.json"
    other = open_data(root, label_space="cityscapes")  # what the command says comes first
    assert (other.label_space.classes[0], other.classes_file) == ("road", None)
    (root / "labelmap.txt").write_text("background:0,0,0::\ncrack:9,9,9::\n")
    assert open_data(root).label_space == data.label_space
    (root / "labelmap.txt").write_text("background:0,0,0::\ncat:9,9,9::\n")
    with fails(r"labelmap\.txt: contradicts .*classes\.json: .* cat, not"):
        open_data(root)
    (root / "classes.json").unlink()
    assert open_data(root).label_space.classes == ("background", "cat")


def test_classes_beside_the_folders_of_pascal_voc_count(tmp_path):
    devkit = data_fixtures.pascal_voc(tmp_path)
    (devkit / "VOC2012" / "classes.json").write_text('{"classes": ["a", "b"]}')
    for path in (tmp_path, devkit, devkit / "VOC2012"):
        assert open_data(path).label_space.classes == ("a", "b")


def test_classes_that_contradict_the_layout_are_refused(tmp_path):
    root = data_fixtures.ade20k(tmp_path)
    content = open_data(root).label_space.to_dict()  # without `ids` and `void`: wall would be 0
    (root / "classes.json").write_text(json.dumps(content))
    with fails(r"classes\.json: contradicts the layout ade20k, .* ids"):
        open_data(root)
    content |= {"ids": list(range(1, 151)), "void": 0}
    (root / "classes.json").write_text(json.dumps(content))
    assert classes_of(open_data(root)) == [0, 1, 2, IGNORE, 149]
    (root / "classes.json").write_text("{")
    with fails(r"classes\.json: not readable as JSON"):
        open_data(root)


def test_what_a_layout_leaves_out_is_counted(tmp_path):
    data = open_data(data_fixtures.ade20k(tmp_path))
    folder = tmp_path / "images" / "training"
    Image.new("RGB", (64, 64)).save(folder / "own.png")
    (folder / "._x.jpg").touch()
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "annotations" / "training" / "pipe.png").touch()
    skipped = data.skipped("val", data.samples("val"))
    assert skipped == {}
    with fails("pipe.jpg: expected a file. Received: a pipe"):
        data.samples("train")
    (folder / "pipe.jpg").unlink()
    assert data.skipped("train", data.samples("train")) == {
        ".png": [folder / "own.png"], "hidden": [folder / "._x.jpg"]
    }  # fmt: skip
    listed = open_data(data_fixtures.pascal_voc(tmp_path / "voc"))
    assert listed.skipped("train", listed.samples("train")) == {}


def test_layouts_find_names_in_other_unicode_forms(tmp_path):
    data = open_data(data_fixtures.ade20k(tmp_path))
    sample = data.samples("val")[0]
    image = sample.image.with_name(unicodedata.normalize("NFC", "é.jpg"))
    label = sample.label.with_name(unicodedata.normalize("NFD", "é.png"))
    sample.image.rename(image)
    sample.label.rename(label)
    assert [(s.image, s.label) for s in data.samples("val")] == [(image, label)]
