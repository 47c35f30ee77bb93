"""What keeps a training run whole: records and checkpoints, and the ways in which it may end."""

import contextlib
import csv
import fcntl
import io
import math
import os
import platform
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg
from alignseg_tf.data.label_space import class_columns
from alignseg_tf.layers.nested import nested_layers
from alignseg_tf.optimizers import averaged_weights
from alignseg_tf.precision import with_dtype_policy
from alignseg_tf.system.files import atomic_path, remove_leftovers, write_text
from alignseg_tf.system.printable import csv_cell
from training.callbacks.logs import VALIDATION_METRIC, Logs, class_iou, learning_rate, short_names
from training.recipe import RecipeError

# The member of `last.keras` that holds a number of epochs.
EPOCHS_DONE = "epochs_done.txt"
# In the folder of a run, for as long as it trains: which process does.
LOCK_FILE = "training.lock"

# (epoch, step), both from 0 -> the pictures [B, H, W, 3] and labels [B, H, W] of that step's
# batch, and the names of their files, empty where they are not known.
BatchOf = Callable[[int, int], tuple[np.ndarray, np.ndarray, Sequence[str]]]


class RunStoppedError(Exception):
    """A run ended before its last epoch; the message says why, and how it can go on.

    Attributes:
        status: the exit status of the process.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one training; the kernel lets go of it when the process ends, or is killed.

    Raises:
        RecipeError: another training has it.
    """
    path, is_new = folder / LOCK_FILE, not folder.exists()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise RecipeError(
                    f"{folder}: another training, {file.read().strip() or 'just starting'}, writes "
                    "to this folder; wait for its end, or give another --output"
                ) from error
            except OSError as error:  # some file systems of clusters have no locks
                print(
                    f"{folder} cannot be locked ({error.strerror}): start no other training in it"
                )
            # The holder before may have removed the file after it was opened here.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if is_new:
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # where nothing was written
            return


def set_synchronized_batch_norm(model: keras.Model, synchronized: bool) -> None:
    """Say whether batch norms average over all replicas; before the first step."""
    for layer in nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized


def for_inference(model: AlignSeg) -> AlignSeg:
    """Return a float32 copy without optimizer and without traces of how it was trained.

    Its logits have the size of the picture. It has the averaged weights where the optimizer keeps
    an average. Processors that cannot compute in the precision that it was trained in run it all
    the same.
    """
    copy = with_dtype_policy(model, "float32", upsample_logits=True)
    for layer in (copy, *nested_layers(copy)):
        layer.trainable = True
    average = averaged_weights(model)
    if average is not None:
        copy.set_weights(average)
    set_synchronized_batch_norm(copy, False)
    return copy


class SeedDropout(keras.callbacks.Callback):
    """Make the masks of dropout a function of (seed, epoch, step), as the batches are."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Reset the state of every generator."""
        for number, layer in enumerate(nested_layers(self.model), start=1):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                state = np.random.SeedSequence([self.seed, epoch, number]).generate_state(2)
                generator.state.assign(state.astype(generator.state.dtype))


def non_finite_variables(model: keras.Model) -> list[str]:
    """Return the paths of the weights and of the optimizer's state that hold NaN or infinity."""
    return [
        variable.path
        for variable in (*model.weights, *model.optimizer.variables)
        if not np.isfinite(keras.ops.convert_to_numpy(variable).astype(np.float64)).all()
    ]


def _compiled_check(model: keras.Model) -> Callable[[], tf.Tensor]:
    """Return a function that says whether what gradients go into is finite, every step anew.

    That is the trained weights, and the sums of gradients where these are accumulated. As a graph
    it takes 7 ms for an EfficientNet-Lite0 and 31 ms for a ResNet-101 on two CPU cores.
    """
    sums = [x for x in model.optimizer.variables if "gradient_accumulator" in x.path]
    values = [variable.value for variable in (*model.trainable_weights, *sums)]

    def all_finite() -> tf.Tensor:
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])

    return tf.function(all_finite, jit_compile=False)


