"""Data: label spaces, readers, augmentation and pipelines.

Label spaces and readers need NumPy and Pillow only; what needs TensorFlow is imported when its
name is first used.
"""

from typing import TYPE_CHECKING

from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.datasets.catalog import LABEL_SPACES
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import DataError, Sample, read_csv, read_folder
from alignseg_tf.data.readers import load_image, load_label
from alignseg_tf.system.lazy import lazy_attributes

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

__getattr__ = lazy_attributes(
    __name__,
    {
        "Augmentation": "alignseg_tf.data.augmentation",
        "evaluation_dataset": "alignseg_tf.data.pipeline",
        "training_dataset": "alignseg_tf.data.pipeline",
    },
)
