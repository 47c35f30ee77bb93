"""A trained model in the forms that others run: SavedModel, TFLite, ONNX.

A part is imported when its name is first used: `inference_model` needs no TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignseg_tf.export.agreement import Agreement, compare_networks
    from alignseg_tf.export.onnx import export_onnx
    from alignseg_tf.export.saved_model import export_saved_model
    from alignseg_tf.export.tflite import export_tflite
    from alignseg_tf.inference.graph import inference_model

# What `export_tflite` may be asked for, see `tflite`.
QUANTIZATIONS = ("float32", "float16", "dynamic", "int8")
OUTPUTS = ("class_map", "logits")
# What `export_saved_model` may be asked for.
SAVED_MODEL_QUANTIZATIONS = ("float32", "float16", "bfloat16")
# Those of its `operations` that need one image size, since XLA compiles for each size.
SIZED_OPERATIONS = ("fused", "keras")
SAVED_MODEL_OPERATIONS = ("tensorflow", *SIZED_OPERATIONS)

_MODULES = {
    "Agreement": "agreement",
    "compare_networks": "agreement",
    "export_onnx": "onnx",
    "export_saved_model": "saved_model",
    "export_tflite": "tflite",
    "inference_model": "inference_graph",
}

__all__ = [
    "OUTPUTS",
    "QUANTIZATIONS",
    "SAVED_MODEL_OPERATIONS",
    "SAVED_MODEL_QUANTIZATIONS",
    "SIZED_OPERATIONS",
    "Agreement",
    "compare_networks",
    "export_onnx",
    "export_saved_model",
    "export_tflite",
    "inference_model",
    "saved_model_forms",
]


def saved_model_forms(image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return every form of a SavedModel, as the arguments of `export_saved_model` that ask for it.

    Args:
        image_size: height and width of the forms for one size.
    """
    return [
        {"operations": operations, "quantization": quantization, "image_size": size}
        for operations in SAVED_MODEL_OPERATIONS
        for quantization in SAVED_MODEL_QUANTIZATIONS
        for size in ((image_size,) if operations in SIZED_OPERATIONS else (None, image_size))
    ]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
