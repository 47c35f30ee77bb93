"""A trained model in the forms that others run: SavedModel, TFLite, ONNX."""

from alignseg_tf.export.agreement import Agreement, compare_networks
from alignseg_tf.export.inference_graph import inference_model
from alignseg_tf.export.saved_model import export_saved_model

__all__ = ["Agreement", "compare_networks", "export_saved_model", "inference_model"]
