"""Evaluate a model on labelled images.

Names are imported when they are first used, since evaluation needs TensorFlow.
"""

from typing import TYPE_CHECKING

from alignseg_tf.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from alignseg_tf.evaluation.evaluator import evaluate, evaluate_model
    from alignseg_tf.evaluation.report import Report

__all__ = ["Report", "evaluate", "evaluate_model"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Report": "alignseg_tf.evaluation.report",
        "evaluate": "alignseg_tf.evaluation.evaluator",
        "evaluate_model": "alignseg_tf.evaluation.evaluator",
    },
)
