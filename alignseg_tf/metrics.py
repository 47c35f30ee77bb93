"""Mean IoU from a confusion matrix that is counted exactly, in pure `keras.ops`.

Shape legend
    B      batch
    H, W   height and width of the labels, in pixels
    h, w   height and width of the logits, in cells; resized to H, W when they differ
    C      classes

A confusion matrix [C, C] counts pixels: row = true class, column = predicted class.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from alignseg_tf.losses import (
    IgnoreClass,
    ignored_ids,
    is_class,
    is_ignored,
    label_ids,
    logits_at_label_size,
)
from alignseg_tf.resized_logits import can_go_in_bands, classes_at

Tensor = Any

# A count is high * _LIMB + low, two whole numbers held in float32. Each stays below 2**24, up to
# where float32 holds every whole number, while the count goes to 2**40. Integers would be plainer
# but JAX has no int64 by default, and TensorFlow has no int32 variables on a GPU (they stay on
# the host, where a step compiled by XLA cannot use them). The limb is far below 2**24 because
# under tf.distribute the low parts of all replicas (up to 256) are summed without a carry.
_LIMB = 2**16

# Pixels are dealt to this many groups, and each group is counted apart, for segment_sum adds in
# float32 on the PyTorch backend and there a count stops at 2**24: a batch may have 16 * 2**24
# pixels. On a GPU, groups also keep atomic additions from meeting in a few cells.
_GROUPS = 16


def _check_confusion(confusion: np.ndarray) -> np.ndarray:
    confusion = np.asarray(confusion, np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(
            "A confusion matrix must be square, [classes, classes]. "
            f"Received: shape {confusion.shape}"
        )
    return confusion


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Return intersection over union of each class, float64 [C]; NaN for absent classes.

    A class is absent when it is neither in the labels nor predicted.
    """
    confusion = _check_confusion(confusion)
    intersection = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    iou = np.full(len(confusion), np.nan)
    np.divide(intersection, union, out=iou, where=union > 0)
    return iou


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU over the classes that are not absent; NaN when all are."""
    iou = iou_per_class(confusion)
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Return the share of pixels whose predicted class is right; NaN without pixels."""
    confusion = _check_confusion(confusion)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total > 0 else float("nan")


