"""A trained model as a SavedModel that needs TensorFlow alone."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.data.catalog import MAX_CLASSES
from alignseg_tf.files import atomic_path
from alignseg_tf.model import AlignSeg
from alignseg_tf.networks import (
    LABEL_SPACE_FILE,
    SavedModelNetwork,
    label_space_of,
    logits_model,
    segment,
)
from alignseg_tf.prediction import Predictor
from alignseg_tf.protocols import Protocol

DEFAULT_CHECK_SIZE = (192, 256)
# Rounding decides between classes of equal logits; anything more is a broken export.
LEAST_AGREEMENT = 0.99


def export_saved_model(
    model: AlignSeg, path: str | Path, check_images: Iterable[np.ndarray] | None = None
) -> float:
    """Write a SavedModel, load it again and compare it with the model.

    Signatures:
        `serving_default`: `images`, uint8 RGB [B, H, W, 3] of any size from 32 on ->
            `class_map`, uint8 [B, H, W].
        `serve_bytes`: `image_bytes`, string [B], JPEG or PNG files of any sizes ->
            `class_map_bytes`, string [B], PNG files whose grey values are class ids, each of its
            picture's size. EXIF orientation is ignored.
        `logits`: `images`, float32 RGB 0..255 [B, H, W, 3] -> `logits`, float32 at stride 4
            [B, l, l, classes], whose outer cells lie on the outer pixels.

    Args:
        model: the model to write; it is not changed.
        path: the folder to write, `.../VERSION` for model servers; it is replaced as a whole.
        check_images: uint8 RGB pictures to compare on; one of noise by default.

    Returns:
        The share of pixels on which the SavedModel and the model agree.

    Raises:
        ValueError: the model has more than 255 classes, `path` is a file, or the SavedModel
            does not agree with the model; what was at `path` stays then.
    """
    if model.num_classes > MAX_CLASSES:
        raise ValueError(
            f"Class maps are uint8: at most {MAX_CLASSES} classes. Received: {model.num_classes}"
        )

    def serve(images: Any) -> dict[str, Any]:
        return {"class_map": segment(model, images)}

    def serve_one(image_bytes: Any) -> Any:
        image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
        image = tf.ensure_shape(image, [None, None, 3])
        return tf.io.encode_png(segment(model, image[None])[0][..., None])

    def serve_bytes(image_bytes: Any) -> dict[str, Any]:
        return {"class_map_bytes": tf.map_fn(serve_one, image_bytes, parallel_iterations=1)}

    head = logits_model(model)

    def logits(images: Any) -> dict[str, Any]:
        return {"logits": tf.cast(head(images, training=False), tf.float32)}

    if Path(path).is_file():
        raise ValueError(f"{path}: expected a folder to write. Received: a file")

    with atomic_path(path) as temporary:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            "serving_default", serve, [tf.TensorSpec((None, None, None, 3), tf.uint8, "images")]
        )
        archive.add_endpoint(
            "serve_bytes", serve_bytes, [tf.TensorSpec((None,), tf.string, "image_bytes")]
        )
        archive.add_endpoint(
            "logits", logits, [tf.TensorSpec((None, None, None, 3), tf.float32, "images")]
        )
        archive.write_out(str(temporary), verbose=False)
        label_space_file = temporary / LABEL_SPACE_FILE
        label_space_file.parent.mkdir()
        content = json.dumps(label_space_of(model).to_dict(), indent=1)
        label_space_file.write_text(content, encoding="utf-8")
        agreement = compare(model, temporary, check_images)
        if agreement < LEAST_AGREEMENT:
            raise ValueError(
                f"{path}: the SavedModel gives the model's class to {100 * agreement:.2f} % of the "
                f"pixels, {100 * LEAST_AGREEMENT} % expected; nothing was written"
            )
    return agreement


def compare(model: AlignSeg, path: str | Path, images: Iterable[np.ndarray] | None = None) -> float:
    """Return the share of pixels to which `serving_default` and a model give the same class.

    Args:
        model: the model.
        path: the folder of the SavedModel.
        images: uint8 RGB pictures; one of noise by default.
    """
    if images is None:
        noise = np.random.default_rng(0).integers(0, 256, (*DEFAULT_CHECK_SIZE, 3))
        images = [noise.astype(np.uint8)]
    before, after = Predictor(model, Protocol(largest_whole=None)), SavedModelNetwork(Path(path))
    same = [before.class_map(image) == after.class_map(image) for image in images]
    return float(np.concatenate([agreement.ravel() for agreement in same]).mean())
