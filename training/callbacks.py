"""What happens between the steps of a training run: records, checkpoints, progress, pictures."""

import csv
import io
import math
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg, visualization
from alignseg_tf.data.catalog import IGNORE, LabelSpace
from alignseg_tf.data.readers import Sample, load_sample
from alignseg_tf.files import atomic_path, remove_leftovers, write_text
from alignseg_tf.prediction import Predictor

Logs = dict[str, Any] | None

# The column of `metrics.csv` by which the best model is chosen.
VALIDATION_METRIC = "val_mean_iou"
# The member of `last.keras` that holds a number of epochs.
EPOCHS_DONE = "epochs_done.txt"


def short_names(logs: Logs) -> dict[str, Any]:
    """Return logs in which the segmentation head's mean IoU has the name of a lone output's.

    Keras puts the name of the output into the name of a metric where there are several.
    """
    return {
        name.replace("segmentation_mean_iou", "mean_iou"): value
        for name, value in (logs or {}).items()
    }


def set_synchronized_batch_norm(model: keras.Model, synchronized: bool) -> None:
    """Say whether batch norms average over all replicas; before the first step."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized


def for_inference(model: AlignSeg) -> AlignSeg:
    """Return a copy without optimizer and without traces of how it was trained."""
    copy = AlignSeg.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    set_synchronized_batch_norm(copy, False)
    return copy


class SeedDropout(keras.callbacks.Callback):
    """Make the masks of dropout a function of (seed, epoch, step), as the batches are."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Reset the state of every generator."""
        for number, layer in enumerate(self.model._flatten_layers()):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                state = np.random.SeedSequence([self.seed, epoch, number]).generate_state(2)
                generator.state.assign(state.astype(generator.state.dtype))


class RunFolder(keras.callbacks.Callback):
    """Keeps a run's `metrics.csv`, `best.keras` and `last.keras`, in this order.

    `last.keras` holds the optimizer too, and beside it in the same file how many epochs are done;
    what the other two say of later epochs is written again.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.metrics_file = folder / "metrics.csv"
        self.best_file = folder / "best.keras"
        self.last_file = folder / "last.keras"
        remove_leftovers(folder)
        self.started = time.monotonic()

    def rows_before(self, epoch: int) -> list[dict[str, str]]:
        """Return the records of the epochs before `epoch`."""
        if not self.metrics_file.is_file():
            return []
        with self.metrics_file.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]

    def best_before(self, epoch: int) -> float:
        """Return the best validation result of the epochs before `epoch`."""
        rows = self.rows_before(epoch)
        return max((float(row[VALIDATION_METRIC] or -1) for row in rows), default=-1.0)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the three files."""
        logs = short_names(logs)
        rows: list[dict[str, Any]] = list(self.rows_before(epoch))
        best = self.best_before(epoch)
        row = {
            "epoch": epoch,
            "seconds": round(time.monotonic() - self.started, 1),
            "learning_rate": f"{_learning_rate(self.model):.4g}",
            VALIDATION_METRIC: "",
        }
        rows.append(row | {name: f"{float(logs[name]):.6g}" for name in sorted(logs)})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics_file, text.getvalue())
        if logs.get(VALIDATION_METRIC, -1.0) > best:
            with atomic_path(self.best_file) as temporary:
                for_inference(self.model).save(temporary)
        with atomic_path(self.last_file) as temporary:
            self.model.save(temporary)
            # Not the optimizer's step count: under float16 it leaves out steps that overflow.
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(EPOCHS_DONE, str(epoch + 1))

    def epochs_done(self) -> int:
        """Return the number of epochs after which `last.keras` was written."""
        with zipfile.ZipFile(self.last_file) as archive:
            return int(archive.read(EPOCHS_DONE))


def _learning_rate(model: keras.Model) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