class StopOnNonFinite(keras.callbacks.Callback):
    """Stop at the first step after which the loss or a weight is NaN or infinite; keep its batch.

    The weights are looked at too, because the gradient of a finite loss may be infinite: then the
    next loss is not finite, but its batch is not the one to blame. Steps that a float16 loss
    scale leaves out change no weight and stop nothing.

    Args:
        folder: where `nan_batch.npz` goes: `images`, `labels`, `names`, `epoch` and `step` from
            0, `learning_rate`, and `logs/NAME`, which are means since the epoch began.
        batch_of: makes the batch of a step again.
    """

    def __init__(self, folder: Path, batch_of: BatchOf):
        super().__init__()
        self.file = folder / "nan_batch.npz"
        self.batch_of = batch_of
        self.epoch = 0
        self.all_finite: Callable[[], tf.Tensor] | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Forget the variables of another fit."""
        self.all_finite = None

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Note the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Look at the loss and the weights.

        Raises:
            RunStoppedError: one of them is not finite.
        """
        logs = logs or {}
        loss = float(logs["loss"])
        if self.all_finite is None:
            self.all_finite = _compiled_check(self.model)  # the first step builds the optimizer
        if math.isfinite(loss) and bool(self.all_finite()):
            return
        if math.isfinite(loss):
            spoilt = non_finite_variables(self.model)
            what = f"the loss is {loss:.4g}, but {len(spoilt)} weights are not finite: {spoilt[0]}"
        else:
            heads = [name for name, value in logs.items() if not math.isfinite(value)]
            what = f"the loss is {loss} ({', '.join(heads)})"
        rate = learning_rate(self.model)
        advice = [f"a learning rate below {rate:.2g}", "a limit for the gradient (--clip-norm 1)"]
        if keras.config.dtype_policy().name != "float32":
            advice.append("--dtype-policy float32")
        raise RunStoppedError(
            f"epoch {self.epoch + 1}, step {batch + 1}: {what}. {self._save(batch, rate, logs)} "
            f"Try {', '.join(advice)}, in another --output; the same command would come to the "
            "same step. Checkpoints are from before."
        )

    def _save(self, step: int, rate: float, logs: dict[str, Any]) -> str:
        """Write the batch and say where it is; say why not where it cannot be read again."""
        try:
            images, labels, names = self.batch_of(self.epoch, step)
        except Exception as error:  # whatever it is, it must not hide why the run stops
            return f"Its batch could not be made again ({error})."
        arrays: dict[str, Any] = {
            "images": images,
            "labels": labels,
            "names": np.array(list(names), dtype=str),
            "epoch": self.epoch,
            "step": step,
            "learning_rate": rate,
        }
        arrays |= {f"logs/{name}": float(value) for name, value in logs.items()}
        with atomic_path(self.file) as temporary:
            np.savez_compressed(temporary, **arrays)
        shown = f": {', '.join(names)}" if len(names) else ""
        return f"Its batch is in {self.file}{shown}."


