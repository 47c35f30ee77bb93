import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, ROOT, random_images, tiny_model
from PIL import ExifTags, Image

from alignseg_tf import Predictor, distributed_prediction, files
from alignseg_tf.__main__ import main
from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.readers import DataError, load_image
from alignseg_tf.distributed_prediction import (
    MANIFEST,
    Segmenter,
    list_pictures,
    predict_distributed,
    read_manifest,
    read_pictures,
    result_path,
)
from alignseg_tf.export import export_saved_model
from alignseg_tf.fingerprints import fingerprint
from alignseg_tf.protocols import Protocol

MODEL = "0123456789abcdef" * 4
KNOWN = ("sha256", "bytes", "mtime_ns")


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "1"
    export_saved_model(tiny_model(label_space=LabelSpace(CLASSES).to_dict()), path)
    return path


@pytest.fixture(scope="module")
def segmenter(saved_model):
    return Segmenter(saved_model, Path(), MODEL, batch_size=2)


@pytest.fixture(scope="module")
def predictor(saved_model):
    return Predictor(saved_model)


@pytest.fixture
def output(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenter, "output", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures")


def write_pictures(folder):
    """Two sizes, a picture twice, one on its side, and what is no picture."""
    (folder / "more").mkdir(parents=True)
    for index, image in enumerate(random_images(3, 48, 64)):
        Image.fromarray(image).save(folder / f"{index}.png")
    for index, image in enumerate(random_images(2, 40, 56, seed=1)):
        Image.fromarray(image).save(folder / "more" / f"{index}.jpg")
    (folder / "more" / "again.png").write_bytes((folder / "0.png").read_bytes())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(random_images(1, 40, 56, seed=2)[0]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(random_images(1, 31, 40)[0]).save(folder / "small.png")
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:300])
    (folder / "empty.png").touch()
    return folder


GOOD = {"0.png", "1.png", "2.png", "again.png", "turned.jpg", "more/0.jpg", "more/1.jpg"}
BAD = {"small.png", "broken.png", "empty.png"}


def read(paths, output, known=None):
    rows = [
        {"row": i, "path": str(path), **dict.fromkeys(KNOWN), **(known or {})}
        for i, path in enumerate(paths)
    ]
    return pa.concat_tables(read_pictures(pa.Table.from_pylist(rows), output, MODEL))


def rows_of(table):
    return {Path(row["path"]).name: row for row in table.to_pylist()}


