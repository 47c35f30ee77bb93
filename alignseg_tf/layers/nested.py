"""All layers of a model, also those within other layers, and a check of their variables."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np


def nested_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers within a layer or model, at any depth, without itself.

    Keras has no public way to list the layers that a layer holds as attributes.

    Example:
        >>> from alignseg_tf.layers import ConvNormAct
        >>> [type(x).__name__ for x in nested_layers(ConvNormAct(8, 3))]
        ['Conv2D', 'BatchNormalization']
    """
    return list(layer._flatten_layers(include_self=False))


def non_finite_paths(variables: Iterable[Any]) -> list[str]:
    """Return the paths of Keras variables that hold NaN or infinity."""
    return [
        variable.path
        for variable in variables
        if not np.isfinite(keras.ops.convert_to_numpy(variable).astype(np.float64)).all()
    ]
