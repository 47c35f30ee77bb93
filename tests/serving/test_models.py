import json
import logging
import os
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from serving_fixtures import NOT_FINITE, SPACE, expected, noise_image, until, write_model

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.saved_networks import LABEL_SPACE_FILE
from alignseg_tf.serving import models as serving_models
from alignseg_tf.serving.images import RefusedError
from alignseg_tf.serving.models import Models, Version, folder_state, load_version


def load(path):
    """Stand in for TensorFlow: a file named `broken` makes a version that does not load."""
    if (path / "broken").exists():
        raise ValueError(f"{path.name} is broken")
    return Version(int(path.name), SPACE, {"serving_default": None})


def add(folder, name, file="whole"):
    (folder / f".{name}").mkdir(parents=True)
    (folder / f".{name}" / file).touch()
    (folder / f".{name}").rename(folder / name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(serving_models, "load_version", load)
    add(tmp_path / "street", "1")
    return tmp_path / "street"


@pytest.fixture
def models(folder):
    models = Models(folder)
    models.update()
    return models


def test_the_newest_version_that_loads_serves(folder):
    add(folder, "10")
    add(folder, "9")
    models = Models(folder)
    with pytest.raises(ValueError, match="street: none of its versions loads"):
        _ = models.active
    models.update()
    assert models.states() == {1: "idle", 9: "idle", 10: "active"}
    (folder / "10" / "broken").touch()
    models = Models(folder)
    models.update()
    assert models.states() == {1: "idle", 9: "active", 10: "broken"}


def test_folders_without_versions_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="gone: expected a folder of numbered versions"):
        Models(tmp_path / "gone")
    shutil.rmtree(folder / "1")
    with pytest.raises(ValueError, match=r"named by numbers, such as 1. Received: no folders"):
        Models(folder)
    for name in ("best", "1.5", "-1", "²", ".2"):
        (folder / name).mkdir()
    (folder / "3").touch()
    with pytest.raises(ValueError, match=r"Received: -1, .2, 1.5, best, ²"):
        Models(folder)


def test_a_new_version_takes_over_and_the_old_one_goes_when_its_work_is_done(
    folder, models, caplog
):
    caplog.set_level(logging.INFO)
    at_work = models.active
    add(folder, "2")
    models.update()
    assert "version 2 serves instead of 1" in caplog.text
    assert models.states() == {1: "unloading", 2: "active"}
    models.update()
    assert "unloaded" not in caplog.text
    del at_work
    models.update()
    assert "version 1 is unloaded" in caplog.text
    assert models.states() == {1: "idle", 2: "active"}


def test_a_broken_version_is_told_once_and_the_old_one_continues(folder, models, caplog):
    add(folder, "2", "broken")
    broken = []
    models.on_broken = lambda: broken.append(2)
    for _ in range(3):
        models.update()
    assert broken == [2]
    assert caplog.text.count("version 2 does not load, version 1 continues: 2 is broken") == 1
    assert models.states() == {1: "active", 2: "broken"}
    # A broken version that is mended is read again, when it has been the same for two looks.
    (folder / "2" / "broken").unlink()
    models.update()
    assert models.states() == {1: "active", 2: "idle"}
    models.update()
    assert models.states() == {1: "idle", 2: "active"}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_version_that_is_written_again_is_loaded_again(folder, models, in_place):
    first = models.active
    models.update()
    assert models.active is first
    if in_place:
        (folder / "1" / "whole").write_text("other")
    else:  # a file system may give the inode of a folder that is gone to the next one
        shutil.rmtree(folder / "1")
        add(folder, "1")
    models.update()
    assert models.active is first  # it may be about to change more
    models.update()
    second = models.active
    assert second is not first
    models.update()
    assert models.active is second


def test_a_version_that_is_written_again_and_broken_leaves_the_loaded_one(models, folder, caplog):
    active = models.active
    (folder / "1" / "broken").touch()
    for _ in range(4):
        models.update()
    assert caplog.text.count("version 1 does not load, version 1 continues") == 1
    (folder / "1" / "broken").unlink()
    models.update()
    models.update()
    assert models.active is active  # its files are those that were loaded
    (folder / "1" / "whole").write_text("mended")
    models.update()
    models.update()
    assert models.active is not active


