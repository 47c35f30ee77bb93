import json
import zlib

import numpy as np
import pytest
from conftest import killed_after
from data_fixtures import contents, save
from PIL import Image

from alignseg_tf.data.datasets import street_painter
from alignseg_tf.data.datasets.street_painter import (
    CLASSES,
    PALETTE,
    VOID,
    draw_scene,
    write_folder,
)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(index) for index in range(14)]


def test_every_class_and_void_occur_often(scenes):
    for name, k in [*zip(CLASSES, range(len(CLASSES)), strict=True), ("void", VOID)]:
        assert sum((label == k).sum() >= 10 for _, label in scenes) >= 8, name
    bonnets = sum((label[-1] == VOID).mean() > 0.3 for _, label in scenes)
    bins = sum((label[60:160] == VOID).sum() >= 10 for _, label in scenes)
    assert 5 <= bonnets < 14
    assert bins >= 3


def test_poles_are_thin(scenes):
    """Across; the arms of lamp posts lie along the rows and are few."""
    widths = []
    for _, label in scenes:
        edges = np.diff(np.pad(label == street_painter.POLE, ((0, 0), (1, 1))).astype(np.int8))
        widths.append(np.argwhere(edges == -1)[:, 1] - np.argwhere(edges == 1)[:, 1])
    assert np.mean(np.concatenate(widths) <= 4) > 0.9


def test_the_same_arguments_give_the_same_scene_and_others_another(scenes):
    image, label = scenes[3]
    crc = [zlib.crc32(array.tobytes()) for array in draw_scene(5, 7, (80, 96))]
    assert crc == [1809885145, 1640710210]  # of image and label; EDITION changes with them
    for other in (draw_scene(4), draw_scene(3, seed=1)):
        assert (other[1] != label).mean() > 0.05
        assert (other[0] != image).mean() > 0.5


