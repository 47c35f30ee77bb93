"""How an image of any size goes through a network: whole, in windows, at several scales, mirrored.

A tile is a rectangle of the image at one scale; the whole image is the one tile of its scale.
Half-pixel centres relate the image to its scaled versions.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from alignseg_tf.model import MIN_IMAGE_SIZE

BLENDINGS = ("uniform", "gaussian")
AVERAGES = ("probabilities", "logits")
# Height and width of the tiles of an image that is too large to go through whole, in pixels.
LARGE_IMAGE_TILE = (1024, 1024)
# The Gaussian's standard deviation as a share of the tile, as nnU-Net has it.
GAUSSIAN_SIGMA = 1 / 8


@dataclass(frozen=True)
class Protocol:
    """The passes of an image through a network.

    Attributes:
        tile: height and width of sliding windows, in pixels of the scaled image; None for whole
            images. A smaller image is one window.
        overlap: share of a window that the next one covers again, in [0, 1). The last window of an
            axis ends with the image.
        blending: weights where windows overlap: `uniform`, or `gaussian`, largest in the middle.
        scales: factors by which the image is resized; each counts the same.
        flip: average with the mirrored image (left and right swapped).
        average: `probabilities`, or `logits` as in the official code: averaged over windows,
            scales and mirroring.
        batch_size: number of windows in a batch.
        largest_whole: number of pixels, at the largest scale, above which an image goes through in
            windows of 1024 x 1024 even if `tile` is None; None for no limit.
        height: height of an image at scale 1, in pixels; None keeps the image's.

    Raises:
        ValueError: a value is out of its range.

    Reference:
        Sliding windows as in the official code (stride ceil(2/3 tile)); scales and mirroring as in
        DeepLab. The official code's mirroring reverses the height axis, and it fails at any scale
        but 1; this does neither.
    """

    tile: tuple[int, int] | None = None
    overlap: float = 1 / 3
    blending: str = "uniform"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: str = "probabilities"
    batch_size: int = 1
    largest_whole: int | None = 2**23
    height: int | None = None

    def __post_init__(self) -> None:
        least, (height, width) = MIN_IMAGE_SIZE, self.tile or (MIN_IMAGE_SIZE, MIN_IMAGE_SIZE)
        scales_fit = bool(self.scales) and all(0 < scale < math.inf for scale in self.scales)
        for name, is_valid, expected in (
            ("tile", min(height, width) >= least, f"at least {least} x {least} pixels"),
            ("overlap", 0 <= self.overlap < 1, "in [0, 1)"),
            ("blending", self.blending in BLENDINGS, f"one of {BLENDINGS}"),
            ("scales", scales_fit, "positive and finite"),
            ("height", self.height is None or self.height >= least, f"at least {least} pixels"),
            ("average", self.average in AVERAGES, f"one of {AVERAGES}"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
        ):
            if not is_valid:
                value = getattr(self, name)
                raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")

    @property
    def is_plain(self) -> bool:
        """Return whether an image passes once, whole and unchanged."""
        return self.tile is None and not self.resizes and not self.flip

    @property
    def resizes(self) -> bool:
        """Return whether images are resized."""
        return self.scales != (1.0,) or self.height is not None

    def factors(self, height: int) -> tuple[float, ...]:
        """Return the factors by which an image of this height is resized, one for each scale."""
        if self.height is None:
            return self.scales
        return tuple(scale * self.height / height for scale in self.scales)

    def for_image(self, height: int, width: int) -> "Protocol":
        """Return the protocol for an image of this size: windows where it is too large."""
        if self.tile is not None or self.largest_whole is None:
            return self
        if height * width * max(self.factors(height)) ** 2 <= self.largest_whole:
            return self
        return replace(self, tile=LARGE_IMAGE_TILE)

    def __str__(self) -> str:
        parts = ["whole images"]
        if self.tile is not None:
            parts = [
                f"windows of {self.tile[0]} x {self.tile[1]}, overlap {100 * self.overlap:.0f} %, "
                f"{self.blending} blending"
            ]
        if self.height is not None:
            parts.append(f"resized to a height of {self.height}")
        if self.scales != (1.0,):
            parts.append("scales " + ", ".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            parts.append("mirrored too")
        if not self.is_plain:
            parts.append(f"{self.average} averaged")
        return "; ".join(parts)


@dataclass(frozen=True)
class Window:
    """One tile on one axis.

    Attributes:
        start: first pixel of the tile, in the scaled image.
        first: first pixel of the image that the tile covers.
        position: where each covered pixel lies in the tile, in pixels, float64.
        weight: share of the tile in each covered pixel, float32; the shares of all tiles sum to 1.
    """

    start: int
    first: int
    position: np.ndarray
    weight: np.ndarray

    @property
    def end(self) -> int:
        """One past the last pixel of the image that the tile covers."""
        return self.first + len(self.position)


def axis_windows(
    size: int, scaled: int, tile: int, overlap: float = 1 / 3, blending: str = "uniform"
) -> list[Window]:
    """Place the tiles of one axis, from the first pixel to the last.

    Args:
        size: pixels of the image.
        scaled: pixels of the scaled image.
        tile: pixels of a tile; at most `scaled` are used.
        overlap: see `Protocol`.
        blending: see `Protocol`.

    Example:
        >>> [window.start for window in axis_windows(100, 100, 60)]
        [0, 40]
    """
    tile = min(tile, scaled)
    stride = max(1, math.ceil(tile * (1 - overlap) - 1e-9))
    count = math.ceil((scaled - tile) / stride) + 1
    starts = [min(i * stride, scaled - tile) for i in range(count)]
    # Centres of the image's pixels, in pixels of the scaled image.
    place = np.clip((np.arange(size) + 0.5) * (scaled / size) - 0.5, 0, scaled - 1)
    covered, weights = [], np.zeros((count, size))
    for start, weight in zip(starts, weights, strict=True):
        inside = np.flatnonzero((place >= start - 0.5) & (place <= start + tile - 0.5))
        covered.append(slice(int(inside[0]), int(inside[-1]) + 1))
        distance = (place[inside] - start - (tile - 1) / 2) / (GAUSSIAN_SIGMA * tile)
        weight[inside] = 1.0 if blending == "uniform" else np.exp(-0.5 * distance**2)
    shares = (weights / weights.sum(0)).astype(np.float32)
    return [
        Window(start, part.start, np.clip(place[part] - start, 0, tile - 1), share[part])
        for start, part, share in zip(starts, covered, shares, strict=True)
    ]


def scaled_sizes(
    height: int, width: int, protocol: Protocol, input_size: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """Return height and width of an image at each scale of a protocol.

    `input_size` is the only size that the network takes, or None for any.

    Raises:
        ValueError: a side gets too small, or the network's size does not fit the protocol.
    """
    if input_size is not None:
        if protocol.resizes or protocol.tile not in (None, tuple(input_size)):
            raise ValueError(
                f"This model takes only images of {input_size[0]} x {input_size[1]}: expected "
                f"scale 1, a tile of that size, and no height. Received: {protocol}"
            )
        whole = protocol.tile is None
        return [input_size if whole else (max(height, input_size[0]), max(width, input_size[1]))]
    factors = protocol.factors(height)
    sizes = [(round(height * factor), round(width * factor)) for factor in factors]
    for scale, size in zip(factors, sizes, strict=True):
        if min(size) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"The image must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels"
                f"{f' at scale {scale:.3g}' if scale != 1 else ''}. Received: {size[1]} x {size[0]}"
            )
    return sizes
