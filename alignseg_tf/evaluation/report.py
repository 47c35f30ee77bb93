"""What an evaluation found, as numbers, a table, JSON and CSV.

Shape legend
    P      images
    n      classes
    D      distances, `scores.BOUNDARY_DISTANCES`
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alignseg_tf import metrics
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
from alignseg_tf.system.printable import csv_cell

# The distance, in pixels, at which a table that has one column for it gives the boundary F-score.
TABLE_DISTANCE = 2


@dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes:
        classes: names of the n classes.
        scores: the counts of each image.
        protocol: how the images went through the network, in words.
        block: neighbouring images that are alike, as frames of a video are, and that intervals
            draw together; 1 where every image stands for itself.

    Raises:
        ValueError: an image was counted with another number of classes, or `block` is not
            positive.
    """

    classes: Sequence[str]
    scores: Sequence[ImageScores]
    protocol: str = "whole images"
    block: int = 1

    def __post_init__(self) -> None:
        check_block(self.block)
        for score in self.scores:
            if score.boundary.shape[1] != len(self.classes):
                raise ValueError(
                    f"{score.name} has the counts of {score.boundary.shape[1]} classes. "
                    f"Expected: {len(self.classes)}"
                )

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.scores)

    @property
    def blocks(self) -> int:
        """Number of blocks of images; intervals want two."""
        return self.images // self.block

    @property
    def in_windows(self) -> int:
        """Number of images that were too large to go through whole."""
        return sum(score.in_windows for score in self.scores)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Pixels of each (true class, predicted class), int64 [n, n]."""
        total = np.zeros(len(self.classes) ** 2, np.int64)
        for score in self.scores:
            total[score.cells] += score.pixels
        return total.reshape(len(self.classes), -1)

    @cached_property
    def _region_counts(self) -> np.ndarray:
        """Pixels that are right, that truth has, that are predicted: float64 [P, n, 3]."""
        counts = np.zeros((self.images, len(self.classes), 3))
        for row, score in zip(counts, self.scores, strict=True):
            true, found = np.divmod(score.cells, len(self.classes))
            right = true == found
            row[:, 0] = np.bincount(true[right], score.pixels[right], len(row))
            row[:, 1] = np.bincount(true, score.pixels, len(row))
            row[:, 2] = np.bincount(found, score.pixels, len(row))
        return counts

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class in 0..1, [n]; NaN where it does not occur."""
        return metrics.iou_per_class(self.confusion)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that occur, in the labels or predicted."""
        return metrics.mean_iou(self.confusion)

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of `iou` over the labelled pixels: each class counts as often as it is true."""
        share = self.confusion.sum(1)
        return _ratio(np.sum(share * np.nan_to_num(self.iou)), share.sum())

    @property
    def precision(self) -> np.ndarray:
        """Share of the pixels of each predicted class that are right, [n]; NaN without any."""
        return _ratios(np.diagonal(self.confusion), self.confusion.sum(0))

    @property
    def recall(self) -> np.ndarray:
        """Share of the pixels of each true class that are found, [n]; NaN without any."""
        return _ratios(np.diagonal(self.confusion), self.confusion.sum(1))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return metrics.pixel_accuracy(self.confusion)

    @cached_property
    def image_iou(self) -> np.ndarray:
        """Mean IoU of each image over the classes that occur in it, [P]; NaN without labels."""
        return _means(_iou(self._region_counts), 1)

    @cached_property
    def _image_boundary_f(self) -> np.ndarray:
        """Boundary F-score of each image, distance and class, [P, D, n]."""
        counts = np.array([score.boundary for score in self.scores], np.float64)
        found, found_right, true, true_right = np.moveaxis(
            counts.reshape(-1, len(BOUNDARY_DISTANCES), len(self.classes), 4), -1, 0
        )
        precision, recall = _ratios(found_right, found), _ratios(true_right, true)
        # A class without a boundary on one side has no precision, or no recall: all is missed.
        precision = np.where((found == 0) & (true > 0), 0.0, precision)
        recall = np.where((true == 0) & (found > 0), 0.0, recall)
        both = precision + recall
        return np.where(both == 0, 0.0, _ratios(2 * precision * recall, both))

    @property
    def boundary_f(self) -> np.ndarray:
        """Boundary F-score of each distance and class, [D, n], in 0..1.

        The harmonic mean of the shares of predicted and of true boundary pixels that the other
        side confirms within the distance, in each image where the class has a boundary on either
        side; then the mean over these images. NaN where there are none.

        Reference:
            Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.
        """
        return _means(self._image_boundary_f, 0)

    @property
    def mean_boundary_f(self) -> np.ndarray:
        """Mean of `boundary_f` over the classes, [D]."""
        return _means(self.boundary_f, 1)

    @property
    def trimap_iou(self) -> np.ndarray:
        """IoU in the bands along true borders, [D, n]; NaN where a class is in none.

        Reference:
            Kohli et al., Robust higher order potentials for enforcing label consistency, 2009.
        """
        shape = (-1, len(BOUNDARY_DISTANCES), len(self.classes), 3)
        return _iou(np.array([s.trimap for s in self.scores], np.float64).reshape(shape).sum(0))

    @property
    def mean_trimap_iou(self) -> np.ndarray:
        """Mean of `trimap_iou` over the classes, [D]."""
        return _means(self.trimap_iou, 1)

    @cached_property
    def calibration(self) -> np.ndarray | None:
        """Pixels, right ones and summed confidence of each bin, [bins, 3]; None without them."""
        tables = [score.calibration for score in self.scores if score.calibration is not None]
        return np.sum(tables, 0) if tables and len(tables) == self.images else None

    @property
    def expected_calibration_error(self) -> float | None:
        """Mean distance of confidence and accuracy over bins of pixels, in 0..1.

        Reference:
            Guo et al., On calibration of modern neural networks, ICML 2017.
        """
        if self.calibration is None:
            return None
        pixels, right, confidence = self.calibration.T
        return _ratio(np.abs(right - confidence).sum(), pixels.sum())

    @cached_property
    def resampled(self) -> "Resampled":
        """The scores of bootstrap samples of the images."""
        return Resampled(self, sample_weights(self.images, self.block))

    def intervals(self) -> dict[str, Interval]:
        """Return bootstrap intervals: 95 %, over blocks of images drawn with replacement.

        Returns:
            `iou` with bounds [n], `mean_iou`, `mean_boundary_f` and `mean_trimap_iou` with bounds
            [D]. NaN for fewer than two blocks.
        """
        samples = self.resampled
        return {
            name: interval(getattr(samples, name), self.blocks)
            for name in ("iou", "mean_iou", "mean_boundary_f", "mean_trimap_iou")
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON; None where a class does not occur."""
        intervals = self.intervals()

        def by_class(values: np.ndarray) -> dict[str, Any]:
            return dict(zip(self.classes, _plain(values), strict=True))

        def by_distance(values: np.ndarray) -> dict[str, Any]:
            return dict(zip(map(str, BOUNDARY_DISTANCES), _plain(values), strict=True))

        def bounds(name: str) -> dict[str, Any]:
            return {
                "low": _plain(np.asarray(intervals[name].low)),
                "high": _plain(np.asarray(intervals[name].high)),
            }

        return {
            "images": self.images,
            "protocol": self.protocol,
            "images_in_windows": self.in_windows,
            "mean_iou": self.mean_iou,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "expected_calibration_error": self.expected_calibration_error,
            "mean_boundary_f_by_distance": by_distance(self.mean_boundary_f),
            "mean_trimap_iou_by_distance": by_distance(self.mean_trimap_iou),
            "iou": by_class(self.iou),
            "precision": by_class(self.precision),
            "recall": by_class(self.recall),
            "boundary_f": {
                str(distance): by_class(values)
                for distance, values in zip(BOUNDARY_DISTANCES, self.boundary_f, strict=True)
            },
            "trimap_iou": {
                str(distance): by_class(values)
                for distance, values in zip(BOUNDARY_DISTANCES, self.trimap_iou, strict=True)
            },
            "absent": [
                name for name, value in zip(self.classes, self.iou, strict=True) if np.isnan(value)
            ],
            "intervals": {
                "level": LEVEL,
                "resamples": RESAMPLES,
                "seed": SEED,
                "block": self.block,
                "mean_iou": bounds("mean_iou"),
                "iou": {
                    name: {"low": low, "high": high}
                    for name, low, high in zip(self.classes, *bounds("iou").values(), strict=True)
                },
                "mean_boundary_f": bounds("mean_boundary_f"),
                "mean_trimap_iou": bounds("mean_trimap_iou"),
            },
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """Return a table for the terminal: a row a class, then the means. Shares are in %."""
        width = max(14, *(len(name) for name in self.classes))
        share = self.confusion.sum(1) / max(1, self.confusion.sum())
        boundary = self.boundary_f[BOUNDARY_DISTANCES.index(TABLE_DISTANCE)]
        intervals = self.intervals()
        head = (
            f"{'class':<{width}}  IoU %  {'95 % interval':>14}  precision  recall  "
            f"boundary F {TABLE_DISTANCE} px  pixels %"
        )
        lines = [head]
        for i, name in enumerate(self.classes):
            iou = "absent" if np.isnan(self.iou[i]) else percent(self.iou[i])
            bounds = _bounds(intervals["iou"].low[i], intervals["iou"].high[i])
            lines.append(
                f"{name:<{width}} {iou:>6}  {bounds:>14}  {percent(self.precision[i]):>9}  "
                f"{percent(self.recall[i]):>6}  {percent(boundary[i]):>15}  "
                f"{percent(share[i]):>8}"
            )
        lines.append("-" * len(head))
        mean = _bounds(intervals["mean_iou"].low, intervals["mean_iou"].high)
        lines += [
            f"{'mean IoU':<{width}} {percent(self.mean_iou):>6}  {mean:>14}",
            f"{'fw. IoU':<{width}} {percent(self.frequency_weighted_iou):>6}"
            "  (each class counts as often as it is true)",
            f"{'pixel accuracy':<{width}} {percent(self.pixel_accuracy):>6}",
        ]
        if (error := self.expected_calibration_error) is not None:
            lines.append(
                f"{'ECE':<{width}} {percent(error):>6}  (distance of confidence and accuracy)"
            )
        lines += [
            "",
            f"{'within':<{width}} " + "".join(f"{f'{d} px':>8}" for d in BOUNDARY_DISTANCES),
            f"{'boundary F %':<{width}} " + _columns(self.mean_boundary_f),
            f"{'trimap IoU %':<{width}} " + _columns(self.mean_trimap_iou),
            "",
            f"{self.images} images, {self.protocol}"
            + (f"; {self.in_windows} of them too large for that, in windows"
               if self.in_windows else "")
            + (f"; intervals of blocks of {self.block} neighbouring images"
               if self.block > 1 else ""),
        ]  # fmt: skip
        return "\n".join(lines)

    def classes_csv(self) -> str:
        """Return a table of the classes, shares in 0..1; empty where a class does not occur."""
        intervals = self.intervals()
        columns = {
            "class": list(self.classes),
            "iou": self.iou,
            "iou_low": intervals["iou"].low,
            "iou_high": intervals["iou"].high,
            "precision": self.precision,
            "recall": self.recall,
        }
        for name, values in (("boundary_f", self.boundary_f), ("trimap_iou", self.trimap_iou)):
            columns |= {
                f"{name}_{distance}px": row
                for distance, row in zip(BOUNDARY_DISTANCES, values, strict=True)
            }
        columns["true_pixels"] = self.confusion.sum(1)
        return _csv(columns)

    def images_csv(self) -> str:
        """Return a table of the images: mean IoU, pixel accuracy, boundary F-scores."""
        right, true = self._region_counts[..., 0].sum(1), self._region_counts[..., 1].sum(1)
        boundary = _means(self._image_boundary_f, 2)
        columns = {
            "image": [score.name for score in self.scores],
            "mean_iou": self.image_iou,
            "pixel_accuracy": _ratios(right, true),
        }
        columns |= {
            f"boundary_f_{distance}px": column
            for distance, column in zip(BOUNDARY_DISTANCES, boundary.T, strict=True)
        }
        columns["labelled_pixels"] = true.astype(np.int64)
        return _csv(columns)


class Resampled:
    """The scores of many bootstrap samples of the images of a report.

    Args:
        report: the images.
        weights: how often each image is in each sample, [S, P].

    Attributes:
        iou: [S, n].
        mean_iou: [S].
        mean_boundary_f: [S, D].
        mean_trimap_iou: [S, D].
        boundary_f: [S, D, n].
    """

    def __init__(self, report: Report, weights: np.ndarray):
        regions = report._region_counts
        self.iou = _iou(_sums(weights, regions))
        self.mean_iou = _means(self.iou, 1)
        boundary = report._image_boundary_f
        self.boundary_f = _ratios(
            _sums(weights, np.nan_to_num(boundary)), _sums(weights, ~np.isnan(boundary))
        )
        self.mean_boundary_f = _means(self.boundary_f, 2)
        trimap = np.array([score.trimap for score in report.scores], np.float64)
        trimap = trimap.reshape(len(regions), len(BOUNDARY_DISTANCES), -1, 3)
        self.mean_trimap_iou = _means(_iou(_sums(weights, trimap)), 2)


def percent(share: float) -> str:
    """Return a share as 12.34; a dash where there is none."""
    return "-" if np.isnan(share) else f"{100 * share:.2f}"


def _columns(shares: np.ndarray) -> str:
    return "".join(f"{percent(share):>8}" for share in shares)


def _bounds(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{percent(low)}-{percent(high)}"


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def _ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    result = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=result, where=np.asarray(whole) > 0)
    return result


def _iou(counts: np.ndarray) -> np.ndarray:
    """Return the IoU from right, true and predicted pixels [..., 3]; NaN for absent classes."""
    right, true, found = np.moveaxis(counts, -1, 0)
    return _ratios(right, true + found - right)


def _means(values: np.ndarray, axis: int) -> np.ndarray:
    """Return means over what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    return _ratios(np.where(there, values, 0.0).sum(axis), there.sum(axis))


def _sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Add up [P, ...] with weights [S, P] to [S, ...]."""
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    return (weights @ flat).reshape(len(weights), *values.shape[1:])


def _plain(values: np.ndarray) -> Any:
    """Return nested lists of floats, or a float; None for NaN."""
    if np.ndim(values) == 0:
        return None if np.isnan(values) else float(values)
    return [_plain(value) for value in values]


def _csv(columns: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(
            f"{x:.6f}" if isinstance(x, float) and not np.isnan(x)
            else "" if isinstance(x, float) else csv_cell(x)
            for x in row
        )  # fmt: skip
    return text.getvalue()
