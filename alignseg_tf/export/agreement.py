"""Compare an exported file with its model."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import Network, NonFiniteLogitsError
from alignseg_tf.prediction.tiling import resized

# Rounding decides between classes of equal logits; anything more is a broken export.
LEAST_AGREEMENT = 0.99
DEFAULT_CHECK_SIZE = (192, 256)
TIMED_RUNS = 5


@dataclass(frozen=True)
class Agreement:
    """The differences between an exported network and its model.

    Attributes:
        images: number of images compared.
        same_class: share of their pixels to which both give the same class, 0..1.
        difference: largest difference of two logits; None if the export gives only class maps.
        largest_logit: largest absolute logit of the model, to compare `difference` with.
        latency: median seconds of the export for the first image, on this machine.
        size: height and width of that image at the network's input.
    """

    images: int
    same_class: float
    difference: float | None
    largest_logit: float
    latency: float
    size: tuple[int, int]

    def __str__(self) -> str:
        images = "an image" if self.images == 1 else f"{self.images} images"
        text = f"same class on {100 * self.same_class:.4f} % of the pixels of {images}"
        if self.difference is not None:
            text += (
                f"; logits differ by at most {self.difference:.1e} "
                f"(largest logit {self.largest_logit:.1f})"
            )
        return text


def check_agreement(agreement: Agreement, path: str | Path) -> None:
    """Raise a ValueError if classes differ on more than 1 % of the pixels."""
    if agreement.same_class < LEAST_AGREEMENT:
        raise ValueError(
            f"{path}: what was written does not agree with the model: {agreement}; at least "
            f"{100 * LEAST_AGREEMENT:.0f} % expected. Nothing was kept"
        )


def noise_image(size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a uint8 RGB image of noise."""
    size = size or DEFAULT_CHECK_SIZE
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


def compare_networks(
    model: Network, exported: Network, images: Iterable[np.ndarray] | None = None
) -> Agreement:
    """Run a model and its export on the same images, resized to the only size of the export.

    Args:
        model: the model.
        exported: the export; its own class maps are compared if it has them.
        images: uint8 RGB images [H, W, 3]; one of noise by default.

    Raises:
        NonFiniteLogitsError: logits of one of the two are NaN or infinite.
    """
    whole = Protocol(largest_whole=None)
    before = Predictor(model, whole)
    after = Predictor(exported, whole).class_map
    if exported.gives_class_maps:
        after = exported.class_map
    images = [noise_image(exported.input_size)] if images is None else list(images)
    same, differences, largest = [], [], 0.0
    for number, image in enumerate(images, start=1):
        if exported.input_size is not None:
            image = resized(image, exported.input_size)
        logits = _finite_logits(model, image, number)
        same.append(before.class_map(image) == after(image))
        largest = max(largest, float(np.abs(logits).max()))
        if exported.gives_logits:
            of_export = _finite_logits(exported, image, number)
            differences.append(float(np.abs(logits - of_export).max()))
    first = images[0] if exported.input_size is None else resized(images[0], exported.input_size)
    return Agreement(
        len(images),
        float(np.concatenate([agreement.ravel() for agreement in same]).mean()),
        max(differences) if differences else None,
        largest,
        median_latency(after, first),
        first.shape[:2],
    )


def _finite_logits(network: Network, image: np.ndarray, number: int) -> np.ndarray:
    try:
        return np.asarray(network.logits(image[None]))
    except NonFiniteLogitsError as error:
        raise NonFiniteLogitsError(f"check image {number}: {error}. Nothing was kept") from error


def median_latency(run: Callable[[np.ndarray], Any], image: np.ndarray) -> float:
    """Return the median seconds of `TIMED_RUNS` runs after a first one."""
    run(image)
    times = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
