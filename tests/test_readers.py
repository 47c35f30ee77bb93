import csv
import shutil

import numpy as np
import pytest
from conftest import CLASSES, write_folder
from PIL import Image

from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.readers import (
    DataError,
    Sample,
    check_samples,
    find_pictures,
    load_image,
    load_label,
    load_sample,
    read_csv,
    read_folder,
    read_image_sizes,
)
from alignseg_tf.data.sources import open_data

SPACE = LabelSpace(CLASSES)


def test_folder_pairs_pictures_with_labels(folder):
    samples = read_folder(folder, "train")
    assert [s.image.name for s in samples] == [f"{i:03d}.png" for i in range(6)]
    assert all(s.label == folder / "labels" / "train" / s.image.name for s in samples)
    assert open_data(folder).label_space.classes == CLASSES


def test_folder_searches_subfolders_and_other_suffixes(folder):
    (folder / "images/val/city").mkdir()
    (folder / "labels/val/city").mkdir()
    Image.open(folder / "images/val/000.png").save(folder / "images/val/city/a.JPG", "JPEG")
    shutil.copy(folder / "labels/val/000.png", folder / "labels/val/city/a.png")
    assert [s.label.parent.name for s in read_folder(folder, "val")] == ["val", "val", "city"]


def test_folder_problems_are_named(folder):
    with pytest.raises(DataError, match=r"images/test: no such folder; expected images/\{train"):
        read_folder(folder, "test")
    (folder / "labels/train/003.png").unlink()
    with pytest.raises(DataError, match=r"train/003\.png: no label .*labels/train/003\.png"):
        read_folder(folder, "train")
    for picture in (folder / "images/val").iterdir():
        picture.unlink()
    with pytest.raises(DataError, match=r"images/val: no pictures"):
        read_folder(folder, "val")


def write_csv(folder, rows, columns=("image", "label", "split")):
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / "list.csv"


def test_csv_is_relative_to_its_folder(folder):
    rows = [(f"images/train/00{i}.png", f"labels/train/00{i}.png", "train") for i in range(3)]
    rows.append(("images/val/000.png", "labels/val/000.png", "val"))
    path = write_csv(folder, rows)
    assert len(read_csv(path)) == 4
    data = open_data(path)
    assert data.layout.name == "csv"
    assert data.label_space.classes == CLASSES
    assert data.samples("val") == [
        Sample(folder / "images/val/000.png", folder / "labels/val/000.png")
    ]


def test_csv_problems_are_named(folder):
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        read_csv(folder / "nowhere.csv")
    path = write_csv(folder, [("images/train/000.png", "labels/train/000.png", "train")])
    with pytest.raises(DataError, match=r"no rows of the split 'val'"):
        read_csv(path, "val")
    path = write_csv(folder, [("images/train/000.png", "gone.png", "train")])
    with pytest.raises(DataError, match=r"list\.csv, line 2: .*gone\.png is not there"):
        read_csv(path)
    path = write_csv(folder, [("a", "b")], ("image", "mask"))
    with pytest.raises(DataError, match=r"expected the columns \['image', 'label'\]"):
        read_csv(path)


def test_csv_rows_are_checked(folder):
    path = write_csv(folder, [("images/train/000.png", "labels/train/000.png", " train ")])
    assert len(read_csv(path, "train")) == 1
    path = write_csv(folder, [("images/train/000.png",)], ("image", "label"))
    with pytest.raises(DataError, match=r"list\.csv, line 2: image and label expected"):
        read_csv(path)
    path.write_bytes("image,label\nä.png,b.png\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list\.csv: expected UTF-8"):
        read_csv(path)


def test_two_labels_of_one_picture_are_refused(folder):
    shutil.copy(folder / "labels/val/000.png", folder / "labels/val/000.tif")
    with pytest.raises(DataError, match=r"000\.tif: a second label beside 000\.png"):
        read_folder(folder, "val")


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    loaded = load_image(tmp_path / "x.png")
    assert loaded.shape == (60, 40, 3)
    assert loaded[:30].min() == 255
    assert loaded[30:].max() == 0