@keras.saving.register_keras_serializable(package="alignseg_tf")
class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union of the classes, over all pixels since the last reset.

    `y_true` is class ids [B, H, W] or [B, H, W, 1]. `y_pred` is logits [B, h, w, C], a floating
    array, or predicted ids [B, H, W] or [B, H, W, 1], an integer array. Pixels whose true id is
    ignored are not counted. Other pixels whose true or predicted id is not one of 0 .. C-1 are
    counted apart: see `out_of_range` and `RaiseOnInvalidLabels`.

    `result` is the mean over the classes that are in the labels or predicted, in float32, and 0
    before the first pixel. A class in `ignore_class` is never in the labels, so it is part of
    the mean, with IoU 0, only where it is predicted. The other methods read the counts out to
    NumPy; they are for eager code.

    Counts are exact up to 2**40 in a cell of the confusion matrix, for batches of up to 2**28
    pixels, and are summed over the replicas of `tf.distribute`.

    Args:
        num_classes: number of classes C.
        ignore_class: id or ids of pixels to leave out, within or outside of the classes; None
            for no such id.
        class_names: one name a class, or None.
        name: name of the metric.

    Example:
        >>> import numpy as np
        >>> metric = MeanIoU(num_classes=3, class_names=["road", "car", "bicycle"])
        >>> metric.update_state(np.array([[[0, 0, 1, 255]]]), np.array([[[0, 1, 1, 1]]]))
        >>> round(float(metric.result()), 4)
        0.5
        >>> metric.confusion_matrix().tolist()
        [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
        >>> metric.absent_classes()
        ['bicycle']
    """

    def __init__(
        self,
        num_classes: int,
        ignore_class: IgnoreClass = 255,
        class_names: Sequence[str] | None = None,
        name: str | None = "mean_iou",
    ) -> None:
        super().__init__(name=name, dtype="float32")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"`class_names` must hold one name for each of the {num_classes} classes. "
                f"Received: {len(class_names)} names"
            )
        self.num_classes = num_classes
        self.ignore_class = ignore_class
        self.class_names = class_names
        # The confusion matrix row by row, then the pixels out of range.
        cells = num_classes * num_classes + 1
        self._low = self.add_variable((cells,), "zeros", dtype="float32", name="pixels_low")
        self._high = self.add_variable((cells,), "zeros", dtype="float32", name="pixels_high")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Count the pixels of a batch."""
        if sample_weight is not None:
            raise ValueError(
                "MeanIoU counts whole pixels: it takes no `sample_weight` and belongs in "
                "`metrics`, not in `weighted_metrics`; give pixels to leave out an ignored id. "
                f"Received: sample_weight={sample_weight}"
            )
        truth = label_ids(ops.convert_to_tensor(y_true))
        predicted = self._predicted_ids(ops.convert_to_tensor(y_pred), truth)
        counted = ops.logical_not(is_ignored(truth, self.ignore_class))
        in_matrix = ops.logical_and(
            is_class(truth, self.num_classes), is_class(predicted, self.num_classes)
        )
        out_of_range = self.num_classes * self.num_classes
        cell = ops.where(in_matrix, truth * self.num_classes + predicted, out_of_range)
        self._add(ops.reshape(cell, (-1,)), ops.reshape(counted, (-1,)))

    def _predicted_ids(self, y_pred: Tensor, truth: Tensor) -> Tensor:
        """Return the predicted ids, int32 [B, H, W]."""
        shape = tuple(y_pred.shape)
        if "int" in keras.backend.standardize_dtype(y_pred.dtype):
            if len(shape) == 4 and shape[-1] == 1:
                y_pred, shape = ops.squeeze(y_pred, axis=-1), shape[:3]
            sides = zip(shape, truth.shape, strict=False)
            if len(shape) != 3 or any(None not in pair and pair[0] != pair[1] for pair in sides):
                raise ValueError(
                    "Predicted ids, an integer `y_pred`, must have the shape of the labels, "
                    f"{tuple(truth.shape)}. Received: shape {shape}"
                )
            return ops.cast(y_pred, "int32")
        if len(shape) != 4 or shape[-1] != self.num_classes:
            raise ValueError(
                "`y_pred` must be floating logits [B, h, w, classes] with "
                f"{self.num_classes} classes, or integer ids [B, H, W]. "
                f"Received: shape {shape}, dtype {keras.backend.standardize_dtype(y_pred.dtype)}"
            )
        if can_go_in_bands(y_pred, truth):
            return classes_at(y_pred, tuple(truth.shape[1:3]))
        return ops.cast(ops.argmax(logits_at_label_size(y_pred, truth), axis=-1), "int32")

    def _add(self, cell: Tensor, counted: Tensor) -> None:
        """Add one to each of the cells [N] where `counted` [N]."""
        cells = self.num_classes * self.num_classes + 1
        # For 0.5 million pixels, 19 and 150 classes, in ms on two CPU cores: segment_sum in
        # groups 2 and 3 (XLA 1 and 1, JAX 1 and 1, PyTorch 5 and 5), product of one-hot matrices
        # 10 and 99 (JAX 27 and 267, PyTorch 138 and 1134). ops.bincount is the fastest, but JAX
        # cannot trace it.
        group = ops.arange(ops.shape(cell)[0], dtype="int32") % _GROUPS
        counts = ops.segment_sum(
            ops.cast(counted, "float32"), group * cells + cell, num_segments=_GROUPS * cells
        )
        counts = ops.reshape(counts, (_GROUPS, cells))
        high = ops.floor(counts / _LIMB)
        low = self._low + ops.sum(counts - high * _LIMB, axis=0)
        carry = ops.floor(low / _LIMB)
        self._low.assign(low - carry * _LIMB)
        self._high.assign(self._high + ops.sum(high, axis=0) + carry)

    def result(self) -> Tensor:
        """Return the mean IoU over the classes in the labels or predicted, a float32 scalar."""
        counts = (self._high * float(_LIMB) + self._low)[:-1]
        confusion = ops.reshape(counts, (self.num_classes, self.num_classes))
        intersection = ops.diagonal(confusion)
        union = ops.sum(confusion, axis=0) + ops.sum(confusion, axis=1) - intersection
        iou = intersection / ops.maximum(union, 1.0)
        present = ops.sum(ops.cast(union > 0, "float32"))
        return ops.sum(iou) / ops.maximum(present, 1.0)

    def _counts(self) -> np.ndarray:
        low, high = (
            ops.convert_to_numpy(limb).astype(np.int64) for limb in (self._low, self._high)
        )
        return high * _LIMB + low

    def confusion_matrix(self) -> np.ndarray:
        """Return the pixel counts, int64 [C, C]: row = true class, column = predicted class."""
        return self._counts()[:-1].reshape(self.num_classes, self.num_classes)

    def out_of_range(self) -> int:
        """Return how many pixels were not ignored and yet had an id that is no class."""
        return int(self._counts()[-1])

    def per_class_iou(self) -> np.ndarray:
        """Return the IoU of each class, float64 [C]; NaN for absent classes."""
        return iou_per_class(self.confusion_matrix())

    def absent_classes(self) -> list[str] | list[int]:
        """Return the classes that were neither in the labels nor predicted: names, else ids."""
        absent = np.flatnonzero(np.isnan(self.per_class_iou())).tolist()
        if self.class_names is None:
            return absent
        return [self.class_names[index] for index in absent]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "ignore_class": self.ignore_class,
            "class_names": self.class_names,
        }


