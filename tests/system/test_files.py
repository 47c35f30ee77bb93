import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alignseg_tf.system import files
from alignseg_tf.system.files import (
    RECORD_FILE,
    DiskFullError,
    ForeignFileError,
    Output,
    atomic_folder,
    atomic_path,
    check_file,
    check_replaceable,
    has_keys,
    remove_leftovers,
    write_files,
    write_text,
)

LIBRARY = Path(files.__file__).parent
MODEL = Output("export", lambda folder: has_keys(folder / "classes.json", "classes"), ["*.json"])


def write_model(path, content="a", output=MODEL, **options):
    with atomic_folder(path, output, **options) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "model.pb").write_text(content)
        (folder / "link").symlink_to("deep")


def names_in(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_symlink() or not p.is_dir()
    )


@pytest.mark.parametrize("name", ["x.txt", "x" * 250 + ".png", "ä" * 120 + ".png"])
def test_a_file_is_replaced_when_it_is_whole(tmp_path, name):
    path = tmp_path / "new" / name
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text
    error = PermissionError(errno.EACCES, "no")
    with pytest.raises(PermissionError), atomic_path(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_text("half")
        raise error
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("code", "before"), [(errno.ENOSPC, 0), (errno.EDQUOT, 3_000_000)])
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
    assert "needs more than 1.5 MB" in message
    assert ("is unchanged" if before else "Nothing was written") in message
    assert [p.stat().st_size for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_rename_is_on_the_disk_before_the_next(tmp_path, monkeypatch):
    synced = []
    sync = files._sync
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(path) or sync(path))
    write_text(tmp_path / "x.txt", "one")
    assert [path.suffixes[-2:] for path in synced[:1]] == [[".tmp", ".txt"]]
    assert synced[1:] == [tmp_path]


def test_only_own_folders_are_replaced(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (tmp_path / "latest").symlink_to("model")
    for content, name in (("a", "model"), ("b", "model"), ("c", "latest")):  # at first it is empty
        write_model(tmp_path / name, content)
        assert (path / "deep" / "model.pb").read_text() == content
    assert names_in(path) == [RECORD_FILE, "deep/model.pb", "link"]
    assert (tmp_path / "latest").is_symlink()
    with pytest.raises(ForeignFileError, match=r"only files that import wrote.*deep/model.pb"):
        write_model(path, "c", Output("import"))


def test_what_the_user_did_in_a_folder_is_kept(tmp_path):
    path = tmp_path / "model"
    write_model(path)
    (path / "link").unlink()
    (path / "link").symlink_to("elsewhere")
    for name in ("deep/notes.txt", "deep/model.pb"):
        (path / name).write_text("mine")
    named = r"deep/model.pb \(changed since\), deep/notes.txt, link \(changed since\);"
    with pytest.raises(ForeignFileError, match=rf"Received: {named}.*--overwrite"):
        write_model(path, "new")
    assert [(path / "deep" / name).read_text() for name in ("notes.txt", "model.pb")] == [
        "mine", "mine"
    ]  # fmt: skip
    write_model(path, "new", overwrite=True)
    assert names_in(path) == [RECORD_FILE, "deep/model.pb", "link"]
    # Also what the user adds while the folder is made.
    with pytest.raises(ForeignFileError, match="notes.txt"), atomic_folder(path, MODEL) as folder:
        (folder / "model.pb").write_text("newer")
        (path / "notes.txt").write_text("mine")
    assert (path / "notes.txt").read_text() == "mine"
    assert (path / "deep" / "model.pb").read_text() == "new"


def test_a_folder_from_before_the_record_is_told_by_its_files(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "classes.json").write_text('{"classes": []}')
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ForeignFileError, match=r"Received: notes\.txt;"):
        write_model(path)
    (path / "notes.txt").unlink()
    write_model(path)
    assert not (path / "classes.json").exists()
    shutil.rmtree(path)
    path.write_text("mine")
    with pytest.raises(ForeignFileError, match="expected a folder to write. Received: a file"):
        write_model(path, overwrite=True)


def test_folders_that_are_kept_are_not_looked_at(tmp_path):
    path = tmp_path / "data"
    output = Output("import")
    for part in ("train", "val"):
        kept = ["train", "notes"] if part == "val" else []
        with atomic_folder(path, output, kept=kept) as folder:
            if part == "val":
                shutil.copytree(path / "train", folder / "train")
            write_text(folder / part / "a.png", "label")
        (path / "train" / "a.png").write_text("corrected")
        (path / "notes").write_text("mine")
    with pytest.raises(ForeignFileError, match=r"Received: train/a\.png \(changed since\);"):
        check_replaceable(path, output, ["train/a.png", "val/a.png"])


def write_checked(folder, output, contents, overwrite=False):
    """Check all names together, then write, as every command does."""
    check_replaceable(folder, output, contents, overwrite)
    return write_files(folder, output, contents)


