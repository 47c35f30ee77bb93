"""Count what a model gets right, and say it as a table or as JSON."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignseg_tf import metrics
from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.readers import Sample, load_sample


@dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes:
        confusion: int64 [n, n], rows are the truth, columns the prediction, in pixels.
        classes: names of the n classes.
        pictures: number of pictures counted.
    """

    confusion: np.ndarray
    classes: Sequence[str]
    pictures: int

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class in 0..1, NaN where it does not occur."""
        return metrics.iou_per_class(self.confusion)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that occur."""
        return metrics.mean_iou(self.confusion)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return metrics.pixel_accuracy(self.confusion)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON; None where a class does not occur."""
        iou = [None if np.isnan(value) else float(value) for value in self.iou]
        return {
            "pictures": self.pictures,
            "mean_iou": self.mean_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "iou": dict(zip(self.classes, iou, strict=True)),
            "absent": [
                name for name, value in zip(self.classes, iou, strict=True) if value is None
            ],
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """Return a table: a row a class with IoU and share of the labelled pixels in %."""
        width = max(14, *(len(name) for name in self.classes))
        share = self.confusion.sum(1) / max(1, self.confusion.sum())
        lines = [f"{'class':<{width}}  IoU %  pixels %"]
        for name, iou, part in zip(self.classes, self.iou, share, strict=True):
            shown = "absent" if np.isnan(iou) else f"{100 * iou:6.2f}"
            lines.append(f"{name:<{width}} {shown}    {100 * part:6.2f}")
        lines.append("-" * (width + 18))
        lines.append(f"{'mean IoU':<{width}} {100 * self.mean_iou:6.2f}")
        lines.append(f"{'pixel accuracy':<{width}} {100 * self.pixel_accuracy:6.2f}")
        return "\n".join(lines)


def count_confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each (true class, predicted class).

    Args:
        truth: class ids [H, W]; ids of `num_classes` and more are left out.
        predicted: class ids [H, W], all below `num_classes`.
        num_classes: n.

    Returns:
        int64 [n, n].

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
    valid = truth < num_classes
    cells = truth[valid].astype(np.int64) * num_classes + predicted[valid]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    samples: Iterable[Sample],
    label_space: LabelSpace,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare predictions with labels, a whole picture at a time.

    Args:
        predict: uint8 RGB picture [H, W, 3] -> class ids [H, W], e.g. `Predictor.class_map`.
        samples: pictures with labels.
        label_space: what the labels mean.
        progress: called with (done, total).

    Returns:
        The report over all pictures.

    Raises:
        DataError: a file is unreadable.
        ValueError: predictions do not fit the labels.
    """
    samples = list(samples)
    confusion = np.zeros((label_space.num_classes,) * 2, np.int64)
    for done, sample in enumerate(samples, start=1):
        image, label = load_sample(sample, label_space)
        try:
            confusion += count_confusion(label, predict(image), label_space.num_classes)
        except ValueError as error:
            raise ValueError(f"{sample.image}: {error}") from error
        if progress is not None:
            progress(done, len(samples))
    return Report(confusion, label_space.classes, len(samples))
