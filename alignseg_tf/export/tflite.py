"""A trained model as a TFLite file of built-in operations, checked by LiteRT.

Quantizations:

    float32    the model's numbers
    float16    weights in 16 bits, half the size; computed in float32 on a CPU
    dynamic    weights in 8 bits; activations become 8 bits where an operation can use that
    int8       weights and activations in 8 bits, ranges measured on images; positions in float32
"""

import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from alignseg_tf.export.agreement import Agreement, check_agreement, compare_networks
from alignseg_tf.export.quantization import OUTPUTS, QUANTIZATIONS
from alignseg_tf.export.tflite_metadata import with_metadata
from alignseg_tf.inference.graph import inference_model
from alignseg_tf.inference.layers import resize_by_kernel
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg
from alignseg_tf.prediction.saved_networks import (
    TFLITE_LABEL_SPACE_FILE,
    TFLITE_LABELS_FILE,
    KerasNetwork,
    TfliteNetwork,
    check_class_count,
    import_litert,
    label_space_of,
    logits_model,
)
from alignseg_tf.prediction.tiling import resized
from alignseg_tf.system.choices import check_choice
from alignseg_tf.system.files import atomic_path, check_file
from alignseg_tf.system.progress import progress_bar
from alignseg_tf.system.quiet import silent_stderr

# Maximum number of calibration images; of more, these are evenly spread.
CALIBRATION_IMAGES = 100


def export_tflite(
    model: AlignSeg,
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    quantization: str = "float32",
    output: str = "class_map",
    calibration_images: Sequence[np.ndarray] | None = None,
    check_images: Iterable[np.ndarray] | None = None,
    overwrite: bool = False,
) -> Agreement:
    """Write a `.tflite` file, run it with LiteRT and compare it with the model.

    The file takes `images`, uint8 RGB [1, H, W, 3], and uses only built-in operations. It holds
    names and colours of the classes in `classes.json`, and TFLite metadata with `labels.txt`.

    Args:
        model: the model to write; it is not changed.
        path: the `.tflite` file.
        image_size: height and width of all images, at least 32; None for any size, which phones'
            accelerators and 8-bit activations do not support.
        quantization: one of `QUANTIZATIONS`.
        output: `class_map`, uint8 [1, H, W], or `logits`, float32 at stride 4 [1, l, l, classes],
            for tiling, several scales and probabilities.
        calibration_images: for `int8`: typical uint8 RGB images; 100 of them are resized and used.
        check_images: uint8 RGB images to compare on; one of noise by default.
        overwrite: replace a file at `path` even if no export wrote it.

    Raises:
        ImportError: LiteRT is not installed.
        ValueError: an argument is out of range, `int8` lacks a size or images, operations are not
            built in, `path` is a file that no export wrote, or a float32 file disagrees with the
            model. `path` is then unchanged.
    """
    path = Path(path)
    _check_arguments(model, path, image_size, quantization, output, calibration_images)
    check_tflite_path(path, overwrite)
    import_litert(path)
    images = [
        resized(image, image_size or image.shape[:2])
        for image in spread(calibration_images or (), CALIBRATION_IMAGES)
    ]
    with saved_graph(model, image_size, output) as folder:
        content = converted(folder, quantization, images)
    if "CUSTOM" in operators(content):
        raise ValueError(
            f"{path}: the model needs operators that are not built into TFLite; expected only "
            "built-in ones. Nothing was written"
        )
    content = with_metadata(content, label_space_of(model), output)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        agreement = compare_networks(KerasNetwork(model), TfliteNetwork(temporary), check_images)
        if quantization == "float32":
            check_agreement(agreement, path)
    return agreement


def check_tflite_path(path: Path, overwrite: bool) -> None:
    """Raise a `ForeignFileError` for a file that no export wrote, unless `overwrite`."""
    check_file(path, "export", _has_classes, overwrite)


def _has_classes(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {TFLITE_LABEL_SPACE_FILE, TFLITE_LABELS_FILE} <= set(archive.namelist())


def _check_arguments(
    model: AlignSeg,
    path: Path,
    image_size: tuple[int, int] | None,
    quantization: str,
    output: str,
    calibration_images: Sequence[np.ndarray] | None,
) -> None:
    check_class_count(model.num_classes)
    if path.suffix != ".tflite":
        raise ValueError(f"The file must end in .tflite. Received: {path}")
    check_choice("quantization", quantization, QUANTIZATIONS)
    check_choice("output", output, OUTPUTS)
    if image_size is not None and min(image_size) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"`image_size` must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE}. "
            f"Received: image_size={image_size}"
        )
    if quantization == "int8" and (image_size is None or not calibration_images):
        raise ValueError(
            "int8 needs a fixed `image_size`, and `calibration_images` like the images that will "
            f"come. Received: image_size={image_size}, "
            f"{len(calibration_images or ())} calibration images"
        )


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the items, evenly spread."""
    count = min(len(items), most)
    return [items[i * len(items) // count] for i in range(count)]


@contextmanager
def saved_graph(model: AlignSeg, image_size: tuple[int, int] | None, output: str) -> Iterator[str]:
    """Yield the folder of a SavedModel, from which the converter makes constants of variables."""
    head = logits_model(inference_model(model, "tflite"))
    shape = (1, *(image_size or (None, None)), 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, "images")])
    def run(images: Any) -> dict[str, Any]:
        logits = tf.cast(head(tf.cast(images, tf.float32), training=False), tf.float32)
        if output == "logits":
            return {output: logits}
        logits = resize_by_kernel(logits, image_size or tuple(tf.unstack(tf.shape(images)[1:3])))
        class_map = tf.argmax(logits, -1, output_type=tf.int32)  # no kernel for int64
        return {output: tf.cast(class_map, tf.uint8)}

    module = tf.Module()
    module.weights = [weight.value for weight in head.weights]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": run})
        yield folder


def converted(folder: str, quantization: str, images: Sequence[np.ndarray]) -> bytes:
    """Return the bytes of a `.tflite` file.

    Args:
        folder: from `saved_graph`.
        quantization: one of `QUANTIZATIONS`.
        images: for `int8`, of the size of the graph: activations' ranges are measured on them.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantization != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.target_spec.supported_ops.insert(0, tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
    with silent_stderr() as stderr:
        if quantization == "int8":
            bar = progress_bar(images, "measuring ranges", file=stderr)
            converter.representative_dataset = lambda: ([image[None]] for image in bar)
        return converter.convert()


def operators(content: bytes) -> set[str]:
    """Return the operators of a `.tflite` file's bytes; `CUSTOM` stands for one not built in."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = schema.Model.GetRootAs(content)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    # Codes from 127 on stand in a second field; the first then has a placeholder.
    return {names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes}
