"""Refuse image files whose header promises endless work, before Pillow decodes them.

A few bytes can cost hours: a TIFF of millions of tiles, a JPEG of millions of segments. Pillow
limits pixels and decompressed metadata; this module limits everything else that Pillow loops over.
Damaged files pass, because decoders describe damage better.
"""

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

# Segments of a JPEG, chunks of a PNG; Pillow takes 0.5 s for them. A PNG of 89 megapixels in the
# usual chunks of 8 KiB has half as many.
MAX_PARTS = 65_536
# Strips or tiles of a TIFF, which take Pillow longer.
MAX_STRIPS = 32_768
# Scans of a JPEG and its previews; a progressive JPEG has about 10.
MAX_SCANS = 100
# Bytes of all tags as a multiple of the file's size; tags may share bytes, and Pillow copies each.
MAX_TAG_COPIES = 4
# Tags of a directory; real ones have fewer than 200.
MAX_TAGS = 4096
# Pixels of one TIFF tile, unless the image has more.
MAX_TILE_PIXELS = 4096 * 4096
# Bytes of a run-length coded BMP, which Pillow decodes in Python at about 1 MB/s.
MAX_RUN_LENGTH_BYTES = 2 << 20

Content = bytes | mmap.mmap

# Bytes of a value by TIFF type.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # fmt: skip
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_SAMPLE_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floats"}
_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP = 256, 257, 258, 274, 277, 278
_PLANES, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 284, 322, 323, 339
_OFFSETS = (273, 279, 324, 325)


class HeaderError(ValueError):
    """An image header promises more work than any honest image needs."""


class Tag(NamedTuple):
    """An entry of a TIFF or EXIF directory: type, number and offset of its values, byte order."""

    kind: int
    values: int
    place: int
    order: str


def check_header(content: bytes | str | Path) -> None:
    """Refuse an image file, as bytes or a path, whose header promises endless work.

    Raises:
        HeaderError: too many strips, tiles, segments, chunks, scans or tags, a huge tile, or a
            large run-length coded BMP. A damaged file or one of another format passes.
        OSError: the file cannot be read.
    """
    if isinstance(content, bytes):
        _check(content)
        return
    with Path(content).open("rb") as file:
        if file.seek(0, 2):  # an empty file cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                _check(mapped)


def _check(content: Content) -> None:
    checks: dict[bytes, Callable[[Content], object]] = {
        b"\xff\xd8": _check_jpeg, b"\x89P": _check_png, b"II": _check_tiff, b"MM": _check_tiff,
        b"BM": _check_bmp,
    }  # fmt: skip
    with suppress(struct.error, IndexError):  # cut short: the decoder reports it
        checks.get(content[:2], len)(content)


def _check_number(count: int, what: str, most: int) -> None:
    if count > most:
        raise HeaderError(f"expected at most {most} {what}. Received: {count} or more")


def _check_jpeg(content: Content) -> None:
    parts, exif = 0, bytearray()
    place = 1  # as Pillow, which starts between the two bytes of the first marker
    while (place := content.find(b"\xff", place + 1)) >= 0:
        parts += 1
        _check_number(parts, "segments and fill bytes in a JPEG", MAX_PARTS)
        code = content[place + 1]
        if code == 0xDA:
            break
        # 0 and 0xFF are no markers; the other ones here have no content.
        if code in (0, 0x01, 0xFF) or 0xD0 <= code <= 0xD9:
            continue
        (length,) = struct.unpack(">H", content[place + 2 : place + 4])
        if code == 0xE1 and content[place + 4 : place + 10] == b"Exif\0\0":
            exif += content[place + 10 : place + 2 + length]
        place += 1 + length
    _check_tags(bytes(exif))
    scans = islice(re.finditer(b"\xff\xda", content), MAX_SCANS + 1)
    _check_number(len(list(scans)), "scans in a JPEG", MAX_SCANS)


def _check_png(content: Content) -> None:
    place = 8
    for number in range(MAX_PARTS + 1):
        length, name = struct.unpack(">I4s", content[place : place + 8])
        if name == b"eXIf":
            _check_tags(bytes(content[place + 8 : place + 8 + length]))
        if name == b"IEND":
            return
        place += 12 + length
        _check_number(number + 1, "chunks in a PNG", MAX_PARTS)


