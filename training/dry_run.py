"""A few steps of a run, to estimate the time and memory of the whole."""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.system.environment import peak_resident_bytes
from alignseg_tf.system.progress import duration
from training.recipe import Recipe

# The first step builds the graph and is not timed.
STEPS = 3


class StepTimes(keras.callbacks.Callback):
    """Keep when each batch of training or validation ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the time."""
        self.ends.append(time.monotonic())

    on_test_batch_end = on_train_batch_end

    def seconds(self) -> float:
        """Return the median time of a batch without the first one."""
        return float(np.median(np.diff(self.ends)))


def peak_memory() -> str:
    """Return the peak memory of this process and of each GPU."""
    parts = [f"{peak_resident_bytes() / 2**30:.1f} GiB"]
    for number, _ in enumerate(tf.config.list_physical_devices("GPU")):
        used = tf.config.experimental.get_memory_info(f"GPU:{number}")["peak"]
        parts.append(f"{used / 2**30:.1f} GiB on GPU {number}")
    return ", ".join(parts)


def dry_run(
    model: keras.Model,
    recipe: Recipe,
    batches: tf.data.Dataset,
    validation: tf.data.Dataset,
    steps: int,
    validations: int,
) -> None:
    """Train a few steps, validate on a few images, and print what the run would take.

    `batches` have the full crop size. An epoch has `steps`, the run `validations`.
    """
    print("Dry run: two steps and two validation images; nothing is written.", flush=True)
    training_times, validation_times = StepTimes(), StepTimes()
    logs = model.fit(
        batches.repeat(),  # a small data set has fewer than STEPS
        steps_per_epoch=STEPS,
        shuffle=False,
        verbose=0,
        callbacks=[training_times],
    ).history
    model.evaluate(validation.repeat().take(STEPS), verbose=0, callbacks=[validation_times])
    step, val_step = training_times.seconds(), validation_times.seconds()
    val_steps = int(validation.cardinality())
    epochs = recipe.epochs - min(recipe.small_crop_epochs, recipe.epochs) / 2
    total = epochs * steps * step + validations * val_steps * val_step
    height, width = recipe.crop_size
    print(
        f"loss {logs['loss'][0]:.3f}\n"
        f"step: {step:.2f} s for {recipe.batch_size} crops of {width} x {height}\n"
        f"validation: {val_step:.2f} s a batch, {val_steps} batches\n"
        f"memory: {peak_memory()} at the most\n"
        f"whole run: {recipe.epochs} epochs of {steps} steps and {validations} validations, about "
        f"{duration(total)}"
    )
