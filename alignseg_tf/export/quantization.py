"""Quantizations and outputs of exported models."""

from typing import Any

# What `export_tflite` may be asked for, see `tflite`.
QUANTIZATIONS = ("float32", "float16", "dynamic", "int8")
OUTPUTS = ("class_map", "logits")
# What `export_saved_model` may be asked for.
SAVED_MODEL_QUANTIZATIONS = ("float32", "float16", "bfloat16")
# Those of its `operations` that need one image size, since XLA compiles for each size.
SIZED_OPERATIONS = ("fused", "keras")
SAVED_MODEL_OPERATIONS = ("tensorflow", *SIZED_OPERATIONS)


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