class StopOnSignal(keras.callbacks.Callback):
    """End a run between two steps when the process is asked to end (SIGTERM, or Ctrl-C).

    Within its `with` block a first signal is noted and obeyed after the step, and what is being
    written is written; a second one does what it would have done without. Last of the
    callbacks, so that an epoch that is done is saved before.

    Example:
        >>> with StopOnSignal() as stop:
        ...     print(stop.received)
        None
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}
        self.epochs_done = 0

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # no other may
            # What is ignored stays so: `nohup ... &` must outlive the terminal's Ctrl-C.
            self.previous = {
                number: signal.signal(number, self._receive)
                for number in self.SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: stopping after this step ...", flush=True)
        self.__exit__()

    def _obey(self) -> None:
        if self.received is not None:
            done = f"after epoch {self.epochs_done}" if self.epochs_done else "from the start"
            raise RunStoppedError(
                f"stopped by {self.received.name}; the same command goes on {done}",
                128 + self.received,
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Note how many epochs are done."""
        self.epochs_done = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Stop if asked to."""
        self._obey()

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Stop if asked to."""
        self._obey()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Stop if asked to."""
        self.epochs_done = epoch + 1
        self._obey()


class RunFolder(keras.callbacks.Callback):
    """Keeps a run's `metrics.csv`, `iou.csv`, `best.keras` and `last.keras`, in this order.

    `last.keras` holds the optimizer too, and beside it in the same file how many epochs are done;
    what the others say of later epochs is written again. So a run that is killed at any moment
    goes on from its last whole epoch.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.metrics_file = folder / "metrics.csv"
        self.iou_file = folder / "iou.csv"
        self.best_file = folder / "best.keras"
        self.last_file = folder / "last.keras"
        remove_leftovers(folder)
        self.started = time.monotonic()

    def rows_before(self, epoch: int) -> list[dict[str, str]]:
        """Return the records of the epochs before `epoch`."""
        return read_rows(self.metrics_file, epoch)

    def best_before(self, epoch: int) -> float:
        """Return the best validation result of the epochs before `epoch`."""
        rows = self.rows_before(epoch)
        return max((float(row[VALIDATION_METRIC] or -1) for row in rows), default=-1.0)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the four files.

        Raises:
            RunStoppedError: the weights are not finite; nothing was written.
        """
        logs = short_names(logs)
        if spoilt := non_finite_variables(self.model):
            raise RunStoppedError(
                f"epoch {epoch + 1}: {len(spoilt)} weights are not finite ({spoilt[0]}); "
                "the checkpoints are from before"
            )
        best = self.best_before(epoch)
        row = {
            "epoch": epoch,
            "seconds": round(time.monotonic() - self.started, 1),
            "learning_rate": f"{learning_rate(self.model):.4g}",
            VALIDATION_METRIC: "",
        }
        row |= {name: f"{float(logs[name]):.6g}" for name in sorted(logs)}
        write_rows(self.metrics_file, [*self.rows_before(epoch), row])
        if VALIDATION_METRIC in logs:
            iou = class_iou(self.model)
            shown = ["" if math.isnan(x) else f"{x:.6g}" for x in iou.values()]
            by_column = dict(zip(class_columns(list(iou), ["epoch"]), shown, strict=True))
            earlier = read_rows(self.iou_file, epoch)
            write_rows(self.iou_file, [*earlier, {"epoch": epoch} | by_column])
        if logs.get(VALIDATION_METRIC, -1.0) > best:
            with atomic_path(self.best_file) as temporary:
                for_inference(self.model).save(temporary)
        save_resumable(self.model, self.last_file, epoch + 1)

    def epochs_done(self) -> int:
        """Return the number of epochs after which `last.keras` was written."""
        with zipfile.ZipFile(self.last_file) as archive:
            return int(archive.read(EPOCHS_DONE))


def save_resumable(model: keras.Model, path: Path, epochs_done: int) -> None:
    """Replace a `.keras` file by a model with its optimizer and the number of epochs done."""
    with atomic_path(path) as temporary:
        model.save(temporary)
        # Not the optimizer's step count: under float16 it leaves out steps that overflow.
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(EPOCHS_DONE, str(epochs_done))


def read_rows(path: Path, epoch: int) -> list[dict[str, str]]:
    """Return the rows of a table by epochs that are before `epoch`; none without a file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [row for row in rows if int(row["epoch"]) < epoch]
    except (KeyError, ValueError) as error:
        raise RunStoppedError(
            f"{path}: expected a column epoch of whole numbers ({error}); remove the file"
        ) from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a table whose columns are all keys of its rows, in the order of first sight."""
    rows = [{csv_cell(name): value for name, value in row.items()} for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
