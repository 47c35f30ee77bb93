"""Batch norms of a trained network written into the convolutions before them."""

from typing import Any

import keras
import numpy as np


def norm_scale_and_shift(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Return what a batch norm multiplies by and then adds at inference, float64 [C] each."""

    def value(variable: Any, default: float) -> np.ndarray:
        if variable is None:
            return np.full(norm.moving_mean.shape, default)
        return keras.ops.convert_to_numpy(variable).astype(np.float64)

    variance = value(norm.moving_variance, 1.0)
    scale = value(norm.gamma, 1.0) / np.sqrt(variance + norm.epsilon)
    return scale, value(norm.beta, 0.0) - value(norm.moving_mean, 0.0) * scale


def fold_batch_norms(model: keras.Model) -> keras.Model:
    """Return an equal model for inference without the batch norms that follow a convolution.

    Folded are those over the last axis whose only input is a linear `Conv2D` or `DepthwiseConv2D`
    that nothing else reads. Models within the model do not change. Dropout is removed.

    Args:
        model: a functional model; it is not changed, and shares nothing with the result.

    Returns:
        A functional model of the same inputs and outputs, with the same names of layers.
    """
    folded = {norm.name: conv for norm, conv in _foldable(model)}
    with_bias = {conv.name for conv in folded.values()}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if layer.name in with_bias:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if layer.name in folded or isinstance(layer, keras.layers.Dropout):
            return args[0]
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(model, clone_function=clone, call_function=call)
    norm_of = {conv.name: model.get_layer(name) for name, conv in folded.items()}
    for layer in copy.layers:
        if layer.name in with_bias:
            layer.set_weights(_folded_weights(model.get_layer(layer.name), norm_of[layer.name]))
        elif layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return copy


def _foldable(model: keras.Model) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """Return the batch norms of a functional model that can be folded, and their convolutions."""
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    readers: dict[int, int] = {}
    for tensor in [t for node in nodes for t in node.input_tensors] + list(model.outputs):
        readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    calls: dict[str, int] = {}
    for node in nodes:
        calls[node.operation.name] = calls.get(node.operation.name, 0) + 1

    found = []
    for node in nodes:
        norm = node.operation
        if not isinstance(norm, keras.layers.BatchNormalization) or calls[norm.name] > 1:
            continue
        source = node.input_tensors[0]
        conv = source._keras_history.operation
        if (
            isinstance(conv, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
            and conv.activation is keras.activations.linear
            and conv.data_format == "channels_last"
            and norm.axis in (-1, 3)
            and readers[id(source)] == 1
            and calls[conv.name] == 1
        ):
            found.append((norm, conv))
    return found


def _folded_weights(conv: Any, norm: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Return kernel and bias of a convolution with a batch norm after it."""
    kernel = keras.ops.convert_to_numpy(conv.kernel).astype(np.float64)
    bias = keras.ops.convert_to_numpy(conv.bias).astype(np.float64) if conv.use_bias else 0.0
    scale, shift = norm_scale_and_shift(norm)
    # A depthwise kernel is [h, w, C, multiplier], and its channels come out in that order.
    shape = kernel.shape[2:] if isinstance(conv, keras.layers.DepthwiseConv2D) else scale.shape
    return [kernel * scale.reshape(shape), bias * scale + shift]
