"""A model with its weights as constants, which a CPU's kernels lay out once for all runs."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def freeze(model: keras.Model, size: tuple[int | None, int | None]) -> Callable[[Any], Any]:
    """Return a model's inference as a function with constants in place of variables.

    Later changes of the model do not reach it.

    Args:
        model: of one input, pictures [B, H, W, 3]; its outputs may be of any structure.
        size: height and width of the pictures, None where they are free.

    Returns:
        A function from float32 pictures [B, H, W, 3] to what the model returns, which may be
        called within a `tf.function` and written into a SavedModel.
    """
    spec = tf.TensorSpec((None, *size, 3), tf.float32)
    traced = tf.function(lambda images: model(images, training=False)).get_concrete_function(spec)
    constant = convert_variables_to_constants_v2(traced)

    def run(images: Any) -> Any:
        return tf.nest.pack_sequence_as(traced.structured_outputs, constant(images))

    return run
