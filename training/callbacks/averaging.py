"""Use the averaged weights of a model for a while, where its optimizer keeps an average."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import keras

from alignseg_tf.optimizers import averaged_weights
from training.callbacks.logs import Logs


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Give a model its averaged weights inside of the block, and its own, bit by bit, after it.

    `keras.callbacks.SwapEMAWeights` swaps by adding and subtracting, which rounds the weights
    that training goes on with.
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
    """Validate with the averaged weights, which are what `best.keras` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.swap = ExitStack()

    def on_test_begin(self, logs: Logs = None) -> None:
        """Put the average in."""
        self.swap.enter_context(averaged(self.model))

    def on_test_end(self, logs: Logs = None) -> None:
        """Put the trained weights back, before anything is saved."""
        self.swap.close()
