import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from alignseg_tf.system import fingerprints
from alignseg_tf.system.fingerprints import (
    FileFingerprints,
    changed_names,
    combined,
    differences,
    fingerprint,
    named_fingerprints,
)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def settled(monkeypatch):
    """Take every file for one that has not been changed for long."""
    monkeypatch.setattr(fingerprints, "TIME_STEP", -60.0)


@pytest.fixture
def read(monkeypatch):
    """Return a list that grows by each file that is read for its fingerprint."""
    names = []
    digest = hashlib.file_digest

    def noting(file, kind):
        names.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(fingerprints.hashlib, "file_digest", noting)
    return names


def test_a_file_put_in_the_place_of_another_is_read_with_its_old_time(tmp_path, settled):
    """As mv, cp -p, rsync -t and unzip do; the size is the same too."""
    path = tmp_path / "a"
    of = FileFingerprints()
    path.write_bytes(b"one")
    os.utime(path, (1e9, 1e9))
    assert of(path) == sha256(b"one")
    (tmp_path / "b").write_bytes(b"two")
    os.utime(tmp_path / "b", (1e9, 1e9))
    (tmp_path / "b").rename(path)
    assert of(path) == sha256(b"two")
    time.sleep(0.02)  # of one step of the kernel's clock, so that the inode's time differs
    with path.open("r+b") as file:  # in place, the same inode
        file.write(b"six")
    os.utime(path, (1e9, 1e9))
    assert of(path) == sha256(b"six")


def test_a_file_just_written_is_not_remembered(tmp_path, read):
    """It may change once more before the clock of the file system moves on."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    of = FileFingerprints()
    of(path)
    of(path)
    assert read == ["a", "a"]


def test_a_file_is_read_once_also_by_the_next_process(tmp_path, settled, read):
    path, kept = tmp_path / "a", tmp_path / "kept.json"
    path.write_bytes(b"one")
    first = FileFingerprints(kept)
    assert first(path) == first(str(path)) == sha256(b"one")
    first.save()
    assert FileFingerprints(kept)(path) == sha256(b"one")
    assert read == ["a"]
    for damaged in ("", "[1]", '{"a": 1}', json.dumps({str(path): [[3], 0, 0]})):
        kept.write_text(damaged)
        assert FileFingerprints(kept)(path) == sha256(b"one")


def test_many_files_by_name(tmp_path):
    for name in ("images_b", "images_a"):
        (tmp_path / name).write_bytes(name.encode())
    found = named_fingerprints([tmp_path / "images_b", tmp_path / "images_a"], tmp_path)
    assert found == {name: sha256(name.encode()) for name in ("images_a", "images_b")}
    assert list(found) == sorted(found)
    assert combined(found.values()) != combined(reversed(found.values()))


def test_a_model_is_a_file_or_the_names_and_files_of_a_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables/index").write_bytes(b"index")
    first = fingerprint(folder)
    (folder / "variables/index").rename(folder / "variables/other")
    second = fingerprint(folder)
    (folder / "saved_model.pb").write_bytes(b"grapf")
    assert len({first, second, fingerprint(folder), fingerprint(folder / "saved_model.pb")}) == 4


def test_differences_name_what_differs():
    there = {"model": "a", "rate": 1, "files": {"a": "1", "b": "2", "c": "3"}, "same": [1]}
    here = {"model": "b", "size": 2, "files": {"a": "1", "b": "9", "d": "3"}, "same": [1]}
    assert differences(there, here) == (
        "\n  files: 1 changed: b; 1 removed: c; 1 added: d"
        "\n  model: 'a' there, 'b' here"
        "\n  rate: 1 there, not set here"
        "\n  size: not set there, 2 here"
    )
    assert differences(there, there) == ""
    classes = [f"class {i}" for i in range(19)]
    assert differences({"a": classes}, {"a": [*classes[:18], "sky", "road"]}) == (
        "\n  a: 19 there, 20 here; only there: class 18; only here: sky, road"
    )
    reordered = differences({"a": classes}, {"a": classes[::-1]})
    assert reordered == "\n  a: 19 there, 19 here; in another order"
    names = {f"{i}.png": "" for i in range(7)}
    assert changed_names({}, names) == ("7 added: 0.png, 1.png, 2.png, 3.png, 4.png ...")
