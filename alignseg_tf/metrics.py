"""Mean IoU from an exact confusion matrix, in pure `keras.ops`.

Labels are [B, H, W] pixels, logits [B, h, w, C] cells, resized to H, W when they differ. A
confusion matrix [C, C] counts pixels: row = true class, column = predicted class.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from alignseg_tf.logits_and_labels import (
    IgnoreClass,
    can_go_in_bands,
    classes_at,
    ignored_ids,
    is_class,
    is_ignored,
    label_ids,
    logits_at_label_size,
)

Tensor = Any

# `segment_sum` adds in float32 on the PyTorch backend, where a count stops at 2**24. Pixels are
# counted in this many groups, so a batch may have 16 * 2**24 pixels.
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

    `y_true` is class ids [B, H, W] or [B, H, W, 1]. `y_pred` is floating logits [B, h, w, C] or
    integer ids [B, H, W] or [B, H, W, 1]. Ignored pixels are not counted; `out_of_range` counts
    others whose true or predicted id is not in 0 .. C-1.

    `result` is the float32 mean over the classes in the labels or predicted; 0 without pixels. A
    class in `ignore_class` counts only where it is predicted, with IoU 0.

    Counts are exact up to 2**63 pixels a cell on TensorFlow, 2**31 on JAX and PyTorch, and 2**28
    pixels a batch. Beyond, `result` is NaN and the other methods raise an `OverflowError`.
    Replicas of `tf.distribute` add up.

    Args:
        num_classes: number of classes C.
        ignore_class: ignored id or ids; None for none.
        class_names: one name a class, or None.

    Example:
        >>> import numpy as np
        >>> metric = MeanIoU(num_classes=3, class_names=["road", "car", "bicycle"])
        >>> metric.update_state(np.array([[[0, 0, 1, 255]]]), np.array([[[0, 1, 1, 1]]]))
        >>> round(float(metric.result()), 4)
        0.5
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
        self.num_classes, self.class_names = num_classes, class_names
        self.ignore_class = ignore_class
        # The confusion matrix row by row, then the pixels out of range: int64 on TensorFlow, which
        # keeps int32 variables off a GPU; int32 elsewhere, since JAX has no int64 by default.
        shape = (num_classes * num_classes + 1,)
        self._counts = self.add_variable(shape, "zeros", dtype="int", name="pixels")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Count the pixels of a batch."""
        if sample_weight is not None:
            raise ValueError(
                "MeanIoU counts whole pixels: it takes no `sample_weight` and belongs in "
                "`metrics`, not in `weighted_metrics`; set ignored pixels to an ignored id. "
                f"Received: sample_weight={sample_weight}"
            )
        truth = label_ids(ops.convert_to_tensor(y_true))
        predicted = predicted_ids(ops.convert_to_tensor(y_pred), truth, self.num_classes)
        pixels = count_pixels(truth, predicted, self.num_classes, self.ignore_class)
        before = ops.convert_to_tensor(self._counts)
        total = before + ops.cast(pixels, before.dtype)
        # A count that has overflowed is negative, and stays so.
        self._counts.assign(ops.where(before < 0, before, total))

    def result(self) -> Tensor:
        """Return the mean IoU over the classes in the labels or predicted, a float32 scalar."""
        counts = ops.cast(self._counts, "float32")
        confusion = ops.reshape(counts[:-1], (self.num_classes, self.num_classes))
        intersection = ops.diagonal(confusion)
        union = ops.sum(confusion, axis=0) + ops.sum(confusion, axis=1) - intersection
        present = ops.sum(ops.cast(union > 0, "float32"))
        mean = ops.sum(intersection / ops.maximum(union, 1.0)) / ops.maximum(present, 1.0)
        return ops.where(ops.any(counts < 0), float("nan"), mean)

    def _read_counts(self) -> np.ndarray:
        counts = ops.convert_to_numpy(self._counts).astype(np.int64)
        if (counts < 0).any():
            raise OverflowError(
                f"metric {self.name!r}: expected at most 2**31 - 1 pixels a cell since the last "
                "reset. Received: more. Count over fewer images, or with `evaluate_model`"
            )
        return counts

    def confusion_matrix(self) -> np.ndarray:
        """Return the pixel counts, int64 [C, C]: row = true class, column = predicted class."""
        return self._read_counts()[:-1].reshape(self.num_classes, self.num_classes)

    def out_of_range(self) -> int:
        """Return the number of pixels that are not ignored and have an id that is no class."""
        return int(self._read_counts()[-1])

    def per_class_iou(self) -> np.ndarray:
        """Return the IoU of each class, float64 [C]; NaN for absent classes."""
        return iou_per_class(self.confusion_matrix())

    def absent_classes(self) -> list[str] | list[int]:
        """Return the classes neither in the labels nor predicted: names, else ids."""
        absent = np.flatnonzero(np.isnan(self.per_class_iou())).tolist()
        return [self.class_names[i] for i in absent] if self.class_names is not None else absent

    def get_config(self) -> dict[str, Any]:
        names = ("name", "num_classes", "ignore_class", "class_names")
        return {name: getattr(self, name) for name in names}


