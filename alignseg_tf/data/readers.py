"""Decode images and labels from files."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from alignseg_tf.data.image_headers import check_header, describe_tiff, exif_orientation
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, Sample, expect, naming, special_kind

# Formats that Pillow may detect. Others run programs (EPS) or are decoded in Python (QOI, FITS).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
# Pillow's modes of more than 8 bits a channel.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# The network's coarsest stride, in pixels. A test holds it equal to the model's `MIN_IMAGE_SIZE`.
MIN_SIDE = 32
# EXIF orientations from this one on swap height and width.
SWAPPED = 5


@contextmanager
def opened(
    path: str | Path, what: str = "an image", content: bytes | None = None
) -> Iterator[Image.Image]:
    """Open an image file, or its `content`, with Pillow, without decoding its pixels.

    Every error of Pillow, here or in the body, becomes a DataError that names `path` and `what`.

    Raises:
        DataError: the file is missing, unreadable or damaged, holds several images, has more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS` (89 million), or fails `check_header`.
    """
    try:
        if content is None and (kind := special_kind(path)):
            raise DataError(f"{path}: expected a file. Received: {kind}")
        check_header(Path(path) if content is None else content)
        # Given a path, Pillow 13 maps a TIFF into memory and garbles one that EXIF turns.
        with (
            Path(path).open("rb") if content is None else io.BytesIO(content) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            # An MPO photograph carries a preview. Counting all images of a TIFF may take hours.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise DataError(f"{path}: expected one image. Received: several in this file")
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds on broken files
        reason = _why_unreadable(Path(path), error, content)
        raise DataError(f"{path}: not readable as {what} ({reason})") from error


def _why_unreadable(path: Path, error: Exception, content: bytes | None) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read this file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels; cut it into tiles"
    if content is None:
        if path.is_symlink() and not path.exists():
            return f"a link to {path.readlink()}, which is not there"
        if not path.exists():
            return "no such file"
        if path.is_dir():
            return "a folder"
        content = path.read_bytes()
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        if tiff := describe_tiff(content):
            return (
                f"{tiff}; what can be read is 1 band of 8, 16 or 32 bits, or 3 or 4 "
                "bands of 8 or 16 bits; gdal_translate -ot Byte -b 1 makes such a file"
            )
        return f"in no known format; the file starts with {content[:16]!r}"
    return f"truncated: {error}" if "truncated" in str(error).lower() else str(error)


def upright(image: Image.Image) -> Image.Image:
    """Turn and mirror an image by its EXIF orientation; tags of a wrong type do not matter."""
    image.load()
    orientation = orientation_of(image)
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, from the header and the loaded metadata.

    Pillow's `getexif` reads all tags, and all pixels of a PNG.
    """
    info = image.info
    exif = info.get("exif") or b""
    in_memory = image.format is None and not exif  # tags may have been set
    if image.format == "TIFF" or in_memory:
        tags = image.getexif() if in_memory else getattr(image, "tag_v2", {})
        value = tags.get(274, 1)
        return value if value in _TURNS else 1
    if not exif and (text := info.get("Raw profile type exif")):
        with suppress(ValueError):
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
    if (orientation := exif_orientation(exif)) != 1:
        return orientation
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
    xmp = xmp if isinstance(xmp, str) else xmp.decode("latin-1")
    found = re.search(r'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(found[1]) if found else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; transparent pixels keep their stored colour."""
    if "transparency" in image.info:  # Pillow warns about a palette with several such colours
        image = image.convert("RGBA")
    return image.convert("RGB")


def load_image(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """Decode an image to uint8 RGB [H, W, 3], turned by its EXIF orientation.

    Grey, palette, CMYK and 1-bit images become RGB; 16-bit channels keep their upper 8 bits.
    Transparency is dropped, as `tf.io.decode_image(channels=3)` does in a served model. `content`
    is the file's bytes, if they were read already.

    Raises:
        DataError: as `opened`, or the values are not 8 or 16 bits a channel.
    """
    with opened(path, content=content) as image:
        return rgb_pixels(image, str(path))


def rgb_pixels(image: Image.Image, name: str = "the image") -> np.ndarray:
    """Convert a Pillow image to uint8 RGB [H, W, 3] as `load_image`; `name` is for errors.

    Raises:
        DataError: the values are not 8 or 16 bits a channel.
    """
    image = upright(image)
    if image.mode not in DEEP_MODES:
        return np.asarray(_to_rgb(image))
    # Pillow's own conversion clips 16-bit grey at 255.
    values = np.asarray(image)
    fits = image.mode != "F" and values.min() >= 0 and values.max() <= 65535
    received = f"mode {image.mode}, values {values.min()} to {values.max()}"
    expect(fits, name, "8 or 16 bits a channel", received)
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)


def load_label(path: str | Path, label_space: LabelSpace) -> np.ndarray:
    """Decode a label file to class ids, uint8 [H, W], with `IGNORE` where there is none.

    Palette files give their indices, grey files of 1, 2 or 4 bits the stored values. Floats must
    be whole numbers. The EXIF orientation turns a label as it turns an image.

    Raises:
        DataError: as `opened`, or the file is a JPEG, or has transparent pixels, unknown values,
            or several channels where the label space has no colours.
    """
    with opened(path, "a label") as image:
        if image.format in ("JPEG", "MPO"):
            raise DataError(f"{path}: a JPEG, which changes class ids; expected a PNG")
        scale, inverted = _stretching(image)
        turned = upright(image)
        mode = turned.mode
        if mode in ("LA", "RGBA"):
            if turned.getchannel("A").getextrema() != (255, 255):
                raise DataError(f"{path}: a label must not have transparent pixels")
            turned = turned.convert(mode[:-1])
        values = np.asarray(_to_rgb(turned) if label_space.colors else turned)
    if not label_space.colors:
        if values.ndim != 2:
            hint = "for colours, list them as 'colors' in classes.json"
            if (values == values[..., :1]).all():
                hint = "its channels are all equal, so save one of them"
            raise DataError(
                f"{path}: expected one channel of class ids, or a palette. Received: {mode} with "
                f"shape {values.shape}; {hint}"
            )
        values = ~values if inverted else values  # of bytes, 255 - values
        values = values if scale == 1 else values // np.uint8(scale)
    with naming(path):
        return label_space.encode(_whole_bytes(values))


def _stretching(image: Image.Image) -> tuple[int, bool]:
    """Return by which factor Pillow multiplies grey values when it decodes, and if it inverts them.

    It stretches grey of 2 or 4 bits to 8, and inverts a TIFF in which 0 is white.
    """
    tile = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    arguments = tile.args if tile else ""
    raw_mode = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    scale = {"L;2": 85, "L;4": 17}.get(raw_mode[:3], 1)
    return scale, image.format == "TIFF" and bool(re.fullmatch(r"(1|L);[24]?IR?", raw_mode))


def _whole_bytes(values: np.ndarray) -> np.ndarray:
    """Return label values as uint8; ValueError unless they are whole numbers 0..255."""
    if values.dtype == np.uint8:
        return values
    parts = values[values != np.rint(values)]
    if len(parts) or values.min() < 0 or values.max() > 255:
        hint = f", for instance {parts[0]}" if len(parts) else ""
        raise ValueError(
            "label values must be whole numbers 0..255. Received: "
            f"{values.dtype}, {values.min()} to {values.max()}{hint}"
        )
    return values.astype(np.uint8)


def load_sample(sample: Sample, label_space: LabelSpace) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image, uint8 [H, W, 3], and its label, uint8 [H, W].

    Raises:
        DataError: a file is unreadable, their sizes differ, or a side is shorter than 32 pixels.
    """
    image, label = load_image(sample.image), load_label(sample.label, label_space)
    if image.shape[:2] != label.shape:
        turned = image.shape[1::-1] == label.shape and is_turned(sample.image)
        raise DataError(
            f"{sample.label}: the label is {label.shape[1]} x {label.shape[0]} pixels, its "
            f"image {sample.image} is {image.shape[1]} x {image.shape[0]}"
            + (", turned as its EXIF orientation says; turn the label too" if turned else "")
        )
    if min(label.shape) < MIN_SIDE:
        raise DataError(
            f"{sample.image}: the image is {label.shape[1]} x {label.shape[0]} pixels; the "
            f"network needs at least {MIN_SIDE} x {MIN_SIDE}"
        )
    return image, label


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an opened file as EXIF turns it, without decoding its pixels."""
    # Pillow has swapped the sides of a TIFF already.
    swapped = image.format != "TIFF" and orientation_of(image) >= SWAPPED
    return image.size if swapped else (image.height, image.width)


def read_image_sizes(paths: Iterable[str | Path]) -> np.ndarray:
    """Read (height, width) of upright images from their headers, int64 [n, 2].

    Raises:
        DataError: as `opened`.
    """
    sizes = []
    for path in paths:
        with opened(path) as image:
            sizes.append(upright_size(image))
    return np.array(sizes, np.int64)


def is_turned(path: str | Path) -> bool:
    """Return whether the EXIF orientation turns or mirrors an image; raises as `opened`."""
    with opened(path) as image:
        return orientation_of(image) != 1