def test_any_size_from_64_on():
    image, label = draw_scene(0, size=(65, 131))
    assert image.shape == (65, 131, 3) and label.shape == (65, 131)
    assert {0, 3} <= set(np.unique(label))  # sky and road
    for arguments in ({"size": (63, 256)}, {"size": (64, 20)}, {"index": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match="Received: "):
            draw_scene(**{"index": 0, **arguments})


def test_a_scene_is_the_same_at_another_size(scenes):
    for index in range(2):
        image, label = scenes[index]
        small_image, small_label = draw_scene(index, size=(96, 128))
        assert (small_label == label[::2, ::2]).mean() > 0.88
        halved = np.asarray(Image.fromarray(image).reduce(2), float)
        assert np.abs(small_image - halved).mean() < 9


def edge_strength(image, label):
    """How much the image changes across the borders of the label."""
    grey = image.astype(float).mean(-1)
    changes = [
        np.abs(np.diff(grey, axis=axis))[np.diff(label.astype(int), axis=axis) != 0]
        for axis in (0, 1)
    ]
    return np.concatenate(changes).mean()


def test_label_borders_are_where_the_image_changes(scenes):
    """An image and a label that are a single pixel apart would not pass."""
    inner = (slice(4, -4), slice(4, -4))
    strengths = []
    for shift in ((0, 0), (0, 1), (-1, 0), (0, 3)):
        pairs = ((image[inner], np.roll(label, shift, (0, 1))[inner]) for image, label in scenes)
        strengths.append(sum(edge_strength(image, label) for image, label in pairs))
    assert strengths[0] > 1.1 * max(strengths[1:])


def test_the_label_is_the_commonest_class_of_the_canvas_pixels():
    canvas = np.array([[0, 0, 1, 5, 7, 255], [0, 8, 5, 1, 255, 7]], np.uint8)
    canvas = np.concatenate([canvas, [[3, 2, 4, 4, 0, 1], [2, 1, 4, 0, 2, 3]]]).astype(np.uint8)
    expected = [[0, 5, 255], [2, 4, 3]]  # ties go to the larger id
    np.testing.assert_array_equal(street_painter._majority(canvas), expected)


SMALL = {"train": 3, "val": 2, "size": (64, 80)}


def test_write_folder_has_the_layout_of_the_readers(tmp_path):
    root = write_folder(tmp_path / "new" / "street", **SMALL)
    names = [(split, k) for split in ("train", "val") for k in range(SMALL[split])]
    expected = {
        f"{kind}/{split}/scene_{k:05d}.png" for kind in ("images", "labels") for split, k in names
    }
    found = contents(root)
    assert set(found) == expected | {"classes.json", "street_scenes.json"}
    classes = {"classes": list(CLASSES), "palette": [*map(list, PALETTE)], "void": VOID}
    assert json.loads(found["classes.json"]) == classes
    image, label = draw_scene(1, size=(64, 80))
    np.testing.assert_array_equal(Image.open(root / "images/train/scene_00001.png"), image)
    with Image.open(root / "labels/train/scene_00001.png") as stored:
        assert stored.mode == "L"
        np.testing.assert_array_equal(stored, label)
    assert found["labels/train/scene_00000.png"] != found["labels/val/scene_00000.png"]


def test_write_folder_keeps_what_is_complete_and_redraws_what_is_not(tmp_path, monkeypatch):
    drawn = []
    draw = street_painter.draw_scene
    monkeypatch.setattr(
        street_painter, "draw_scene", lambda *args: drawn.append(args[0]) or draw(*args)
    )
    write_folder(tmp_path, **SMALL)
    before = contents(tmp_path)
    assert len(drawn) == len(set(drawn)) == 5  # validation scenes are not training scenes
    write_folder(tmp_path, **SMALL)
    assert len(drawn) == 5
    (tmp_path / "labels/val/scene_00001.png").unlink()
    write_folder(tmp_path, **SMALL)
    assert len(drawn) == 10
    assert contents(tmp_path) == before
    (tmp_path / "classes.json").unlink()
    mine = ("images/val/notes.png", "images/val/scene_at_night.png")
    for name in mine:
        (tmp_path / name).write_bytes(b"somebody's")
    write_folder(tmp_path, **SMALL)
    assert len(drawn) == 15
    write_folder(tmp_path, **{**SMALL, "train": 1})
    assert len(drawn) == 18
    after = contents(tmp_path)
    assert {after.pop(name) for name in mine} == {b"somebody's"}
    assert len(after) == 2 * (1 + 2) + 2  # what the larger set left is gone
    assert after["images/val/scene_00000.png"] == before["images/val/scene_00000.png"]


def test_a_folder_whose_files_were_changed_is_refused(tmp_path):
    """Whatever is asked for: a correction by hand is not drawn over."""
    write_folder(tmp_path, **SMALL)
    label = tmp_path / "labels/val/scene_00001.png"
    corrected = save(np.zeros((64, 80), np.uint8), label).read_bytes()
    for arguments in (SMALL, {**SMALL, "train": 1}):
        with pytest.raises(ValueError, match=r"1 files were changed .*: labels/val/scene_00001"):
            write_folder(tmp_path, **arguments)
    assert label.read_bytes() == corrected
    label.unlink()
    write_folder(tmp_path, **SMALL)
    assert label.read_bytes() != corrected


def test_an_interrupted_write_is_not_taken_as_complete(tmp_path):
    with killed_after(2, street_painter), pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, **SMALL)
    assert not (tmp_path / "classes.json").exists()
    assert len(list(tmp_path.rglob("*.png"))) == 4
    write_folder(tmp_path, **SMALL, seed=1)
    seed_1 = contents(tmp_path)
    with killed_after(2, street_painter), pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, **SMALL)  # now all the files are there, of two seeds
    write_folder(tmp_path, **SMALL, seed=1)
    assert contents(tmp_path) == seed_1
    assert json.loads((tmp_path / "street_scenes.json").read_text())["complete"]


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    write_folder(tmp_path, **SMALL)
    before = contents(tmp_path)

    def full_disk(image, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path, **{**SMALL, "seed": 1})
    after = contents(tmp_path)
    assert after.pop("street_scenes.json") != before.pop("street_scenes.json")
    assert after == before


@pytest.mark.parametrize("name", ["images/train/mine.png", "classes.json", "street_scenes.json"])
def test_write_folder_leaves_other_peoples_files_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ValueError, match="Received: "):
        write_folder(tmp_path, **SMALL)
    assert contents(tmp_path) == {name: b"precious"}