def check_result(predictor, picture, output, model=MODEL):
    sha256 = hashlib.sha256(picture.read_bytes()).hexdigest()
    with Image.open(output / result_path(sha256, model)) as result:
        assert result.mode == "L"
        classes = np.asarray(result)
    expected = predictor.class_map(load_image(picture))
    assert classes.shape == expected.shape
    assert (classes == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1


def test_pictures_of_all_sizes_become_what_the_predictor_says(
    predictor, segmenter, output, pictures, monkeypatch
):
    sizes = []
    class_maps = segmenter.network.class_maps

    def count(images):
        sizes.append(images.shape)
        return class_maps(images)

    monkeypatch.setattr(segmenter.network, "class_maps", count)
    paths = [path for path in sorted(pictures.rglob("*.*")) if path.stem != "0"]
    paths += [pictures / "0.png", pictures / "more" / "0.jpg"]
    table = segmenter(read(paths, output))
    assert table.column_names == [*(c for c in table.column_names if c != "output"), "output"]
    rows = {str(Path(row["path"]).relative_to(pictures)): row for row in table.to_pylist()}
    assert [row["row"] for row in table.to_pylist()] == list(range(len(paths)))
    # Those of one size go together, two at a time; equal ones once.
    assert sorted(sizes) == [(1, 48, 64, 3), (1, 56, 40, 3), (2, 40, 56, 3), (2, 48, 64, 3)]
    statuses = {name: row["status"] for name, row in rows.items()}
    assert {name for name in rows if statuses[name] == "failed"} == BAD
    assert statuses["more/again.png"] == "written" and statuses["0.png"] == "kept"
    assert rows["more/again.png"]["output"] == rows["0.png"]["output"]
    for name, row in rows.items():
        if name in BAD:
            assert row["output"] is None
            continue
        check_result(predictor, pictures / name, output)
        if statuses[name] == "written":
            with Image.open(output / row["output"]) as result:
                assert result.size == (row["width"], row["height"])
    assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (40, 56)
    assert rows["small.png"]["reason"] == "the picture is 40 x 31 pixels; expected at least 32 x 32"
    assert rows["broken.png"]["reason"].startswith("not readable as a picture (truncated")
    assert rows["empty.png"]["reason"] == "not readable as a picture (the file is empty)"
    assert len(list(output.rglob("*"))) == 3 * 6  # a folder, one in it, a file


def test_what_is_there_is_not_read_again(segmenter, output, pictures, monkeypatch):
    path = pictures / "0.png"
    first = segmenter(read([path], output)).to_pylist()[0]
    assert first["status"] == "written"
    known = {name: first[name] for name in KNOWN}
    monkeypatch.setattr(segmenter, "predictor", None)

    # The result is there and the manifest does not know it: the file is read, and no more.
    assert segmenter(read([path], output)).to_pylist()[0]["status"] == "kept"
    # The manifest knows the file: it is not even read.
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(first["mtime_ns"], first["mtime_ns"]))
    assert segmenter(read([path], output, known)).to_pylist()[0]["status"] == "known"
    # The file has changed since.
    os.utime(path, ns=(first["mtime_ns"] + 1, first["mtime_ns"] + 1))
    assert read([path], output, known)["content"].to_pylist() == [bytes(len(content))]
    # The result is gone.
    path.write_bytes(content)
    (output / first["output"]).unlink()
    known["mtime_ns"] = path.stat().st_mtime_ns
    assert read([path], output, known)["content"].to_pylist() == [content]


def test_files_that_cannot_be_read_are_failures(segmenter, output, pictures):
    (pictures / "gone.png").symlink_to(pictures / "nowhere.png")
    table = segmenter(read([pictures / "gone.png", pictures / "more"], output))
    assert table["status"].to_pylist() == ["failed", "failed"]
    assert table["reason"].to_pylist() == ["No such file or directory", "Is a directory"]


def test_encoded_pictures_are_handed_on_in_pieces(pictures, output, monkeypatch):
    monkeypatch.setattr(distributed_prediction, "READ_BYTES", 1)
    table = pa.Table.from_pylist(
        [{"row": i, "path": str(pictures / f"{i}.png"), **dict.fromkeys(KNOWN)} for i in range(3)]
    )
    assert [len(piece) for piece in read_pictures(table, output, MODEL)] == [1, 1, 1, 0]


def test_memory_is_bounded(predictor, segmenter, output, pictures, monkeypatch):
    """Many sizes do not all wait, batches have a limit in pixels, and large pictures windows."""
    groups = []
    segment = segmenter._segment
    monkeypatch.setattr(segmenter, "_segment", lambda g: (groups.append(len(g)), segment(g)))
    monkeypatch.setattr(distributed_prediction, "MAX_WAITING_PIXELS", 48 * 64)
    paths = [pictures / "0.png", pictures / "more" / "0.jpg", pictures / "1.png"]
    segmenter(read(paths, output))
    assert groups == [1, 1, 1]
    monkeypatch.setattr(segmenter.predictor, "protocol", Protocol(largest_whole=48 * 64))
    assert segmenter._most_at_a_time(48, 64) == 1
    assert segmenter._most_at_a_time(32, 32) == 2
    windows = []
    class_map = segmenter.predictor.class_map
    monkeypatch.setattr(
        segmenter.predictor, "class_map", lambda image: (windows.append(1), class_map(image))[1]
    )
    large = pictures / "large.png"
    Image.fromarray(random_images(1, 56, 72)[0]).save(large)
    segmenter(read([large], output))
    assert windows == [1]
    check_result(predictor, large, output)


