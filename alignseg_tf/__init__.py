"""AlignSeg for Keras 3: feature-aligned semantic segmentation.

The model, its layers, losses and metrics run on every Keras backend and are imported here, which
registers them, so that a saved model loads after `import alignseg_tf`. What needs TensorFlow
(data, evaluation, prediction, export) is imported when its name is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from alignseg_tf.system.quiet import import_tensorflow_quietly, is_own_command

if is_own_command():
    import_tensorflow_quietly()

# Importing `inference.layers` registers the layers of exported graphs.
from alignseg_tf import backbones, layers, losses, metrics, official_weights, optimizers
from alignseg_tf.inference import layers as _inference_layers  # noqa: F401
from alignseg_tf.model import AlignSeg
from alignseg_tf.version import __version__

if TYPE_CHECKING:
    from alignseg_tf import data, evaluation, export, prediction, visualization
    from alignseg_tf.prediction import Predictor

__all__ = [
    "AlignSeg",
    "Predictor",
    "__version__",
    "backbones",
    "data",
    "evaluation",
    "export",
    "layers",
    "losses",
    "metrics",
    "official_weights",
    "optimizers",
    "prediction",
    "visualization",
]


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        return importlib.import_module("alignseg_tf.prediction").Predictor
    if name in __all__:
        return importlib.import_module(f"alignseg_tf.{name}")
    raise AttributeError(f"module 'alignseg_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
