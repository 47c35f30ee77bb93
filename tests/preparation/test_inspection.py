"""Damages, and what is said about them: docs/data_problems.md has the messages."""

import contextlib
import csv
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, absent, write_folder
from PIL import Image

from alignseg_tf.__main__ import main
from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.datasets.catalog import LABEL_SPACES
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.sources import open_data
from alignseg_tf.preparation import contact_sheet, inspection

# What is wrong -> what makes it so. A damage takes the folder and may return another path to open.
DAMAGES: dict[str, Callable[[Path], Path | None]] = {}


def damage(name: str) -> Callable:
    def remember(function: Callable) -> Callable:
        DAMAGES[name] = function
        return function

    return remember


def first(root: Path, kind: str, split: str = "train") -> Path:
    return sorted((root / kind / split).iterdir())[0]


def save_as(path: Path, image: Image.Image, suffix: str = ".png", **options) -> Path:
    """Save in the place of a file, with another suffix."""
    path.unlink()
    path = path.with_suffix(suffix)
    image.save(path, **options)
    return path


def change(path: Path, values: Callable[[np.ndarray], np.ndarray], suffix: str = ".png") -> Path:
    with Image.open(path) as image:
        changed = values(np.asarray(image))
    return save_as(path, Image.fromarray(changed), suffix)


def write_csv(root: Path, columns=("image", "label", "split"), encoding="utf-8") -> Path:
    """List the folder; the second line of the file is the first training image."""
    rows = [
        (image.relative_to(root), label.relative_to(root), split)
        for split in ("train", "val")
        for image, label in zip(
            sorted((root / "images" / split).iterdir()),
            sorted((root / "labels" / split).iterdir()),
            strict=True,
        )
    ]
    with (root / "list.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return root / "list.csv"


def change_line(path: Path, change: Callable[[str], str]) -> Path:
    lines = path.read_text().split("\n")
    lines[1] = change(lines[1])
    path.write_text("\n".join(lines))
    return path


@damage("The path is mistyped")
def _(root):
    return root / "nowhere"


@damage("Folders have unknown names")
def _(root):
    (root / "images").rename(root / "photos")


@damage("`classes.json` is missing")
def _(root):
    (root / "classes.json").unlink()


@damage("`classes.json` is not JSON")
def _(root):
    (root / "classes.json").write_text('{"classes": ["a", "b",]}')


@damage("`classes.json` has no `classes`")
def _(root):
    (root / "classes.json").write_text('{"names": ["a", "b"]}')


@damage("`classes.json` has unknown keys")
def _(root):
    (root / "classes.json").write_text('{"classes": ["a", "b"], "colours": []}')


@damage("A colour is not a list")
def _(root):
    (root / "classes.json").write_text('{"classes": ["a"], "palette": ["#ff0000"]}')


@damage("A class name cannot be shown")
def _(root):
    (root / "classes.json").write_text('{"classes": ["a\\u001b"]}')


@damage("`classes.json` contradicts the layout")
def _(root):
    (root / "labels").rename(root / "annotations")
    for kind in ("images", "annotations"):
        (root / kind / "train").rename(root / kind / "training")
    classes = {"classes": LABEL_SPACES["ade20k"].classes}
    (root / "classes.json").write_text(json.dumps(classes))


@damage("A CSV list has the wrong columns")
def _(root):
    return write_csv(root, ("image", "mask", "split"))


@damage("A CSV list is not UTF-8")
def _(root):
    path = first(root, "images")
    path.rename(path.with_stem("Straße"))
    return write_csv(root, encoding="latin-1")


@damage("A split has the wrong name")
def _(root):
    (root / "images/val").rename(root / "images/validation")


@damage("Images have an unknown format")
def _(root):
    for path in (root / "images/val").iterdir():
        path.rename(path.with_suffix(".heic"))


@damage("A label is missing")
def _(root):
    first(root, "labels").unlink()


@damage("Label names have an extra suffix")
def _(root):
    for path in (root / "labels/train").iterdir():
        path.rename(path.with_stem(f"{path.stem}_mask"))


@damage("Labels are JPEG files")
def _(root):
    for path in (root / "labels/train").iterdir():
        change(path, lambda values: values, ".jpg")


@damage("A CSV list names a JPEG label")
def _(root):
    change(first(root, "labels"), lambda values: values, ".jpg")
    return write_csv(root)


@damage("Two images share a name")
def _(root):
    path = first(root, "images")
    shutil.copy(path, path.with_suffix(".bmp"))


@damage("Two labels share a name")
def _(root):
    path = first(root, "labels")
    shutil.copy(path, path.with_suffix(".tif"))


@damage("A CSV list names a missing file")
def _(root):
    return change_line(write_csv(root), lambda line: line.replace("labels/", "masks/"))


@damage("A CSV list has Windows paths")
def _(root):
    return change_line(write_csv(root), lambda line: line.replace("/", "\\"))


@damage("A CSV line is incomplete")
def _(root):
    return change_line(write_csv(root), lambda line: f"{line.split(',')[0]},,train")


@damage("A CSV list has no rows of a split")
def _(root):
    path = write_csv(root)
    path.write_text(path.read_text().replace(",val\n", ",valid\n"))
    return path


@damage("A file name is not UTF-8")
def _(root):
    for kind in ("images", "labels"):
        path = first(root, kind)
        path.rename(path.with_stem(os.fsdecode(b"\xe4")))


@damage("A file is empty")
def _(root):
    first(root, "images").write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@damage("An image is truncated")
def _(root):
    halve(first(root, "images"))


@damage("A label is truncated")
def _(root):
    halve(first(root, "labels"))


@damage("A file is corrupt")
def _(root):
    path = first(root, "labels")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@damage("A file is not an image")
def _(root):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"
    first(root, "images").write_text(text)


@damage("A link is broken")
def _(root):
    path = first(root, "images")
    path.unlink()
    path.symlink_to(root / "gone" / path.name)


@damage("A file has no read permission")
def _(root):
    path = first(root, "images")
    path.chmod(0)
    with contextlib.suppress(PermissionError), path.open("rb"):
        pytest.skip("this user may read every file")


@damage("An image is too large")
def _(root):
    save_as(first(root, "images"), Image.new("1", (10_000, 9_000)), ".png")


@damage("A file holds several images")
def _(root):
    pages = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(3)]
    path = save_as(first(root, "images"), pages[0], ".tif")
    pages[0].save(path, save_all=True, append_images=pages[1:])