def test_a_picture_that_the_network_refuses_does_not_spoil_its_batch(
    segmenter, output, pictures, monkeypatch
):
    refused = load_image(pictures / "1.png")
    class_maps = segmenter._class_maps

    def refuse(images):
        if (images == refused).all((1, 2, 3)).any():
            raise ValueError("not this one")
        return class_maps(images)

    monkeypatch.setattr(segmenter, "_class_maps", refuse)
    rows = rows_of(segmenter(read([pictures / f"{i}.png" for i in range(3)], output)))
    assert [rows[f"{i}.png"]["status"] for i in range(3)] == ["written", "failed", "written"]
    assert rows["1.png"]["reason"] == "not this one"


def test_a_full_disk_stops_the_run(segmenter, output, pictures, monkeypatch):
    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(files.os, "fsync", fail)
    row = segmenter(read([pictures / "0.png"], output)).to_pylist()[0]
    assert (row["status"], row["reason"], row["output"]) == ("stopped", "no space", None)
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_the_latest_run_counts_in_the_manifest(tmp_path):
    assert read_manifest(tmp_path).num_rows == 0
    first = dict.fromkeys(MANIFEST, None) | {"status": "written"}
    for run, size in (("20260101T000000Z-9", 1), ("20260102T000000Z-1", 2)):
        manifest = distributed_prediction._Manifest(tmp_path, MODEL)
        manifest.run = run
        manifest.add({**first, "path": "a.png", "bytes": size})
        manifest.add({**first, "path": f"{size}.png", "bytes": size})
        manifest.add({"path": "b.png", "status": "failed", "reason": "broken"})
        manifest.add({**first, "path": "c.png", "status": "known"})
        manifest.flush()
    table = read_manifest(tmp_path, MODEL)
    assert table.column_names == list(MANIFEST)
    rows = rows_of(table)
    assert {name: row["bytes"] for name, row in rows.items()} == {
        "a.png": 2,
        "1.png": 1,
        "2.png": 2,
    }
    assert read_manifest(tmp_path, "another").num_rows == 0
    line = (tmp_path / "failures" / "20260101T000000Z-9-00000.jsonl").read_text()
    assert json.loads(line) == {"path": "b.png", "reason": "broken"}


def test_the_manifest_grows_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed_prediction, "PART_ROWS", 2)
    manifest = distributed_prediction._Manifest(tmp_path, MODEL)
    row = dict.fromkeys(MANIFEST, None) | {"status": "written"}
    for index in range(5):
        manifest.add({**row, "path": f"{index}.png"})
    parts = sorted((tmp_path / "manifest").iterdir())
    assert [pq.read_table(part).num_rows for part in parts] == [2, 2]
    manifest.written = time.monotonic() - 61
    manifest.add({**row, "path": "5.png"})
    assert len(list((tmp_path / "manifest").iterdir())) == 3


