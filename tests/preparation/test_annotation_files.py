import os
import stat
import zipfile
from unicodedata import normalize

import pytest
from data_fixtures import contents

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


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def archive(path, *names, content="content", **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name in names:
            file.writestr(name, content)
    return path


def assert_refused(path, message):
    with pytest.raises(DataError, match=message), unpacked(path):
        pass


def test_files_are_found_in_another_form_of_their_name(tmp_path):
    there = normalize("NFD", "Häuser/Straße.JPG")
    make(tmp_path, there, "a.png", "A.png", "b.png", "B.PNG")
    finder = FileFinder()
    assert finder.find(tmp_path, normalize("NFC", "häuser\\straße.jpg")) == tmp_path / there
    assert finder.find(tmp_path, "A.png") == tmp_path / "A.png"
    assert finder.find(tmp_path / "gone", "a.png") is None
    for name in ("a.PNG", "x" * 300, "a\0.png"):  # the first is either of two
        assert finder.find(tmp_path, name) is None


def test_a_folder_at_the_top_of_an_archive_is_entered(tmp_path):
    names = ["task/a.txt", "task\\b\\c.txt", "__MACOSX/task/._a.txt", "task/.DS_Store", "Thumbs.db"]
    with unpacked(archive(tmp_path / "a.zip", *names)) as folder:
        assert list(contents(folder)) == ["a.txt", "b/c.txt"]
    make(tmp_path / "export", "task/a.txt", ".DS_Store")
    with unpacked(tmp_path / "export") as folder:
        assert folder == tmp_path / "export/task"


@pytest.mark.parametrize("name", ["../a.txt", "b/../../a.txt", "/a.txt", "C:\\a.txt", "..\\a.txt"])
def test_an_archive_does_not_leave_its_folder(tmp_path, name):
    path = archive(tmp_path / "a.zip", "ok.txt", name)
    assert_refused(path, r"a\.zip: expected paths below the archive's top")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_in_an_archive_are_refused(tmp_path, kind):
    member = zipfile.ZipInfo("link")
    member.external_attr = (kind | 0o644) << 16
    assert_refused(
        archive(tmp_path / "a.zip", member), "no links or special files. Received: 'link'"
    )


def test_sizes_are_checked_before_an_archive_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_files, "MAX_UNPACKED_BYTES", 1000)
    path = archive(
        tmp_path / "a.zip", "zeros", content=bytes(10**6), compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size * annotation_files.MAX_UNPACKED_RATIO < 10**6
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    assert_refused(path, "of unpacked files. Received: 1 MB")


def test_what_is_no_archive_is_refused(tmp_path):
    path = archive(tmp_path / "a.zip", "a.txt")
    path.write_bytes(path.read_bytes().replace(b"content", b"Content"))
    (tmp_path / "text.zip").write_bytes(b"no zip")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("a.zip", "Bad CRC-32"), ("text.zip", "not a zip"), ("gone.zip", "no such file"),
        ("pipe", "Received: a pipe"),
    ):  # fmt: skip
        assert_refused(tmp_path / name, rf"{name}: expected a folder or a \.zip.*{message}")


def test_numbers_and_names():
    assert [whole_number(x) for x in (64, 64.0, 2**70)] == [64, 64, 2**70]
    unfit = (64.5, float("inf"), float("nan"), "64", True, None)
    assert [whole_number(x) for x in unfit] == [None] * 6
    assert declared_size({"h": 48.0, "w": 64}, "h", "w", "a") == (48, 64)
    assert declared_size({}, "h", "w", "a") is None
    with pytest.raises(DataError, match="a: expected whole h and w. Received: .48, None"):
        declared_size({"h": 48}, "h", "w", "a")
    assert class_name(normalize("NFD", " é "), "a") == normalize("NFC", "é")
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
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(DataError, match=rf"{path}: expected a file. Received: {kind}"):
            read_text(path)
