import errno
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import CLASSES, random_images
from official_fixtures import official_state_dict
from PIL import Image

from alignseg_tf.__main__ import main
from alignseg_tf.commands import alignment
from alignseg_tf.system.files import DiskFullError
from alignseg_tf.version import __version__


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate([(64, 96), (40, 56)]):
        Image.fromarray(random_images(1, *size)[0]).save(folder / f"{number}.png")
    return folder


@pytest.mark.smoke
def test_export_and_predict_from_the_saved_model(keras_file, images, tmp_path, capsys):
    target = tmp_path / "savedmodels" / "tiny" / "1"
    arguments = ["export", str(keras_file), "--output", str(target), "--check", str(images)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert re.search(r"(99\.9\d\d|100\.000) %", output)
    assert "on 2 images" in output
    content = json.loads((target / "assets.extra" / "classes.json").read_text())
    assert content["classes"] == list(CLASSES)
    assert main(["predict", str(target), str(images), "--output", str(tmp_path / "out")]) == 0


def test_convert(tmp_path, capsys):
    state_dict = official_state_dict(width=64, channels=12, classes=4)
    np.savez(tmp_path / "official.npz", **state_dict)
    arguments = ["convert", str(tmp_path / "official.npz"), str(tmp_path / "m.keras")]
    assert main([*arguments, "--sampling", "fixed"]) == 0
    assert "4 classes, sampling 'fixed'" in capsys.readouterr().out
    assert main(["summary", str(tmp_path / "m.keras"), "--size", "64", "64", "--runs", "0"]) == 0
    assert "aggregation_p5" in capsys.readouterr().out
    del state_dict["head.0.bias"]
    np.savez(tmp_path / "official.npz", **state_dict)
    before = (tmp_path / "m.keras").read_bytes()
    assert main(arguments) == 2
    assert "lacks 1 tensors: head.0.bias" in capsys.readouterr().err
    assert (tmp_path / "m.keras").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("m.keras", ["convert", "official.npz", "FILE"]),
        ("s.json", ["summary", "MODEL", "--size", "64", "64", "--runs", "0", "--json", "FILE"]),
    ],
)
def test_files_of_others_are_kept(file, arguments, keras_file, tmp_path, monkeypatch, capsys):
    """A trained model too is no file that `convert` wrote."""
    monkeypatch.chdir(tmp_path)
    np.savez("official.npz", **official_state_dict(width=64, channels=12, classes=4))
    names = {"MODEL": str(keras_file), "FILE": file}
    arguments = [names.get(argument, argument) for argument in arguments]
    for content in (keras_file.read_bytes(), b'{"mine": 1}'):
        (tmp_path / file).write_bytes(content)
        assert main(arguments) == 2
        assert f"{file}: expected a new file, or one that {arguments[0]}" in capsys.readouterr().err
        assert (tmp_path / file).read_bytes() == content
    assert main([*arguments, "--overwrite"]) == 0
    assert main(arguments) == 0
    assert (tmp_path / file).read_bytes() != content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "gone.keras", "IMAGES", "--output", "out"], "gone.keras: no such file"),
        (["predict", "MODEL", "gone.png", "--output", "out"], "gone.png: no such file or folder"),
        (["convert", "gone.pth", "x.keras"], "gone.pth: no such file"),
        (["summary", "gone.keras"], "gone.keras: no such file"),
    ],
)
def test_bad_input_is_named_and_nothing_written(
    arguments, message, keras_file, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": str(keras_file), "IMAGES": str(images)}
    assert main([names.get(a, a) for a in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"alignseg_tf {__version__}\n"


@pytest.mark.smoke
def test_the_command_prints_no_chatter(keras_file):
    arguments = ["summary", str(keras_file), "--size", "64", "96", "--runs", "1"]
    command = [sys.executable, "-m", "alignseg_tf", *arguments]
    environment = {"PATH": "", "PYTHONPATH": "."}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"timing: .*\n", result.stderr)
    assert "classes: ground, box, disc" in result.stdout


def test_alignment_goes_on_after_an_image_that_cannot_be_drawn(tmp_path, monkeypatch, capsys):
    for name in ("a\x1b.png", "b.png", "c.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)

    def write(model, image, folder, name, overwrite):
        if name.startswith("a"):
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        if name == full:
            raise DiskFullError("the disk is full")
        return [folder / f"{name}.png"]

    full = None
    monkeypatch.setattr(alignment, "write_alignment_figures", write)
    monkeypatch.setattr(alignment, "load_model", lambda path: None)
    arguments = ["alignment", "m.keras", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert r"a\x1b.png: [Errno" in printed.err and "File name too long" in printed.err
    assert "[2/3]" in printed.out and "[3/3]" in printed.out
    full = "b"
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "the disk is full" in printed.err and "[3/3]" not in printed.out
