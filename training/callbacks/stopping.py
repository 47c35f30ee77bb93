"""Stop a run on a signal or on values that are not finite."""

import math
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.layers.nested import non_finite_paths
from alignseg_tf.system.files import atomic_path
from training.callbacks.logs import Logs, learning_rate

# (epoch, step), both from 0 -> images [B, H, W, 3], labels [B, H, W], names of the images' files.
BatchOf = Callable[[int, int], tuple[np.ndarray, np.ndarray, Sequence[str]]]


class RunStoppedError(Exception):
    """A run ended before its last epoch; `status` is the exit status of the process."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def non_finite_variables(model: keras.Model) -> list[str]:
    """Return the paths of weights and optimizer variables that hold NaN or infinity."""
    return non_finite_paths((*model.weights, *model.optimizer.variables))


def _compiled_check(model: keras.Model) -> Callable[[], tf.Tensor]:
    """Return a graph that checks trained weights and accumulated gradients.

    A call takes 7 ms for EfficientNet-Lite0 and 31 ms for ResNet-101 on two CPU cores.
    """
    sums = [x for x in model.optimizer.variables if "gradient_accumulator" in x.path]
    values = [variable.value for variable in (*model.trainable_weights, *sums)]

    def all_finite() -> tf.Tensor:
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])

    return tf.function(all_finite, jit_compile=False)


class StopOnNonFinite(keras.callbacks.Callback):
    """Stop at the first step after which the loss or a weight is NaN or infinite; keep its batch.

    The gradient of a finite loss may be infinite, so weights are checked too: otherwise the next
    batch would be blamed. Steps that a float16 loss scale skips do not stop a run.

    Args:
        folder: where to write `nan_batch.npz`: `images`, `labels`, `names`, `epoch` and `step` from
            0, `learning_rate`, and `logs/NAME`, means since the epoch began.
        batch_of: makes the batch of a step again.
    """

    def __init__(self, folder: Path, batch_of: BatchOf):
        super().__init__()
        self.file = folder / "nan_batch.npz"
        self.batch_of = batch_of
        self.epoch = 0
        self.all_finite: Callable[[], tf.Tensor] | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        self.all_finite = None

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Check the loss and the weights; raise a `RunStoppedError` if one is not finite."""
        logs = logs or {}
        loss = float(logs["loss"])
        if self.all_finite is None:
            self.all_finite = _compiled_check(self.model)  # the first step builds the optimizer
        if not math.isfinite(loss):
            heads = [name for name, value in logs.items() if not math.isfinite(value)]
            what = f"the loss is {loss} ({', '.join(heads)})"
        elif not self.all_finite():
            spoilt = non_finite_variables(self.model)
            what = f"the loss is {loss:.4g}, but {len(spoilt)} weights are not finite: {spoilt[0]}"
        else:
            return
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
        """Write the batch and say where, or why not."""
        try:
            images, labels, names = self.batch_of(self.epoch, step)
        except Exception as error:  # must not hide why the run stops
            return f"Its batch could not be made again ({error})."
        means: dict[str, Any] = {f"logs/{name}": float(value) for name, value in logs.items()}
        with atomic_path(self.file) as temporary:
            np.savez_compressed(
                temporary, images=images, labels=labels, names=np.array(names, dtype=str),
                epoch=self.epoch, step=step, learning_rate=rate, **means,
            )  # fmt: skip
        return f"Its batch is in {self.file}: {', '.join(names)}."


class StopOnSignal(keras.callbacks.Callback):
    """End a run between two steps on SIGTERM or Ctrl-C.

    Inside the `with` block the first signal is obeyed after the current step, and files are
    finished; a second one acts as usual. Put it last, so that a finished epoch is saved first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}
        self.epochs_done = 0

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            # Ignored signals stay ignored: `nohup ... &` must outlive the terminal's Ctrl-C.
            self.previous = {
                number: signal.signal(number, self._receive)
                for number in (signal.SIGTERM, signal.SIGINT)
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

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.epochs_done = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Raise a `RunStoppedError` if a signal was received."""
        if self.received is not None:
            done = f"after epoch {self.epochs_done}" if self.epochs_done else "from the start"
            raise RunStoppedError(
                f"stopped by {self.received.name}; the same command resumes {done}",
                128 + self.received,
            )

    on_test_batch_end = on_train_batch_end

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.epochs_done = epoch + 1
        self.on_train_batch_end(0)