@damage("An image has floating-point values")
def _(root):
    change(first(root, "images"), lambda values: values[..., 0].astype(np.float32) / 255, ".tif")


@damage("A TIFF has too many bands")
def _(root):
    path = save_as(first(root, "images"), Image.new("RGB", (64, 64)), ".tif")
    content = path.read_bytes()
    bands = struct.pack("<HHI", 277, 3, 1)  # samples a pixel, then their number
    assert content.count(bands + b"\3") == 1
    path.write_bytes(content.replace(bands + b"\3", bands + b"\7"))


@damage("An image is too small")
def _(root):
    for kind in ("images", "labels"):
        change(first(root, kind), lambda values: values[:64, :30])


@damage("Image and label differ in size")
def _(root):
    change(first(root, "labels"), lambda values: values[:-1])


@damage("EXIF rotates an image but not its label")
def _(root):
    for kind in ("images", "labels"):
        change(first(root, kind), lambda values: values[:64, :96])
    turn_by_exif(first(root, "images"), 6)


def turn_by_exif(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
    save_as(path, image, ".jpg", exif=exif)


@damage("A label has unknown values")
def _(root):
    change(first(root, "labels"), lambda values: np.where(values == 0, np.uint8(77), values))


@damage("A label has 16-bit values above 255")
def _(root):
    change(first(root, "labels"), lambda values: np.where(values == 0, np.uint16(300), values))


@damage("A grey label is saved as RGB")
def _(root):
    change(first(root, "labels"), lambda values: np.repeat(values[..., None], 3, -1))


@damage("A label has colours")
def _(root):
    change(first(root, "labels"), lambda values: np.stack([values, values, 255 - values], -1))


@damage("A label has an unlisted colour")
def _(root):
    count = len(json.loads((root / "classes.json").read_text())["classes"])
    colors = np.array([(9 * i, 0, 200) for i in range(count)], np.uint8)
    content = {"classes": [str(i) for i in range(count)], "colors": colors.tolist()}
    (root / "classes.json").write_text(json.dumps(content))
    for path in sorted((root / "labels").rglob("*.png")):
        change(path, lambda values: colors[values % count])
    first_label = first(root, "labels")
    change(
        first_label,
        lambda values: np.where(
            (values == colors[0]).all(-1, keepdims=True), np.uint8([1, 2, 3]), values
        ),
    )


@damage("A label has transparent pixels")
def _(root):
    change(first(root, "labels"), lambda values: np.stack([values, values * 0], -1))


@damage("A split has no pixel with a class")
def _(root):
    for path in (root / "labels/val").iterdir():
        change(path, lambda values: np.full_like(values, 255))


@damage("A mask has the values 0 and 255")
def _(root):
    (root / "classes.json").write_text('{"classes": ["background", "object"]}')
    for path in sorted((root / "labels").rglob("*.png")):
        change(path, lambda values: np.where(values == 0, np.uint8(0), np.uint8(255)))


@damage("`train` has only one class")
def _(root):
    (root / "classes.json").write_text('{"classes": ["object"], "ids": [1], "void": 0}')
    for path in sorted((root / "labels").rglob("*.png")):
        change(path, lambda values: (values != 0).astype(np.uint8))


@damage("Labels have no image")
def _(root):
    shutil.copy(first(root, "labels"), root / "labels/train/alone.png")


@damage("A label has no pixel with a class")
def _(root):
    change(first(root, "labels"), lambda values: np.full_like(values, 255))


@damage("A class is absent from a split")
def _(root):
    for path in (root / "labels/val").iterdir():
        change(path, lambda values: np.where(values == 1, np.uint8(255), values))


def copy_first(root: Path, split: str) -> None:
    for kind in ("images", "labels"):
        path = first(root, kind)
        shutil.copy(path, root / kind / split / f"zz{path.suffix}")


@damage("An image is in `train` and `val`")
def _(root):
    copy_first(root, "val")


@damage("An image is in `train` twice")
def _(root):
    copy_first(root, "train")


@damage("A CSV row is repeated")
def _(root):
    return change_line(write_csv(root), lambda line: f"{line}\n{line}")


@damage("EXIF turns an image upside down")
def _(root):
    turn_by_exif(first(root, "images"), 3)


@damage("An image has transparency")
def _(root):
    change(first(root, "images"), lambda values: np.dstack([values, values[..., 0]]))


@damage("A 16-bit image holds 12 bits")
def _(root):
    change(first(root, "images"), lambda values: values[..., 0].astype(np.uint16) << 4)


def messages() -> dict[str, tuple[int, str]]:
    """What the documentation promises: what is wrong -> exit status, message with `...`."""
    text = (ROOT / "docs" / "data_problems.md").read_text()
    promised = {}
    for title, status in (("Nothing can be read", 2), ("Problems", 1), ("Notes", 0)):
        section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        rows = [line.strip("| ").split(" | ") for line in section.split("\n") if line[:1] == "|"]
        for wrong, said, _ in rows[2:]:
            promised[wrong] = status, said.strip("`")
    return promised


def assert_says(message: str, text: str) -> None:
    pattern = ".*".join(re.escape(part) for part in re.split(r"\.\.\.", message))
    lines = [re.sub(r"^(error: | {2})", "", line) for line in text.splitlines()]
    assert any(re.fullmatch(pattern, line) for line in lines), (message, text)


def assert_damage_is_reported(name: str, root: Path, output: Path, capsys) -> None:
    data = DAMAGES[name](root) or root
    status, message = messages()[name]
    capsys.readouterr()
    assert main(["inspect", str(data), "--output", str(output)]) == status
    assert_says(message, "\n".join(capsys.readouterr()))
    assert output.exists() == (status < 2)
    try:
        source = open_data(data)
        for split in ("train", "val"):
            check_samples(source.samples(split), source.label_space, name=split)
    except DataError as error:
        assert status
        assert_says(message, str(error))
    else:
        assert not status


def test_every_damage_is_documented_and_every_promise_tried():
    assert list(messages()) == list(DAMAGES)
    assert len(DAMAGES) >= 20


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_reported_as_documented(name, folder, tmp_path, capsys):
    assert_damage_is_reported(name, folder, tmp_path / "out", capsys)


def real_data(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.is_dir():
        absent(f"the data set ../shared/data/{name} is not here")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("data", ["camvid", "nuclei"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_of_real_data_is_reported_as_documented(name, data, tmp_path, capsys):
    root = tmp_path / data
    source = real_data(data)
    for split, count in (("train", 8), ("val", 4)):
        images = sorted((source / "images" / split).iterdir())
        for image in images[:: len(images) // count][:count]:
            for kind, suffix in (("images", ".jpg"), ("labels", ".png")):
                target = root / kind / split / f"{image.stem}{suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / kind / split / target.name, target)
    shutil.copy(source / "classes.json", root)
    assert_damage_is_reported(name, root, tmp_path / "out", capsys)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["camvid", "nuclei"])
def test_real_data_are_sound(data, tmp_path, capsys):
    assert main(["inspect", str(real_data(data)), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "No problems" in printed
    assert "Notes" not in printed


def test_sound_data_are_described_in_numbers(tmp_path, capsys):
    root = write_folder(tmp_path / "data", sizes=((70, 100), (100, 70), (70, 100)))
    change(first(root, "labels"), lambda values: np.where(values == 2, np.uint8(0), values))
    assert main(["inspect", str(root), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "train: 6 images" in printed
    assert "70 x 70 to 100 x 100, median 100 x 70, 2 different" in printed
    assert "PNG RGB (6)" in printed
    assert "--crop-size 64 96" in printed
    report = json.loads((tmp_path / "out/inspection.json").read_text())
    with (tmp_path / "out/images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split, count in (("train", 6), ("val", 2)):
        labels = [np.asarray(Image.open(p)) for p in sorted((root / "labels" / split).iterdir())]
        found = [[(label == value).sum() for value in (0, 1, 2, 255)] for label in labels]
        in_json = report["splits"][split]
        assert in_json["images"] == in_json["sound"] == count
        assert in_json["pixels"] == np.sum(found, 0).tolist()
        assert in_json["images_with"] == (np.array(found) > 0).sum(0).tolist()
        files = [*(root / "images" / split).iterdir(), *(root / "labels" / split).iterdir()]
        assert in_json["bytes"] == sum(path.stat().st_size for path in files)
        in_csv = [row for row in rows if row["split"] == split]
        names = ("pixels_ground", "pixels_box", "pixels_disc", "pixels_void")
        assert [[int(row[name]) for name in names] for row in in_csv] == found
        sizes = [[int(row["height"]), int(row["width"])] for row in in_csv]
        assert sizes == [list(label.shape) for label in labels]


def test_a_class_called_void_has_its_own_column(folder, tmp_path):
    (folder / "classes.json").write_text(json.dumps({"classes": ["void", "box", "disc"]}))
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 0
    head = (tmp_path / "out" / "images.csv").read_text().splitlines()[0].split(",")
    assert head[-5:] == [
        "pixels_void (class)", "pixels_box", "pixels_disc", "pixels_void", "problem",
    ]  # fmt: skip


def test_several_problems_are_all_reported(folder, tmp_path, capsys):
    DAMAGES["A file is empty"](folder)
    (folder / "labels/train/005.png").unlink()
    for number in range(1, 5):
        change(folder / f"labels/train/00{number}.png", lambda values: values + 7)
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "6 problems" in printed
    assert "no label" in printed
    assert "the file is empty" in printed
    assert printed.count("unknown label values") == inspection.NAMED
    assert "and 1 more of this kind" in printed
    with (tmp_path / "out/images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum("unknown label values" in row["problem"] for row in rows) == 4
    assert sum(not row["problem"] for row in rows) == 2


def test_data_without_a_sound_image_are_reported_too(folder, tmp_path, capsys):
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"")
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "8 problems" in capsys.readouterr().out


def test_an_inspection_replaces_only_an_inspection(folder, tmp_path, capsys):
    """Not the table of the same name that an evaluation writes."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "images.csv").write_text("mine")
    assert main(["inspect", str(folder), "--output", str(out)]) == 2
    assert "only files that inspect wrote" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["images.csv"]
    assert (out / "images.csv").read_text() == "mine"
    assert main(["inspect", str(folder), "--output", str(out), "--overwrite"]) == 0
    assert main(["inspect", str(folder), "--output", str(out)]) == 0


@pytest.mark.filterwarnings("ignore:no font of this system has")
def test_what_is_no_problem(folder, tmp_path, capsys):
    images, labels = folder / "images/train", folder / "labels/train"
    (images / "._000.png").write_bytes(b"rubbish")
    (labels / "._000.png").write_bytes(b"rubbish")
    (images / ".DS_Store").write_bytes(b"rubbish")
    (images / "Thumbs.db").write_bytes(b"rubbish")
    (images / ".ipynb_checkpoints").mkdir()
    shutil.copy(images / "000.png", images / ".ipynb_checkpoints/000-checkpoint.png")
    (images / "x.png").mkdir()
    (images / "000.png").rename(images / "Straße Nr. 1 北京.PNG")
    (labels / "000.png").rename(labels / "Straße Nr. 1 北京.PNG")
    change(labels / "001.png", lambda values: np.stack([values, values * 0 + 255], -1))
    with Image.open(images / "002.png") as image:
        save_as(images / "002.png", image.convert("CMYK"), ".jpg")
    change(images / "003.png", lambda values: values[..., 0] > 99)
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "train: 6 images" in printed
    assert "Notes" not in printed


def test_a_split_can_be_chosen(folder, tmp_path, capsys):
    shutil.rmtree(folder / "images/val")
    arguments = ["inspect", str(folder), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--split", "train"]) == 0
    assert "val" not in capsys.readouterr().out
    assert main(arguments) == 1


def test_rare_classes_call_for_weights(folder, tmp_path, capsys):
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "--class-weights none" in capsys.readouterr().out
    for path in (folder / "labels/train").iterdir():
        change(
            path,
            lambda values: np.where(np.arange(values.shape[1]) > 1, 0 * values, 2 - values % 2),
        )
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "--class-weights sqrt_inverse" in capsys.readouterr().out


def test_the_contact_sheet_shows_images_labels_and_classes(tmp_path):
    root = write_folder(tmp_path / "data", train=30, val=3)
    data = open_data(root)
    splits = {name: data.samples(name) for name in ("train", "val")}
    sheet = np.asarray(contact_sheet.draw_contact_sheet(splits, data.label_space))
    assert sheet.shape[1] == 1768
    colors = {tuple(color) for color in sheet[-60:].reshape(-1, 3)}
    assert set(data.label_space.palette) <= colors
    # The first pair: the image, then the image mixed with its classes' colours.
    top, left, size = contact_sheet.MARGIN + contact_sheet.HEADING, contact_sheet.MARGIN, 208
    height = round(size * 64 / 96)
    sample = splits["train"][1]  # 12 of 30: the middles of 12 parts of 2.5
    with Image.open(sample.image) as image:
        expected = image.resize((size, height), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(sheet[top : top + height, left : left + size], expected)
    painted = sheet[top : top + height, left + size + 2 : left + 2 * size + 2]
    assert np.abs(painted.astype(int) - np.asarray(expected)).mean() > 10
