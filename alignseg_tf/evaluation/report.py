"""The result of an evaluation as numbers, a table, JSON and CSV.

Shape legend
    P      images
    S      bootstrap samples
    n      classes
    D      distances, `counts.BOUNDARY_DISTANCES`
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from alignseg_tf.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    SEED,
    Interval,
    check_block,
    interval,
    sample_weights,
)
from alignseg_tf.evaluation.counts import BOUNDARY_DISTANCES, ImageScores
from alignseg_tf.system.tables import csv_text, text_table

# Distance in pixels of the boundary F-score in tables with one column for it.
TABLE_DISTANCE = 2
# Scores with bootstrap intervals.
INTERVALS = ("iou", "mean_iou", "mean_boundary_f", "mean_trimap_iou")


class Scores:
    """Scores over images that count with weights; leading axes are those of the weights.

    Args:
        regions: right, true and predicted pixels of each image, float64 [P, n, 3].
        boundary_f: boundary F-score of each image, [P, D, n]; NaN without a boundary.
        trimaps: as `regions`, in bands along true boundaries, [P, D, n, 3].
        weights: how often each image counts, [..., P].

    Attributes:
        iou: intersection over union in 0..1, [..., n]; NaN for classes that occur neither in the
            labels nor in the predictions.
        mean_iou: mean of `iou` over the classes that occur, [...].
        boundary_f: boundary F-score in 0..1, [..., D, n]: the harmonic mean of the shares of
            predicted and of true boundary pixels that the other side confirms within the
            distance, averaged over the images with a boundary of the class on either side.
        mean_boundary_f: mean of `boundary_f` over the classes, [..., D].
        trimap_iou: IoU in bands along true boundaries, [..., D, n]; NaN for classes in no band.
        mean_trimap_iou: mean of `trimap_iou` over the classes, [..., D].

    Reference:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.
        Kohli et al., Robust higher order potentials for enforcing label consistency, 2009.
    """

    def __init__(
        self, regions: np.ndarray, boundary_f: np.ndarray, trimaps: np.ndarray, weights: np.ndarray
    ):
        def total(values: np.ndarray) -> np.ndarray:
            return np.tensordot(weights, values, 1)

        there = ~np.isnan(boundary_f)
        self.iou = _iou(total(regions))
        self.mean_iou = _means(self.iou)
        self.boundary_f = _ratios(total(np.nan_to_num(boundary_f)), total(there.astype(np.float64)))
        self.mean_boundary_f = _means(self.boundary_f)
        self.trimap_iou = _iou(total(trimaps))
        self.mean_trimap_iou = _means(self.trimap_iou)


class Report(Scores):
    """The result of an evaluation.

    Args:
        classes: names of the n classes.
        scores: the counts of each image.
        protocol: how the images went through the network, in words.
        block: number of neighbouring images resampled together, such as similar video frames.

    Attributes:
        images: number of images.
        in_windows: number of images that were too large to go through whole.
        confusion: pixels of each (true class, predicted class), int64 [n, n].
        pixel_share: share of each true class in the labelled pixels, [n].
        precision: share of each predicted class that is right, [n].
        recall: share of each true class that is found, [n].
        pixel_accuracy: share of the labelled pixels that are right.
        frequency_weighted_iou: mean of `iou` weighted by `pixel_share`.
        image_iou: mean IoU of each image over the classes that occur in it, [P].
        calibration: pixels, right ones and summed confidence of each bin, [bins, 3]; None if an
            image has none.
        expected_calibration_error: mean distance of confidence and accuracy over the bins, in
            0..1 (Guo et al., On calibration of modern neural networks, ICML 2017); None likewise.
        iou, mean_iou, ...: see `Scores`, without leading axes.

    Raises:
        ValueError: an image has counts of other classes, or `block` is not positive.
    """

    def __init__(
        self,
        classes: Sequence[str],
        scores: Sequence[ImageScores],
        protocol: str = "whole images",
        block: int = 1,
    ):
        check_block(block)
        for score in scores:
            if score.boundary.shape[1] != len(classes):
                raise ValueError(
                    f"{score.name} has the counts of {score.boundary.shape[1]} classes. "
                    f"Expected: {len(classes)}"
                )
        self.classes, self.scores, self.protocol, self.block = classes, scores, protocol, block
        count, self.images = len(classes), len(scores)
        self.in_windows = sum(score.in_windows for score in scores)
        self.confusion = np.zeros((count, count), np.int64)
        self._regions = np.zeros((self.images, count, 3))
        for regions, score in zip(self._regions, scores, strict=True):
            matrix = score.confusion(count)
            self.confusion += matrix
            regions[:] = np.stack([np.diagonal(matrix), matrix.sum(1), matrix.sum(0)], -1)
        shape = (self.images, len(BOUNDARY_DISTANCES), count)
        boundary = np.array([score.boundary for score in scores], np.float64).reshape(*shape, 4)
        trimaps = np.array([score.trimap for score in scores], np.float64).reshape(*shape, 3)
        self._images = self._regions, _boundary_f(boundary), trimaps  # of `Scores`
        super().__init__(*self._images, np.ones(self.images))

        right, true, found = self._regions.sum(0).T
        self.pixel_share = true / max(1, true.sum())
        self.precision, self.recall = _ratios(right, found), _ratios(right, true)
        self.pixel_accuracy = _ratios(right.sum(), true.sum())
        self.frequency_weighted_iou = _ratios((true * np.nan_to_num(self.iou)).sum(), true.sum())
        self.image_iou = _means(_iou(self._regions))
        self.calibration: np.ndarray | None = None
        self.expected_calibration_error: float | None = None
        bins = [score.calibration for score in scores if score.calibration is not None]
        if bins and len(bins) == self.images:
            self.calibration = np.sum(bins, 0)
            pixels, right, confidence = self.calibration.T
            distance = np.abs(right - confidence).sum()
            self.expected_calibration_error = _ratios(distance, pixels.sum())

    @cached_property
    def resampled(self) -> Scores:
        """The scores of bootstrap samples of the images, with the leading axis S."""
        return Scores(*self._images, sample_weights(self.images, self.block))

    def interval_of(self, samples: np.ndarray) -> Interval:
        """Return the 95 % interval of a score of `resampled`; NaN for fewer than two blocks."""
        return interval(samples, self.images // self.block)

    def intervals(self) -> dict[str, Interval]:
        """Return the 95 % bootstrap intervals of the scores of `INTERVALS`."""
        return {name: self.interval_of(getattr(self.resampled, name)) for name in INTERVALS}

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON; None where a class does not occur."""
        intervals, classes = self.intervals(), self.classes
        axes: dict[str, tuple] = {
            **dict.fromkeys(("mean_iou", "frequency_weighted_iou", "pixel_accuracy"), ()),
            **dict.fromkeys(("iou", "precision", "recall"), (classes,)),
            **dict.fromkeys(("boundary_f", "trimap_iou"), (BOUNDARY_DISTANCES, classes)),
        }
        return {
            "images": self.images,
            "protocol": self.protocol,
            "images_in_windows": self.in_windows,
            **{name: named(getattr(self, name), *names) for name, names in axes.items()},
            **{
                f"{name}_by_distance": named(getattr(self, name), BOUNDARY_DISTANCES)
                for name in ("mean_boundary_f", "mean_trimap_iou")
            },
            "expected_calibration_error": self.expected_calibration_error,
            "absent": [name for name, iou in zip(classes, self.iou, strict=True) if np.isnan(iou)],
            "intervals": {
                "level": LEVEL,
                "resamples": RESAMPLES,
                "seed": SEED,
                "block": self.block,
                **{name: named(bounds, Interval._fields) for name, bounds in intervals.items()},
                "iou": named(np.stack(intervals["iou"], -1), classes, Interval._fields),
            },
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """Return a table for the terminal: a row a class, then the means. Shares are in %."""
        boundary = self.boundary_f[BOUNDARY_DISTANCES.index(TABLE_DISTANCE)]
        intervals = self.intervals()
        columns = (self.precision, self.recall, boundary, self.pixel_share)
        rows = [
            (name, percent(iou) if iou == iou else "absent", span(low, high), *map(percent, others))
            for name, iou, low, high, *others in zip(
                self.classes, self.iou, *intervals["iou"], *columns, strict=True
            )
        ]
        means = [
            ("mean IoU", percent(self.mean_iou), span(*intervals["mean_iou"])),
            ("fw. IoU", percent(self.frequency_weighted_iou)),
            ("pixel accuracy", percent(self.pixel_accuracy)),
        ]
        if (error := self.expected_calibration_error) is not None:
            means.append(("ECE", percent(error)))
        boundary_name = f"boundary F {TABLE_DISTANCE} px"
        head = ("class", "IoU %", "95 % interval", "precision", "recall", boundary_name, "pixels %")
        distances = [
            ("within", *(f"{distance} px" for distance in BOUNDARY_DISTANCES)),
            ("boundary F %", *map(percent, self.mean_boundary_f)),
            ("trimap IoU %", *map(percent, self.mean_trimap_iou)),
        ]
        blocks = f"; intervals of blocks of {self.block} neighbouring images"
        tables = text_table([head, *rows, None, *means]), text_table(distances)
        return "\n\n".join([*tables, self.described() + blocks * (self.block > 1)])

    def described(self) -> str:
        """Return the number of images and the protocol in words."""
        windows = f"; {self.in_windows} of them too large for that, in windows"
        return f"{self.images} images, {self.protocol}" + windows * (self.in_windows > 0)

    def classes_csv(self) -> str:
        """Return a table of the classes, shares in 0..1; empty where a class does not occur."""
        low, high = self.intervals()["iou"]
        columns = {
            "class": self.classes,
            "iou": self.iou,
            "iou_low": low,
            "iou_high": high,
            "precision": self.precision,
            "recall": self.recall,
            **_by_distance("boundary_f", self.boundary_f),
            **_by_distance("trimap_iou", self.trimap_iou),
            "true_pixels": self.confusion.sum(1),
        }
        return csv_text([columns, *zip(*columns.values(), strict=True)])

    def images_csv(self) -> str:
        """Return a table of the images: mean IoU, pixel accuracy, boundary F-scores."""
        right, true, _ = self._regions.sum(1).T
        columns = {
            "image": [score.name for score in self.scores],
            "mean_iou": self.image_iou,
            "pixel_accuracy": _ratios(right, true),
            **_by_distance("boundary_f", _means(self._images[1]).T),
            "labelled_pixels": true.astype(np.int64),
        }
        return csv_text([columns, *zip(*columns.values(), strict=True)])


def percent(share: float) -> str:
    """Return a share as 12.34; a dash where there is none."""
    return "-" if np.isnan(share) else f"{100 * share:.2f}"


def points(difference: float) -> str:
    """Return a difference of shares in points of %, as +1.23; a dash where there is none."""
    return "-" if np.isnan(difference) else f"{100 * difference:+.2f}"


def span(low: float, high: float) -> str:
    """Return an interval of shares in %; a dash where there is none."""
    return "-" if np.isnan(low) else f"{percent(low)} to {percent(high)}"


def named(values: Any, *axes: Iterable[object]) -> Any:
    """Return an array as dicts of the names along its axes, for JSON.

    NaN becomes None. Axes that are not named become lists.
    """
    if np.ndim(values) == 0:
        return None if np.isnan(values) else float(values)
    if not axes:
        return [named(value) for value in values]
    return {str(name): named(x, *axes[1:]) for name, x in zip(axes[0], values, strict=True)}


def _by_distance(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    names = (f"{name}_{distance}px" for distance in BOUNDARY_DISTANCES)
    return dict(zip(names, values, strict=True))


def _ratios(part: Any, whole: Any) -> Any:
    """Divide; NaN where there is nothing to divide by."""
    result = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=result, where=np.asarray(whole) > 0)[()]


def _boundary_f(counts: np.ndarray) -> np.ndarray:
    """Return F-scores from the counts [..., 4] of `boundaries.boundary_counts`."""
    found, found_right, true, true_right = np.moveaxis(counts, -1, 0)
    precision, recall = _ratios(found_right, found), _ratios(true_right, true)
    # A class without a boundary on one side has no precision, or no recall: all is missed.
    precision = np.where((found == 0) & (true > 0), 0.0, precision)
    recall = np.where((true == 0) & (found > 0), 0.0, recall)
    both = precision + recall
    return np.where(both == 0, 0.0, _ratios(2 * precision * recall, both))


def _iou(counts: np.ndarray) -> np.ndarray:
    """Return the IoU from right, true and predicted pixels [..., 3]; NaN for absent classes."""
    right, true, found = np.moveaxis(counts, -1, 0)
    return _ratios(right, true + found - right)


def _means(values: np.ndarray) -> Any:
    """Return means over the last axis without NaN; NaN where nothing is left."""
    there = ~np.isnan(values)
    return _ratios(np.where(there, values, 0.0).sum(-1), there.sum(-1))
