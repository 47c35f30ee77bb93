"""Pictures in, class maps out at the pictures' own size, from any saved form of a model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.files import atomic_path
from alignseg_tf.layers import resize_align_corners
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg

# Where an exported SavedModel keeps its label space: beside the assets, as model servers want.
LABEL_SPACE_FILE = Path("assets.extra") / "classes.json"


@dataclass(frozen=True)
class Prediction:
    """What a model sees in a picture.

    Attributes:
        image: the picture, uint8 RGB [H, W, 3].
        class_map: class ids, uint8 [H, W].
        label_space: names and colours of the classes.
    """

    image: np.ndarray
    class_map: np.ndarray
    label_space: LabelSpace

    def overlay(self) -> np.ndarray:
        """Return the class map painted over the picture, uint8 [H, W, 3]."""
        return visualization.overlay(self.image, self.class_map, self.label_space.palette)

    def save(self, folder: str | Path, stem: str) -> tuple[Path, Path]:
        """Write `STEM_classes.png`, whose grey values are class ids, and `STEM_overlay.png`.

        Returns:
            The two paths.
        """
        paths = []
        for suffix, content in (("classes", self.class_map), ("overlay", self.overlay())):
            paths.append(Path(folder) / f"{stem}_{suffix}.png")
            with atomic_path(paths[-1]) as temporary:
                Image.fromarray(content).save(temporary)
        return paths[0], paths[1]


def load_model(path: str | Path) -> keras.Model:
    """Read a `.keras` file in safe mode.

    Raises:
        ValueError: the file is missing, unreadable or no AlignSeg.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a .keras model")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"{path}: not readable as a Keras model ({error})") from error
    if not isinstance(model, AlignSeg):
        raise ValueError(f"{path}: expected an AlignSeg. Received: a {type(model).__name__}")
    return model


def label_space_of(model: Any) -> LabelSpace:
    """Return the label space that a model was saved with, or numbered classes without one."""
    if model.label_space:
        return LabelSpace.from_dict(model.label_space, "the model's label space")
    return LabelSpace(tuple(f"class {i}" for i in range(model.num_classes)))


def segment(model: Any, images: Any) -> Any:
    """Run a model inside of a graph and choose the likeliest class of each pixel.

    Args:
        model: an `AlignSeg`, whose logits may have stride 4.
        images: RGB 0..255 [B, H, W, 3], any dtype.

    Returns:
        Class ids, uint8 [B, H, W].

    Raises:
        tf.errors.InvalidArgumentError: a side is shorter than 32 pixels.
    """
    tf.debugging.assert_greater_equal(
        tf.reduce_min(tf.shape(images)[1:3]),
        MIN_IMAGE_SIZE,
        f"Images must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels.",
    )
    logits = model(tf.cast(images, tf.float32), training=False)["segmentation"]
    if not model.upsample_logits:
        logits = resize_align_corners(logits, ops.shape(images)[1:3])
    return tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)


class Predictor:
    """Segments pictures with a Keras model, a `.keras` file or a SavedModel folder.

    Args:
        model_or_path: an `AlignSeg`, the path of a `.keras` file, or the folder of a SavedModel
            that `alignseg_tf.export` wrote.

    Raises:
        ValueError: there is no model at that path.

    Example:
        >>> from alignseg_tf import backbones
        >>> model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), num_classes=3, channels=8)
        >>> prediction = Predictor(model)(np.zeros((48, 64, 3), np.uint8))
        >>> prediction.class_map.shape, prediction.overlay().shape
        ((48, 64), (48, 64, 3))
    """

    def __init__(self, model_or_path: Any):
        if isinstance(model_or_path, str | Path) and Path(model_or_path).is_dir():
            self._load_saved_model(Path(model_or_path))
            return
        if isinstance(model_or_path, str | Path):
            model_or_path = load_model(model_or_path)
        model = model_or_path
        self.label_space = label_space_of(model)

        self._segment = tf.function(
            lambda images: segment(model, images),
            input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
        )

    def _load_saved_model(self, path: Path) -> None:
        try:
            loaded = tf.saved_model.load(str(path))
            signature = loaded.signatures["serving_default"]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: not a SavedModel with the signature 'serving_default' ({error})"
            ) from error
        if not (path / LABEL_SPACE_FILE).is_file():
            raise ValueError(f"{path}: {LABEL_SPACE_FILE} with the names of the classes is missing")
        content = json.loads((path / LABEL_SPACE_FILE).read_text(encoding="utf-8"))
        self.label_space = LabelSpace.from_dict(content, str(path / LABEL_SPACE_FILE))
        self._loaded = loaded  # the signature does not keep its variables alive
        self._segment = lambda images: signature(images=images)["class_map"]

    def class_map(self, image: np.ndarray) -> np.ndarray:
        """Return the class ids of a picture.

        Args:
            image: uint8 RGB [H, W, 3], H and W at least 32.

        Returns:
            uint8 [H, W].

        Raises:
            ValueError: the array is no such picture.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                "Expected a uint8 RGB picture [H, W, 3]. "
                f"Received: {image.dtype} of shape {image.shape}"
            )
        if min(image.shape[:2]) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"The picture must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels. "
                f"Received: {image.shape[1]} x {image.shape[0]}"
            )
        return self._segment(tf.constant(image[None])).numpy()[0]

    def __call__(self, image: np.ndarray) -> Prediction:
        """Segment a picture, uint8 RGB [H, W, 3]."""
        return Prediction(np.asarray(image), self.class_map(image), self.label_space)
