import os
import shutil
import struct
import unicodedata
import warnings
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from conftest import CLASSES, write_folder
from data_fixtures import save, with_palette, write_csv
from PIL import Image, TiffImagePlugin

from alignseg_tf.data import image_headers
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import (
    DataError,
    ListingError,
    Sample,
    describe_skipped,
    find_images,
    find_named_images,
    is_derived_file,
    labels_without_image,
    read_csv,
    read_folder,
)
from alignseg_tf.data.readers import (
    MIN_SIDE,
    is_turned,
    load_image,
    load_label,
    read_image_sizes,
)
from alignseg_tf.data.sources import open_data
from alignseg_tf.model import MIN_IMAGE_SIZE
from alignseg_tf.system.parallel import in_parallel

SPACE = LabelSpace(CLASSES)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
IDS = np.random.default_rng(1).integers(0, 3, (40, 60), np.uint8)


def test_folder_pairs_images_with_labels(folder):
    samples = read_folder(folder, "train")
    assert [s.image.name for s in samples] == [f"{i:03d}.png" for i in range(6)]
    assert all(s.label == folder / "labels" / "train" / s.image.name for s in samples)
    found = find_images([folder / "images/val", folder / "images/train/001.png"])
    assert [p.name for p in found] == ["000.png", "001.png", "001.png"]
    with pytest.raises(DataError, match="no such file or folder"):
        find_images([folder / "nowhere"])
    for kind in ("images", "labels"):
        (folder / kind / "val/._000.png").write_bytes(b"rubbish")
        for inside in ("city", ".ipynb_checkpoints"):
            (folder / kind / "val" / inside).mkdir()
            shutil.copy(folder / kind / "val/000.png", folder / kind / "val" / inside / "x.png")
    Image.open(folder / "images/val/000.png").save(folder / "images/val/city/x.JPG", "JPEG")
    (folder / "images/val/city/x.png").unlink()
    assert [s.label.parent.name for s in read_folder(folder, "val")] == ["val", "val", "city"]
    assert len(find_images([folder / "images/val"])) == 3
    assert labels_without_image(folder, "val") == []
    (folder / "images/val/000.png").unlink()
    assert labels_without_image(folder, "val") == [folder / "labels/val/000.png"]


def test_folder_problems_are_named_together(folder):
    """`test_inspection.py` has each problem alone."""
    (folder / "labels/train/003.png").unlink()
    for kind in ("images", "labels"):  # a similar name, but that of another image
        shutil.copy(folder / kind / "train/000.png", folder / kind / "train/0031.png")
    (folder / "labels/train/005.png").rename(folder / "labels/train/mask_005.png")
    shutil.copy(folder / "images/train/000.png", folder / "images/train/000.tif")
    with pytest.raises(ListingError, match=r"3 problems:") as error:
        read_folder(folder, "train")
    names = [sample.image.name for sample in error.value.samples]
    assert names == ["000.png", "001.png", "002.png", "0031.png", "004.png"]
    assert "000.tif: a second image beside 000.png" in error.value.problems[0]
    assert error.value.problems[1].endswith("labels/train/003.png")
    assert "labels/train/mask_005.png, but" in error.value.problems[2]


def test_csv_is_relative_to_its_folder(folder):
    path = write_csv(folder)
    assert len(read_csv(path)) == 8
    assert read_csv(path, "val") == read_folder(folder, "val")
    assert open_data(path).label_space.classes == CLASSES
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        read_csv(folder / "nowhere.csv")


# What the EXIF orientations 1 to 8 ask for, by NumPy.
UPRIGHT = (
    lambda x: x,
    lambda x: x[:, ::-1],
    lambda x: np.rot90(x, 2),
    lambda x: x[::-1],
    lambda x: x.swapaxes(0, 1),
    lambda x: np.rot90(x, -1),
    lambda x: np.rot90(x, 2).swapaxes(0, 1),
    lambda x: np.rot90(x),
)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, suffix, tmp_path):
    turned = UPRIGHT[orientation - 1]
    path = save(PIXELS, tmp_path / f"x{suffix}", orientation, lossless=True)
    assert read_image_sizes([path]).tolist() == [list(turned(IDS).shape)]
    assert is_turned(path) == (orientation > 1)
    np.testing.assert_array_equal(load_image(path), turned(PIXELS))
    save(IDS, path, orientation)  # Pillow maps such a TIFF into memory
    np.testing.assert_array_equal(load_label(path, SPACE), turned(IDS))