class Progress(keras.callbacks.Callback):
    """Prints epoch, step, loss, learning rate and the time left of the whole run.

    On a terminal one line is rewritten; elsewhere a line is added every half minute.
    """

    def __init__(self, steps: int, work: Sequence[float], initial_epoch: int):
        """`work` is what a step of each epoch costs, in any unit: the area of its crops."""
        super().__init__()
        self.steps, self.work, self.epochs = steps, work, len(work)
        self.epoch = initial_epoch
        self.terminal = sys.stdout.isatty()
        self.traced = False
        self.step_seconds: list[float] = []
        self.rest_seconds = 0.0  # of an epoch, outside of its steps: validation and saving
        self.last_step = self.last_print = self.epoch_end = time.monotonic()

    def on_train_begin(self, logs: Logs = None) -> None:
        """Say that the first step takes longer."""
        self.traced = False
        print("Building the training graph (a minute or less) ...", flush=True)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Start an epoch."""
        if self.work[epoch] != self.work[self.epoch]:
            self.step_seconds.clear()
        self.epoch = epoch
        self.last_step = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Print now and then."""
        now = time.monotonic()
        if self.traced:
            self.step_seconds.append(now - self.last_step)
        self.last_step = now
        due = not self.traced or batch == self.steps - 1
        self.traced = True
        if due or now - self.last_print >= (0.5 if self.terminal else 30.0):
            self.last_print = now
            self._print(batch + 1, logs or {})

    def _print(self, done: int, logs: dict[str, Any]) -> None:
        line = f"epoch {self.epoch + 1}/{self.epochs}  step {done}/{self.steps}"
        line += f"  loss {float(logs.get('loss', math.nan)):.3f}"
        line += f"  learning rate {_learning_rate(self.model):.2g}"
        if self.step_seconds:
            step = float(np.median(self.step_seconds[-50:]))
            later = sum(self.work[self.epoch + 1 :]) / self.work[self.epoch]
            left = step * (self.steps - done + later * self.steps)
            left += self.rest_seconds * (self.epochs - self.epoch)
            line += f"  {step:.2f} s/step  {duration(left)} left"
        if self.terminal:
            print(f"\r\x1b[K{line}", end="\n" if done == self.steps else "", flush=True)
        else:
            print(line, flush=True)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Print the validation's result."""
        self.rest_seconds = time.monotonic() - self.last_step
        logs = short_names(logs)
        if VALIDATION_METRIC in logs:
            print(f"epoch {epoch + 1}/{self.epochs}  validation mean IoU "
                  f"{100 * logs[VALIDATION_METRIC]:.2f} %", flush=True)  # fmt: skip


def counter(what: str) -> Callable[[int, int], None]:
    """Return a progress function that rewrites one line: `what` done/total."""

    def show(done: int, total: int) -> None:
        if sys.stdout.isatty() or done == total:
            print(f"\r{what} {done}/{total}", end="\n" if done == total else "", flush=True)

    return show


def duration(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class PredictionPictures(keras.callbacks.Callback):
    """Shows in TensorBoard, for a few pictures: picture, truth, prediction."""

    def __init__(self, folder: Path, samples: Sequence[Sample], label_space: LabelSpace):
        super().__init__()
        self.label_space = label_space
        self.pictures = [load_sample(sample, label_space) for sample in samples]
        self.writer = tf.summary.create_file_writer(str(folder))
        self.predictor: Predictor | None = None

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write a row of pictures for each sample."""
        if self.predictor is None:
            self.predictor = Predictor(self.model)
        palette = self.label_space.palette
        with self.writer.as_default():
            for number, (image, label) in enumerate(self.pictures):
                predicted = self.predictor.class_map(image)
                predicted[label == IGNORE] = IGNORE
                row = visualization.side_by_side(
                    image,
                    visualization.colorize(label, palette),
                    visualization.colorize(predicted, palette),
                )
                tf.summary.image(f"picture, truth, prediction/{number}", row[None], step=epoch)
        self.writer.flush()
