"""The line on the console that shows the progress of a run."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from alignseg_tf.system.progress import duration
from training.callbacks.logs import VALIDATION_METRIC, Logs, learning_rate, short_names

# Seconds between two lines: on a terminal, which rewrites the line, and elsewhere.
TERMINAL_INTERVAL, LOG_INTERVAL = 0.5, 30.0


class Progress(keras.callbacks.Callback):
    """Print epoch, step, loss, learning rate, speed, and the time left of the whole run.

    The speed is that of the last 50 steps of this process. `work` is the relative cost of a step
    in each epoch: the area of its crops. `batch_size` is over all devices.
    """

    def __init__(self, steps: int, work: Sequence[float], initial_epoch: int, batch_size: int):
        super().__init__()
        self.steps, self.work, self.epochs = steps, work, len(work)
        self.batch_size, self.epoch = batch_size, initial_epoch
        self.terminal = sys.stdout.isatty()
        self.interval = TERMINAL_INTERVAL if self.terminal else LOG_INTERVAL
        self.traced = False
        self.step_seconds: list[float] = []
        self.rest_seconds: list[float] = []  # validation and saving of each epoch
        self.last_step = self.last_print = time.monotonic()

    def on_train_begin(self, logs: Logs = None) -> None:
        self.traced = False
        print("Building the training graph (a minute or less) ...", flush=True)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        if self.work[epoch] != self.work[self.epoch]:
            self.step_seconds.clear()
        self.epoch = epoch
        self.last_step = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        now = time.monotonic()
        if self.traced:
            self.step_seconds.append(now - self.last_step)
        self.last_step = now
        is_last = batch == self.steps - 1
        if is_last or not self.traced or now - self.last_print >= self.interval:
            self._print(self.step_line(batch + 1, logs or {}), is_last)
        self.traced = True

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        if time.monotonic() - self.last_print >= self.interval:
            self._print(f"epoch {self.epoch + 1}/{self.epochs}  validation, batch {batch + 1}")

    def step_line(self, done: int, logs: dict[str, Any]) -> str:
        """Return the line after `done` steps of the epoch."""
        line = f"epoch {self.epoch + 1}/{self.epochs}  step {done}/{self.steps}"
        line += f"  loss {float(logs.get('loss', math.nan)):.3f}"
        line += f"  learning rate {learning_rate(self.model):.2g}"
        if self.step_seconds:
            step = float(np.median(self.step_seconds[-50:]))
            later = sum(self.work[self.epoch + 1 :]) / self.work[self.epoch]
            left = step * (self.steps - done + later * self.steps)
            if self.rest_seconds:
                left += float(np.mean(self.rest_seconds)) * (self.epochs - self.epoch)
            line += f"  {step:.2f} s/step  {self.batch_size / max(step, 1e-9):.1f} images/s"
            line += f"  {duration(left)} left"
        return line

    def _print(self, line: str, last: bool = False) -> None:
        self.last_print = time.monotonic()
        if self.terminal:
            print(f"\r\x1b[K{line}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.rest_seconds.append(time.monotonic() - self.last_step)
        logs = short_names(logs)
        if VALIDATION_METRIC in logs:
            line = f"epoch {epoch + 1}/{self.epochs}  validation mean IoU "
            self._print(f"{line}{100 * logs[VALIDATION_METRIC]:.2f} %", last=True)
