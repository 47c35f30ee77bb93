import csv
import json
import os
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, random_images, tiny_model
from PIL import Image, PngImagePlugin

from alignseg_tf import Predictor, prediction, video
from alignseg_tf.__main__ import main
from alignseg_tf.batch_prediction import predict_pictures, result_names
from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.fingerprints import fingerprint
from alignseg_tf.video import Video, VideoWriter


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.keras"
    tiny_model(label_space=LabelSpace(CLASSES).to_dict()).save(path)
    return path


@pytest.fixture(autouse=True, scope="module")
def models_are_loaded_once():
    """Each run of the command line would load the model and trace its graph again."""
    load, loaded = prediction.load_network, {}

    def load_once(model, device):
        key = fingerprint(model)
        if key not in loaded:
            loaded[key] = load(model, device)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "load_network", load_once)
        yield


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "left").mkdir(parents=True)
    for name, size in (("0.png", (64, 96)), ("left/0.jpg", (40, 56)), ("left/1.png", (48, 64))):
        Image.fromarray(random_images(1, *size)[0]).save(folder / name)
    return folder


def run(model_file, *arguments):
    return main(["predict", str(model_file), *map(str, arguments)])


def outcomes(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {Path(row["source"]).name: row for row in csv.DictReader(file)}


def test_coco_names_the_image_as_it_lies_in_the_folder(model_file, pictures, tmp_path):
    out = tmp_path / "out"
    assert run(model_file, pictures, "--output", out, "--write", "coco") == 0
    for name in ("0.png", "left/0.jpg"):
        content = json.loads((out / f"{name[:-4]}_coco.json").read_text())
        assert content["images"][0]["file_name"] == name
        assert not any(annotation["iscrowd"] for annotation in content["annotations"])
    with Image.open(pictures / "left/1.png") as opened:
        assert Predictor(model_file)(opened).file_name == "1.png"


def test_results_lie_as_the_pictures_do(model_file, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(model_file, pictures, "--output", out) == 0
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert found == [
        "0_classes.png", "0_overlay.png", "left/0_classes.png", "left/0_overlay.png",
        "left/1_classes.png", "left/1_overlay.png",
    ]  # fmt: skip
    for name, size in (("0", (64, 96)), ("left/1", (48, 64))):
        with Image.open(pictures / f"{name}.png") as picture:
            expected = Predictor(model_file).class_map(np.asarray(picture))
        with Image.open(out / f"{name}_classes.png") as classes:
            assert classes.size == size[::-1]
            np.testing.assert_array_equal(np.asarray(classes), expected)
    assert "3 written" in capsys.readouterr().out
    row = outcomes(out)["1.png"]
    assert (row["outcome"], row["height"], row["width"]) == ("written", "48", "64")
    assert row["files"] == "left/1_classes.png left/1_overlay.png"


def test_patterns_and_files(model_file, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [pictures / "left" / "*.png", pictures / "0.png", "--output", out]
    assert run(model_file, *arguments, "--write", "color") == 0
    assert sorted(path.name for path in out.glob("*.png")) == ["0_color.png", "1_color.png"]
    assert run(model_file, pictures / "*.bmp", "--output", tmp_path / "other") == 2
    assert "*.bmp: nothing fits this pattern" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_is_not_read_is_said_in_one_line(model_file, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.jfif", "JPEG")
    (folder / "b.heic").touch()
    os.mkfifo(folder / "c.png")
    (folder / "d").symlink_to(folder)
    assert run(model_file, folder, "--output", tmp_path / "out", "--write", "classes") == 0
    printed = capsys.readouterr()
    assert "1 written" in printed.out
    assert printed.err.count("not read: 1 .heic, 1 a link to a folder around it (") == 1
    assert f"1 not a file but a pipe ({folder / 'c.png'})" in printed.err


def test_an_interrupted_run_goes_on(model_file, pictures, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    calls, segment = [], Predictor.__call__

    def stop(self, image):
        calls.append(image.shape)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return segment(self, image)

    monkeypatch.setattr(Predictor, "__call__", stop)
    assert run(model_file, pictures, "--output", out) == 130
    assert len(list(out.rglob("*_classes.png"))) == 1
    assert run(model_file, pictures, "--output", out) == 0
    assert "2 written, 1 kept" in capsys.readouterr().out
    assert len(calls) == 4
    assert outcomes(out)["0.png"]["outcome"] == "kept"
    # A picture that has changed since is done again, and a kind that is not there yet is made.
    later = time.time() + 10
    os.utime(pictures / "0.png", (later, later))
    assert run(model_file, pictures, "--output", out) == 0
    assert len(calls) == 5
    assert run(model_file, pictures, "--output", out, "--write", "classes", "coco") == 0
    assert len(calls) == 8
    assert run(model_file, pictures, "--output", out, "--overwrite") == 0
    assert len(calls) == 11


def test_other_models_and_protocols_do_not_mix(model_file, pictures, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert run(model_file, pictures, "--output", out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    assert run(model_file, pictures, "--output", out, "--flip") == 2
    error = capsys.readouterr().err
    assert "holds other predictions:\n  protocol: 'whole pictures' there, 'whole" in error
    other = tmp_path / "other.keras"
    tiny_model(label_space=LabelSpace(CLASSES).to_dict(), context=None).save(other)
    assert run(other, pictures, "--output", out) == 2
    assert "\n  model: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before
    # What an interrupted --overwrite has not come to is not taken for its own.
    calls, segment = [], Predictor.__call__

    def stop(self, image):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return segment(self, image)

    monkeypatch.setattr(Predictor, "__call__", stop)
    assert run(other, pictures, "--output", out, "--overwrite") == 130
    assert sum(path.read_bytes() != content for path, content in before.items()) in (1, 2)
    assert run(other, pictures, "--output", out) == 0
    assert len(calls) == 4
    assert "2 written, 1 kept" in capsys.readouterr().out
    for path, content in before.items():
        assert path.read_bytes() != content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PICTURES", "--output", "PICTURES"], "--output must not be the pictures' folder"),
        (["PICTURES/0.png", "PICTURES/b/0.png", "--output", "out"], "have the same results, 0_"),
        (["PICTURES", "--output", "out", "--every", "0"], "--every must be at least 1"),
        (["PICTURES", "--output", "out", "--frames", "-1"], "--frames must be at least 1"),
        (["PICTURES", "--output", "out", "--scales", "0"], "`scales` must be positive"),
        (["PICTURES", "--output", "out", "--write", "cityscapes"], "must have its 19 classes"),
        (["nowhere", "--output", "out"], "nowhere: no such file or folder"),
    ],
)  # fmt: skip
def test_wrong_arguments_write_nothing(
    arguments, message, model_file, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (pictures / "b").mkdir()
    (pictures / "b" / "0.png").write_bytes((pictures / "0.png").read_bytes())
    before = sorted(pictures.rglob("*"))
    assert run(model_file, *(a.replace("PICTURES", str(pictures)) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert sorted(pictures.rglob("*")) == before


def test_results_below_the_pictures_are_no_pictures(model_file, pictures, capsys):
    for _ in range(2):
        assert run(model_file, pictures, "--output", pictures / "results", "--overwrite") == 0
        assert "3 in" in capsys.readouterr().out


def test_thirty_pictures_of_all_kinds(model_file, tmp_path, capsys):
    """The table of outcomes that docs/prediction.md promises."""
    folder, out = tmp_path / "mixed", tmp_path / "out"
    folder.mkdir()
    rgb = Image.fromarray(random_images(1, 60, 80)[0])
    good = {
        "rgb.jpg": rgb, "rgb.png": rgb, "rgb.bmp": rgb, "rgb.webp": rgb, "rgb.tif": rgb,
        "grey.png": rgb.convert("L"), "grey.jpg": rgb.convert("L"), "one_bit.png": rgb.convert("1"),
        "palette.png": rgb.convert("P"), "rgba.png": rgb.convert("RGBA"),
        "grey_alpha.png": rgb.convert("LA"), "cmyk.jpg": rgb.convert("CMYK"),
        "sixteen.png": Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
        "portrait.png": rgb.resize((45, 99)), "smallest.png": rgb.resize((32, 32)),
        "panorama.png": rgb.resize((900, 40)), "Upper.PNG": rgb, "with space.png": rgb,
        "ümlaut.png": rgb,
    }  # fmt: skip
    for name, picture in good.items():
        picture.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (6000, 4000)).save(folder / "huge.jpg")  # in windows
    content = (folder / "rgb.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    png = (folder / "rgb.png").read_bytes()
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "text.png").write_text("This is no picture.")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "one_pixel.png")
    rgb.resize((31, 80)).save(folder / "narrow.png")
    rgb.save(folder / "film.gif", save_all=True, append_images=[rgb.rotate(90)])  # not looked at
    Image.fromarray(np.ones((40, 40), np.float32)).save(folder / "float.tif")
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 100)
    rgb.save(folder / "comment.png", pnginfo=info)
    good |= dict.fromkeys(("turned.jpg", "huge.jpg", "comment.png"))
    bad = {
        "truncated.jpg": "truncated", "truncated.png": "truncated",
        "text.png": "in no known format; the file starts with b'This is no pictu'",
        "empty.jpg": "the file is empty",
        "one_pixel.png": "at least 32 x 32 pixels. Received: 1 x 1",
        "narrow.png": "at least 32 x 32 pixels. Received: 31 x 80",
        "float.tif": "expected 8 or 16 bits a channel",
    }  # fmt: skip
    assert len(good) + len(bad) == 30

    assert run(model_file, folder, "--output", out, "--largest-whole", "1000000") == 1
    captured = capsys.readouterr()
    assert "23 written, 7 skipped" in captured.out
    assert "7 of 30 were skipped" in captured.err
    rows = outcomes(out)
    assert len(rows) == 30
    for name in good:
        assert rows[name]["outcome"] == "written", name
        assert rows[name]["files"].count("_classes.png") == 1
        for file in rows[name]["files"].split(".png "):
            assert (out / f"{file.removesuffix('.png')}.png").is_file()
    for name, message in bad.items():
        assert rows[name]["outcome"] == "skipped"
        assert message in rows[name]["message"]
        assert f"{name}: {rows[name]['message']}" in captured.err
        assert not list(out.glob(f"{Path(name).stem}_{name[-3:]}_*"))
    assert len(list(out.glob("*_classes.png"))) == 23
    assert rows["turned.jpg"]["height"] == "80"
    assert rows["huge.jpg"]["in_windows"] == "True"
    assert rows["panorama.png"]["in_windows"] == "False"
    # Names that differ in the suffix alone are told apart by it.
    deep, grey = (
        (out / f"{name}_classes.png").read_bytes() for name in ("sixteen_png", "grey_png")
    )
    assert deep == grey


def test_names_of_results():
    found = [("x/a.jpg", "a.jpg"), ("x/a.png", "a.png"), ("x/b/a.png", "b/a.png")]
    names = result_names([(Path(path), Path(name)) for path, name in found])
    assert [name.as_posix() for _, name in names] == ["a_jpg", "a_png", "b/a"]
    with pytest.raises(ValueError, match=r"x/a\.png and y/a\.png would have the same results, a_"):
        result_names([(Path(f"{folder}/a.png"), Path("a.png")) for folder in "xy"])


def test_a_picture_that_fails_in_the_network_is_skipped(model_file, tmp_path, pictures):
    def segment(image):
        if image.shape[0] == 40:
            raise ValueError("too odd")
        return predictor(image)

    predictor = Predictor(model_file)
    named = [(pictures / "0.png", Path("0")), (pictures / "left/0.jpg", Path("left/0"))]
    seen = []
    found = list(predict_pictures(segment, named, tmp_path, progress=lambda *a: seen.append(a)))
    assert [outcome.outcome for outcome in found] == ["written", "skipped"]
    assert found[1].message == "too odd"
    assert seen == [(1, 2), (2, 2)]


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
    with Image.open(out / "clip" / "000004_classes.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), predictor.class_map(frames[4]))
    painted = Video(out / "clip_overlay.mp4")
    assert painted.rate == 5
    painted = list(painted)
    assert len(painted) == 4
    difference = painted[2].astype(int) - predictor(frames[4]).overlay()
    assert abs(difference).mean() < 12  # what compression leaves
    assert next(iter(Video(out / "clip_side_by_side.mp4"))).shape[1] == 2 * 96 + 4
    assert "frame 4/4" in capsys.readouterr().out
    assert outcomes(out)["clip.mp4"]["frames"] == "4"


def test_videos_that_differ_in_the_suffix_alone_are_told_apart(model_file, clip, tmp_path):
    (tmp_path / "clip.m4v").write_bytes(clip.read_bytes())
    out = tmp_path / "out"
    arguments = [clip, tmp_path / "clip.m4v", "--output", out, "--write", "color", "--frames", "1"]
    assert run(model_file, *arguments) == 0
    assert sorted(path.name for path in out.glob("*.mp4")) == [
        "clip_m4v_color.mp4", "clip_mp4_color.mp4",
    ]  # fmt: skip


def test_a_damaged_video_is_skipped_and_leaves_no_video(model_file, clip, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:400])
    (tmp_path / "text.avi").write_text("no video")
    out = tmp_path / "out"
    arguments = [tmp_path / "broken.mp4", tmp_path / "text.avi", tmp_path / "gone.mp4", clip]
    assert run(model_file, *arguments, "--output", out, "--write", "color", "--frames", "2") == 1
    error = capsys.readouterr().err
    for name in ("broken.mp4", "text.avi", "gone.mp4"):
        assert f"{name}: not readable as a video" in error
    assert sorted(path.name for path in out.iterdir()) == [
        "clip_color.mp4", "predictions.csv", "predictions.json",
    ]  # fmt: skip
    assert len(list(Video(out / "clip_color.mp4"))) == 2


def test_a_camera(model_file, tmp_path, monkeypatch, capsys):
    """FFmpeg's test picture stands in for a camera."""
    pytest.importorskip("av")
    source = "testsrc=size=64x48:rate=5"
    monkeypatch.setitem(video._CAMERAS, "linux", ("lavfi", source))
    out = tmp_path / "out"
    assert run(model_file, "camera:0", "--output", out, "--frames", "3") == 0
    assert len(list(Video(out / "camera_0_overlay.mp4"))) == 3
    assert len(list((out / "camera_0").iterdir())) == 3
    # Ctrl-C ends the recording and keeps it.
    segment, calls = Predictor.__call__, []

    def stop(self, image):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return segment(self, image)

    monkeypatch.setattr(Predictor, "__call__", stop)
    assert run(model_file, "camera:0", "--output", tmp_path / "two") == 0
    assert len(list(Video(tmp_path / "two" / "camera_0_overlay.mp4"))) == 2
    monkeypatch.setitem(video._CAMERAS, "linux", ("v4l2", "/dev/no_video{n}"))
    assert run(model_file, "camera:7", "--output", tmp_path / "three") == 1
    assert "camera:7: not readable as a video (No such file" in capsys.readouterr().err


def test_the_run_file_says_what_the_folder_holds(model_file, pictures, tmp_path):
    assert run(model_file, pictures, "--output", tmp_path / "out", "--flip") == 0
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["protocol"] == "whole pictures; mirrored too; probabilities averaged"
    assert len(content["model"]) == 64
