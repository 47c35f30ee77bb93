"""Callbacks on weights and dropout masks: validate the average, resume bit for bit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import keras
import numpy as np

from alignseg_tf.layers.nested import nested_layers
from alignseg_tf.optimizers import averaged_weights
from training.callbacks.logs import Logs


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Give a model its averaged weights inside the block and restore its own bit for bit.

    `keras.callbacks.SwapEMAWeights` adds and subtracts, which rounds the restored weights.
    """
    average = averaged_weights(model)
    if average is None:
        yield
        return
    trained = model.get_weights()
    model.set_weights(average)
    try:
        yield
    finally:
        model.set_weights(trained)


class ValidateAveraged(keras.callbacks.Callback):
    """Validate the averaged weights, which `best.keras` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.swap = ExitStack()

    def on_test_begin(self, logs: Logs = None) -> None:
        self.swap.enter_context(averaged(self.model))

    def on_test_end(self, logs: Logs = None) -> None:
        self.swap.close()  # before anything is saved


class SeedDropout(keras.callbacks.Callback):
    """Make dropout masks a function of (seed, epoch, step), as batches are."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        for number, layer in enumerate(nested_layers(self.model), start=1):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                state = np.random.SeedSequence([self.seed, epoch, number]).generate_state(2)
                generator.state.assign(state.astype(generator.state.dtype))