def predicted_ids(y_pred: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Return the predicted ids, int32 [B, H, W], of logits or ids for labels [B, H, W]."""
    shape = tuple(y_pred.shape)
    dtype = keras.backend.standardize_dtype(y_pred.dtype)
    if "int" in dtype:
        if len(shape) == 4 and shape[-1] == 1:
            y_pred, shape = ops.squeeze(y_pred, axis=-1), shape[:3]
        sides = zip(shape, truth.shape, strict=False)
        if len(shape) != 3 or any(None not in pair and pair[0] != pair[1] for pair in sides):
            raise ValueError(
                "Predicted ids, an integer `y_pred`, must have the shape of the labels, "
                f"{tuple(truth.shape)}. Received: shape {shape}"
            )
        return ops.cast(y_pred, "int32")
    if len(shape) != 4 or shape[-1] != num_classes:
        raise ValueError(
            f"`y_pred` must be floating logits [B, h, w, classes] with {num_classes} classes, or "
            f"integer ids [B, H, W]. Received: shape {shape}, dtype {dtype}"
        )
    if can_go_in_bands(y_pred, truth):
        return classes_at(y_pred, tuple(truth.shape[1:3]))
    return ops.cast(ops.argmax(logits_at_label_size(y_pred, truth), axis=-1), "int32")


def count_pixels(
    truth: Tensor, predicted: Tensor, num_classes: int, ignore_class: IgnoreClass
) -> Tensor:
    """Count pairs of ids [B, H, W], int32 [C * C + 1]: the confusion matrix, then the invalid."""
    counted = ops.logical_not(is_ignored(truth, ignore_class))
    valid = ops.logical_and(is_class(truth, num_classes), is_class(predicted, num_classes))
    cells = num_classes * num_classes + 1
    cell = ops.reshape(ops.where(valid, truth * num_classes + predicted, cells - 1), (-1,))
    group = ops.arange(ops.shape(cell)[0], dtype="int32") % _GROUPS
    counts = ops.segment_sum(
        ops.cast(ops.reshape(counted, (-1,)), "float32"),
        group * cells + cell,
        num_segments=_GROUPS * cells,
    )
    return ops.sum(ops.cast(ops.reshape(counts, (_GROUPS, cells)), "int32"), axis=0)


def mean_iou_metrics(metrics: Sequence[keras.metrics.Metric]) -> Iterator[MeanIoU]:
    """Find the `MeanIoU` among a model's `metrics`, also within those that `compile` wraps."""
    for metric in metrics:
        if isinstance(metric, MeanIoU):
            yield metric
        else:  # compile() wraps its metrics in one that holds them
            yield from mean_iou_metrics(getattr(metric, "metrics", ()))


class RaiseOnInvalidLabels(keras.callbacks.Callback):
    """Stop `fit` or `evaluate` when labels hold ids that are neither a class nor ignored.

    Losses skip such pixels, so wrong labels would train silently. The check reads the counter of
    the compiled `MeanIoU` metrics at the first batch, every `check_every` batches, and at the end
    of each epoch and evaluation.

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
        self._training_batches = 0
        self._in_epoch = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._training_batches % self.check_every == 0:
            self._check()
        self._training_batches += 1

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the epoch's training pixels: validation is about to reset the counter."""
        if self._in_epoch:
            self._check()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._check()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check()
        self._in_epoch = False
