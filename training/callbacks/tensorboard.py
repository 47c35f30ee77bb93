"""A run's curves and images for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

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

# Images are shown at every second, third, ... pixel, so that they are no longer than this.
LONGEST_SIDE = 512
# Offset fields are shown at least this wide, so that their names can be read.
SHORTEST_WIDTH = 256


class TensorBoard(keras.callbacks.Callback):
    """Writes all that TensorBoard shows of a run; steps are epochs, from 0.

    `folder/train` has the loss and its terms, mean IoU on the crops, learning rate and weight
    norm. `folder/validation` has the same of validation and the IoU of each class, and for a few
    images: image, truth and prediction, and the offset fields with their longest vector.

    Args:
        folder: where the event files go; a resumed run adds to them.
        samples: the images to show.
        label_space: what their labels mean.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], label_space: LabelSpace):
        super().__init__()
        self.label_space = label_space
        self.images = [load_sample(sample, label_space) for sample in samples]
        self.train_writer = tf.summary.create_file_writer(str(folder / "train"))
        self.validation_writer = tf.summary.create_file_writer(str(folder / "validation"))
        self.predictor: Predictor | None = None

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the epoch's numbers and, after a validation, its images."""
        logs = short_names(logs)
        of_validation = {
            name.removeprefix("val_"): logs[name] for name in logs if name.startswith("val_")
        }
        of_training = {name: logs[name] for name in logs if not name.startswith("val_")}
        with self.train_writer.as_default(epoch):
            self._write_scalars(of_training)
            tf.summary.scalar("learning_rate", learning_rate(self.model))
            tf.summary.scalar("weight_norm", weight_norm(self.model))
        self.train_writer.flush()
        if VALIDATION_METRIC not in logs:
            return
        with self.validation_writer.as_default(epoch), averaged(self.model):
            self._write_scalars(of_validation)
            for name, iou in class_iou(self.model).items():
                if not np.isnan(iou):
                    tf.summary.scalar(f"iou/{name}", iou)
            try:
                self._write_images()
            except ValueError as error:  # NaN of a precision that overflows, for instance
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
            row = visualization.side_by_side(
                shrunk(image),
                shrunk(visualization.colorize(label, palette)),
                shrunk(visualization.colorize(predicted, palette)),
            )
            tf.summary.image(f"image, truth, prediction/{number}", row[None])
            part = middle(image)
            fields = alignment.offset_fields(self.model, part)
            if fields:
                tf.summary.image(f"offset fields/{number}", offset_panel(part, fields)[None])
            for name, field in fields.items():
                length = float(np.hypot(field[..., 0], field[..., 1]).mean())
                lengths.setdefault(name, []).append(length)
        for name, values in lengths.items():
            tf.summary.scalar(f"mean offset in pixels/{name}", np.mean(values))


def middle(image: np.ndarray) -> np.ndarray:
    """Return the middle tile of an image that is too large for the network, or all of others."""
    tile = Protocol().for_image(*image.shape[:2]).tile
    if tile is None:
        return image
    top, left = ((n - min(n, t)) // 2 for n, t in zip(image.shape[:2], tile, strict=True))
    return image[top : top + tile[0], left : left + tile[1]]


def shrunk(image: np.ndarray) -> np.ndarray:
    """Return every n-th pixel of an image, so that no side is longer than `LONGEST_SIDE`."""
    step = -(-max(image.shape[:2]) // LONGEST_SIDE)
    return image[::step, ::step]


def offset_panel(
    image: np.ndarray, fields: Mapping[str, np.ndarray], columns: int = 3
) -> np.ndarray:
    """Lay out an image and its painted offset fields, each with its name and longest vector.

    Args:
        image: uint8 [H, W, 3].
        fields: [any, any, 2], in pixels of the panel; each is painted at a scale of its own.
        columns: images in a row.

    Returns:
        uint8 [any, any, 3]; the last place has the wheel of directions.
    """
    image = shrunk(image)
    enlarge = -(-SHORTEST_WIDTH // image.shape[1])
    height, width = enlarge * image.shape[0], enlarge * image.shape[1]

    def cell(panel: np.ndarray, text: str) -> np.ndarray:
        rows = np.arange(height) * panel.shape[0] // height
        places = np.arange(width) * panel.shape[1] // width
        return visualization.titled(panel[rows][:, places], text)

    cells = [cell(image, "image")]
    for name, field in fields.items():
        longest = float(np.hypot(field[..., 0], field[..., 1]).max())
        painted = visualization.offset_field(field, longest or None)
        cells.append(cell(painted, f"{name}: up to {longest:.3g} px"))
    side = min(height, width)
    wheel = np.full((height, width, 3), 255, np.uint8)
    wheel[:side, :side] = visualization.offset_legend(1.0, side)[:side]
    cells.append(visualization.titled(wheel, "direction; black is none, full colour the longest"))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [
        visualization.side_by_side(*cells[first : first + columns])
        for first in range(0, len(cells), columns)
    ]
    return np.concatenate(rows)
