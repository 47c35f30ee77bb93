"""The logs of Keras for a step or an epoch, under the names of a run's records."""

from typing import Any

import keras
import numpy as np

from alignseg_tf.metrics import MeanIoU, mean_iou_metrics

Logs = dict[str, Any] | None

# The column of `metrics.csv` that chooses the best model.
VALIDATION_METRIC = "val_mean_iou"


def short_names(logs: Logs) -> dict[str, Any]:
    """Return logs without the name of the output that Keras puts before a mean IoU."""
    return {
        name.replace("segmentation_mean_iou", "mean_iou"): value
        for name, value in (logs or {}).items()
    }


def learning_rate(model: keras.Model) -> float:
    """Return the learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def class_iou(model: keras.Model) -> dict[str, float]:
    """Return the IoU of each class in the counts of the model's `MeanIoU`, NaN if it is absent.

    At the end of an epoch with validation, the counts are those of the validation.
    """
    metric: MeanIoU = next(iter(mean_iou_metrics(model.metrics)))
    return dict(zip(metric.class_names or (), metric.per_class_iou().tolist(), strict=True))


def loss_terms(model: keras.Model, logs: dict[str, Any]) -> dict[str, float]:
    """Split the loss of an epoch into its terms.

    `logs` has `loss` and, for several outputs, `OUTPUT_loss`. The terms are `total`, the minimized
    loss; the unweighted loss of each output; and `regularization`, the penalties of layers. Weight
    decay is in no loss.
    """
    terms = {"total": float(logs["loss"])}
    outputs = {
        name.removesuffix("_loss"): float(logs[name]) for name in logs if name.endswith("_loss")
    }
    if outputs and model.losses:
        weights = model.get_compile_config()["loss_weights"] or dict.fromkeys(outputs, 1.0)
        heads = sum(weights[name] * value for name, value in outputs.items())
        terms["regularization"] = terms["total"] - heads
    return terms | outputs


def weight_norm(model: keras.Model) -> float:
    """Return the Euclidean norm of all trained weights."""
    arrays = map(keras.ops.convert_to_numpy, model.trainable_weights)
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays)))
