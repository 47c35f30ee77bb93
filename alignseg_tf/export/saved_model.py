"""A trained model as a SavedModel that needs only TensorFlow.

Its signatures (s is the side of a map at stride 4, whose outer cells lie on the outer pixels):

    serving_default    images, uint8 RGB [B, H, W, 3] -> class_map, uint8 [B, H, W]
    serve_bytes        image_bytes, string [B], JPEG or PNG files of any sizes ->
                       class_map_bytes, string [B], PNG files whose grey values are class ids, each
                       of its image's size; EXIF orientation is ignored
    probabilities      images, uint8 RGB [B, H, W, 3] -> probabilities, float32 [B, H, W, classes]
    logits             images, float32 RGB 0..255 [B, H, W, 3] -> logits, float32 [B, s, s, classes]
    offsets            of a model that aligns: images, uint8 RGB [B, H, W, 3] -> each offset field,
                       float32 [B, s, s, 2], (x, y) in pixels of the image: aggregation_p3_coarse,
                       aggregation_p3_fine, ..., context_modeling
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from alignseg_tf.export.agreement import Agreement, check_agreement, compare_networks
from alignseg_tf.export.model_card import CARD_FILE, model_card
from alignseg_tf.export.quantization import SAVED_MODEL_QUANTIZATIONS, SIZED_OPERATIONS
from alignseg_tf.inference.freezing import freeze
from alignseg_tf.inference.graph import CONTEXT_FIELD, inference_model, offset_fields
from alignseg_tf.inference.layers import resize_by_kernel
from alignseg_tf.layers.aligned_context_modeling import CONTEXT_BINS
from alignseg_tf.layers.sampling import interpolation_matrix, offsets_in_pixels
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg
from alignseg_tf.precision import with_dtype_policy
from alignseg_tf.prediction.saved_networks import (
    LABEL_SPACE_FILE,
    KerasNetwork,
    SavedModelNetwork,
    check_class_count,
    label_space_of,
    logits_model,
)
from alignseg_tf.system.choices import check_choice
from alignseg_tf.system.files import Output, atomic_folder, has_keys, write_text

# Maximum number of logits at image size in memory: 64 MiB.
LOGITS_AT_A_TIME = 2**24

CARD_IN_VERSION = LABEL_SPACE_FILE.with_name(CARD_FILE)

# The contents of a version's folder.
SAVED_MODEL = Output(
    "export",
    lambda folder: has_keys(folder / LABEL_SPACE_FILE, "classes"),
    (
        "saved_model.pb", "fingerprint.pb", "variables/*", LABEL_SPACE_FILE.as_posix(),
        CARD_IN_VERSION.as_posix(),
    ),
)  # fmt: skip


def export_saved_model(
    model: AlignSeg,
    path: str | Path,
    check_images: Iterable[np.ndarray] | None = None,
    image_size: tuple[int, int] | None = None,
    operations: str = "tensorflow",
    quantization: str = "float32",
    quality: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    about: str = "",
    overwrite: bool = False,
) -> Agreement:
    """Write the inference graph as a SavedModel, load it again and compare it with the model.

    Weights are constants of the graph. B, H and W are free, H and W from 32 on. A model card is
    written inside, and to the folder above a numbered `path`.

    Args:
        model: the model to write; it is not changed.
        path: the folder to write, `.../VERSION` for model servers. An older export is replaced.
        check_images: uint8 RGB images to compare on; one of noise by default.
        image_size: height and width, if all images have one size; only the batch is then free.
        operations: as in `inference_model`; `fused` and `keras` need an `image_size`.
        quantization: `float32`; `float16`: weights only; `bfloat16`: weights and activations, for
            processors with AVX512_BF16 or AMX.
        quality: for the model card, `Report.to_dict` of an evaluation.
        run: for the model card, values of the training run.
        about: for the model card, Markdown: data and their terms, intended use, failures.
        overwrite: replace the folder even if it holds files that no export wrote.

    Raises:
        ValueError: the model has more than 255 classes, an argument is out of range, `path` holds
            something else, or the SavedModel disagrees with the model. `path` then stays.
    """
    check_class_count(model.num_classes)
    check_choice("quantization", quantization, SAVED_MODEL_QUANTIZATIONS)
    if operations in SIZED_OPERATIONS and image_size is None:
        raise ValueError(
            f"`operations={operations!r}` wants an `image_size` for XLA. Received: image_size=None"
        )
    path = Path(path)
    with atomic_folder(path, SAVED_MODEL, overwrite) as temporary:
        signatures = _signatures(model, image_size, operations, quantization)
        tf.saved_model.save(tf.Module(), str(temporary), signatures=signatures)
        label_space = temporary / LABEL_SPACE_FILE
        label_space.parent.mkdir()
        label_space.write_text(json.dumps(label_space_of(model).to_dict(), indent=1), "utf-8")
        agreement = compare_networks(
            KerasNetwork(model), SavedModelNetwork(temporary), check_images
        )
        if quantization != "bfloat16":  # like 8 bits, it may be further off
            check_agreement(agreement, path)
        named = (path.parent if path.name.isdigit() else path).resolve().name
        form = _form(image_size, operations, quantization)
        card = model_card(model, named, agreement, quality, run, about, form)
        (temporary / CARD_IN_VERSION).write_text(card, encoding="utf-8")
        replace = overwrite or _is_card_of_a_version(path.parent / CARD_FILE)
    if path.name.isdigit():
        _write_card_beside(path, card, replace)
    return agreement


def _write_card_beside(version: Path, card: str, replace: bool) -> None:
    beside = version.parent / CARD_FILE
    if replace:
        write_text(beside, card)
    else:
        print(
            f"Warning: {beside} is not a version's card, or was changed since: it stays. "
            f"The new card is {version / CARD_IN_VERSION}",
            file=sys.stderr,
        )


def _is_card_of_a_version(card: Path) -> bool:
    """Return whether a card next to the versions is one of theirs, or missing."""
    if not card.exists():
        return not card.is_symlink()
    of_versions = card.parent.glob(f"*/{CARD_IN_VERSION.as_posix()}")
    return card.is_file() and card.read_bytes() in {path.read_bytes() for path in of_versions}


_PRECISIONS = {
    "float32": "Weights and computation in float32.",
    "float16": "Weights of 16 bits (float16), computation in float32.",
    "bfloat16": "Weights and activations of 16 bits (bfloat16), coordinates and logits in float32.",
}


def _form(image_size: tuple[int, int] | None, operations: str, quantization: str) -> str:
    """Say what this SavedModel is, for its card."""
    sentences = _PRECISIONS[quantization]
    if image_size is not None:
        height, width = image_size
        sentences += f" It takes images of {width} x {height} pixels only."
    if operations in SIZED_OPERATIONS:
        sentences += " XLA compiles it on the first call of each batch size."
    return sentences


def _frozen_network(
    model: AlignSeg, shape: tuple[int | None, ...], operations: str, kept_as: str
) -> Any:
    """Return a `tf.function` from float32 images to logits and a dict of offsets in pixels."""
    if kept_as == "bfloat16":
        model = with_dtype_policy(model, "mixed_bfloat16")
    inference = inference_model(model, operations)
    outputs = {"logits": logits_model(inference).output, **offset_fields(model, inference)}
    network = keras.Model(inference.inputs[0], outputs)
    frozen = freeze(network, (shape[1], shape[2]), kept_as)

    # The network is traced once, and the signatures call what was traced.
    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def run(images: Any) -> tuple[Any, dict[str, Any]]:
        tf.debugging.assert_greater_equal(
            tf.reduce_min(tf.shape(images)[1:3]),
            MIN_IMAGE_SIZE,
            f"Images must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels.",
        )
        outputs = frozen(images)
        logits = tf.cast(outputs.pop("logits"), tf.float32)
        size = ops.shape(images)[1:3]
        offsets = {}
        for name, field in outputs.items():
            read_size = ops.shape(field)[1:3]
            if name == CONTEXT_FIELD:
                read_size = CONTEXT_BINS, CONTEXT_BINS
            offsets[name] = offsets_in_pixels(field, model.sampling, read_size, size)
        return logits, offsets

    return run


def _signatures(
    model: AlignSeg, image_size: tuple[int, int] | None, operations: str, kept_as: str
) -> dict[str, Any]:
    """Return the signatures of the SavedModel."""
    shape = (None, *(image_size or (None, None)), 3)
    run = _frozen_network(model, shape, operations, kept_as)

    def at_image_size(images: Any) -> Any:
        logits = run(tf.cast(images, tf.float32))[0]
        return resize_by_kernel(logits, ops.shape(images)[1:3])

    def class_map(images: Any) -> Any:
        if operations == "keras":  # for XLA, which must know sizes when it compiles
            return _largest(at_image_size(images))
        logits = run(tf.cast(images, tf.float32))[0]
        return class_ids(logits, tuple(tf.unstack(tf.shape(images)[1:3])))

    def class_map_png(image_bytes: Any) -> Any:
        image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
        image = tf.ensure_shape(image, shape[1:])
        return tf.io.encode_png(class_map(image[None])[0][..., None])

    uint8 = tf.TensorSpec(shape, tf.uint8, "images")
    float32 = tf.TensorSpec(shape, tf.float32, "images")
    encoded = tf.TensorSpec((None,), tf.string, "image_bytes")
    signatures = {
        "serving_default": tf.function(lambda images: {"class_map": class_map(images)}, [uint8]),
        "serve_bytes": tf.function(
            lambda image_bytes: {
                "class_map_bytes": tf.map_fn(class_map_png, image_bytes, parallel_iterations=1)
            },
            [encoded],
        ),
        "probabilities": tf.function(
            lambda images: {"probabilities": tf.nn.softmax(at_image_size(images))}, [uint8]
        ),
        "logits": tf.function(lambda images: {"logits": run(images)[0]}, [float32]),
    }
    if run.get_concrete_function().structured_outputs[1]:
        signatures["offsets"] = tf.function(
            lambda images: run(tf.cast(images, tf.float32))[1], [uint8]
        )
    return signatures


def class_ids(logits: Any, size: tuple[Any, Any]) -> Any:
    """Return the classes of pixels, uint8 [B, H, W], in bands of rows that bound the memory.

    Args:
        logits: float32 [B, l, l, classes], whose outer cells lie on the outer pixels.
        size: (H, W) of the image, int32 scalars.
    """
    batch, cells_high, cells_wide, classes = tf.unstack(tf.shape(logits))
    height, width = size

    def in_bands() -> Any:
        rows = interpolation_matrix(height, cells_high)
        flat = tf.reshape(logits, (batch, cells_high, cells_wide * classes))
        band = tf.maximum(LOGITS_AT_A_TIME // (batch * width * classes), 1)

        def one(start: Any, bands: Any) -> tuple[Any, Any]:
            some = rows[start : start + band]
            count = tf.shape(some)[0]
            high = tf.reshape(some @ flat, (batch, count, cells_wide, classes))
            ids = _largest(resize_by_kernel(high, (count, width)))
            return start + band, bands.write(bands.size(), tf.transpose(ids, (1, 0, 2)))

        empty = tf.TensorArray(
            tf.uint8, 0, dynamic_size=True, infer_shape=False, element_shape=(None, None, None)
        )
        _, bands = tf.while_loop(
            lambda start, bands: start < height, one, (0, empty), parallel_iterations=1
        )
        return tf.transpose(bands.concat(), (1, 0, 2))

    values = tf.cast(batch * height * classes, tf.int64) * tf.cast(width, tf.int64)
    return tf.cond(
        values <= LOGITS_AT_A_TIME, lambda: _largest(resize_by_kernel(logits, size)), in_bands
    )


def _largest(logits: Any) -> Any:
    return tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)
