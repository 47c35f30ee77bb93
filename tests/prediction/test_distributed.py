import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import CLASSES, ROOT, random_images, shared_tiny_model
from PIL import ExifTags, Image

from alignseg_tf import Predictor
from alignseg_tf.__main__ import main
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.readers import load_image
from alignseg_tf.export import export_saved_model
from alignseg_tf.prediction.distributed import Segmenter, predict_distributed, result_path
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.system import files
from alignseg_tf.system.fingerprints import fingerprint

MODEL = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "1"
    export_saved_model(shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict()), path)
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
def image_files(tmp_path):
    """Two sizes, an image twice, one on its side, and what is no image."""
    folder = tmp_path / "images"
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


def segmented(segmenter, paths):
    """Run a segmenter on paths; return the outcomes by name."""
    rows = range(len(paths))
    result = segmenter(pa.table({"row": rows, "path": [os.fsencode(path) for path in paths]}))
    assert result["row"].to_pylist() == list(rows)
    outcomes = [json.loads(text) for text in result["outcome"].to_pylist()]
    return {Path(path).name: outcome for path, outcome in zip(paths, outcomes, strict=True)}


def check_result(predictor, image, output, model=MODEL):
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    with Image.open(output / result_path(sha256, model)) as result:
        assert result.mode == "L"
        classes = np.asarray(result)
    expected = predictor.class_map(load_image(image))
    assert classes.shape == expected.shape
    assert (classes == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1


def test_images_of_all_sizes_become_what_the_predictor_says(
    predictor, segmenter, output, image_files, monkeypatch
):
    network, batches = segmenter.predictor.network, []
    class_maps = network.class_maps
    monkeypatch.setattr(network, "class_maps", lambda x: batches.append(x.shape) or class_maps(x))
    names = [*sorted(GOOD - {"again.png"}), "more/again.png", *sorted(BAD)]
    outcomes = segmented(segmenter, [image_files / name for name in names])
    # Neighbours of one size go together, two at a time.
    assert batches == [(2, 48, 64, 3), (2, 40, 56, 3)]
    assert {name for name, row in outcomes.items() if row["outcome"] == "skipped"} == BAD
    for name in names:
        row = outcomes[Path(name).name]
        assert row["source"] == str(image_files / name)
        assert bool(row["files"]) == (name not in BAD) != bool(row["message"])
        if name in GOOD:
            check_result(predictor, image_files / name, output)
    assert outcomes["again.png"]["outcome"] == "kept"
    assert (outcomes["turned.jpg"]["width"], outcomes["turned.jpg"]["height"]) == (40, 56)
    assert "at least 32 x 32 pixels. Received: 40 x 31" in outcomes["small.png"]["message"]
    assert len(list(output.rglob("*"))) == 3 * 6  # a folder, one in it, a file


def test_results_belong_to_content(segmenter, output, image_files):
    path = image_files / "0.png"
    assert segmented(segmenter, [path])["0.png"]["outcome"] == "written"
    os.utime(path, (5, 5))
    path = path.rename(image_files / "renamed.png")
    row = segmented(segmenter, [path])["renamed.png"]
    assert row["outcome"] == "kept"
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes((image_files / "1.png").read_bytes())
    os.utime(path, (5, 5))
    assert segmented(segmenter, [path])["renamed.png"]["outcome"] == "written"
    for result in output.rglob("*.png"):
        result.unlink()
    assert segmented(segmenter, [path])["renamed.png"]["outcome"] == "written"


def test_files_that_cannot_be_read_are_skipped(segmenter, output, image_files):
    (image_files / "gone.png").symlink_to(image_files / "nowhere.png")
    os.mkfifo(image_files / "pipe.png")
    odd = Path(os.fsdecode(os.fsencode(image_files) + b"/\xff.png"))
    odd.write_bytes((image_files / "0.png").read_bytes())
    names = ("gone.png", "more", "pipe.png", odd.name)
    rows = segmented(segmenter, [image_files / name for name in names])
    assert [rows[name]["outcome"] for name in names] == ["skipped"] * 3 + ["written"]
    assert rows["gone.png"]["message"] == "not readable (No such file or directory)"
    assert rows["pipe.png"]["message"] == "expected a file. Received: a pipe"
    assert rows[odd.name]["source"] == f"{image_files}/\\xff.png"


def test_memory_is_bounded(predictor, segmenter, output, image_files, monkeypatch):
    """Images together have as many pixels as one may have that goes through whole."""
    batches = []
    segment = segmenter._segment
    monkeypatch.setattr(segmenter, "_segment", lambda g: (batches.append(len(g)), segment(g))[1])
    monkeypatch.setattr(segmenter.predictor, "protocol", Protocol(largest_whole=48 * 64))
    segmented(segmenter, [image_files / "0.png", image_files / "1.png"])
    assert batches == [1, 1]
    large = image_files / "large.png"
    Image.fromarray(random_images(1, 56, 72)[0]).save(large)
    segmented(segmenter, [large])
    check_result(predictor, large, output)


def test_an_image_that_the_network_refuses_does_not_spoil_its_batch(
    segmenter, output, image_files, monkeypatch
):
    refused = load_image(image_files / "1.png")
    class_map = segmenter.predictor.class_map

    def refuse(image):
        if image.ndim == 4 or (image == refused).all():
            raise ValueError("not this one")
        return class_map(image)

    monkeypatch.setattr(segmenter.predictor, "class_map", refuse)
    monkeypatch.setattr(segmenter.predictor.network, "class_maps", refuse)
    rows = segmented(segmenter, [image_files / f"{i}.png" for i in range(3)])
    assert [rows[f"{i}.png"]["outcome"] for i in range(3)] == ["written", "skipped", "written"]
    assert rows["1.png"]["message"] == "not this one"


def test_a_full_disk_stops_the_run(segmenter, output, image_files, monkeypatch):
    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(files.os, "fsync", fail)
    row = segmented(segmenter, [image_files / "0.png"])["0.png"]
    assert (row["outcome"], row["message"]) == ("stopped", "no space")
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_wrong_arguments_are_told_before_anything_starts(
    saved_model, image_files, tmp_path, capsys
):
    with pytest.raises(ValueError, match="`actors` must be at least 1. Received: actors=0"):
        predict_distributed(saved_model, image_files, tmp_path / "out", actors=0)
    with pytest.raises(ValueError, match=r"no saved_model\.pb"):
        predict_distributed(image_files, image_files, tmp_path / "out")
    arguments = ["predict-distributed", str(saved_model), str(tmp_path / "nowhere")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(DataError, match="no images"):
        (tmp_path / "empty").mkdir()
        predict_distributed(saved_model, tmp_path / "empty", tmp_path / "out")


# Two actors; one kills itself once while it works, and an image kills each that looks at it.
DEADLY = """
import json, os, signal, sys
from pathlib import Path
from alignseg_tf.prediction import distributed
from alignseg_tf.prediction.distributed import Segmenter, predict_distributed

saved_model, image_files, output = map(Path, sys.argv[1:])

class Deadly(Segmenter):
    def _load(self, path):
        path = path.decode()
        log = self.output.parent / "died"
        died = log.read_text() if log.exists() else ""
        once = path.endswith("more_5.png") and path not in died
        if once or path.endswith("poison.png"):
            with log.open("a") as file:
                print(path, file=file)
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._load(path.encode())

distributed.Segmenter = Deadly
distributed.MAX_DEATHS = 1
addresses = set()

class Log(distributed.OutcomeLog):
    def add(self, outcome):
        import ray
        addresses.update(node["NodeManagerAddress"] for node in ray.nodes())
        super().add(outcome)

distributed.OutcomeLog = Log
log = predict_distributed(saved_model, image_files, output, actors=2)
print(json.dumps({**log.counts, "addresses": sorted(addresses)}))
"""


def read_outcomes(folder):
    """The rows of all runs, by the source's path."""
    paths = sorted((folder / "outcomes").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    rows = [row for path in paths for row in csv.DictReader(path.read_text().splitlines())]
    return {row["source"]: row for row in rows}


def run_in_process(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # or TensorFlow's greetings are wanted
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "timeout": 400}
    return subprocess.run(command, cwd=ROOT, env=environment, **options)


@pytest.mark.slow
def test_killed_actors_and_resuming(saved_model, predictor, image_files, tmp_path):
    for index, image in enumerate(random_images(12, 48, 64, seed=3)):
        Image.fromarray(image).save(image_files / f"more_{index}.png")
    Image.fromarray(random_images(1, 48, 64, seed=4)[0]).save(image_files / "poison.png")
    out = tmp_path / "out"
    result = run_in_process("-c", DEADLY, saved_model, image_files, out)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])  # Ray says before that actors died
    died = (tmp_path / "died").read_text().splitlines()
    assert sum("more_5.png" in line for line in died) == 1
    assert sum("poison.png" in line for line in died) >= 3
    good = {path for path in image_files.rglob("*.*") if path.name not in {*BAD, "poison.png"}}
    assert len(good) == 19
    assert (counts["written"] + counts.get("kept", 0), counts["skipped"]) == (19, 4)
    assert counts["addresses"] == ["127.0.0.1"]  # so nobody else reaches Ray
    model = fingerprint(saved_model)
    for pixels in good:
        check_result(predictor, pixels, out, model)
    rows = read_outcomes(out)
    assert len(rows) == 23
    for path in good:
        row = rows.pop(str(path))
        assert row["outcome"] in ("written", "kept")
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (out / row["files"]).is_file()
    assert {Path(path).name for path in rows} == {*BAD, "poison.png"}
    poison = rows[str(image_files / "poison.png")]
    assert poison["message"] == "the process that segmented it died 2 times"
    assert json.loads((out / "models" / f"{model[:16]}.json").read_text())["classes"] == [*CLASSES]

    # The command, later: what is there stays, what failed is tried again, and Ray is not heard.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_classes.png")}
    (out / read_outcomes(out)[str(image_files / "2.png")]["files"]).unlink()
    result = run_in_process(
        "-m", "alignseg_tf", "predict-distributed", saved_model, image_files, "--output", out,
        "--actors", "2", "--threads", "1",
    )  # fmt: skip
    assert result.returncode == 1
    assert re.fullmatch(r"predicting: .*\nerror: 3 of 23 were skipped\n", result.stderr)
    assert "2 written, 18 kept, 3 skipped" in result.stdout
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*_classes.png")}
    assert len(after) == len(before) + 1
    assert sum(after[path] != before.get(path) for path in after) == 2
    assert len(list((out / "outcomes").iterdir())) == 2
    check_result(predictor, image_files / "poison.png", out, model)
