import os
import stat
import unicodedata
import zipfile

import pytest

from alignseg_tf.data.listing import DataError
from alignseg_tf.preparation import annotation_files
from alignseg_tf.preparation.annotation_files import (
    FileFinder,
    class_name,
    declared_size,
    read_json,
    read_text,
    unpacked,
    whole_number,
)


def form(kind, text):
    return unicodedata.normalize(kind, text)


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_files_are_found_in_another_form_of_their_name(tmp_path):
    there = form("NFD", "Häuser/Straße.JPG")
    make(tmp_path, there, "a.png", "A.png", "b.png", "B.PNG")
    finder = FileFinder()
    assert finder.find(tmp_path, form("NFC", "häuser\\straße.jpg")) == tmp_path / there
    assert finder.find(tmp_path, "A.png") == tmp_path / "A.png"
    assert finder.find(tmp_path, "a.PNG") is None  # either of two
    assert finder.find(tmp_path / "gone", "a.png") is None
    assert finder.find(tmp_path, "x" * 300) is None
    assert finder.find(tmp_path, "a\0.png") is None


def zipped(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def inside(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_at_the_top_of_an_archive_is_entered(tmp_path):
    names = ["task/a.txt", "task\\b\\c.txt", "__MACOSX/task/._a.txt", "task/.DS_Store", "Thumbs.db"]
    with unpacked(zipped(tmp_path / "a.zip", *names)) as folder:
        assert inside(folder) == ["a.txt", "b/c.txt"]
    make(tmp_path / "export", "task/a.txt", ".DS_Store")
    with unpacked(tmp_path / "export") as folder:
        assert folder == tmp_path / "export/task"


@pytest.mark.parametrize("name", ["../a.txt", "b/../../a.txt", "/a.txt", "C:\\a.txt", "..\\a.txt"])
def test_an_archive_does_not_leave_its_folder(tmp_path, name):
    with (
        pytest.raises(DataError, match=r"a\.zip: expected paths below the archive's top"),
        unpacked(zipped(tmp_path / "a.zip", "ok.txt", name)),
    ):
        pass


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_in_an_archive_are_refused(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("link")
        member.external_attr = (kind | 0o644) << 16
        archive.writestr(member, "/etc/hostname")
    with (
        pytest.raises(DataError, match="no links or special files. Received: 'link'"),
        unpacked(tmp_path / "a.zip"),
    ):
        pass


def test_sizes_are_checked_before_an_archive_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_files, "MAX_UNPACKED_BYTES", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**6))
    assert path.stat().st_size * annotation_files.MAX_UNPACKED_RATIO < 10**6
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    with pytest.raises(DataError, match="of unpacked files. Received: 1 MB"), unpacked(path):
        pass


def test_what_is_no_archive_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", "a.txt")
    content = bytearray(path.read_bytes())
    place = content.index(b"a.txta.txt") + 5
    content[place] ^= 1  # its checksum does not fit any more
    path.write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("a.zip", "Bad CRC-32"), ("gone.zip", "no such file"), ("pipe", "Received: a pipe"),
    ):  # fmt: skip
        with (
            pytest.raises(DataError, match=rf"{name}: expected a folder or a \.zip.*{message}"),
            unpacked(tmp_path / name),
        ):
            pass


def test_numbers_and_names():
    assert [whole_number(x) for x in (64, 64.0, 2**70)] == [64, 64, 2**70]
    unfit = (64.5, float("inf"), float("nan"), "64", True, None)
    assert [whole_number(x) for x in unfit] == [None] * 6
    assert declared_size({"h": 48.0, "w": 64}, "h", "w", "a") == (48, 64)
    assert declared_size({}, "h", "w", "a") is None
    with pytest.raises(DataError, match="a: expected whole h and w. Received: .48, None"):
        declared_size({"h": 48}, "h", "w", "a")
    assert class_name(form("NFD", " é "), "a") == form("NFC", "é")
    for name in ("", " ", None, ["a"], 1.5):
        with pytest.raises(DataError, match="a: expected a name"):
            class_name(name, "a")


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000, "{", "[1, 2"])
def test_broken_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: expected a file. Received: a pipe"):
        read_text(tmp_path / "pipe")
    with pytest.raises(DataError, match="expected a file. Received: a folder"):
        read_text(tmp_path)
