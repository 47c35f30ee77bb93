"""Confidence intervals by resampling images or blocks of images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

# Of bootstrap intervals.
LEVEL, RESAMPLES, SEED = 0.95, 1000, 0


@dataclass(frozen=True)
class Interval:
    """Bounds of a bootstrap interval, NaN where there is none.

    Attributes:
        low: lower bound, a number or an array.
        high: upper bound, likewise.
    """

    low: Any
    high: Any


def check_block(block: int) -> None:
    """Refuse a number of neighbouring images that is not positive.

    Raises:
        ValueError: it is not.
    """
    if block < 1:
        raise ValueError(
            f"`block`, how many neighbouring images intervals draw together, must be at least 1. "
            f"Received: {block}"
        )


def sample_weights(images: int, block: int = 1) -> np.ndarray:
    """Draw bootstrap samples: how often each image is in each, float64 [RESAMPLES, images].

    The same for the same number of images, so that two models can be compared on them.

    Args:
        images: their number.
        block: so many neighbours, in the order of the images, are drawn together; the first
            follows the last.

    Reference:
        Politis and Romano, A circular block-resampling procedure for stationary data, 1992.
    """
    if not images:
        return np.zeros((RESAMPLES, 0))
    starts = np.random.default_rng(SEED).multinomial(
        max(1, round(images / block)), np.full(images, 1 / images), RESAMPLES
    )
    return np.array([np.roll(starts, place, 1) for place in range(block)], np.float64).sum(0)


def interval(samples: np.ndarray, drawn: int) -> Interval:
    """Return the bounds that hold the middle 95 % of samples [S, ...].

    Samples without a value, where a rare class was not drawn, are left out.

    Args:
        samples: scores of bootstrap samples.
        drawn: images, or blocks of them, in a sample; for fewer than two the bounds are NaN.
    """
    shape = samples.shape[1:]
    if drawn < 2:
        return Interval(np.full(shape, np.nan), np.full(shape, np.nan))
    ordered = np.sort(samples, axis=0)  # NaN goes to the end
    count = (~np.isnan(samples)).sum(0)
    bounds = []
    for quantile in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        place = np.maximum(quantile * (count - 1), 0)
        lower = np.floor(place).astype(np.int64)
        upper = np.minimum(lower + 1, np.maximum(count - 1, 0))
        a, b = (np.take_along_axis(ordered, i[None], 0)[0] for i in (lower, upper))
        bounds.append(a + (place - lower) * (b - a))
    return Interval(*bounds)
