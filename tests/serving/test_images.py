import io
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from serving_fixtures import encoded, noise_image

from alignseg_tf.data.image_headers import MAX_SCANS
from alignseg_tf.serving.images import decode_image, is_form
from alignseg_tf.serving.refusals import RefusedError

LIMIT = 64 * 64


def refusal(data: bytes, limit: int = LIMIT) -> tuple[int, str, str]:
    with pytest.raises(RefusedError) as caught:
        decode_image(data, limit)
    return caught.value.status, caught.value.reason, caught.value.message


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + code

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_whole_images_are_decoded(kind):
    image = noise_image()
    data = encoded(image, kind)
    out = decode_image(data, LIMIT)
    assert (out.shape, out.dtype) == ((40, 56, 3), np.uint8)
    if kind in ("PNG", "BMP", "TIFF"):
        assert (out == image).all()
    assert refusal(data[: len(data) // 2])[:2] == (422, "damaged")


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    data = encoded(noise_image(), "PNG", exif=exif)
    assert (decode_image(data, LIMIT) == np.rot90(noise_image(), -1)).all()


def test_what_is_no_image_is_refused():
    assert refusal(b"") == (422, "damaged", "Expected an image. Received: an empty body")
    status, reason, message = refusal(b"GIF89a" + bytes(100))
    assert (status, reason) == (415, "format")
    assert "JPEG, PNG, WEBP, BMP, TIFF. Received: bytes that start with b'GIF89a" in message
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0")[0] == 415
    data = bytearray(encoded(noise_image()))
    data[60:70] = bytes(10)
    assert refusal(bytes(data))[:2] == (422, "damaged")


def test_sizes_are_refused_before_anything_is_decoded(monkeypatch):
    large, narrow = encoded(noise_image(65, 64)), encoded(noise_image(31, 40))
    monkeypatch.setattr(Image.Image, "load", None)  # a call of this would fail
    assert refusal(large) == (
        413, "pixels",
        "Expected an image of at most 4096 pixels. Received: 64 x 65 = 4160 pixels",
    )  # fmt: skip
    assert refusal(narrow) == (
        422, "small", "Expected sides of at least 32 pixels. Received: 40 x 31",
    )  # fmt: skip
    for size in [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (2**31 - 1, 32), (13_000, 13_000)]:
        assert refusal(png_of_size(*size))[:2] == (413, "pixels"), size
    for size in [(0, 40), (2**32 - 1, 2**32 - 1)]:
        assert refusal(png_of_size(*size))[0] in (413, 415, 422), size


def test_animated_and_multi_page_files_are_refused():
    frames = [Image.fromarray(noise_image(seed=seed)) for seed in (0, 1, 2)]
    for kind in ("PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        status, reason, message = refusal(file.getvalue())
        assert (status, reason) == (422, "frames"), kind
        assert message == "Expected one image. Received: several in a file"


def test_the_pages_of_a_tiff_are_not_counted():
    """A page that is there a hundred thousand times: Pillow would read each of its heads."""
    one = encoded(noise_image(), "TIFF")
    (first,) = struct.unpack_from("<I", one, 4)
    (entries,) = struct.unpack_from("<H", one, first)
    page = one[first : first + 2 + 12 * entries]
    data = bytearray(one)
    struct.pack_into("<I", data, first + len(page), len(data))
    for _ in range(100_000):
        data += page + struct.pack("<I", len(data) + len(page) + 4)
    data += page + bytes(4)
    began = time.monotonic()
    assert refusal(bytes(data))[:2] == (422, "frames")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("size", [(16383, 16383), (2**24, 200), (65536, 65535)])
def test_a_webp_that_says_it_is_huge_takes_no_memory(size):
    whole = encoded(noise_image(), "WEBP", lossless=True)
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in size)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + whole[12:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(b"RIFF" + struct.pack("<I", len(body)) + body)[:2] == (413, "pixels")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_photograph_with_a_preview_behind_it_is_one_image():
    file = io.BytesIO()
    frames = [Image.fromarray(noise_image(seed=seed)) for seed in (0, 1)]
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    assert decode_image(file.getvalue(), LIMIT).shape == (40, 56, 3)


def test_a_jpeg_of_many_scans_is_refused():
    data = encoded(noise_image(), "JPEG", progressive=True)
    decode_image(data, LIMIT)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    status, reason, message = refusal(data[:-2] + MAX_SCANS * scan + data[-2:])
    assert (status, reason) == (422, "damaged")
    assert f"at most {MAX_SCANS} scans" in message


def test_more_than_16_bits_a_channel_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(file, "TIFF")
    status, _, message = refusal(file.getvalue())
    assert status == 422
    assert "expected 8 or 16 bits a channel" in message
    deep = Image.fromarray(np.full((40, 40), 515, np.uint16))
    file = io.BytesIO()
    deep.save(file, "PNG")
    assert (decode_image(file.getvalue(), LIMIT) == 2).all()


def test_media_types():
    assert not is_form("image/jpeg")
    assert not is_form("")
    assert not is_form("application/octet-stream")
    assert is_form("Multipart/Form-Data; boundary=x")
    with pytest.raises(RefusedError, match=r"Received: application/json") as caught:
        is_form("application/json; charset=utf-8")
    assert caught.value.status == 415


def tiff_of_tiles(side: int) -> bytes:
    """A TIFF whose tiles have one pixel each."""
    tags = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, 1), (323, 4, 1, 1), (324, 3, side * side, 134), (325, 3, 1, 1),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<H", 8) * (side * side)


def stuffed(kind: str, position: int, part: bytes) -> bytes:
    """An image with 100,000 empty parts before its pixels."""
    whole = encoded(noise_image(), kind)
    return whole[:position] + 100_000 * part + whole[position:]


CHUNK = bytes(4) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))


@pytest.mark.parametrize(
    "data",
    [tiff_of_tiles(500), stuffed("PNG", 33, CHUNK), stuffed("JPEG", 2, b"\xff\xfe\x00\x02")],
    ids=["tiles", "chunks", "segments"],
)
def test_headers_that_ask_for_endless_work_are_refused_before_pillow_reads_them(data, monkeypatch):
    monkeypatch.setattr(Image, "open", None)  # a call of this would say "damaged"
    status, reason, message = refusal(data, 10**6)
    assert (status, reason) == (422, "damaged")
    assert "expected at most" in message
