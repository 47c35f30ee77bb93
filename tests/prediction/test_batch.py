import csv
import json
import os
import shlex
import socket
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import random_images
from PIL import Image
from prediction_fixtures import ColorNetwork

from alignseg_tf import Predictor
from alignseg_tf.__main__ import main
from alignseg_tf.data.readers import load_image
from alignseg_tf.prediction import outputs, predictor, video
from alignseg_tf.prediction.batch import predict_images, result_names
from alignseg_tf.prediction.outcomes import OutcomeLog
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.video import Video, VideoWriter
from alignseg_tf.system.fingerprints import fingerprint


@pytest.fixture
def model_file(tmp_path):
    """What stands for a model; its content is the seed of the network, see `networks`."""
    (tmp_path / "m.keras").write_text("0")
    return tmp_path / "m.keras"


@pytest.fixture
def other_model(tmp_path):
    (tmp_path / "other.keras").write_text("1")
    return tmp_path / "other.keras"


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    def load(model, device=None):
        return ColorNetwork(seed=int(model.read_text()))

    monkeypatch.setattr(predictor, "load_network", load)


class Calls(list):
    stop = -1


@pytest.fixture
def segmented(monkeypatch):
    """The shapes of images that went through a `Predictor`; `stop` of them end in Ctrl-C."""
    calls, segment = Calls(), Predictor.__call__

    def run(self, image):
        calls.append(image.shape)
        if len(calls) == calls.stop:
            raise KeyboardInterrupt
        return segment(self, image)

    monkeypatch.setattr(Predictor, "__call__", run)
    return calls


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "left").mkdir(parents=True)
    for name, size in (("0.png", (64, 96)), ("left/0.jpg", (40, 56)), ("left/1.png", (48, 64))):
        Image.fromarray(random_images(1, *size)[0]).save(folder / name)
    return folder


def run(model_file, *arguments):
    return main(["predict", str(model_file), *map(str, arguments)])


