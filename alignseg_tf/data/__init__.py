"""Data: label spaces, readers, augmentation and pipelines.

Label spaces and readers need NumPy and Pillow only; what needs TensorFlow is imported when its
name is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.label_space import IGNORE, LABEL_SPACES, LabelSpace
from alignseg_tf.data.readers import (
    DataError,
    Sample,
    load_image,
    load_label,
    read_csv,
    read_folder,
)

if TYPE_CHECKING:
    from alignseg_tf.data.augmentation import Augmentation
    from alignseg_tf.data.pipeline import evaluation_dataset, training_dataset

__all__ = [
    "IGNORE",
    "LABEL_SPACES",
    "Augmentation",
    "DataError",
    "LabelSpace",
    "Sample",
    "check_samples",
    "evaluation_dataset",
    "load_image",
    "load_label",
    "read_csv",
    "read_folder",
    "training_dataset",
]

_NEED_TENSORFLOW = {
    "Augmentation": "augmentation",
    "evaluation_dataset": "pipeline",
    "training_dataset": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TENSORFLOW:
        return getattr(importlib.import_module(f"{__name__}.{_NEED_TENSORFLOW[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
