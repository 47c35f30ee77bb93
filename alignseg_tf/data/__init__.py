"""Data: label spaces, readers, augmentation and pipelines.

Label spaces and readers need only NumPy and Pillow. TensorFlow is imported at the first use of a
name that needs it.
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
    from alignseg_tf.data.pipeline import TrainingBatches, evaluation_dataset

__all__ = [
    "IGNORE",
    "LABEL_SPACES",
    "Augmentation",
    "DataError",
    "LabelSpace",
    "Sample",
    "TrainingBatches",
    "check_samples",
    "evaluation_dataset",
    "load_image",
    "load_label",
    "read_csv",
    "read_folder",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Augmentation": "alignseg_tf.data.augmentation",
        "TrainingBatches": "alignseg_tf.data.pipeline",
        "evaluation_dataset": "alignseg_tf.data.pipeline",
    },
)
