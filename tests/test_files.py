import errno
import os
import shutil
from pathlib import Path

import pytest

from alignseg_tf.files import DiskFullError, atomic_path, write_text


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "x.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "model"
    for content in ("a", "b"):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [0, 3_000_000])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_what_is_free(tmp_path, monkeypatch, before, code):
    """1.5 MB are written when the last of 2.0 MB is gone."""
    path = tmp_path / "last.keras"
    if before:
        path.write_bytes(bytes(before))
    usage = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskFullError) as caught, atomic_path(path) as temporary:
        temporary.write_bytes(bytes(1_500_000))
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert f"{path} needs" in message
    assert "there are 2.0 MB free" in message
    assert ("3.0 MB, as the one that is there" if before else "more than 2.0 MB") in message
    assert [p.stat().st_size for p in tmp_path.iterdir()] == ([before] if before else [])


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(PermissionError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise PermissionError(errno.EACCES, "no")


def test_a_rename_is_on_the_disk_before_the_next(tmp_path, monkeypatch):
    synced = []
    original = os.fsync

    def fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        original(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to see what is synced")
    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "x.txt", "one")
    assert len(synced) == 2
    assert synced[0].endswith(".tmp.txt")
    assert synced[1] == str(tmp_path)