def _check_tiff(content: Content) -> None:
    tags = _check_tags(content)
    for code in _OFFSETS:
        if code in tags:
            _check_number(tags[code].values, "strips or tiles in a TIFF", MAX_STRIPS)

    def value(code: int, default: int) -> int:
        return _integer(content, tags.get(code), default)

    width, height = value(_WIDTH, 1), value(_HEIGHT, 1)
    planes = value(_SAMPLES, 1) if value(_PLANES, 1) == 2 else 1
    if _TILE_WIDTH in tags:
        wide, high = value(_TILE_WIDTH, width), value(_TILE_HEIGHT, height)
        most = max(width * height, MAX_TILE_PIXELS)
        _check_number(wide * high, "pixels of a TIFF tile", most)
    else:
        wide, high = width, value(_ROWS_PER_STRIP, height)
    parts = -(-width // max(1, wide)) * -(-height // max(1, high)) * planes
    _check_number(parts, "strips or tiles in a TIFF", MAX_STRIPS)


def _check_bmp(content: Content) -> None:
    (compression,) = struct.unpack("<I", content[30:34])
    if compression in (1, 2):
        what = "bytes of a run-length coded BMP; save it as PNG"
        _check_number(len(content), what, MAX_RUN_LENGTH_BYTES)


def _check_tags(content: Content) -> dict[int, Tag]:
    """Return the tags of the first directory; refuse values much larger than the file."""
    tags, held = {}, 0
    for code, tag in _tags(content):
        size = _TYPE_BYTES.get(tag.kind, 0) * tag.values
        if tag.place + size <= len(content):
            held += size
        most = MAX_TAG_COPIES * len(content) + 65_536
        _check_number(held, "bytes of tags, which share bytes", most)
        tags[code] = tag
    return tags


def _tags(content: Content) -> Iterator[tuple[int, Tag]]:
    """Yield the tags of the first directory of a TIFF file or EXIF block, by their code."""
    if content[:2] not in (b"II", b"MM"):
        return
    order = "<" if content[:2] == b"II" else ">"
    try:
        big = 43 in struct.unpack("<H", content[2:4]) + struct.unpack(">H", content[2:4])
        head, entry, inline = ("Q", "HHQQ", 8) if big else ("H", "HHII", 4)
        start = 8 if big else 4
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), content, start)
        (count,) = struct.unpack_from(order + head, content, place)
        _check_number(count, "tags", MAX_TAGS)
        place += struct.calcsize(order + head)
        size = struct.calcsize(order + entry)
        for start in range(place, place + count * size, size):
            code, kind, values, offset = struct.unpack_from(order + entry, content, start)
            if _TYPE_BYTES.get(kind, 1) * values <= inline:
                offset = start + size - inline
            yield code, Tag(kind, values, offset, order)
    except (struct.error, OverflowError):
        return


def _integer(content: Content, tag: Tag | None, default: int) -> int:
    """Return the first value of a tag, or the default if it is no integer."""
    if tag is not None and tag.kind in _INTEGERS and tag.values:
        with suppress(struct.error):
            return int(struct.unpack_from(tag.order + _INTEGERS[tag.kind], content, tag.place)[0])
    return default


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in a block of EXIF, 1 to 8, or 1. Other tags may be damaged."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    value = 1
    with suppress(HeaderError):
        value = _integer(exif, dict(_tags(exif)).get(_ORIENTATION), 1)
    return value if 1 <= value <= 8 else 1


def describe_tiff(content: bytes) -> str:
    """Return number and type of the bands of a TIFF file; empty for another file."""
    tags: dict[int, Tag] = {}
    with suppress(HeaderError):
        tags = dict(_tags(content))
    if _WIDTH not in tags:
        return ""
    samples = _integer(content, tags.get(_SAMPLES), 1)
    bits = _integer(content, tags.get(_BITS), 1)
    kind = _SAMPLE_FORMATS.get(_integer(content, tags.get(_SAMPLE_FORMAT), 1), "complex numbers")
    return f"a TIFF of {samples} band{'s' * (samples != 1)} of {bits}-bit {kind}"
