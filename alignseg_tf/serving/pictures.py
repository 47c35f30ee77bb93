"""From the bytes of a request to a picture: limits first, then pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from alignseg_tf.data.readers import MIN_SIDE, DataError, rgb_pixels
from alignseg_tf.serving.refusals import RefusedError

# What Pillow may take a file for.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")
BYTES, FORM = "application/octet-stream", "multipart/form-data"
# A progressive JPEG has about ten scans, and its previews have some. Thousands of empty ones take
# hours to decode.
MAX_SCANS = 100
# Of a form; more are a flood.
MAX_PARTS = 16


def check_picture(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Look at the head of an encoded picture, without decoding it.

    Args:
        data: the file.
        max_pixels: most pixels.

    Returns:
        Width and height, in pixels, as they are stored.

    Raises:
        RefusedError: it is empty, of another format, too large, too small, or holds several
            pictures.
    """
    with _opened(data, max_pixels) as picture:
        width, height = picture.size
        _check_size(width, height, max_pixels)
        # A JPEG with previews behind it is an MPO to Pillow.
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            # Not counted: a TIFF may have a million, which Pillow reads one by one.
            raise RefusedError(422, "frames", "Expected one picture. Received: several in a file")
        if picture.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
            raise RefusedError(
                422, "damaged", f"Expected a JPEG of {MAX_SCANS} scans at most. Received: {scans}"
            )
    return width, height


def decode_picture(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a picture that `check_picture` has let through.

    Returns:
        uint8 RGB [H, W, 3], turned as its EXIF orientation says.

    Raises:
        RefusedError: it is truncated or damaged, or has other than 8 or 16 bits a channel.
    """
    with _opened(data, max_pixels) as picture:
        return np.ascontiguousarray(rgb_pixels(picture))


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow raises, here or in the body, becomes a `RefusedError`."""
    if not data:
        raise RefusedError(422, "damaged", "Expected a picture. Received: an empty body")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            yield picture
    except RefusedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow looks at the size before we can, and has limits of its own.
        message = f"Expected a picture of {max_pixels} pixels at most. Received: many more"
        raise RefusedError(413, "pixels", message) from error
    except UnidentifiedImageError as error:
        message = f"Expected {', '.join(FORMATS)}. Received: bytes that start with {data[:12]!r}"
        raise RefusedError(415, "format", message) from error
    except DataError as error:
        raise RefusedError(422, "damaged", str(error)) from error
    except Exception as error:  # Pillow raises many kinds on broken files
        message = f"Expected a whole picture. Received: one that is truncated or damaged ({error})"
        raise RefusedError(422, "damaged", message) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RefusedError(
            413, "pixels",
            f"Expected a picture of {max_pixels} pixels at most. Received: {width} x {height} = "
            f"{width * height} pixels",
        )  # fmt: skip
    if min(width, height) < MIN_SIDE:
        raise RefusedError(
            422, "small",
            f"Expected sides of {MIN_SIDE} pixels at least. Received: {width} x {height}",
        )  # fmt: skip


def check_media_type(content_type: str) -> bool:
    """Say whether a `Content-Type` is that of a form, or else of a picture.

    Raises:
        RefusedError: it is neither. None at all, and `application/octet-stream`, may be a
            picture: its first bytes tell.
    """
    name = content_type.partition(";")[0].strip().lower()
    if name in ("", BYTES) or name.startswith("image/"):
        return False
    if name == FORM:
        return True
    expected = ", ".join((*MEDIA_TYPES, BYTES, FORM))
    raise RefusedError(
        415, "format", f"Expected the Content-Type {expected}. Received: {name[:80]}"
    )


def picture_in_form(data: bytes, content_type: str) -> bytes:
    """Return the content of the only file of a `multipart/form-data` body.

    Raises:
        RefusedError: there is none, or several, or the body is damaged.
    """
    files: list[bytearray] = []
    head: dict[bytes, bytes] = {}
    name, value = bytearray(), bytearray()
    parts, in_file, ended = 0, False, False

    def on_end() -> None:
        nonlocal ended
        ended = True

    def on_part_begin() -> None:
        nonlocal parts, in_file
        parts, in_file = parts + 1, False
        head.clear()
        if parts > MAX_PARTS:
            raise FormParserError(f"more than {MAX_PARTS} parts")

    def on_header_end() -> None:
        head[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def on_headers_finished() -> None:
        nonlocal in_file
        _, options = parse_options_header(head.get(b"content-disposition"))
        in_file = b"filename" in options
        if in_file:
            files.append(bytearray())

    def on_part_data(chunk: bytes, start: int, end: int) -> None:
        if in_file:
            files[-1] += chunk[start:end]

    try:
        _, options = parse_options_header(content_type)
        parser = MultipartParser(
            options.get(b"boundary", b""),
            {
                "on_part_begin": on_part_begin,
                "on_header_field": lambda chunk, start, end: name.extend(chunk[start:end]),
                "on_header_value": lambda chunk, start, end: value.extend(chunk[start:end]),
                "on_header_end": on_header_end,
                "on_headers_finished": on_headers_finished,
                "on_part_data": on_part_data,
                "on_end": on_end,
            },
        )
        parser.write(data)
        parser.finalize()
    except FormParserError as error:
        raise RefusedError(
            422, "form", f"Expected a form with a file. Received: {error}"
        ) from error
    if not ended:
        raise RefusedError(422, "form", "Expected a form with a file. Received: a truncated form")
    if len(files) != 1:
        raise RefusedError(
            422, "form", f"Expected a form with one file. Received: {len(files)} files"
        )
    return bytes(files[0])
