"""A run's curves and images for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from alignseg_tf import visualization
from alignseg_tf.analysis import alignment
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.data.readers import load_sample
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.protocol import Protocol
from training.callbacks.averaging import averaged
from training.callbacks.logs import (
    VALIDATION_METRIC,
    Logs,
    class_iou,
    learning_rate,
    loss_terms,
    short_names,
    weight_norm,
)

# Longest side of an image, in pixels; larger ones are shown at every second, third, ... pixel.
LONGEST_SIDE = 512
# Width of an offset field, in pixels, so that its name can be read.
FIELD_WIDTH = 320


class TensorBoard(keras.callbacks.Callback):
    """Write scalars and images for TensorBoard; its steps are epochs, from 0.

    `folder/train` has the loss and its terms, mean IoU on the crops, learning rate and weight norm.
    `folder/validation` has the same of validation, the IoU of each class, and for some images:
    image, truth and prediction, and the offset fields with their longest vector. A resumed run
    adds to them.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], label_space: LabelSpace):
        super().__init__()
        self.label_space = label_space
        self.images = [load_sample(sample, label_space) for sample in samples]
        self.train_writer = tf.summary.create_file_writer(str(folder / "train"))
        self.validation_writer = tf.summary.create_file_writer(str(folder / "validation"))
        self.predictor: Predictor | None = None

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        logs = short_names(logs)
        with self.train_writer.as_default(epoch):
            self._write_scalars({k: v for k, v in logs.items() if not k.startswith("val_")})
            tf.summary.scalar("learning_rate", learning_rate(self.model))
            tf.summary.scalar("weight_norm", weight_norm(self.model))
        self.train_writer.flush()
        if VALIDATION_METRIC not in logs:
            return
        with self.validation_writer.as_default(epoch), averaged(self.model):
            self._write_scalars({k[4:]: v for k, v in logs.items() if k.startswith("val_")})
            for name, iou in class_iou(self.model).items():
                if not np.isnan(iou):
                    tf.summary.scalar(f"iou/{name}", iou)
            try:
                self._write_images()
            except ValueError as error:  # such as NaN of a precision that overflows
                print(f"Warning: no images for TensorBoard: {error}")
        self.validation_writer.flush()

    def _write_scalars(self, logs: dict[str, float]) -> None:
        for name, value in loss_terms(self.model, logs).items():
            tf.summary.scalar(f"loss/{name}", value)
        for name, value in logs.items():
            if name != "loss" and not name.endswith("_loss"):
                tf.summary.scalar(name, value)

    def _write_images(self) -> None:
        if self.predictor is None:
            self.predictor = Predictor(self.model)
        palette = self.label_space.palette
        lengths: dict[str, list[float]] = {}
        for number, (image, label) in enumerate(self.images):
            predicted = self.predictor.class_map(image)
            predicted[label == IGNORE] = IGNORE
            painted = [visualization.colorize(ids, palette) for ids in (label, predicted)]
            row = visualization.side_by_side(*map(shrunk, (image, *painted)))
            tf.summary.image(f"image, truth, prediction/{number}", row[None])
            part = middle(image)
            fields = alignment.offset_fields(self.model, part)
            if fields:
                tf.summary.image(f"offset fields/{number}", offset_panel(part, fields)[None])
            for name, field in fields.items():
                lengths.setdefault(name, []).append(np.linalg.norm(field, axis=-1).mean())
        for name, values in lengths.items():
            tf.summary.scalar(f"mean offset in pixels/{name}", np.mean(values))


def middle(image: np.ndarray) -> np.ndarray:
    """Return the middle tile of an image that is too large for the network, or the whole image."""
    tile = Protocol().for_image(*image.shape[:2]).tile
    if tile is None:
        return image
    top, left = ((n - min(n, t)) // 2 for n, t in zip(image.shape[:2], tile, strict=True))
    return image[top : top + tile[0], left : left + tile[1]]


def shrunk(image: np.ndarray) -> np.ndarray:
    """Return every n-th pixel of an image, so that no side exceeds `LONGEST_SIDE`."""
    step = -(-max(image.shape[:2]) // LONGEST_SIDE)
    return image[::step, ::step]


def offset_panel(image: np.ndarray, fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """Lay out an image, uint8 [H, W, 3], and its painted offset fields in three columns.

    Fields, [any, any, 2] in pixels, have each their own scale. The last panel is the wheel of
    directions.
    """
    size = FIELD_WIDTH, round(FIELD_WIDTH * image.shape[0] / image.shape[1])
    panels = {"image": Image.fromarray(image).resize(size)}
    for name, field in fields.items():
        longest = float(np.linalg.norm(field, axis=-1).max())
        painted = Image.fromarray(visualization.offset_field(field, longest or None))
        panels[f"{name}: up to {longest:.3g} px"] = painted.resize(size, Image.Resampling.NEAREST)
    side = min(size)
    wheel = Image.fromarray(visualization.offset_legend(1.0, side)[:side])
    text = "direction; black is none, full colour the longest"
    panels[text] = ImageOps.pad(wheel, size, color="white", centering=(0, 0))
    cells = [visualization.titled(np.asarray(panel), text) for text, panel in panels.items()]
    return visualization.grid(cells, columns=3)