def test_listing(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("b/1.JPG", "a.png", ".hidden/2.png", ".3.png", "notes.txt", "out/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).touch()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/5.jfif").touch()
    (folder / "c").symlink_to(tmp_path / "store")
    (folder / "d").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    paths, unfit = list_pictures(folder, leave_out=folder / "out")
    listed = [str(folder / name) for name in ("a.png", "b/1.JPG", "c/5.jfif")]
    assert paths.to_pylist() == listed
    assert unfit == [f"{folder}/\\xff.png"]
    with pytest.raises(DataError, match="nowhere: not readable as a folder"):
        list_pictures(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"empty: no pictures \(\.jpg, "):
        (tmp_path / "empty").mkdir()
        list_pictures(tmp_path / "empty", tmp_path / "out")


def test_wrong_arguments_are_told_before_anything_starts(saved_model, pictures, tmp_path, capsys):
    for name in ("actors", "threads", "batch_size"):
        with pytest.raises(ValueError, match=rf"`{name}` must be at least 1. Received: {name}=0"):
            predict_distributed(saved_model, pictures, tmp_path / "out", **{name: 0})
    with pytest.raises(ValueError, match="no SavedModel"):
        predict_distributed(pictures, pictures, tmp_path / "out")
    arguments = ["predict-distributed", str(saved_model), str(tmp_path / "nowhere")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "nowhere: not readable as a folder" in capsys.readouterr().err


# Two actors; one kills itself once while it works, and a picture kills each that looks at it.
DEADLY = """
import json, os, signal, sys
from pathlib import Path
from alignseg_tf import distributed_prediction
from alignseg_tf.distributed_prediction import Segmenter, predict_distributed

saved_model, pictures, output = map(Path, sys.argv[1:])

class Deadly(Segmenter):
    def _decode(self, row, content):
        log = self.output.parent / "died"
        died = log.read_text() if log.exists() else ""
        once = row["path"].endswith("more_5.png") and row["path"] not in died
        if once or row["path"].endswith("poison.png"):
            with log.open("a") as file:
                print(row["path"], file=file)
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._decode(row, content)

distributed_prediction.Segmenter = Deadly
distributed_prediction.MAX_DEATHS = 1
summary = predict_distributed(saved_model, pictures, output, actors=2)
print(json.dumps(summary.counts))
"""


def run_in_process(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # or TensorFlow's greetings are wanted
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=400,
        env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_actors_and_resuming(saved_model, predictor, tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    for index, image in enumerate(random_images(12, 48, 64, seed=3)):
        Image.fromarray(image).save(pictures / f"more_{index}.png")
    Image.fromarray(random_images(1, 48, 64, seed=4)[0]).save(pictures / "poison.png")
    out = tmp_path / "out"
    result = run_in_process("-c", DEADLY, saved_model, pictures, out)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])  # Ray says before that actors died
    died = (tmp_path / "died").read_text().splitlines()
    assert sum("more_5.png" in line for line in died) == 1
    assert sum("poison.png" in line for line in died) >= 3
    good = {path for path in pictures.rglob("*.*") if path.name not in {*BAD, "poison.png"}}
    assert len(good) == 19
    assert (counts["written"] + counts.get("kept", 0), counts["failed"]) == (19, 4)
    model = fingerprint(saved_model)
    for picture in good:
        check_result(predictor, picture, out, model)
    rows = {row["path"]: row for row in read_manifest(out).to_pylist()}
    assert rows.keys() == {str(path) for path in good}
    for path, row in rows.items():
        assert row["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert (row["model"], row["bytes"]) == (model, Path(path).stat().st_size)
        assert (out / row["output"]).is_file()
    lines = [
        line for part in (out / "failures").iterdir() for line in part.read_text().splitlines()
    ]
    failures = {Path(json.loads(line)["path"]).name: json.loads(line)["reason"] for line in lines}
    assert failures.keys() == {*BAD, "poison.png"}
    assert failures["poison.png"] == "the process that segmented it died 2 times"
    assert json.loads((out / "models" / f"{model[:16]}.json").read_text())["classes"] == [*CLASSES]

    # The command, later: what is there stays, what failed is tried again, and Ray is not heard.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_classes.png")}
    parts = len(list((out / "manifest").iterdir()))
    (out / rows[str(pictures / "2.png")]["output"]).unlink()
    result = run_in_process(
        "-m", "alignseg_tf", "predict-distributed", saved_model, pictures, "--output", out,
        "--actors", "2", "--threads", "1",
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == f"error: 3 failed; see {out / 'failures'}\n"
    assert "2 written, 18 kept, 3 failed" in result.stdout
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*_classes.png")}
    assert len(after) == len(before) + 1
    assert sum(after[path] != before.get(path) for path in after) == 2
    assert len(list((out / "manifest").iterdir())) == parts + 1
    check_result(predictor, pictures / "poison.png", out, model)
