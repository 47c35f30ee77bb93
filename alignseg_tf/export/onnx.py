"""A trained model as an ONNX file, checked by ONNX Runtime."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from alignseg_tf.export.agreement import Agreement, check_agreement, compare_networks
from alignseg_tf.inference.graph import inference_model
from alignseg_tf.model import AlignSeg
from alignseg_tf.prediction.saved_networks import (
    ONNX_LABEL_SPACE_KEY,
    KerasNetwork,
    OnnxNetwork,
    label_space_of,
    logits_model,
)
from alignseg_tf.system.files import atomic_path, check_file

OPSET = 18


def export_onnx(
    model: AlignSeg,
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    check_images: Iterable[np.ndarray] | None = None,
    overwrite: bool = False,
) -> Agreement:
    """Write an `.onnx` file, run it with ONNX Runtime and compare it with the model.

    The file takes `images`, uint8 RGB [B, H, W, 3], and gives `logits`, float32 at stride 4
    [B, l, l, classes], whose outer cells lie on the outer pixels. Names and colours of the classes
    are in its metadata, under `classes`, as JSON.

    Args:
        model: the model to write; it is not changed.
        path: the `.onnx` file.
        image_size: height and width, if all images have one size.
        check_images: uint8 RGB images to compare on; one of noise by default.
        overwrite: replace a file at `path` even if no export wrote it.

    Raises:
        ImportError: tf2onnx or ONNX Runtime is not installed.
        ValueError: `path` does not end in `.onnx` or holds a file that no export wrote, or the
            file disagrees with the model. `path` is then unchanged.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"The file must end in .onnx. Received: {path}")
    try:
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            f"{path}: writing ONNX needs tf2onnx and onnxruntime: "
            f"pip install 'alignseg_tf[onnx]' ({error})"
        ) from error
    check_file(path, "export", _has_classes, overwrite)
    head = logits_model(inference_model(model, "tflite"))
    images = tf.TensorSpec((None, None, None, 3), tf.uint8, "images")

    @tf.function(input_signature=[images])
    def run(images: Any) -> dict[str, Any]:
        logits = head(tf.cast(images, tf.float32), training=False)
        return {"logits": tf.cast(logits, tf.float32)}

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)  # it tells every step of its work
    written, _ = tf2onnx.convert.from_function(run, [images], opset=OPSET)
    if image_size is not None:
        # Converted with a fixed size, maps come out a cell short: resizing is by a rounded factor.
        dimensions = written.graph.input[0].type.tensor_type.shape.dim
        dimensions[1].dim_value, dimensions[2].dim_value = image_size
    entry = written.metadata_props.add()
    entry.key, entry.value = ONNX_LABEL_SPACE_KEY, json.dumps(label_space_of(model).to_dict())
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.SerializeToString())
        agreement = compare_networks(KerasNetwork(model), OnnxNetwork(temporary), check_images)
        check_agreement(agreement, path)
    return agreement


def _has_classes(path: Path) -> bool:
    """Return whether a file is ONNX with the names of the classes in its metadata."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        metadata = onnx.load(path, load_external_data=False).metadata_props
    except (OSError, DecodeError):
        return False
    return any(entry.key == ONNX_LABEL_SPACE_KEY for entry in metadata)
