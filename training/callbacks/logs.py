"""What Keras reports of a step or an epoch, under the names that a run's records use."""

from typing import Any

import keras
import numpy as np

from alignseg_tf.metrics import MeanIoU, mean_iou_metrics

Logs = dict[str, Any] | None

# The column of `metrics.csv` by which the best model is chosen.
VALIDATION_METRIC = "val_mean_iou"


def short_names(logs: Logs) -> dict[str, Any]:
    """Return logs in which the segmentation head's mean IoU has the name of a lone output's.

    Keras puts the name of the output into the name of a metric where there are several.
    """
    return {
        name.replace("segmentation_mean_iou", "mean_iou"): value
        for name, value in (logs or {}).items()
    }


def learning_rate(model: keras.Model) -> float:
    """Return the learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def class_iou(model: keras.Model) -> dict[str, float]:
    """Return the IoU of each class in what the model's `MeanIoU` has counted since its reset.

    At the end of an epoch with validation that is the validation. NaN is a class that occurs
    neither in the labels nor in the predictions.

    Raises:
        ValueError: the model is compiled without a `MeanIoU`.
    """
    found: list[MeanIoU] = list(mean_iou_metrics(model.metrics))
    if not found:
        raise ValueError("expected a MeanIoU in compile(metrics=...). Received: none")
    names = found[0].class_names or [f"class {i}" for i in range(found[0].num_classes)]
    return dict(zip(names, found[0].per_class_iou().tolist(), strict=True))


def loss_terms(model: keras.Model, logs: dict[str, Any]) -> dict[str, float]:
    """Split the loss of an epoch into its terms.

    Args:
        model: compiled with losses and `loss_weights` by output.
        logs: with `loss` and, where there are several outputs, `OUTPUT_loss`.

    Returns:
        `total`, the loss that is minimized; each output's own loss, before its weight; and
        `regularization`, what the total holds beyond the weighted sum of these, where layers
        have penalties. Weight decay is in no loss: it acts in the optimizer.
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
    """Return the length of all trained weights as one vector, on which weight decay acts."""
    squares = [
        np.sum(np.square(keras.ops.convert_to_numpy(weight), dtype=np.float64))
        for weight in model.trainable_weights
    ]
    return float(np.sqrt(np.sum(squares)))
