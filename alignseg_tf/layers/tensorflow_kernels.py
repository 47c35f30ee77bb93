"""Functions that XLA makes one loop of, where TensorFlow is the backend."""

import functools
from collections.abc import Callable
from typing import Any

import keras


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function by XLA where TensorFlow is the backend.

    It is compiled anew for each size of its arguments. Other backends compile as a whole or not.

    Args:
        function: of tensors, and of values that can be hashed.
    """

    @functools.cache
    def by_tensorflow() -> Callable[..., Any]:
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if keras.backend.backend() == "tensorflow":
            return by_tensorflow()(*args)
        return function(*args)

    return call
