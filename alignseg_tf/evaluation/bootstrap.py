"""Confidence intervals by resampling images or blocks of images."""

import warnings
from typing import Any, NamedTuple

import numpy as np

# Of bootstrap intervals.
LEVEL, RESAMPLES, SEED = 0.95, 1000, 0


class Interval(NamedTuple):
    """Bounds of an interval, numbers or arrays; NaN where there is none."""

    low: Any
    high: Any


def check_block(block: int) -> None:
    """Raise a `ValueError` unless the number of neighbouring images is positive."""
    if block < 1:
        raise ValueError(
            "`block`, the number of neighbouring images resampled together, must be at least 1. "
            f"Received: {block}"
        )


def sample_weights(images: int, block: int = 1) -> np.ndarray:
    """Return how often each image is in each bootstrap sample, float64 [RESAMPLES, images].

    Samples depend only on the arguments, so that models are compared on the same ones.

    Args:
        images: number of images.
        block: neighbouring images drawn together; the first image follows the last.

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
    """Return the bounds of the middle 95 % of samples [S, ...], without NaN.

    Args:
        samples: scores of bootstrap samples; NaN where a rare class was not drawn.
        drawn: images or blocks in a sample; for fewer than two the bounds are NaN.
    """
    if drawn < 2:
        samples = np.full_like(samples, np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        return Interval(*np.nanquantile(samples, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0))
