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
from data_fixtures import save, write_csv
from PIL import Image

from alignseg_tf.__main__ import main
from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.datasets.catalog import LABEL_SPACES
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.sources import open_data
from alignseg_tf.preparation import contact_sheet, inspection

Values = Callable[[np.ndarray], np.ndarray]
Damage = Callable[[Path], object]
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"


def unchanged(values: np.ndarray) -> np.ndarray:
    return values


def first(root: Path, kind: str) -> Path:
    return sorted((root / kind / "train").iterdir())[0]


def save_as(path: Path, image: Image.Image | np.ndarray, suffix: str = ".png", **options) -> Path:
    """Save in the place of a file, with another suffix."""
    path.unlink()
    return save(image, path.with_suffix(suffix), **options)


def change(path: Path, values: Values, suffix: str = ".png") -> None:
    with Image.open(path) as image:
        changed = values(np.asarray(image))
    save_as(path, changed, suffix)


def change_all(
    pattern: str, values: Values, classes: str = "", suffix: str = ".png", most: int | None = None
) -> Damage:
    def damage(root: Path) -> None:
        for path in sorted(root.glob(pattern))[:most]:
            change(path, values, suffix)
        if classes:
            (root / "classes.json").write_text(classes)

    return damage


def change_first(kind: str, values: Values, suffix: str = ".png") -> Damage:
    return change_all(f"{kind}/train/*", values, suffix=suffix, most=1)


def rewrite_first(kind: str, content: Callable[[bytes], bytes]) -> Damage:
    return lambda root: first(root, kind).write_bytes(content(first(root, kind).read_bytes()))


def rename_all(pattern: str, name: Callable[[Path], Path]) -> Damage:
    return lambda root: [path.rename(name(path)) for path in sorted(root.glob(pattern))]


def write_classes(text: str) -> Damage:
    return lambda root: (root / "classes.json").write_text(text)


def csv_line(change: Callable[[str], str]) -> Damage:
    def damage(root: Path) -> None:
        lines = write_csv(root).read_text().split("\n")
        lines[1] = change(lines[1])
        (root / "list.csv").write_text("\n".join(lines))

    return damage


def contradicting_layout(root):
    (root / "labels").rename(root / "annotations")
    for kind in ("images", "annotations"):
        (root / kind / "train").rename(root / kind / "training")
    classes = {"classes": LABEL_SPACES["ade20k"].classes}
    (root / "classes.json").write_text(json.dumps(classes))


def latin_csv(root):
    path = first(root, "images")
    path.rename(path.with_stem("Straße"))
    write_csv(root, encoding="latin-1")


def jpeg_label_in_csv(root):
    change(first(root, "labels"), unchanged, ".jpg")
    write_csv(root)


def copy_of(kind: str, suffix: str) -> Damage:
    return lambda root: shutil.copy(first(root, kind), first(root, kind).with_suffix(suffix))


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def broken_link(root):
    path = first(root, "images")
    path.unlink()
    path.symlink_to(root / "gone" / path.name)


def no_permission(root):
    path = first(root, "images")
    path.chmod(0)
    with contextlib.suppress(PermissionError), path.open("rb"):
        pytest.skip("this user may read every file")


def several_pages(root):
    pages = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(3)]
    save_as(first(root, "images"), pages[0], ".tif", save_all=True, append_images=pages[1:])


def seven_bands(root):
    path = save_as(first(root, "images"), Image.new("RGB", (64, 64)), ".tif")
    content = path.read_bytes()
    bands = struct.pack("<HHI", 277, 3, 1)  # samples a pixel, then their number
    assert content.count(bands + b"\3") == 1
    path.write_bytes(content.replace(bands + b"\3", bands + b"\7"))


def crop_both(root, width=30):
    for kind in ("images", "labels"):
        change(first(root, kind), lambda values: values[:64, :width])


def turn_by_exif(root: Path, orientation: int) -> None:
    path = first(root, "images")
    with Image.open(path) as image:
        image.load()
    save_as(path, image, ".jpg", orientation=orientation)


def turned_image(root):
    crop_both(root, 96)
    turn_by_exif(root, 6)


def unlisted_colour(root):
    count = len(json.loads((root / "classes.json").read_text())["classes"])
    colors = np.array([(9 * i, 0, 200) for i in range(count)], np.uint8)
    content = {"classes": [str(i) for i in range(count)], "colors": colors.tolist()}
    change_all("labels/*/*", lambda values: colors[values % count], json.dumps(content))(root)
    change(first(root, "labels"), lambda values: np.where(
        (values == colors[0]).all(-1, keepdims=True), np.uint8([1, 2, 3]), values
    ))  # fmt: skip


