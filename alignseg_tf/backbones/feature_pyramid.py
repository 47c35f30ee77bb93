"""Backbones: networks that turn an image into a pyramid of feature maps.

    level    stride    deep-stem ResNet    EfficientNet-Lite0
    P2          4            256                   24
    P3          8            512                   40
    P4         16           1024                  112
    P5         32           2048                  320      channels

A backbone is any functional `keras.Model` from (B, H, W, 3) images in which four layers
are known to be P2..P5: the two built here, a keras-cv or keras-hub backbone, or one's own
model with a mapping from level to layer name. A side of n pixels is n / stride cells long,
rounded in the backbone's own way (the ResNet: 512 -> 129, 65, 33, 17).
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

PYRAMID_STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}


def pyramid_layers(
    backbone: keras.Model, pyramid: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns which layer of a backbone gives which pyramid level.

    Args:
        backbone: a functional model.
        pyramid: `{"P2": layer name, ..., "P5": layer name}`. By default the mapping is the
            backbone's `pyramid_level_inputs` (this module, keras-cv) or its
            `pyramid_outputs` (keras-hub).

    Returns:
        `{"P2": layer name, "P3": ..., "P4": ..., "P5": ...}`; other levels are left out.
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
    """Returns a model from images to the backbone's feature maps.

    Args:
        backbone: a functional model with one input, (B, H, W, channels). Its layers are
            shared, not copied.
        layers: `{"P2": layer name, ..., "P5": layer name}`, as `pyramid_layers` returns it.

    Returns:
        A functional model named "backbone" with the outputs [P2, P3, P4, P5]. It holds the
        backbone's layers under their own names, so that `feature_pyramid(model, layers)`
        works on it, saved and loaded or not.
    """
    missing = [level for level in PYRAMID_STRIDES if level not in layers]
    if missing:
        raise ValueError(f"`layers` lacks {', '.join(missing)}. Received: layers={dict(layers)}")
    _check_layer_names(backbone, layers)
    shapes = [tuple(tensor.shape) for tensor in backbone.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(
            "`backbone` must have one input, of shape (B, H, W, channels). "
            f"Received: backbone={_describe(backbone)} with input shapes {shapes}"
        )
    outputs = [backbone.get_layer(layers[level]).output for level in PYRAMID_STRIDES]
    model = keras.Model(backbone.inputs[0], outputs, name="backbone")
    _check_strides(model, layers)
    return model


def pixel_normalization(backbone: keras.Model) -> dict[str, Any] | None:
    """Returns how a backbone wants its pixels, or None where it does not say.

    A dict `{"mean": [...], "std": [...], "channel_order": "rgb" or "bgr"}`: pixels 0..255 are
    put into that order, then become `(pixels - mean) / std`. It is an attribute of the models
    built here, and lost when they are saved: store it beside the model.
    """
    found = getattr(backbone, "pixel_normalization", None)
    if found is None:
        return None
    return {
        "mean": list(found["mean"]),
        "std": list(found["std"]),
        "channel_order": found["channel_order"],
    }


def rescales_pixels(backbone: keras.Model) -> bool:
    """Returns whether a backbone holds a `Rescaling` or `Normalization` layer of its own.

    Such a layer, also in a model within it, means that the backbone wants pixels 0..255.
    Found by class name: keras-cv has its own. Arithmetic outside layers is not seen.
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
    """Raises a ValueError where an output is not as large as its level's stride asks."""
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
                f"{level} must have stride {stride}: (B, H, W, channels) of about {expected} "
                f"cells for an image of {image[0]} x {image[1]}. "
                f"Received: shape {tuple(shape)} from layer {layers[level]!r}"
            )
