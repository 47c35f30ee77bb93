"""The report of a finished run."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import absent, write_folder
from PIL import Image

from alignseg_tf.data.listing import Sample, read_folder
from alignseg_tf.data.sources import open_data
from alignseg_tf.evaluation.counts import score_image
from alignseg_tf.evaluation.report import Report
from alignseg_tf.system.fonts import names_in_figures
from training import report

CLASSES = ("ground", "box|es", "disc")
# Of ground 80 pixels of 90 are found, of boxes 5 of 10; there is no disc.
EVALUATION = Report(
    CLASSES,
    [
        score_image(
            "a.png",
            np.repeat([0, 1], [90, 10]).astype(np.uint8)[None],
            np.repeat([0, 1, 0, 1], [80, 10, 5, 5]).astype(np.uint8)[None],
            3,
        )
    ]
    * 2,
)
DATA = {
    "path": "data",
    "hash": report.HASH,
    "splits": {"train": {"images": 6, "sha256": "ab" * 32}},
}


def run_folder(path: Path, classes=CLASSES) -> Path:
    (path / "run.json").write_text(json.dumps({"learning_rate": 0.25, "classes": classes}))
    (path / "metrics.csv").write_text(
        "epoch,seconds,learning_rate,val_mean_iou,loss,mean_iou,val_loss\n"
        "0,60.5,0.2,,2.0,0.3,\n"
        "1,60.5,0.1,0.7,1.5,0.4,1.6\n"
        "2,60.5,0,0.6,1.25,0.5,1.5\n"
    )
    columns = ",".join(classes)
    values = ",".join(["0.5"] * (len(classes) - 1))
    (path / "iou.csv").write_text(f"epoch,{columns}\n1,{values},\n2,{values},\n")
    return path


def test_the_report_says_what_the_run_was(tmp_path):
    folder = run_folder(tmp_path)
    report.write_report(folder, DATA, EVALUATION)
    found = json.loads((folder / "report.json").read_text())
    assert found["recipe"]["learning_rate"] == 0.25
    assert found["data"] == DATA
    assert found["training"] == {"epochs": 3, "best_epoch": 2, "seconds": 181.5}
    assert found["evaluation"]["iou"] == {"ground": 80 / 95, "box|es": 0.25, "disc": None}
    assert "confusion" not in found["evaluation"]
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"].keys() == {"python", "alignseg_tf", "tensorflow", "keras", "numpy"}
    assert found["machine"]["cores"] >= 1
    assert found["curves"] == "curves.png"

    text = (folder / "report.md").read_text()
    for expected in (
        "the model after epoch 2 of 3. The epochs took 3:02.",
        "| ground | 84.21 | 90.00 |",
        "| box\\|es | 25.00 | 10.00 |",
        "| disc | absent | 0.00 |",
        "| learning_rate | `0.25` |",
        f"| train | 6 | `{'ab' * 32}` |",
        "![Loss and IoU against epochs](curves.png)",
    ):
        assert expected in text
    assert "trained on these images" not in text
    with Image.open(folder / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    blue = np.abs(pixels.astype(int) - [31, 119, 180]).sum(-1) < 30
    assert blue.sum() > 100, "the curves of training"


def test_notes_in_a_report_are_kept(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "run.json").write_text(json.dumps({"train_on": "train+val"}))
    for _ in range(2):
        report.write_report(folder, DATA, EVALUATION)
    assert "trained on these images" in (folder / "report.md").read_text()
    (folder / "report.md").write_text("my notes")
    with pytest.raises(ValueError, match=r"report\.md \(changed since\)"):
        report.write_report(folder, DATA, EVALUATION)
    assert (folder / "report.md").read_text() == "my notes"


def test_names_of_classes_are_drawn_as_they_are(tmp_path, monkeypatch):
    columns = {"epoch": np.arange(2.0), "loss": np.ones(2), "mean_iou": np.ones(2)}
    iou = {"epoch": np.arange(2.0), "$\\frac{$": np.ones(2), "_background_": np.ones(2)}
    with names_in_figures(iou):
        figure = report._curves(columns, iou)
        figure.canvas.draw()
    legend = next(x for x in figure.axes if x.get_title()).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["$\\frac{$", " _background_"]

    def fail(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(report, "_curves", fail)
    folder = run_folder(tmp_path)
    report.write_report(folder, DATA, EVALUATION)
    assert "No curves: drawing failed (no ink)." in (folder / "report.md").read_text()


def test_curves_of_many_classes(tmp_path):
    folder = run_folder(tmp_path, tuple(f"class {i}" for i in range(150)))
    assert report.draw_curves(folder) is None
    assert (folder / "curves.png").stat().st_size > 10_000


def test_the_hash_is_of_names_and_bytes(tmp_path):
    root = write_folder(tmp_path / "data", train=2, val=1)
    samples = read_folder(root, "train")
    text = ""
    for sample in samples:
        cells = []
        for path in (sample.image, sample.label):
            content = path.read_bytes()
            name = str(path)[len(str(root)) + 1 :]
            cells += [name, str(len(content)), hashlib.sha256(content).hexdigest()]
        text += "\t".join(cells) + "\n"
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert report.data_hash(samples, root) == expected
    moved = shutil.copytree(root, tmp_path / "moved")
    assert report.data_hash(read_folder(moved, "train"), moved) == expected
    elsewhere = [Sample(samples[0].image, samples[0].label)]
    assert report.data_hash(elsewhere, Path("other")) != report.data_hash(elsewhere, root)


def test_the_data_are_described(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data", train=2, val=1)
    data = open_data(root)
    train = data.samples("train")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    found = report.describe_data(data, train=train)
    assert found["path"] == "~/data"
    assert found["splits"] == {"train": {"images": 2, "sha256": report.data_hash(train, root)}}
    assert report.shown_path(Path("relative/data")) == "relative/data"


def test_the_commit_is_that_of_the_clone(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        absent("git is not installed")
    clone = (tmp_path / "clone").resolve()
    (clone / "inside").mkdir(parents=True)

    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", clone, *name, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(report, "ROOT", clone)
    assert report.code() is None
    git("init")
    assert report.code() is None, "a clone without a commit"
    (clone / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    found = report.code()
    assert found is not None
    assert len(found["commit"]) == 40
    assert found["changed"] is False
    (clone / "file").write_text("b")
    assert report.code() == {"commit": found["commit"], "changed": True}
    monkeypatch.setattr(report, "ROOT", clone / "inside")
    assert report.code() is None, "a package inside of another repository"
    monkeypatch.setenv("PATH", "")
    assert report.code() is None
