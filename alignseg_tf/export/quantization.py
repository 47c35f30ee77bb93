"""Quantizations and outputs of exported models."""

# Arguments of `export_tflite`, see `tflite`.
QUANTIZATIONS = ("float32", "float16", "dynamic", "int8")
OUTPUTS = ("class_map", "logits")
# Argument of `export_saved_model`.
SAVED_MODEL_QUANTIZATIONS = ("float32", "float16", "bfloat16")
# Operations of `export_saved_model` that need one image size: XLA compiles for each size.
SIZED_OPERATIONS = ("fused", "keras")