def test_results_replace_only_results(tmp_path):
    output = Output("evaluate")
    paths = [tmp_path / name for name in ("a.csv", "b.png")]
    for number in ("1", "2"):
        assert write_checked(tmp_path, output, {"a.csv": number, "b.png": b"2"}) == paths
        assert paths[0].read_text() == number
    paths[0].write_text("2, with my notes")
    (tmp_path / "c.html").write_text("mine")
    with pytest.raises(ForeignFileError, match=r"a\.csv \(changed since\), c\.html;"):
        write_checked(tmp_path, output, {"a.csv": "3", "b.png": "3", "c.html": "3"})
    with pytest.raises(ForeignFileError, match=r"b\.png;"):
        write_checked(tmp_path, Output("compare"), {"b.png": "3"})
    write_checked(tmp_path, output, {"a.csv": "3", "c.html": "3"}, overwrite=True)
    write_checked(tmp_path, output, {"a.csv": "4", "c.html": "4"})


def test_results_from_before_the_record_are_replaced_together(tmp_path):
    output = Output("evaluate", lambda folder: (folder / "a.csv").exists())
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("older")
    for number in ("1", "2"):
        write_checked(tmp_path, output, {"a.csv": number, "b.csv": number})
    with (tmp_path / RECORD_FILE).open("a") as file:
        file.write('{"command": "eval')  # cut short by a kill
    for number in ("3", "4"):
        write_checked(tmp_path, output, {"a.csv": number, "c.csv": number})
    assert (tmp_path / "b.csv").read_text() == "2"


def test_only_own_files_are_replaced(tmp_path):
    def check(overwrite=False):
        check_file(tmp_path / "x.json", "summary", lambda x: has_keys(x, "blocks"), overwrite)

    check()
    (tmp_path / "x.json").write_text('{"blocks": 1}')
    check()
    for content in ('{"cats": 1}', "text", "[" * 100_000):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ForeignFileError, match=r"x\.json: .*that summary wrote.*--overwrite"):
            check()
        check(overwrite=True)
    (tmp_path / "x.json").unlink()
    (tmp_path / "x.json").mkdir()
    with pytest.raises(ForeignFileError, match="Received: a folder"):
        check(overwrite=True)


# A process that replaces a folder until it is killed between two calls of the system.
KILLED = """
import os, signal, sys
from pathlib import Path
import files
step, exchange, path = int(sys.argv[1]), sys.argv[2] == "exchange", Path(sys.argv[3])
calls = 0
def counted(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
Path.rename = counted(Path.rename)
files.shutil.rmtree = counted(files.shutil.rmtree)
files._exchange = counted(files._exchange) if exchange else lambda *names: False
with files.atomic_folder(path, files.Output("export")) as folder:
    (folder / "x").write_text("new")
"""


@pytest.mark.parametrize(("how", "steps"), [("exchange", 2), ("renames", 3)])
def test_a_replacement_that_is_killed_is_whole_after_the_next_start(tmp_path, how, steps, capsys):
    path = tmp_path / "my.model"
    killed = 0
    for step in range(1, steps + 2):
        shutil.rmtree(path, ignore_errors=True)
        with atomic_folder(path, Output("export")) as folder:
            (folder / "x").write_text("old")
        arguments = [sys.executable, "-c", KILLED, str(step), how, str(path)]
        child = subprocess.run(arguments, cwd=LIBRARY)  # without Keras it starts at once
        killed += child.returncode == -signal.SIGKILL
        lost = not path.exists()
        remove_leftovers(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
        assert (path / "x").read_text() in ("old", "new")
        assert ("restored" in capsys.readouterr().err) == lost
        assert how == "renames" or not lost
    assert killed == steps


def test_what_others_write_is_left_alone(tmp_path):
    """What this process or a living one writes, and hidden files of other programs."""
    with subprocess.Popen(["sleep", "60"]) as living, atomic_path(tmp_path / "x.png") as mine:
        mine.touch()
        of = mine.name.replace
        theirs = mine.with_name(of(f".{os.getpid()}.", f".{living.pid}."))
        elsewhere = mine.with_name(of(files._MACHINE, "01234567"))
        earlier = mine.with_name(of(files._PROCESS, "01234567"))  # of a container, say
        for path in (theirs, elsewhere, earlier, tmp_path / ".x.tmp.png", tmp_path / ".x.old"):
            path.touch()
        remove_leftovers(tmp_path)
        assert not earlier.exists()
        assert len(list(tmp_path.iterdir())) == 5
        os.utime(elsewhere)
        (tmp_path / "below").mkdir()
        living.kill()
        living.wait()
        theirs.rename(tmp_path / "below" / theirs.name)
        remove_leftovers(tmp_path)
        assert (tmp_path / "below" / theirs.name).exists()
        remove_leftovers(tmp_path, below=True)
        assert not (tmp_path / "below" / theirs.name).exists()
    assert not mine.exists()


def test_both_are_kept_where_the_name_was_taken_anew(tmp_path):
    hidden = files._hidden(tmp_path / "model", "tmp").name.replace(files._PROCESS, "01234567")
    for name in ("model", hidden, hidden.replace(".tmp", ".old")):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
