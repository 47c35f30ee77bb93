"""How an image of any size goes through a network: whole, in windows, at several scales, mirrored.

Shape legend
    H, W   height and width of the image, in pixels
    t      height or width of a tile, in pixels of the scaled image

A tile is a rectangle of the image at one scale; the whole image is the one tile of its scale.
Half-pixel centres relate the image to its scaled versions.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from alignseg_tf.model import MIN_IMAGE_SIZE

BLENDINGS = ("uniform", "gaussian")
AVERAGES = ("probabilities", "logits")
# Sides of the tiles of an image that is too large to go through whole.
LARGE_IMAGE_TILE = (1024, 1024)
# The Gaussian's standard deviation as a share of the tile, as nnU-Net has it.
GAUSSIAN_SIGMA = 1 / 8


@dataclass(frozen=True)
class Protocol:
    """How an image is put through a network.

    Attributes:
        tile: height and width of sliding windows, in pixels of the scaled image; None for whole
            images. A smaller image is one window of its own size.
        overlap: share of a window that the next one covers again, in [0, 1); the last window of an
            axis ends with the image.
        blending: weight of a window's pixels where several overlap: `uniform`, or `gaussian`, which
            falls from the middle to the edge.
        scales: factors by which the image is resized; each counts the same.
        height: rows of pixels that an image has at scale 1, whatever its own size, for a model
            that sees best at one; None for its own height.
        flip: average with the mirrored image (left and right swapped).
        average: what is averaged over windows, scales and mirroring: `probabilities`, or `logits`
            as the official code does.
        batch_size: windows that go through the network at a time.
        largest_whole: an image that has more pixels than this at its largest scale goes through
            in windows of 1024 x 1024 even if `tile` is None, since the network's memory grows with
            it; None for no limit.

    Raises:
        ValueError: a value is out of its range.

    Reference:
        Sliding windows as in the official code (stride ceil(2/3 tile)); scales and mirroring as in
        DeepLab. Of the official code's evaluation two defects are not repeated: its mirroring
        reverses the height axis, and it fails at any scale but 1.
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
        if self.tile is not None and min(self.tile) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"`tile` must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels. "
                f"Received: tile={self.tile}"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"`overlap` must be in [0, 1). Received: overlap={self.overlap}")
        if self.blending not in BLENDINGS:
            raise ValueError(
                f"`blending` must be one of {BLENDINGS}. Received: blending={self.blending!r}"
            )
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(
                f"`scales` must be positive and finite. Received: scales={self.scales}"
            )
        if self.height is not None and self.height < MIN_IMAGE_SIZE:
            raise ValueError(
                f"`height` must be at least {MIN_IMAGE_SIZE} pixels. Received: height={self.height}"
            )
        if self.average not in AVERAGES:
            raise ValueError(
                f"`average` must be one of {AVERAGES}. Received: average={self.average!r}"
            )
        if self.batch_size < 1:
            raise ValueError(
                f"`batch_size` must be at least 1. Received: batch_size={self.batch_size}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether an image goes through once, as it is."""
        return self.tile is None and not self.resizes and not self.flip

    @property
    def resizes(self) -> bool:
        """Whether the network sees an image at other sizes than its own."""
        return self.scales != (1.0,) or self.height is not None

    def factors(self, height: int) -> tuple[float, ...]:
        """Return by what an image of this height is resized, one factor a scale."""
        if self.height is None:
            return self.scales
        return tuple(scale * self.height / height for scale in self.scales)

    def for_image(self, height: int, width: int) -> "Protocol":
        """Return the protocol that an image of this size gets: windows where it is too large."""
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
    """One tile on one axis, and what it has to say about the pixels of the image.

    Attributes:
        start: first pixel of the tile, in the scaled image.
        first: first pixel of the image that the tile covers.
        position: where each covered pixel lies in the tile, float64 in 0 .. t - 1.
        weight: its share in the average, float32; the shares of all windows add up to 1.
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
    """Place the tiles of one axis.

    Args:
        size: pixels of the image.
        scaled: pixels of the scaled image.
        tile: pixels of a tile; at most `scaled` are used.
        overlap: share of a tile that the next one covers again.
        blending: `uniform` or `gaussian`.

    Returns:
        The windows from the first pixel to the last; together they cover every pixel.

    Example:
        >>> [window.start for window in axis_windows(100, 100, 60)]
        [0, 40]
    """
    tile = min(tile, scaled)
    stride = max(1, math.ceil(tile * (1 - overlap) - 1e-9))
    count = math.ceil((scaled - tile) / stride) + 1
    starts = [min(i * stride, scaled - tile) for i in range(count)]
    # Where the image's pixels lie in the scaled image, by their centres.
    place = np.clip((np.arange(size) + 0.5) * (scaled / size) - 0.5, 0, scaled - 1)
    covered, weights = [], []
    for start in starts:
        inside = np.flatnonzero((place >= start - 0.5) & (place <= start + tile - 0.5))
        covered.append(slice(inside[0], inside[-1] + 1))
        weight = np.zeros(size)
        distance = (place[inside] - start - (tile - 1) / 2) / (GAUSSIAN_SIGMA * tile)
        weight[inside] = 1.0 if blending == "uniform" else np.exp(-0.5 * distance**2)
        weights.append(weight)
    total = np.sum(weights, 0)
    return [
        Window(
            start,
            int(part.start),
            np.clip(place[part] - start, 0, tile - 1),
            (weight[part] / total[part]).astype(np.float32),
        )
        for start, part, weight in zip(starts, covered, weights, strict=True)
    ]


def scaled_sizes(
    height: int, width: int, protocol: Protocol, input_size: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """Return height and width of an image at each scale of a protocol.

    Args:
        height: of the image.
        width: of the image.
        protocol: its scales and tile.
        input_size: the one size that the network takes, or None if it takes any.

    Raises:
        ValueError: a side gets too small, or the network's size does not go with the protocol.
    """
    if input_size is not None:
        if protocol.resizes or protocol.tile not in (None, tuple(input_size)):
            raise ValueError(
                f"This model takes images of {input_size[0]} x {input_size[1]} alone, so scales "
                f"must be 1, a tile of that size, and no height given. Received: {protocol}"
            )
        if protocol.tile is None:
            return [input_size]
        return [(max(height, input_size[0]), max(width, input_size[1]))]
    factors = protocol.factors(height)
    sizes = [(round(height * factor), round(width * factor)) for factor in factors]
    for scale, size in zip(factors, sizes, strict=True):
        if min(size) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"The image must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels"
                + (f" at scale {scale:.3g}" if scale != 1 else "")
                + f". Received: {size[1]} x {size[0]}"
            )
    return sizes
