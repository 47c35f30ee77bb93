"""From the bytes of a request to an image: limits first, then pixels."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from alignseg_tf.data.image_headers import HeaderError, check_header
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.readers import MIN_SIDE, rgb_pixels
from alignseg_tf.serving.refusals import RefusedError

# The formats Pillow may try.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")
BYTES, FORM = "application/octet-stream", "multipart/form-data"


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode an image file.

    Args:
        data: the file.
        max_pixels: maximum number of pixels.

    Returns:
        uint8 RGB [H, W, 3], turned as its EXIF orientation says.

    Raises:
        RefusedError: the file is empty, of another format, too large, too small, damaged, or holds
            several images, or its header asks for more work than an image needs.
    """
    if not data:
        raise RefusedError(422, "damaged", "Expected an image. Received: an empty body")
    try:
        check_header(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels)
            # A JPEG with previews behind it is an MPO to Pillow. The frames are not counted: a
            # TIFF may have a million, which Pillow reads one by one.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                message = "Expected one image. Received: several in a file"
                raise RefusedError(422, "frames", message)
            return np.ascontiguousarray(rgb_pixels(image))
    except RefusedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow has its own limits, which it checks first.
        message = f"Expected an image of at most {max_pixels} pixels. Received: many more"
        raise RefusedError(413, "pixels", message) from error
    except UnidentifiedImageError as error:
        message = f"Expected {', '.join(FORMATS)}. Received: bytes that start with {data[:12]!r}"
        raise RefusedError(415, "format", message) from error
    except (DataError, HeaderError) as error:
        raise RefusedError(422, "damaged", str(error)) from error
    except Exception as error:  # Pillow raises many kinds on broken files
        message = f"Expected a whole image. Received: one that is truncated or damaged ({error})"
        raise RefusedError(422, "damaged", message) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height} = {width * height} pixels"
        message = f"Expected an image of at most {max_pixels} pixels. Received: {size}"
        raise RefusedError(413, "pixels", message)
    if min(width, height) < MIN_SIDE:
        message = f"Expected sides of at least {MIN_SIDE} pixels. Received: {width} x {height}"
        raise RefusedError(422, "small", message)


def is_form(content_type: str) -> bool:
    """Return whether a `Content-Type` is that of a form, or else of an image.

    Raises:
        RefusedError: it is neither. A missing type and `application/octet-stream` may be an image:
            its first bytes tell.
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
