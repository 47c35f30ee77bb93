import io
import resource
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from serving_fixtures import encoded, noise_image

from alignseg_tf.serving import images
from alignseg_tf.serving.images import Decoders, RefusedError, decode_image, is_form

LIMIT = 64 * 64
IMAGE = noise_image()


def refusal(data: bytes, limit: int = LIMIT) -> tuple[int, str, str]:
    with pytest.raises(RefusedError) as caught:
        decode_image(data, limit)
    return caught.value.status, caught.value.reason, caught.value.message


def chunk(kind: bytes, content: bytes) -> bytes:
    code = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + code


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_whole_images_are_decoded(kind):
    data = encoded(IMAGE, kind)
    out = decode_image(data, LIMIT)
    assert (out.shape, out.dtype) == ((40, 56, 3), np.uint8)
    if kind in ("PNG", "BMP", "TIFF"):
        assert (out == IMAGE).all()
    assert refusal(data[: len(data) // 2])[:2] == (422, "damaged")


def test_what_is_no_image_is_refused():
    assert refusal(b"") == (422, "damaged", "Expected an image. Received: an empty body")
    for data in (encoded(IMAGE, "GIF"), b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        status, reason, message = refusal(data)
        assert (status, reason) == (415, "format")
        start = repr(data[:12])
        assert f"JPEG, PNG, WEBP, BMP, TIFF. Received: bytes that start with {start}" in message
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "TIFF", save_all=True, append_images=[Image.fromarray(IMAGE)])
    assert refusal(file.getvalue()) == (
        422, "damaged", "the body: expected one image. Received: several in this file"
    )  # fmt: skip
    status, _, message = refusal(encoded(np.full((40, 40), 0.5, np.float32), "TIFF"))
    assert status == 422 and "the body: expected 8 or 16 bits a channel" in message


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


def test_the_pages_of_a_tiff_are_not_counted():
    """A page that is there a hundred thousand times: Pillow would read each of its heads."""
    one = encoded(IMAGE, "TIFF")
    (first,) = struct.unpack_from("<I", one, 4)
    (entries,) = struct.unpack_from("<H", one, first)
    page = one[first : first + 2 + 12 * entries]
    data = bytearray(one)
    struct.pack_into("<I", data, first + len(page), len(data))
    for _ in range(100_000):
        data += page + struct.pack("<I", len(data) + len(page) + 4)
    data += page + bytes(4)
    began = time.monotonic()
    assert refusal(bytes(data))[:2] == (422, "damaged")
    assert time.monotonic() - began < 1


def test_a_webp_that_says_it_is_huge_takes_no_memory():
    whole = encoded(IMAGE, "WEBP", lossless=True)
    canvas = 2 * (16382).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + whole[12:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(b"RIFF" + struct.pack("<I", len(body)) + body)[:2] == (413, "pixels")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def tiff_of_tiles(side: int) -> bytes:
    """A TIFF whose tiles have one pixel each."""
    tags = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, 1), (323, 4, 1, 1), (324, 3, side * side, 134), (325, 3, 1, 1),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<H", 8) * (side * side)


def test_a_header_that_asks_for_endless_work_is_refused_before_pillow_reads_it(monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    status, reason, message = refusal(tiff_of_tiles(500), 10**6)
    assert (status, reason) == (422, "damaged")
    assert "expected at most" in message


def test_media_types():
    for name in ("image/jpeg", "", "application/octet-stream"):
        assert not is_form(name)
    assert is_form("Multipart/Form-Data; boundary=x")
    with pytest.raises(RefusedError, match=r"Received: application/json") as caught:
        is_form("application/json; charset=utf-8")
    assert caught.value.status == 415


@pytest.fixture
def pool():
    pool = Decoders(1, 60.0, LIMIT)
    pool.start()
    yield pool
    pool.stop()


def make_stuck(pool):
    """Let the process never answer, as one whose image library does not return."""
    decoder = pool._all[0]
    decoder._pipe, theirs = images._CONTEXT.Pipe()
    return decoder._process, theirs


def test_images_are_decoded_in_another_process_which_is_replaced_when_it_ends(pool):
    for kind in ("PNG", "JPEG"):
        data = encoded(IMAGE, kind)
        assert (pool.decode(data) == decode_image(data, LIMIT)).all()
    with pytest.raises(RefusedError, match="64 x 65") as caught:
        pool.decode(encoded(noise_image(65, 64)))
    assert caught.value.status == 413
    pool._all[0]._process.kill()
    pool._all[0]._process.join(10)
    assert (pool.decode(encoded(IMAGE)) == IMAGE).all()


def test_an_image_that_takes_too_long_is_given_up_and_its_process_ended(pool):
    process, _theirs = make_stuck(pool)
    pool._seconds = 0.1
    with pytest.raises(RefusedError, match=r"decodes within 0.1 s") as caught:
        pool.decode(encoded(IMAGE))
    assert caught.value.status == 422
    process.join(10)
    assert not process.is_alive()
    pool._seconds = 60.0
    assert (pool.decode(encoded(IMAGE)) == IMAGE).all()  # by another process


def test_the_end_does_not_wait_for_what_is_decoded(pool):
    process, theirs = make_stuck(pool)
    refused = []

    def decode():
        try:
            pool.decode(encoded(IMAGE))
        except RefusedError as refusal:
            refused.append(refusal.status)

    waiting = threading.Thread(target=decode)
    waiting.start()
    pool.stop()
    theirs.close()  # as the system does when the process is gone
    waiting.join(10)
    assert refused == [503]
    process.join(10)
    assert not process.is_alive()
    with pytest.raises(RefusedError, match="about to stop"):
        pool.decode(encoded(IMAGE))