def outcomes(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {Path(row["source"]).name: row for row in csv.DictReader(file)}


def test_results_lie_as_the_images_do(model_file, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(model_file, images, "--output", out, "--write", "classes", "coco", "--flip") == 0
    names = ("0", "left/0", "left/1")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*_*")}
    assert found == {f"{name}_{kind}" for name in names for kind in ("classes.png", "coco.json")}
    predictor = Predictor(model_file, Protocol(flip=True))
    for name in ("0.png", "left/0.jpg", "left/1.png"):
        expected = predictor.class_map(load_image(images / name))
        with Image.open(out / f"{name[:-4]}_classes.png") as classes:
            np.testing.assert_array_equal(np.asarray(classes), expected)
        content = json.loads((out / f"{name[:-4]}_coco.json").read_text())
        assert content["images"][0]["file_name"] == name
    assert "3 written" in capsys.readouterr().out
    row = outcomes(out)["1.png"]
    assert (row["outcome"], row["height"], row["width"]) == ("written", "48", "64")
    assert row["files"] == "left/1_classes.png left/1_coco.json"
    assert json.loads((out / "predictions.json").read_text()) == {
        "model": fingerprint(model_file),
        "protocol": "whole images; mirrored too; probabilities averaged",
    }


def test_an_interrupted_run_goes_on(model_file, images, tmp_path, capsys, segmented):
    out = tmp_path / "out"
    segmented.stop = 2
    assert run(model_file, images, "--output", out) == 130
    assert len(list(out.rglob("*_classes.png"))) == 1
    assert run(model_file, images, "--output", out) == 0
    assert "2 written, 1 kept" in capsys.readouterr().out
    assert len(segmented) == 4
    assert outcomes(out)["0.png"]["outcome"] == "kept"
    # A kind that is not there yet is made, and what is there stays known.
    assert run(model_file, images, "--output", out, "--write", "classes", "coco") == 0
    assert len(segmented) == 7
    assert run(model_file, images, "--output", out, "--write", "coco", "overlay") == 0
    assert len(segmented) == 7
    assert run(model_file, images, "--output", out, "--overwrite") == 0
    assert len(segmented) == 10


def test_results_belong_to_the_content_of_an_image(model_file, images, tmp_path, capsys):
    """Whatever time a file carries: `mv`, `cp -p` and archives put older ones in others' places."""
    out, path = tmp_path / "out", images / "0.png"
    assert run(model_file, images, "--output", out) == 0
    first = path.read_bytes()
    before = (out / "0_overlay.png").read_bytes()
    Image.fromarray(random_images(1, 64, 96, seed=5)[0]).save(path)
    os.utime(path, ns=(0, 0))
    assert run(model_file, images, "--output", out, "--write", "classes") == 0
    assert "1 written, 2 kept" in capsys.readouterr().out
    # The overlay is still the first image's, which the log knows; so it is when that is back.
    assert (out / "0_overlay.png").read_bytes() == before
    assert run(model_file, images, "--output", out) == 0
    assert "1 written, 2 kept" in capsys.readouterr().out
    assert (out / "0_overlay.png").read_bytes() != before
    path.write_bytes(first)
    assert run(model_file, images, "--output", out) == 0
    assert "1 written, 2 kept" in capsys.readouterr().out
    assert (out / "0_overlay.png").read_bytes() == before
    # A new name or time alone is no new content.
    os.utime(path)
    images.rename(tmp_path / "renamed")
    assert run(model_file, tmp_path / "renamed", "--output", out) == 0
    assert "3 kept" in capsys.readouterr().out
    # A result that is gone is made again, and one that was made over another name too.
    (out / "left" / "1_overlay.png").unlink()
    (tmp_path / "renamed" / "0.png").rename(tmp_path / "renamed" / "left" / "1.png")
    assert run(model_file, tmp_path / "renamed", "--output", out) == 0
    assert "1 written, 1 kept" in capsys.readouterr().out


def test_a_run_that_is_killed_loses_no_row_and_claims_no_half(model_file, images, tmp_path):
    """A process writes over results of an image and dies, as by SIGKILL, before it is done."""
    out, log = tmp_path / "out", tmp_path / "out" / "predictions.csv"
    assert run(model_file, images, "--output", out) == 0
    whole, image = log.read_text(), (images / "0.png").read_bytes()
    Image.fromarray(random_images(1, 64, 96, seed=5)[0]).save(images / "0.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutcomeLog, "__exit__", lambda log, *_: log._file.close())
        fail = replace(outputs.KINDS["overlay"], content=lambda made: 1 / 0)
        patch.setitem(outputs.KINDS, "overlay", fail)
        with pytest.raises(ZeroDivisionError):
            run(model_file, images, "--output", out)
    assert log.read_text().startswith(whole)
    with log.open("a") as file:
        file.write('"half a ro')
    (images / "0.png").write_bytes(image)
    assert run(model_file, images, "--output", out, "--write", "classes") == 0
    rows = outcomes(out)
    there = {name: row["outcome"] for name, row in rows.items()}
    assert there == {"0.png": "written", "0.jpg": "kept", "1.png": "kept"}
    assert run(model_file, images, "--output", out) == 0
    assert log.read_text().count("\n") == 4


def test_files_of_others_are_not_replaced(model_file, images, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "left").mkdir(parents=True)
    (out / "left" / "1_classes.png").write_bytes(b"painted by hand")
    (out / "notes.txt").write_text("mine")
    assert run(model_file, images, "--output", out) == 2
    assert "only files that predict wrote. Received: left/1_classes.png" in capsys.readouterr().err
    assert sorted(path.name for path in out.rglob("*.*")) == ["1_classes.png", "notes.txt"]
    assert run(model_file, images, "--output", out, "--write", "overlay") == 0
    assert run(model_file, images, "--output", out) == 2
    assert (out / "left" / "1_classes.png").read_bytes() == b"painted by hand"
    assert run(model_file, images, "--output", out, "--overwrite") == 0
    assert (out / "left" / "1_classes.png").read_bytes() != b"painted by hand"
    assert (out / "notes.txt").read_text() == "mine"
    theirs = tmp_path / "theirs" / "predictions.csv"
    theirs.parent.mkdir()
    theirs.write_text("a,b\n")
    assert run(model_file, images, "--output", theirs.parent) == 2
    assert "Received: predictions.csv" in capsys.readouterr().err
    assert theirs.read_text() == "a,b\n"


def test_folders_of_earlier_versions_are_made_again(model_file, images, tmp_path, capsys):
    """They had `since` in place of a log. Results below the images are no images."""
    out = images / "results"
    assert run(model_file, images, "--output", out) == 0
    content = json.loads((out / "predictions.json").read_text())
    (out / "predictions.json").write_text(json.dumps({**content, "since": 1.5}))
    (out / "predictions.csv").write_text("source,outcome\n0.png,written\n")
    capsys.readouterr()
    for outcome in ("written", "kept"):
        assert run(model_file, images, "--output", out) == 0
        assert f"3 {outcome}" in capsys.readouterr().out


def test_an_overwrite_for_some_images_outdates_the_results_of_all(
    model_file, other_model, images, tmp_path
):
    out = tmp_path / "out"
    assert run(model_file, images, "--output", out) == 0
    assert run(other_model, images / "0.png", "--output", out, "--overwrite") == 0
    assert run(other_model, images, "--output", out) == 0
    rows = outcomes(out)
    there = {name: row["outcome"] for name, row in rows.items()}
    assert there == {"0.png": "kept", "0.jpg": "written", "1.png": "written"}


def test_names_of_all_kinds(model_file, tmp_path, capsys):
    """A name that cannot be dealt with is a row and a line, and the others are segmented."""
    folder, out = tmp_path / "names", tmp_path / "out"
    folder.mkdir()
    image = Image.fromarray(random_images(1, 40, 48)[0])
    image.save(folder / "a.png")
    for name in (b"y\xff.png", b"n\n\x1b[31m.png", b"=1.png"):
        path = os.fsdecode(os.fsencode(folder) + b"/" + name)
        Path(path).write_bytes((folder / "a.png").read_bytes())
    image.save(folder / f"{'l' * 251}.png")  # 255 bytes, as many as a name has
    image.save(folder / f"{'m' * 230}.png")  # room for the results, not for much more
    for name, target in (("link", "link.png"), ("gone", "nowhere.png"), ("z", "a.png")):
        (folder / f"{name}.png").symlink_to(target)
    (folder / "b.png").mkdir()
    (folder / "b.heic").touch()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(os.path.relpath(folder / "s.png"))
    arguments = [folder, "--output", out, "--write", "classes", "coco"]
    assert run(model_file, *arguments) == 1
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    rows = outcomes(out)
    written = {name for name, row in rows.items() if row["outcome"] == "written"}
    odd = {r"y\xff.png", r"n\n\x1b[31m.png", "=1.png"}
    assert written == {"a.png", f"{'m' * 230}.png", "z.png"} | odd
    for name in (b"a", b"y\xff", b"n\n\x1b[31m"):
        assert Path(os.fsdecode(os.fsencode(out) + b"/" + name + b"_classes.png")).is_file()
    assert "File name too long" in rows[f"{'l' * 251}.png"]["message"]
    assert rows["link.png"]["message"] == "not readable (Too many levels of symbolic links)"
    assert captured.err.count("not read: 1 .heic, ") == 1
    assert "a pipe" in captured.err and "a socket" in captured.err and "gone.png" in captured.err
    assert run(model_file, *arguments) == 1
    assert "6 kept" in capsys.readouterr().out


def test_other_models_and_protocols_do_not_mix(
    model_file, other_model, images, tmp_path, capsys, segmented
):
    out = tmp_path / "out"
    assert run(model_file, images, "--output", out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    assert run(model_file, images, "--output", out, "--flip") == 2
    error = capsys.readouterr().err
    assert "holds other predictions:\n  protocol: 'whole images' there, 'whole" in error
    assert run(other_model, images, "--output", out) == 2
    assert "\n  model: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before
    # What an interrupted --overwrite has not come to is not taken for its own.
    segmented.stop = len(segmented) + 2
    assert run(other_model, images, "--output", out, "--overwrite") == 130
    assert sum(path.read_bytes() != content for path, content in before.items()) in (1, 2)
    assert run(other_model, images, "--output", out) == 0
    assert "2 written, 1 kept" in capsys.readouterr().out
    for path, content in before.items():
        assert path.read_bytes() != content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("images --output images", "--output must not be the images' folder"),
        ("images --output out --every 0", "--every must be at least 1"),
        ("images --output out --frames -1", "--frames must be at least 1"),
        ("images --output out --write cityscapes", "must have its 19 classes"),
        ("images/*.bmp --output out", "*.bmp: nothing fits this pattern"),
    ],
)
def test_wrong_arguments_write_nothing(
    arguments, message, model_file, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(model_file, *arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_images_of_all_kinds(model_file, tmp_path, capsys):
    """The table of outcomes that docs/prediction.md promises."""
    folder, out = tmp_path / "mixed", tmp_path / "out"
    folder.mkdir()
    rgb = Image.fromarray(random_images(1, 60, 80)[0])
    good = {f"rgb.{suffix}": rgb for suffix in ("jpg", "png", "bmp", "webp", "tif")}
    good |= {f"{mode}.png": rgb.convert(mode) for mode in ("L", "1", "P", "RGBA", "LA")}
    sixteen = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    good |= {"sixteen.png": sixteen, "sixteen.tif": sixteen, "cmyk.jpg": rgb.convert("CMYK")}
    good |= {"smallest.png": rgb.resize((32, 32)), "panorama.png": rgb.resize((900, 40))}
    good |= {"Upper.PNG": rgb, "ümlaut and space.png": rgb}
    for name, image in good.items():
        image.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (1500, 1000)).save(folder / "huge.jpg")  # in windows
    rgb.save(folder / "film.gif", save_all=True, append_images=[rgb.rotate(90)])  # not looked at
    good |= dict.fromkeys(("turned.jpg", "huge.jpg"))
    content = (folder / "rgb.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("This is no image.")
    (folder / "empty.jpg").write_bytes(b"")
    rgb.resize((31, 80)).save(folder / "narrow.png")
    Image.fromarray(np.ones((40, 40), np.float32)).save(folder / "float.tif")
    bad = {
        "truncated.jpg": "truncated",
        "text.png": "in no known format; the file starts with b'This is no image'",
        "empty.jpg": "the file is empty",
        "narrow.png": "at least 32 x 32 pixels. Received: 31 x 80",
        "float.tif": "expected 8 or 16 bits a channel",
    }

    assert run(model_file, folder, "--output", out, "--largest-whole", "1000000") == 1
    captured = capsys.readouterr()
    assert f"{len(good)} written, 5 skipped" in captured.out
    assert f"5 of {len(good) + 5} were skipped" in captured.err
    rows = outcomes(out)
    assert rows.keys() == good.keys() | bad.keys()
    for name in good:
        assert rows[name]["outcome"] == "written", name
        assert rows[name]["files"].count("_classes.png") == 1
        assert all((out / file).is_file() for file in shlex.split(rows[name]["files"]))
    for name, message in bad.items():
        assert rows[name]["outcome"] == "skipped"
        assert message in rows[name]["message"]
        assert f"{name}: {rows[name]['message']}" in captured.err
    assert len(list(out.glob("*_classes.png"))) == len(good)
    assert rows["turned.jpg"]["height"] == "80"
    assert rows["huge.jpg"]["in_windows"] == "True"
    assert rows["panorama.png"]["in_windows"] == "False"
    deep, grey = ((out / f"{name}_classes.png").read_bytes() for name in ("sixteen_png", "L"))
    assert deep == grey


def test_names_of_results():
    found = [("x/a.jpg", "a.jpg"), ("x/a.png", "a.png"), ("x/b/a.png", "b/a.png")]
    names = result_names([(Path(path), Path(name)) for path, name in found])
    assert [name.as_posix() for _, name in names] == ["a_jpg", "a_png", "b/a"]
    with pytest.raises(ValueError, match=r"x/a\.png and y/a\.png would have the same results, a_"):
        result_names([(Path(f"{folder}/a.png"), Path("a.png")) for folder in "xy"])
    names = result_names([(Path(f"clip.{suffix}"),) * 2 for suffix in ("mp4", "m4v")])
    assert [name.as_posix() for _, name in names] == ["clip_mp4", "clip_m4v"]


def test_an_image_that_fails_in_the_network_is_skipped(model_file, tmp_path, images):
    def segment(image):
        if image.shape[0] == 40:
            raise ValueError("too odd")
        return predictor(image)

    predictor = Predictor(model_file)
    named = [(images / "0.png", Path("0")), (images / "left/0.jpg", Path("left/0"))]
    found = list(predict_images(segment, named, tmp_path))
    assert [outcome.outcome for outcome in found] == ["written", "skipped"]
    assert found[1].message == "too odd"


@pytest.fixture
def clip(tmp_path):
    pytest.importorskip("av")
    writer = VideoWriter(tmp_path / "clip.mp4", Fraction(10))
    for frame in random_images(7, 64, 96):
        writer.write(frame)
    writer.close()
    return tmp_path / "clip.mp4"


def test_a_video_becomes_a_video_and_files_a_frame(model_file, clip, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [clip, "--output", out, "--write", "overlay", "side_by_side", "classes"]
    assert run(model_file, *arguments, "--every", "2") == 0
    assert sorted(path.name for path in (out / "clip").iterdir()) == [
        f"{number:06d}_classes.png" for number in (0, 2, 4, 6)
    ]
    predictor = Predictor(model_file)
    frames = list(Video(clip))
    with Image.open(out / "clip" / "000004_classes.png") as image:
        np.testing.assert_array_equal(np.asarray(image), predictor.class_map(frames[4]))
    painted = Video(out / "clip_overlay.mp4")
    assert painted.rate == 5
    painted = list(painted)
    assert len(painted) == 4
    difference = painted[2].astype(int) - predictor(frames[4]).overlay()
    assert abs(difference).mean() < 12  # what compression leaves
    assert next(iter(Video(out / "clip_side_by_side.mp4"))).shape[1] == 2 * 96 + 4
    assert outcomes(out)["clip.mp4"]["frames"] == "4"


def test_a_damaged_video_is_skipped_and_leaves_no_video(model_file, clip, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:400])
    (tmp_path / "text.avi").write_text("no video")
    out = tmp_path / "out"
    arguments = [tmp_path / "broken.mp4", tmp_path / "text.avi", tmp_path / "gone.mp4", clip]
    assert run(model_file, *arguments, "--output", out, "--write", "color", "--frames", "2") == 1
    error = capsys.readouterr().err
    for name in ("broken.mp4", "text.avi", "gone.mp4"):
        assert f"{name}: not readable as a video" in error
    files = ["clip_color.mp4", "predictions.csv", "predictions.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert len(list(Video(out / "clip_color.mp4"))) == 2


def test_a_camera(model_file, tmp_path, monkeypatch, capsys, segmented):
    """FFmpeg's test image stands in for a camera."""
    pytest.importorskip("av")
    source = "testsrc=size=64x48:rate=5"
    monkeypatch.setitem(video._CAMERAS, "linux", ("lavfi", source))
    out = tmp_path / "out"
    assert run(model_file, "camera:0", "--output", out, "--frames", "3") == 0
    assert len(list(Video(out / "camera_0_overlay.mp4"))) == 3
    assert len(list((out / "camera_0").iterdir())) == 3
    # Ctrl-C ends the recording and keeps it.
    segmented.stop = len(segmented) + 3
    assert run(model_file, "camera:0", "--output", tmp_path / "two") == 0
    assert len(list(Video(tmp_path / "two" / "camera_0_overlay.mp4"))) == 2
    monkeypatch.setitem(video._CAMERAS, "linux", ("v4l2", "/dev/no_video{n}"))
    assert run(model_file, "camera:7", "--output", tmp_path / "three") == 1
    assert "camera:7: not readable as a video (No such file" in capsys.readouterr().err
