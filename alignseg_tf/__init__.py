"""AlignSeg for Keras 3: feature-aligned semantic segmentation.

The model, its layers, losses and metrics run on every Keras backend and are imported here, which
registers them, so that a saved model loads after `import alignseg_tf`. What needs TensorFlow
(data, evaluation, prediction, export) is imported when its name is first used.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignseg_tf.processor import prepare_processor
from alignseg_tf.quiet import import_tensorflow_quietly

# While `python -m` looks for its module, the first argument is "-m": this is a command. So is
# the installed script.
if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name == "alignseg":
    prepare_processor()
    import_tensorflow_quietly()

from alignseg_tf import backbones, checkpoints, layers, losses, metrics, optimizers
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
    "checkpoints",
    "data",
    "evaluation",
    "export",
    "layers",
    "losses",
    "metrics",
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
