"""A leaky ReLU that TensorFlow does not fuse with the sum before it."""

from typing import Any

import keras
from keras import ops

Tensor = Any


@keras.saving.register_keras_serializable(package="alignseg_tf")
class FlatLeakyReLU(keras.layers.LeakyReLU):
    """`keras.layers.LeakyReLU` over a map that is flat meanwhile, which costs nothing.

    With oneDNN, TensorFlow 2.21 makes one operation of convolution, bias, sum and leaky ReLU, and
    its slope is then 0.2 whatever was asked for. It does not look through a change of shape.

    Args:
        kwargs: those of `keras.layers.LeakyReLU`.

    Input shape:
        [..., C].

    Output shape:
        That of the input.
    """

    def call(self, inputs: Tensor) -> Tensor:
        """Return leaky_relu(inputs)."""
        flat = ops.reshape(inputs, (-1, inputs.shape[-1]))
        return ops.reshape(super().call(flat), ops.shape(inputs))
