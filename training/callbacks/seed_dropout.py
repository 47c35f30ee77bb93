"""Seed dropout by the step, for a resume that is bit-equal."""

import keras
import numpy as np

from alignseg_tf.layers.nested import nested_layers
from training.callbacks.logs import Logs


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