def copy_first(root: Path, split: str) -> None:
    for kind in ("images", "labels"):
        path = first(root, kind)
        shutil.copy(path, root / kind / split / f"zz{path.suffix}")


def replaced(old: int, new: np.number) -> Values:
    return lambda values: np.where(values == old, new, values)


# Problem -> what causes it in a folder, or in a list.csv that it writes there.
DAMAGES: dict[str, Damage] = {
    "The path is mistyped": lambda root: root.rename(root.with_name("elsewhere")),
    "Folders have unknown names": lambda root: (root / "images").rename(root / "photos"),
    "`classes.json` is missing": lambda root: (root / "classes.json").unlink(),
    "`classes.json` is not JSON": write_classes('{"classes": ["a", "b",]}'),
    "`classes.json` has no `classes`": write_classes('{"names": ["a", "b"]}'),
    "`classes.json` has unknown keys": write_classes('{"classes": ["a", "b"], "colours": []}'),
    "A colour is not a list": write_classes('{"classes": ["a"], "palette": ["#ff0000"]}'),
    "A class name cannot be shown": write_classes('{"classes": ["a\\u001b"]}'),
    "`classes.json` contradicts the layout": contradicting_layout,
    "A CSV list has the wrong columns": lambda root: write_csv(
        root, columns=("image", "mask", "split")
    ),
    "A CSV list is not UTF-8": latin_csv,
    "A split has the wrong name": rename_all("images/val", lambda p: p.with_name("validation")),
    "Images have an unknown format": rename_all("images/val/*", lambda p: p.with_suffix(".heic")),
    "A label is missing": lambda root: first(root, "labels").unlink(),
    "Label names have an extra suffix": rename_all(
        "labels/train/*", lambda path: path.with_stem(f"{path.stem}_mask")
    ),
    "Labels are JPEG files": change_all("labels/train/*", unchanged, suffix=".jpg"),
    "A CSV list names a JPEG label": jpeg_label_in_csv,
    "Two images share a name": copy_of("images", ".bmp"),
    "Two labels share a name": copy_of("labels", ".tif"),
    "A CSV list names a missing file": csv_line(lambda line: line.replace("labels/", "masks/")),
    "A CSV list has Windows paths": csv_line(lambda line: line.replace("/", "\\")),
    "A CSV line is incomplete": csv_line(lambda line: f"{line.split(',')[0]},,train"),
    "A CSV list has no rows of a split": lambda root: write_csv(root).write_text(
        (root / "list.csv").read_text().replace(",val\n", ",valid\n")
    ),
    "A file name is not UTF-8": lambda root: [
        first(root, kind).rename(root / kind / "train" / os.fsdecode(b"\xe4.png"))
        for kind in ("images", "labels")
    ],
    "A file is empty": rewrite_first("images", lambda content: b""),
    "An image is truncated": rewrite_first("images", lambda content: content[: len(content) // 2]),
    "A label is truncated": rewrite_first("labels", lambda content: content[: len(content) // 2]),
    "A file is corrupt": rewrite_first("labels", flip_a_bit),
    "A file is not an image": rewrite_first("images", lambda content: LFS_POINTER),
    "A link is broken": broken_link,
    "A file has no read permission": no_permission,
    "An image is too large": lambda root: save_as(
        first(root, "images"), Image.new("1", (10_000, 9_000))
    ),
    "A file holds several images": several_pages,
    "An image has floating-point values": change_first(
        "images", lambda values: values[..., 0].astype(np.float32) / 255, ".tif"
    ),
    "A TIFF has too many bands": seven_bands,
    "An image is too small": crop_both,
    "Image and label differ in size": change_first("labels", lambda values: values[:-1]),
    "EXIF rotates an image but not its label": turned_image,
    "A label has unknown values": change_first("labels", replaced(0, np.uint8(77))),
    "A label has 16-bit values above 255": change_first("labels", replaced(0, np.uint16(300))),
    "A grey label is saved as RGB": change_first("labels", lambda x: np.stack([x, x, x], -1)),
    "A label has colours": change_first("labels", lambda x: np.stack([x, x, 255 - x], -1)),
    "A label has an unlisted colour": unlisted_colour,
    "A label has transparent pixels": change_first("labels", lambda x: np.stack([x, x * 0], -1)),
    "A split has no pixel with a class": change_all(
        "labels/val/*", lambda values: np.full_like(values, 255)
    ),
    "A mask has the values 0 and 255": change_all(
        "labels/*/*", lambda values: np.where(values == 0, np.uint8(0), np.uint8(255)),
        '{"classes": ["background", "object"]}',
    ),
    "`train` has only one class": change_all(
        "labels/*/*", lambda values: (values != 0).astype(np.uint8),
        '{"classes": ["object"], "ids": [1], "void": 0}',
    ),
    "Labels have no image": lambda root: shutil.copy(
        first(root, "labels"), root / "labels/train/alone.png"
    ),
    "A label has no pixel with a class": change_first(
        "labels", lambda values: np.full_like(values, 255)
    ),
    "A class is absent from a split": change_all("labels/val/*", replaced(1, np.uint8(255))),
    "An image is in `train` and `val`": lambda root: copy_first(root, "val"),
    "An image is in `train` twice": lambda root: copy_first(root, "train"),
    "A CSV row is repeated": csv_line(lambda line: f"{line}\n{line}"),
    "EXIF turns an image upside down": lambda root: turn_by_exif(root, 3),
    "An image has transparency": change_first(
        "images", lambda values: np.dstack([values, values[..., 0]])
    ),
    "A 16-bit image holds 12 bits": change_first(
        "images", lambda values: values[..., 0].astype(np.uint16) << 4
    ),
}  # fmt: skip


def messages() -> dict[str, tuple[int, str]]:
    """What the documentation promises: problem -> exit status, message with `...`."""
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


def test_every_damage_is_documented_and_every_promise_tried():
    assert list(messages()) == list(DAMAGES)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_reported_as_documented(name, folder, tmp_path, capsys):
    DAMAGES[name](folder)
    data = folder / "list.csv" if (folder / "list.csv").exists() else folder
    output = tmp_path / "out"
    status, message = messages()[name]
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


@pytest.mark.slow
@pytest.mark.parametrize("data", ["camvid", "nuclei"])
def test_real_data_are_sound(data, tmp_path, capsys):
    path = SHARED / "data" / data
    if not path.is_dir():
        absent(f"the data set ../shared/data/{data} is not here")
    assert main(["inspect", str(path), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "No problems" in printed
    assert "Notes" not in printed


def test_sound_data_are_described_in_numbers(tmp_path, capsys):
    root = write_folder(tmp_path / "data", sizes=((70, 100), (100, 70), (70, 100)))
    (root / "classes.json").write_text(json.dumps({"classes": ["void", "box", "disc"]}))
    change(first(root, "labels"), lambda values: np.where(values == 2, np.uint8(0), values))
    assert main(["inspect", str(root), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for text in ("train: 6 images", "70 x 70 to 100 x 100, median 100 x 70, 2 different",
                 "PNG RGB (6)", "--crop-size 64 96"):  # fmt: skip
        assert text in printed
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
        names = ("pixels_void (class)", "pixels_box", "pixels_disc", "pixels_void")
        assert [[int(row[name]) for name in names] for row in in_csv] == found
        sizes = [[int(row["height"]), int(row["width"])] for row in in_csv]
        assert sizes == [list(label.shape) for label in labels]


def test_several_problems_are_all_reported(folder, tmp_path, capsys):
    DAMAGES["A file is empty"](folder)
    (folder / "labels/train/005.png").unlink()
    for number in range(1, 5):
        change(folder / f"labels/train/00{number}.png", lambda values: values + 7)
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    for text in ("6 problems", "no label", "the file is empty", "and 1 more of this kind"):
        assert text in printed
    assert printed.count("unknown label values") == inspection.NAMED
    with (tmp_path / "out/images.csv").open(newline="") as file:
        problems = [row["problem"] for row in csv.DictReader(file)]
    assert sum("unknown label values" in problem for problem in problems) == 4
    assert problems.count("") == 2
    for path in (folder / "images").rglob("*.png"):
        path.write_bytes(b"")
    assert main(["inspect", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "8 problems" in capsys.readouterr().out


def test_an_inspection_replaces_only_an_inspection(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "images.csv").write_text("mine")
    arguments = ["inspect", str(folder), "--output", str(out)]
    assert main(arguments) == 2
    assert "only files that inspect wrote" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("images.csv", "mine")]
    assert main([*arguments, "--overwrite"]) == 0
    assert main(arguments) == 0


@pytest.mark.filterwarnings("ignore:no font of this system has")
def test_what_is_no_problem(folder, tmp_path, capsys):
    images, labels = folder / "images/train", folder / "labels/train"
    for path in (images / "._000.png", labels / "._000.png", images / "Thumbs.db"):
        path.write_bytes(b"rubbish")
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
    arguments = ["inspect", str(folder), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "--class-weights none" in capsys.readouterr().out
    change_all(
        "labels/train/*",
        lambda values: np.where(np.arange(values.shape[1]) > 1, 0 * values, 2 - values % 2),
    )(folder)
    assert main(arguments) == 0
    assert "--class-weights sqrt_inverse" in capsys.readouterr().out


def test_the_contact_sheet_shows_images_labels_and_classes(tmp_path):
    data = open_data(write_folder(tmp_path / "data", train=30, val=3))
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