def test_other_content_is_described_in_another_way(folder):
    """Also of the same size and with the former time."""
    before = folder_state(folder / "1")
    file = folder / "1" / "whole"
    times = file.stat()
    for content in (b"other", b"again"):
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert folder_state(folder / "1") != before
        before = folder_state(folder / "1")
    (folder / "1").rename(folder / "7")
    assert folder_state(folder / "7") == before


def test_an_older_version_takes_over_when_the_newest_is_taken_away(folder, models):
    add(folder, "2")
    models.update()
    shutil.rmtree(folder / "2")
    models.update()
    assert models.active.number == 2  # it may be about to be replaced
    models.update()
    assert models.active.number == 1
    shutil.rmtree(folder / "1")
    for _ in range(3):
        models.update()
    assert models.active.number == 1  # there is no other


def test_versions_are_watched_in_a_thread(folder, models):
    models.watch(0.01)
    folder.rename(folder.with_name("away"))
    time.sleep(0.05)
    folder.with_name("away").rename(folder)
    add(folder, "2")
    until(lambda: models.active.number == 2)
    models.close()


def test_tflite_files_are_those_beside_the_versions(folder, models, tmp_path):
    (folder / "street.tflite").write_bytes(b"model")
    (folder / ".hidden.tflite").touch()
    (folder / "folder.tflite").mkdir()
    (tmp_path / "secret.tflite").touch()
    (folder / "link.tflite").symlink_to(tmp_path / "secret.tflite")
    assert models.tflite_sizes() == {"street.tflite": 5}


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return load_version(write_model(tmp_path_factory.mktemp("models") / "7", shift=1))


def test_a_savedmodel_is_loaded_and_has_to_segment(version, tmp_path):
    assert (version.number, version.label_space) == (7, SPACE)
    image = noise_image()
    assert (version.class_map(image) == expected(image, shift=1)).all()
    assert (version.call("offsets", image)["fine"][5, 7] == (7, 5)).all()
    path = write_model(tmp_path / "8")
    (path / LABEL_SPACE_FILE).unlink()
    with pytest.raises(ValueError, match=r"classes.json with the names of the classes is missing"):
        load_version(path)


def test_a_version_with_bad_class_maps_or_names_is_broken(version, tmp_path, monkeypatch):
    path = write_model(tmp_path / "7")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"uint8 \[64, 96\]. Rec"):
        patch.setattr(Version, "class_map", lambda self, image: image[..., 0].astype(int))
        load_version(path)
    space = LabelSpace(SPACE.classes[:3])
    (path / LABEL_SPACE_FILE).write_text(json.dumps(space.to_dict()))
    with pytest.raises(ValueError, match="7: expected the names of 4 classes. Received: 3 names"):
        load_version(path)
    with pytest.raises(RuntimeError, match="7: expected ids of 3 classes. Received: 3"):
        Version(7, space, version.signatures).class_map(np.full((32, 32, 3), 140, np.uint8))


def test_a_version_refuses_other_sizes_and_logits_that_are_not_finite(version):
    fixed = Version(7, SPACE, {"serving_default": None}, (32, 48))
    with pytest.raises(RefusedError, match="Expected an image of 48 x 32 pixels.* 48 x 33"):
        fixed.class_map(noise_image(33, 48))
    bad = noise_image()
    bad[4, 8, 0] = NOT_FINITE
    with pytest.raises(RefusedError, match=r"version 7: .* for an image of 56 x 40 pixels"):
        version.call("logits", bad)
    assert version.call("logits", noise_image())["logits"].shape == (10, 14, 4)

    def checked(**inputs):  # as an export that checks its own logits
        tf.debugging.check_numerics(tf.constant([1.0, np.nan]), "logits")

    with pytest.raises(RefusedError, match="version 7"):
        Version(7, SPACE, {"serving_default": checked}).class_map(noise_image())
