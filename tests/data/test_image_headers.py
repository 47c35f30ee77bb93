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


def directory(tags, order="<", big=False, at=None):
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


FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")


@pytest.mark.parametrize("format", FORMATS)
def test_honest_files_pass_whole_and_at_any_cut(format, tmp_path):
    content = encode(format)
    check_header(content)
    for length in range(0, len(content), 7 if len(content) < 9000 else 97):
        check_header(content[:length])
    (tmp_path / "x").write_bytes(content)
    check_header(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    check_header(tmp_path / "x")
    check_header(b"<html>")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_tiny_tiles_is_refused(order, big, tmp_path):
    tiles = [*size_tags(2000, 2000), (322, 4, 1, 1), (323, 4, 1, 1)]
    with pytest.raises(HeaderError, match="strips or tiles in a TIFF. Received: 4000000"):
        check_header(directory(tiles, order, big))
    (tmp_path / "x.tif").write_bytes(directory(tiles, order, big))
    with pytest.raises(HeaderError, match="strips or tiles"):
        check_header(tmp_path / "x.tif")
    check_header(directory([*size_tags(2000, 2000), (322, 4, 1, 16), (323, 4, 1, 16)], order, big))


def test_other_tiffs_that_promise_too_much_are_refused():
    strips = (278, 4, 1, 1)
    with pytest.raises(HeaderError, match="strips or tiles in a TIFF. Received: 60000"):
        check_header(directory([*size_tags(40, 60_000), strips]))
    check_header(directory([*size_tags(40, 20_000), strips]))
    with pytest.raises(HeaderError, match="Received: 60000"):  # each plane has its own strips
        check_header(directory([*size_tags(9, 20_000), (277, 4, 1, 3), strips, (284, 4, 1, 2)]))
    with pytest.raises(HeaderError, match="strips or tiles in a TIFF. Received: 5000000"):
        check_header(directory([*size_tags(9, 9), (273, 4, 5_000_000, 8)]))
    with pytest.raises(HeaderError, match="pixels of a TIFF tile. Received: 3600000000"):
        check_header(directory([*size_tags(9, 9), (322, 4, 1, 60_000), (323, 4, 1, 60_000)]))
    shared = [(40_000 + i, 7, 40_000, 8) for i in range(4000)]
    with pytest.raises(HeaderError, match="tags, which share bytes"):
        check_header(directory(shared))
    check_header(directory([*size_tags(9, 9), (700, 7, 4_000_000_000, 8)]))  # damaged only
    with pytest.raises(HeaderError, match="at most 4096 tags"):
        check_header(directory([(i, 3, 1, 0) for i in range(5000)]))


@pytest.mark.parametrize("unit", [b"\xff\xfe\0\2", b"\xff\xe2\0\3x", b"\xff", b"\xff\0", b"\xff\1"])
def test_a_jpeg_of_millions_of_segments_is_refused(unit):
    content = encode("JPEG")
    check_header(content[:2] + unit * 1000 + content[2:])
    with pytest.raises(HeaderError, match="segments and fill bytes in a JPEG"):
        check_header(content[:2] + unit * (MAX_PARTS + 1) + content[2:])


def test_a_jpeg_of_thousands_of_scans_is_refused():
    content = encode("JPEG", progressive=True)
    check_header(content)
    scan = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(HeaderError, match=f"at most {MAX_SCANS} scans"):
        check_header(content[:-2] + scan * (MAX_SCANS + 1) + content[-2:])


def test_exif_whose_tags_share_bytes_is_refused():
    exif = directory([(40_000 + i, 7, 30_000, 8) for i in range(3000)])
    jpeg, png = encode("JPEG"), encode("PNG")
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(exif))
    for content in (jpeg[:2] + segment + jpeg[2:], png[:33] + chunk + png[33:]):
        with pytest.raises(HeaderError, match="tags, which share bytes"):
            check_header(content)


def test_a_png_of_millions_of_chunks_is_refused():
    content = encode("PNG")
    chunk = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    check_header(content[:33] + chunk * 1000 + content[33:])
    with pytest.raises(HeaderError, match="chunks in a PNG"):
        check_header(content[:33] + chunk * (MAX_PARTS + 1) + content[33:])


def test_a_large_run_length_coded_bmp_is_refused():
    content = bytearray(encode("BMP"))
    content += bytes(3 << 20)
    check_header(bytes(content))
    content[30] = 1
    with pytest.raises(HeaderError, match="run-length coded BMP"):
        check_header(bytes(content))


def test_the_orientation_is_read_beside_damaged_tags():
    broken = [(256, 99, 5, 7), (271, 2, 4_000_000_000, 7)]
    assert exif_orientation(b"Exif\0\0" + directory([*broken, (274, 3, 1, 6)])) == 6
    assert exif_orientation(directory([(274, 4, 1, 8)], ">")) == 8
    assert exif_orientation(directory([(274, 2, 1, 6)])) == 1
    assert exif_orientation(directory([(274, 3, 1, 9)])) == 1
    assert exif_orientation(b"") == exif_orientation(b"II*\0") == 1


def test_bands_of_a_tiff_are_named():
    tags = [*size_tags(9, 9), (258, 3, 1, 16), (277, 3, 1, 6)]
    assert describe_tiff(directory(tags)) == "a TIFF of 6 bands of 16-bit unsigned integers"
    tags = [*size_tags(9, 9), (258, 3, 1, 64), (339, 3, 1, 3)]
    assert describe_tiff(directory(tags)) == "a TIFF of 1 band of 64-bit floats"
    assert describe_tiff(encode("PNG")) == describe_tiff(b"") == ""
