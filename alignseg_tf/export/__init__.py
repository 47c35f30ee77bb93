"""A trained model in the forms that others run: SavedModel, TFLite, ONNX.

A part is imported when its name is first used: `inference_model` needs no TensorFlow.
"""

from typing import TYPE_CHECKING

from alignseg_tf.export.quantization import (
    OUTPUTS,
    QUANTIZATIONS,
    SAVED_MODEL_QUANTIZATIONS,
    SIZED_OPERATIONS,
)
from alignseg_tf.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from alignseg_tf.export.agreement import Agreement, compare_networks
    from alignseg_tf.export.onnx import export_onnx
    from alignseg_tf.export.saved_model import export_saved_model
    from alignseg_tf.export.tflite import export_tflite
    from alignseg_tf.inference.graph import inference_model

__all__ = [
    "OUTPUTS",
    "QUANTIZATIONS",
    "SAVED_MODEL_QUANTIZATIONS",
    "SIZED_OPERATIONS",
    "Agreement",
    "compare_networks",
    "export_onnx",
    "export_saved_model",
    "export_tflite",
    "inference_model",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Agreement": "alignseg_tf.export.agreement",
        "compare_networks": "alignseg_tf.export.agreement",
        "export_onnx": "alignseg_tf.export.onnx",
        "export_saved_model": "alignseg_tf.export.saved_model",
        "export_tflite": "alignseg_tf.export.tflite",
        "inference_model": "alignseg_tf.inference.graph",
    },
)
