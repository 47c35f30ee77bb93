"""Segment images, folders and videos with a model in any saved form.

Names are imported when they are first used, since prediction needs TensorFlow.
"""

from typing import TYPE_CHECKING

from alignseg_tf.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from alignseg_tf.prediction.outputs import Prediction
    from alignseg_tf.prediction.predictor import Predictor

__all__ = ["Prediction", "Predictor"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Prediction": "alignseg_tf.prediction.outputs",
        "Predictor": "alignseg_tf.prediction.predictor",
    },
)
