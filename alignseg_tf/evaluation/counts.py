"""The counts of one image, from which a report is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignseg_tf.data.label_space import IGNORE
from alignseg_tf.evaluation.boundaries import boundary_counts, row_bands, trimap_counts

# Distances in pixels of boundary F-scores and trimap IoU.
BOUNDARY_DISTANCES = (1, 2, 3, 5)
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ImageScores:
    """The counts of one image.

    Attributes:
        name: of the image.
        cells: nonzero cells of the flattened confusion matrix (rows are the truth), int64 [k].
        pixels: their pixels, int64 [k].
        boundary: int64 [D, n, 4], see `boundaries.boundary_counts`.
        trimap: int64 [D, n, 3], see `boundaries.trimap_counts`.
        calibration: float64 [bins, 3], see `count_calibration`; None without confidence.
        in_windows: whether the image was too large to go through whole.
    """

    name: str
    cells: np.ndarray
    pixels: np.ndarray
    boundary: np.ndarray
    trimap: np.ndarray
    calibration: np.ndarray | None = None
    in_windows: bool = False

    def confusion(self, num_classes: int) -> np.ndarray:
        """Return the confusion matrix, int64 [n, n]: rows are the truth."""
        matrix = np.zeros(num_classes**2, np.int64)
        matrix[self.cells] = self.pixels
        return matrix.reshape(num_classes, num_classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        return {
            "name": self.name,
            "cells": self.cells.tolist(),
            "pixels": self.pixels.tolist(),
            "boundary": _sparse(self.boundary),
            "trimap": _sparse(self.trimap),
            "calibration": None if self.calibration is None else self.calibration.tolist(),
            "in_windows": self.in_windows,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ImageScores":
        """Read what `to_dict` returned."""
        calibration = content["calibration"]
        return cls(
            content["name"],
            np.array(content["cells"], np.int64),
            np.array(content["pixels"], np.int64),
            _dense(content["boundary"]),
            _dense(content["trimap"]),
            None if calibration is None else np.array(calibration, np.float64),
            content["in_windows"],
        )


def _sparse(counts: np.ndarray) -> dict[str, Any]:
    """Return the nonzero counts: most classes do not occur in most images."""
    cells = np.flatnonzero(counts)
    values = counts.ravel()[cells].tolist()
    return {"shape": list(counts.shape), "cells": cells.tolist(), "counts": values}


def _dense(content: Mapping[str, Any]) -> np.ndarray:
    counts = np.zeros(content["shape"], np.int64)
    counts.ravel()[content["cells"]] = content["counts"]
    return counts


def count_confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each (true class, predicted class), int64 [n, n].

    Arguments as in `score_image`.

    Raises:
        ValueError: the maps differ in size, or the prediction has other ids.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"The prediction must have the label's size {truth.shape}. Received: {predicted.shape}"
        )
    if predicted.size and int(predicted.max()) >= num_classes:
        raise ValueError(
            f"The model predicts class {int(predicted.max())}, but there are {num_classes} classes"
        )
    counts = np.zeros(num_classes**2, np.int64)
    for rows, _ in row_bands(*truth.shape):
        valid = truth[rows] < num_classes
        cells = truth[rows][valid].astype(np.int64) * num_classes + predicted[rows][valid]
        counts += np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def count_calibration(
    truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray
) -> np.ndarray:
    """Return labelled pixels, right ones and summed confidence of each bin, float64 [bins, 3].

    Arguments as in `score_image`.
    """
    table = np.zeros((CALIBRATION_BINS, 3))
    for rows, _ in row_bands(*truth.shape):
        labelled = truth[rows] != IGNORE
        sure = confidence[rows][labelled].astype(np.float64)
        right = (truth[rows] == predicted[rows])[labelled]
        place = np.minimum((sure * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        for column, weights in enumerate((None, right, sure)):
            table[:, column] += np.bincount(place, weights, CALIBRATION_BINS)
    return table


def score_image(
    name: str,
    truth: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    confidence: np.ndarray | None = None,
    in_windows: bool = False,
) -> ImageScores:
    """Count the pixels of an image.

    Args:
        name: of the image.
        truth: class ids, uint8 [H, W], `IGNORE` where there is no label.
        predicted: class ids, uint8 [H, W], all below `num_classes`.
        num_classes: n.
        confidence: probability of the predicted class, float32 [H, W] in 0..1, or None.
        in_windows: whether the image was too large to go through whole.

    Raises:
        ValueError: as `count_confusion`.
    """
    confusion = count_confusion(truth, predicted, num_classes).ravel()
    cells = np.flatnonzero(confusion)
    return ImageScores(
        name,
        cells,
        confusion[cells],
        boundary_counts(truth, predicted, num_classes, BOUNDARY_DISTANCES),
        trimap_counts(truth, predicted, num_classes, BOUNDARY_DISTANCES),
        None if confidence is None else count_calibration(truth, predicted, confidence),
        in_windows,
    )
