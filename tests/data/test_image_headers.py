import io
import struct
import zlib

import pytest
from PIL import Image

from alignseg_tf.data.image_headers import (
    MAX_PARTS,
    MAX_SCANS,
    HeaderError,
    check_header,
    describe_tiff,
    exif_orientation,
)


def encode(format, **options):
    content = io.BytesIO()
    Image.effect_noise((90, 70), 50).convert("RGB").save(content, format, **options)
    return content.getvalue()


def directory(tags, order="<", big=False):
    """Return a TIFF header with one directory of (code, type, count, value), placed at its end."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(order + "HHHQ", 43, 8, 0, 16)
        tags = [(code, 16 if kind == 4 else kind, *rest) for code, kind, *rest in tags]
        entries = b"".join(struct.pack(order + "HHQQ", *tag) for tag in tags)
        return head + struct.pack(order + "Q", len(tags)) + entries + bytes(8)
    head = mark + struct.pack(order + "HI", 42, 8)
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    return head + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def size_tags(width, height):
    return [(256, 4, 1, width), (257, 4, 1, height)]


def tiff(width, height, *tags):
    return directory([*size_tags(width, height), *tags])


def tiles(side, order="<", big=False):
    return directory([*size_tags(2000, 2000), (322, 4, 1, side), (323, 4, 1, side)], order, big)


def with_parts(content, place, part, count):
    return content[:place] + part * count + content[place:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_honest_files_pass_whole_and_at_any_cut(format, tmp_path):
    content = encode(format)
    check_header(content)
    for length in range(0, len(content), 7 if len(content) < 9000 else 97):
        check_header(content[:length])
    for other in (content, b"", b"<html>"):
        (tmp_path / "x").write_bytes(other)
        check_header(tmp_path / "x")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_tiny_tiles_is_refused(order, big, tmp_path):
    (tmp_path / "x.tif").write_bytes(tiles(1, order, big))
    for content in (tiles(1, order, big), tmp_path / "x.tif"):
        with pytest.raises(HeaderError, match="strips or tiles in a TIFF. Received: 4000000"):
            check_header(content)
    check_header(tiles(16, order, big))


STRIPS = (278, 4, 1, 1)
JPEG, PNG, SCANS = encode("JPEG"), encode("PNG"), encode("JPEG", progressive=True)
SCAN = SCANS[SCANS.rindex(b"\xff\xda") : -2]
SHARED = directory([(40_000 + i, 7, 30_000, 8) for i in range(3000)])
EXIF_SEGMENT = b"\xff\xe1" + struct.pack(">H", 8 + len(SHARED)) + b"Exif\0\0" + SHARED
EXIF_CHUNK = struct.pack(">I", len(SHARED)) + b"eXIf" + SHARED + struct.pack(">I", 0)
EMPTY_CHUNK = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
BMP = encode("BMP") + bytes(3 << 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(40, 60_000, STRIPS), "strips or tiles in a TIFF. Received: 60000"),
        (tiff(40, 20_000, STRIPS), None),
        # Each plane has its own strips.
        (tiff(9, 20_000, (277, 4, 1, 3), STRIPS, (284, 4, 1, 2)), "Received: 60000"),
        (tiff(9, 9, (273, 4, 5_000_000, 8)), "strips or tiles in a TIFF. Received: 5000000"),
        (tiff(9, 9, (322, 4, 1, 60_000), (323, 4, 1, 60_000)),
         "pixels of a TIFF tile. Received: 3600000000"),
        (SHARED, "tags, which share bytes"),
        (with_parts(JPEG, 2, EXIF_SEGMENT, 1), "tags, which share bytes"),
        (with_parts(PNG, 33, EXIF_CHUNK, 1), "tags, which share bytes"),
        (tiff(9, 9, (700, 7, 4_000_000_000, 8)), None),  # damaged only
        (directory([(i, 3, 1, 0) for i in range(5000)]), "at most 4096 tags"),
        (with_parts(SCANS, -2, SCAN, MAX_SCANS + 1), f"at most {MAX_SCANS} scans"),
        (with_parts(PNG, 33, EMPTY_CHUNK, 1000), None),
        (with_parts(PNG, 33, EMPTY_CHUNK, MAX_PARTS + 1), "chunks in a PNG"),
        (BMP, None),
        (BMP[:30] + b"\1" + BMP[31:], "run-length coded BMP"),
        *(
            (with_parts(JPEG, 2, unit, count), message)
            for unit in (b"\xff\xfe\0\2", b"\xff\xe2\0\3x", b"\xff", b"\xff\0", b"\xff\1")
            for count, message in (
                (1000, None), (MAX_PARTS + 1, "segments and fill bytes in a JPEG"),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_files_that_promise_too_much_are_refused(content, message):
    if message is None:
        check_header(content)
        return
    with pytest.raises(HeaderError, match=message):
        check_header(content)


def test_the_orientation_is_read_beside_damaged_tags():
    broken = [(256, 99, 5, 7), (271, 2, 4_000_000_000, 7)]
    assert exif_orientation(b"Exif\0\0" + directory([*broken, (274, 3, 1, 6)])) == 6
    assert exif_orientation(directory([(274, 4, 1, 8)], ">")) == 8
    for exif in (directory([(274, 2, 1, 6)]), directory([(274, 3, 1, 9)]), b"", b"II*\0"):
        assert exif_orientation(exif) == 1


def test_bands_of_a_tiff_are_named():
    six = tiff(9, 9, (258, 3, 1, 16), (277, 3, 1, 6))
    assert describe_tiff(six) == "a TIFF of 6 bands of 16-bit unsigned integers"
    one = tiff(9, 9, (258, 3, 1, 64), (339, 3, 1, 3))
    assert describe_tiff(one) == "a TIFF of 1 band of 64-bit floats"
    assert describe_tiff(PNG) == describe_tiff(b"") == ""