def mean_iou_metrics(metrics: Sequence[keras.metrics.Metric]) -> Iterator[MeanIoU]:
    """Find the `MeanIoU` among a model's `metrics`, also within those that `compile` wraps."""
    for metric in metrics:
        if isinstance(metric, MeanIoU):
            yield metric
        else:  # compile() wraps its metrics in one that holds them
            yield from mean_iou_metrics(getattr(metric, "metrics", ()))


class RaiseOnInvalidLabels(keras.callbacks.Callback):
    """Stop `fit` or `evaluate` when labels hold ids that are neither a class nor ignored.

    Losses skip such pixels, so wrong id maps or a wrong ignore set would train silently. The
    check reads the counter of the compiled `MeanIoU` metrics outside of the graph: at the first
    batch, every `check_every` batches, and at the end of each epoch and evaluation.

    Args:
        check_every: training batches between two checks; each waits for the device.

    Raises:
        ValueError: labels are out of range, or the model is compiled without `MeanIoU`.
    """

    def __init__(self, check_every: int = 100) -> None:
        super().__init__()
        if check_every < 1:
            raise ValueError(
                f"`check_every` must be at least 1. Received: check_every={check_every}"
            )
        self.check_every = check_every
        self._training_batches = 0
        self._in_epoch = False

    def _check(self) -> None:
        metrics = list(mean_iou_metrics(self.model.metrics))
        if not metrics:
            raise ValueError(
                "RaiseOnInvalidLabels reads the counter of a MeanIoU metric: expected one in "
                "compile(metrics=...). Received: none"
            )
        for metric in metrics:
            pixels = metric.out_of_range()
            if pixels:
                self._in_epoch = False
                raise ValueError(
                    f"Labels must be 0 .. {metric.num_classes - 1}, or ignored: "
                    f"{ignored_ids(metric.ignore_class)}. Received: {pixels} pixels with other "
                    f"ids, counted by metric {metric.name!r}"
                )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start counting batches."""
        self._training_batches = 0
        self._in_epoch = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Check now and then."""
        if self._training_batches % self.check_every == 0:
            self._check()
        self._training_batches += 1

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the epoch's training pixels: validation is about to reset the counter."""
        if self._in_epoch:
            self._check()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Check the evaluated pixels."""
        self._check()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the pixels since the last reset."""
        self._check()
        self._in_epoch = False
