"""Backbones: networks that turn an image into a pyramid of feature maps.

    level    stride    deep-stem ResNet    EfficientNet-Lite0
    P2          4            256                   24
    P3          8            512                   40
    P4         16           1024                  112
    P5         32           2048                  320      channels

A backbone is any functional `keras.Model` of [B, H, W, 3] images with four known layers P2..P5:
the two built here, a keras-cv or keras-hub backbone, or another model and its layers' names. A
side of n pixels has n / stride cells, rounded by the backbone (ResNet: 512 -> 129, 65, 33, 17).
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

PYRAMID_STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}


def pyramid_layers(
    backbone: keras.Model, pyramid: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the name of the layer of each pyramid level.

    Args:
        backbone: a functional model.
        pyramid: `{"P2": layer name, ..., "P5": layer name}`; by default the backbone's
            `pyramid_level_inputs` (this module, keras-cv) or `pyramid_outputs` (keras-hub).

    Returns:
        `{"P2": layer name, "P3": ..., "P4": ..., "P5": ...}`, without other levels.
    """
    source = "`pyramid`"
    found: Mapping | None = pyramid
    for attribute in ("pyramid_level_inputs", "pyramid_outputs"):
        if found is None and getattr(backbone, attribute, None):
            source, found = f"`backbone.{attribute}`", getattr(backbone, attribute)
    if found is None:
        raise ValueError(
            "`backbone` does not say which of its layers are its pyramid levels: pass `pyramid`, "
            'a mapping {"P2": layer name, ..., "P5": layer name}. '
            f"Received: backbone={_describe(backbone)}, pyramid=None"
        )

    levels = {f"P{key}" if isinstance(key, int) else key: value for key, value in found.items()}
    missing = [level for level in PYRAMID_STRIDES if level not in levels]
    if missing:
        raise ValueError(
            f"{source} must name the layers of {', '.join(PYRAMID_STRIDES)}; it lacks "
            f"{', '.join(missing)}. Received: {dict(found)}"
        )
    names = {}
    for level in PYRAMID_STRIDES:
        value = levels[level]
        # A keras-hub pyramid holds the layers' symbolic outputs.
        history = getattr(value, "_keras_history", None)
        names[level] = value if history is None else history.operation.name
    _check_layer_names(backbone, names)
    return names


def feature_pyramid(backbone: keras.Model, layers: Mapping[str, str]) -> keras.Model:
    """Return a functional model, named "backbone", from images to [P2, P3, P4, P5].

    It shares the backbone's layers, under their names, so `feature_pyramid` also takes its result.

    Args:
        backbone: a functional model with one input, [B, H, W, channels].
        layers: `{"P2": layer name, ..., "P5": layer name}` from `pyramid_layers`.
    """
    missing = [level for level in PYRAMID_STRIDES if level not in layers]
    if missing:
        raise ValueError(f"`layers` lacks {', '.join(missing)}. Received: layers={dict(layers)}")
    _check_layer_names(backbone, layers)
    shapes = [tuple(tensor.shape) for tensor in backbone.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(
            "`backbone` must have one input, of shape [B, H, W, channels]. "
            f"Received: backbone={_describe(backbone)} with input shapes {shapes}"
        )
    outputs = [backbone.get_layer(layers[level]).output for level in PYRAMID_STRIDES]
    model = keras.Model(backbone.inputs[0], outputs, name="backbone")
    _check_strides(model, layers)
    return model


def pixel_normalization(backbone: keras.Model) -> dict[str, Any] | None:
    """Return a backbone's `{"mean": [...], "std": [...], "channel_order": "rgb" or "bgr"}`.

    Pixels 0..255 are put into that order and become `(pixels - mean) / std`. It is an attribute of
    the models built here, lost when they are saved. None for other backbones.
    """
    found = getattr(backbone, "pixel_normalization", None)
    # Keras tracks the attribute: plain lists.
    return found and {k: v if isinstance(v, str) else list(v) for k, v in found.items()}


def rescales_pixels(backbone: keras.Model) -> bool:
    """Return whether a backbone, or a model within it, has a `Rescaling` or `Normalization`.

    Such a backbone takes pixels 0..255. Layers are found by class name, since keras-cv has its own.
    """
    rescaling = {"Rescaling", "Normalization"}
    return any(
        rescaling & {parent.__name__ for parent in type(layer).__mro__}
        for layer in _all_layers(backbone)
    )


def _all_layers(model: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from _all_layers(layer)


def _describe(backbone: Any) -> str:
    return f"<{type(backbone).__name__} {getattr(backbone, 'name', '')!r}>"


def _check_layer_names(backbone: keras.Model, layers: Mapping[str, str]) -> None:
    known = [layer.name for layer in getattr(backbone, "layers", ())]
    for level, name in layers.items():
        if name not in known:
            close = ", ".join(difflib.get_close_matches(str(name), known, n=3))
            raise ValueError(
                f"{level} names no layer of the backbone {_describe(backbone)}. "
                f"Close names: {close or 'none'}. Received: {name!r}"
            )


def _check_strides(model: keras.Model, layers: Mapping[str, str]) -> None:
    """Raise a ValueError if the size of an output does not match its level's stride."""
    _, height, width, channels = model.input_shape
    image = (height or 256, width or 256)
    shapes = model.compute_output_shape((1, *image, channels))
    for (level, stride), shape in zip(PYRAMID_STRIDES.items(), shapes, strict=True):
        # Rounded down, rounded up, or up with one cell more (ceil-mode pooling).
        fits = len(shape) == 4 and all(
            n // stride <= cells <= -(-n // stride) + 1
            for n, cells in zip(image, shape[1:3], strict=True)
        )
        if not fits:
            expected = " x ".join(str(n // stride) for n in image)
            raise ValueError(
                f"{level} must have stride {stride}: [B, H, W, channels] of about {expected} "
                f"cells for an image of {image[0]} x {image[1]}. "
                f"Received: shape {tuple(shape)} from layer {layers[level]!r}"
            )