def write_png(path, values, bits=16):
    """Write [H, W, channels] as a PNG of 16 bits, or grey of 1 to 8, which Pillow cannot."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[-1]]
    rows = values.reshape(len(values), -1)
    packed = [row.astype(">u2").tobytes() if bits == 16 else pack(row, bits) for row in rows]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed))
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with path.open("ab") as file:
        for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
            checksum = struct.pack(">I", zlib.crc32(name + data))
            file.write(struct.pack(">I", len(data)) + name + data + checksum)


def pack(row, bits):
    return np.packbits((row[:, None] >> np.arange(bits - 1, -1, -1)) & 1).tobytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_16_bits_the_upper_8_are_kept_and_alpha_is_dropped(channels, tmp_path):
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 60, channels), np.uint16)
    write_png(tmp_path / "x.png", values)
    colors = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, -1)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png"), colors >> 8)


PALETTE = np.array([[9, 8, 7], [200, 100, 0], [0, 50, 99]], np.uint8)
DEEP = np.arange(64 * 64, dtype=np.int32).reshape(64, 64) * 16


@pytest.mark.parametrize(
    ("image", "name", "options", "expected"),
    [
        (with_palette(IDS, PALETTE), "x.png", {"transparency": 1}, PALETTE[IDS]),
        (with_palette(IDS, PALETTE), "x.png", {"transparency": bytes([0, 100, 255])}, PALETTE[IDS]),
        (np.dstack([PIXELS, IDS * 0]), "x.png", {}, PIXELS),  # the stored colour shows
        (DEEP, "deep.tif", {}, np.repeat((DEEP >> 8)[..., None], 3, -1)),
        (Image.new("CMYK", (40, 40), (55, 155, 205, 0)), "x.jpg", {}, (200, 100, 50)),
    ],
    ids=["transparent index", "alpha of a palette", "alpha", "32 bits", "CMYK"],
)
def test_images_become_rgb(image, name, options, expected, tmp_path):
    loaded = load_image(save(image, tmp_path / name, **options))
    assert np.abs(loaded.astype(int) - expected).max() < (5 if name == "x.jpg" else 1)


COLORS = LabelSpace(CLASSES, colors=(((5, 0, 0),), ((6, 0, 0),), ((7, 0, 0),)))


@pytest.mark.parametrize(
    ("label", "space"),
    [
        (with_palette(IDS, [(i * 7 % 256, 200, 10) for i in range(256)]), SPACE),
        (IDS.astype(np.uint16), SPACE),
        (np.dstack([IDS, IDS * 0 + 255]), SPACE),
        (np.dstack([IDS + 5, IDS * 0, IDS * 0, IDS * 0 + 255]), COLORS),
    ],
    ids=["palette", "16 bits", "opaque grey", "opaque colour"],
)
def test_labels_give_the_ids_that_are_stored(label, space, tmp_path):
    path = save(label, tmp_path / "x.png")
    np.testing.assert_array_equal(load_label(path, space), IDS)


def test_a_photograph_with_a_preview_is_one_image(tmp_path):
    photograph, preview = Image.new("RGB", (80, 64), "red"), Image.new("RGB", (40, 32))
    with (tmp_path / "x.jpg").open("wb") as file:
        photograph.save(file, "MPO", save_all=True, append_images=[preview])
    assert load_image(tmp_path / "x.jpg").shape == (64, 80, 3)
    assert read_image_sizes([tmp_path / "x.jpg"]).tolist() == [[64, 80]]


def test_what_is_no_file_is_named_and_pixels_are_limited(tmp_path, monkeypatch):
    path = tmp_path / "x.png"

    def fails(message, path=path):
        with pytest.raises(DataError, match=message):
            load_image(path)

    fails(r"x\.png: not readable as an image \(no such file\)")
    with pytest.raises(DataError, match=r"x\.png: not readable as a label \(no such file\)"):
        load_label(path, SPACE)
    path.mkdir()
    fails(r"x\.png: not readable as an image \(a folder\)")
    path.rmdir()
    os.mkfifo(path)
    fails(r"x\.png: expected a file\. Received: a pipe")
    fails(r"expected a file\. Received: a device", Path("/dev/null"))
    path.unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3999)
    for size in ((40, 100), (80, 100)):  # above it, and above the double, where Pillow raises
        Image.new("L", size).save(path)
        for action in ("error", "ignore"):
            with warnings.catch_warnings():
                warnings.simplefilter(action)
                fails(r"\(more than 3999 pixels; cut it into tiles")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    load_image(path)
    monkeypatch.setattr(Path, "open", lambda *args: (_ for _ in ()).throw(PermissionError()))
    fails("no permission to read")


def test_the_smallest_side_is_that_of_the_model():
    assert MIN_SIDE == MIN_IMAGE_SIZE


def test_results_come_in_order_and_are_not_far_ahead():
    asked = []
    items = (asked.append(number) or number for number in range(100))
    results = in_parallel(lambda number: 2 * number, items, ahead=8)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert len(asked) <= 3 + 8
    assert list(results) == list(range(6, 200, 2))


def test_files_that_tools_make_are_told_by_any_part_of_their_path():
    for name in ("._a.png", "a/.ipynb_checkpoints/b.png", "__MACOSX/a.png", "x/Thumbs.db",
                 "desktop.ini", ".DS_Store"):  # fmt: skip
        assert is_derived_file(PurePosixPath(name)), name
    for name in ("a.png", "a/b.png", "./a.png", "../a.png", "a._b.png", "macosx/a.png"):
        assert not is_derived_file(PurePosixPath(name)), name


def test_what_a_header_promises_is_checked_first(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    monkeypatch.setattr(image_headers, "MAX_PARTS", 1)
    for content in (None, (tmp_path / "x.png").read_bytes()):
        with pytest.raises(DataError, match=r"x\.png: not readable .*at most 1 chunks in a PNG"):
            load_image(tmp_path / "x.png", content)


@pytest.mark.parametrize("format", ["EPS", "PPM", "TGA", None])
def test_formats_that_are_not_listed_are_not_decoded(format, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"qoif" + bytes(20))
    if format:
        Image.new("RGB", (64, 64)).save(path, format)
    with pytest.raises(DataError, match=r"x\.png: not readable as an image \(in no known format"):
        load_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_mistyped_tag_does_not_keep_a_photograph_from_being_turned(suffix, tmp_path):
    # The orientation, and the resolution, a fraction, as text.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack(
        "<HHIHHHHI4s4x", 0x0112, 3, 1, 6, 0, 0x011A, 2, 4, b"abc\0"
    )
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112], info.tagtype[0x010F], info[0x010F] = 6, 4, 7  # the maker, a text, as a number
    options = {"tiffinfo": info} if suffix == ".tif" else {"exif": exif}
    path = save(PIXELS, tmp_path / f"x{suffix}", lossless=True, **options)
    assert load_image(path).shape == (60, 40, 3)
    if suffix != ".jpg":
        np.testing.assert_array_equal(load_image(path), np.rot90(PIXELS, -1))
    assert read_image_sizes([path]).tolist() == [[60, 40]]
    assert is_turned(path)


def test_an_orientation_in_xmp_alone_counts(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>3</tiff:Orientation></x:xmpmeta>'
    path = save(PIXELS, tmp_path / "x.webp", lossless=True, xmp=xmp)
    np.testing.assert_array_equal(load_image(path), np.rot90(PIXELS, 2))


def grey_tiff(path, values, bits, zero_is_white):
    """Write an uncompressed grey TIFF; values of fewer than 8 bits are packed."""
    pixels = b"".join(pack(row, bits) for row in values)
    tags = [
        (256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1),
        (262, int(not zero_is_white)), (273, 8), (277, 1), (278, values.shape[0]),
        (279, len(pixels)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    end = struct.pack("<I", 8 + len(pixels))
    path.write_bytes(b"II*\0" + end + pixels + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0")


@pytest.mark.parametrize("form", ["PNG", "TIFF", "TIFF, 0 is white"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_few_bits_give_what_is_stored(bits, form, tmp_path):
    count, path = 1 << min(bits, 4), tmp_path / "x.png"
    values = np.random.default_rng(0).integers(0, count, (40, 61), np.uint8)
    if form == "PNG":
        write_png(path, values[..., None], bits)
        shown = load_image(path)[..., 0]  # an image is as bright as its bits say
        np.testing.assert_array_equal(shown, values * (255 // ((1 << bits) - 1)))
    else:
        grey_tiff(path, values, bits, form == "TIFF, 0 is white")
    space = LabelSpace(tuple(map(str, range(count))))
    np.testing.assert_array_equal(load_label(path, space), values)


def test_labels_in_floats_must_be_whole(tmp_path):
    path = save(IDS.astype(np.float32), tmp_path / "x.tif")
    np.testing.assert_array_equal(load_label(path, SPACE), IDS)
    for wrong, message in (
        (0.5, r"whole numbers 0\.\.255\. Received: float32, 0\.0 to 2\.0, for instance 0\.5"),
        (-9999, r"whole numbers 0\.\.255\. Received: float32, -9999\.0 to 2\.0"),
        (np.nan, r"Received: float32, nan to nan, for instance nan"),
    ):
        save(np.where(IDS == 1, np.float32(wrong), IDS.astype(np.float32)), path)
        with pytest.raises(DataError, match=message):
            load_label(path, SPACE)


def test_links_to_folders_are_followed_and_loops_named(folder, tmp_path):
    write_folder(tmp_path / "store", train=2, val=0)
    for kind in ("images", "labels"):
        (folder / kind / "val/site").symlink_to(tmp_path / "store" / kind / "train")
        (folder / kind / "val/again").symlink_to(folder / kind)  # holds the link
        (folder / kind / "val/deeper").mkdir()
        (folder / kind / "val/deeper/back").symlink_to("..")
    names = [sample.image.parent.name for sample in read_folder(folder, "val")]
    # `again` shows the other split too, once.
    assert Counter(names) == {"val": 2, "site": 2, "train": 6}
    skipped = {}
    found = find_named_images([folder / "images/val"], skipped=skipped)
    assert len(found) == len(names)
    text = describe_skipped(skipped)
    assert text.startswith("2 a link to a folder around it (")
    assert "images/val/deeper/back" in text


def test_what_is_skipped_is_counted_by_kind(folder):
    images = folder / "images/val"
    for name in (".DS_Store", "Thumbs.db", "a.heic", "b.HEIC", "notes"):
        (images / name).write_text("x")
    (images / "__MACOSX").mkdir()
    os.mkfifo(images / "pipe.png")
    skipped = {}
    assert len(find_named_images([images], skipped=skipped)) == 2
    assert describe_skipped(skipped) == (
        f"2 .heic, 3 hidden, 1 not a file but a pipe ({images / 'pipe.png'}), "
        f"1 without a suffix ({images / 'notes'})"
    )
    assert len(read_folder(folder, "val")) == 2
    assert describe_skipped({}) == ""


def test_special_files_among_inputs_are_named_and_skipped(folder):
    os.mkfifo(folder / "pipe.png")
    image, skipped = folder / "images/val/000.png", {}
    assert len(find_named_images([folder / "pipe.png", image], skipped=skipped)) == 1
    assert describe_skipped(skipped) == f"1 not a file but a pipe ({folder / 'pipe.png'})"
    with pytest.raises(DataError, match=r"no images. Received: 1 not a file but a pipe \(.*pipe"):
        find_named_images([folder / "pipe.png"])
    path = write_csv(folder, [("pipe.png", "labels/val/000.png", "val")])
    with pytest.raises(DataError, match=r"line 2: .*pipe\.png: expected a file. Received: a pipe"):
        read_csv(path)


def test_a_link_to_itself_is_left_to_its_reader(folder):
    (folder / "images/val/self.png").symlink_to("self.png")
    found = find_named_images([folder / "images/val"], leave_out=folder / "out")
    assert [path.name for path, _ in found] == ["000.png", "001.png", "self.png"]
    with pytest.raises(DataError, match=r"self\.png: not readable"):
        load_image(folder / "images/val/self.png")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_equal_in_all_unicode_forms(folder, forms):
    name = "Straße_é"
    image, label = (unicodedata.normalize(form, name) for form in forms)
    (folder / "images/val/000.png").rename(folder / f"images/val/{image}.png")
    (folder / "labels/val/000.png").rename(folder / f"labels/val/{label}.png")
    pair = Sample(folder / f"images/val/{image}.png", folder / f"labels/val/{label}.png")
    assert pair in read_folder(folder, "val")
    assert labels_without_image(folder, "val") == []
    path = write_csv(folder, [(f"images/val/{label}.png", f"labels/val/{image}.png", "val")])
    assert read_csv(path) == [pair]
    shutil.copy(pair.image, folder / f"images/val/{label}.png")
    with pytest.raises(DataError, match="a second image beside"):
        read_folder(folder, "val")


def test_spaces_in_a_csv_do_not_count_unless_a_name_has_them(folder):
    (folder / "images/val/000.png").rename(folder / "images/val/ a .png")
    rows = [(" images/val/001.png ", "  labels/val/001.png", "val "),
            ("images/val/ a .png", " labels/val/000.png", " val")]  # fmt: skip
    path = write_csv(folder, rows, (" image", "label ", " split "))
    assert [sample.image.name for sample in read_csv(path, "val")] == ["001.png", " a .png"]
    with pytest.raises(DataError, match="line 2: image and label expected"):
        read_csv(write_csv(folder, [(" ", "labels/val/000.png", "val")]))