def test_grey_and_16_bit_pictures_become_rgb(tmp_path):
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(grey).save(tmp_path / "deep.png")
    loaded = load_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(loaded, np.repeat((grey >> 8)[..., None], 3, -1))
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "deep.tif"), loaded)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="8 or 16 bits a channel. Received: mode F"):
        load_image(tmp_path / "float.tif")
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "flat.png")
    assert load_image(tmp_path / "flat.png").shape == (64, 64, 3)


def test_palette_labels_keep_their_indices(tmp_path):
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    picture = Image.fromarray(ids, mode=None)
    picture = picture.convert("L")
    picture.putpalette([value for i in range(256) for value in (i * 7 % 256, 200, 10)])
    picture.save(tmp_path / "label.png")
    with Image.open(tmp_path / "label.png") as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(load_label(tmp_path / "label.png", SPACE), ids)


def test_truncated_files_are_named(folder):
    for kind, message in (("images", "as a picture"), ("labels", "as a label")):
        path = folder / kind / "train" / "000.png"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=rf"{kind}/train/000\.png: not readable {message}"):
            load_image(path) if kind == "images" else load_label(path, SPACE)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((64, 97), np.uint8), r"label is 97 x 64 pixels, its picture .* is 96 x 64"),
        (np.full((64, 96), 7, np.uint8), r"unknown label values \[7\]"),
        (np.zeros((64, 96, 3), np.uint8), r"one channel of class ids.*one-hot masks"),
        (
            np.full((64, 96), 300, np.uint16),
            r"whole numbers 0\.\.255. Received: uint16, 300 to 300",
        ),
    ],
)
def test_the_check_finds_bad_labels_and_goes_on(folder, label, message):
    bad = folder / "labels" / "train" / "002.png"
    Image.fromarray(label).save(bad)
    (folder / "images/train/004.png").write_bytes(b"nothing")
    seen = []
    with pytest.raises(DataError, match=message) as error:
        check_samples(read_folder(folder, "train"), SPACE, lambda *args: seen.append(args))
    assert str(bad) in str(error.value)
    assert "2 of 6 samples are unfit" in str(error.value)
    assert "images/train/004.png: not readable" in str(error.value)
    assert seen[-1] == (6, 6)


def test_the_check_counts(folder):
    samples = read_folder(folder, "val")
    summary = check_samples(samples, SPACE)
    labels = np.stack([np.asarray(Image.open(s.label)) for s in samples])
    np.testing.assert_array_equal(summary.pixels, [(labels == c).sum() for c in range(3)])
    assert summary.ignored == (labels == 255).sum() == 2 * 96
    np.testing.assert_array_equal(summary.sizes, [[64, 96]] * 2)


def test_labels_without_any_class_are_refused(folder):
    for path in (folder / "labels/val").iterdir():
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(path)
    with pytest.raises(DataError, match="no pixel has a class"):
        check_samples(read_folder(folder, "val"), SPACE)


def test_a_small_picture_is_refused(tmp_path):
    root = write_folder(tmp_path / "small")
    for kind in ("images", "labels"):
        path = root / kind / "val" / "000.png"
        Image.open(path).crop((0, 0, 96, 20)).save(path)
    with pytest.raises(DataError, match=r"000\.png: the picture is 96 x 20 .* at least 32 x 32"):
        load_sample(read_folder(root, "val")[0], SPACE)


def test_finding_pictures(folder):
    found = find_pictures([folder / "images/val", folder / "images/train/001.png"])
    assert [p.name for p in found] == ["000.png", "001.png", "001.png"]
    np.testing.assert_array_equal(read_image_sizes(found), [[64, 96]] * 3)
    with pytest.raises(DataError, match="no such file or folder"):
        find_pictures([folder / "nowhere"])
