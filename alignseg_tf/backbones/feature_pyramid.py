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
from pathlib import Path
from typing import Any

import keras

from alignseg_tf.layers.batch_normalization import BatchNormalization
from alignseg_tf.layers.depthwise_conv2d import DepthwiseConv2D

PYRAMID_STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}

WEIGHTS_DIR = Path(__file__).parent / "weights"


def resnet(
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
    width: int = 64,
    dtype: Any = None,
    name: str = "resnet",
) -> keras.Model:
    """Returns AlignSeg's ResNet: bottleneck blocks behind a stem of three 3x3 convolutions.

    Its weights are random; the model has no classifier.

    Args:
        blocks: number of bottleneck blocks in each of the four stages.
        width: filters of the first convolution; all others are multiples of it.
        dtype: dtype or dtype policy of every layer; None means the global policy.
        name: the model's name.

    Input shape:
        (B, H, W, 3), pixels normalised as the attribute `pixel_normalization` says.

    Output shape:
        (B, ceil(H / 32), ceil(W / 32), 32 * width) or one cell more on either side.

    Example:
        >>> backbone = resnet(blocks=(1, 1, 1, 1), width=8)
        >>> backbone.pyramid_level_inputs
        {'P2': 'layer1_output', 'P3': 'layer2_output', 'P4': 'layer3_output', 'P5': 'layer4_output'}
    """
    if len(blocks) != 4 or min(blocks) < 1:
        raise ValueError(f"`blocks` must be four positive integers. Received: blocks={blocks}")

    # Layers are called as in the official state dict, "_" for ".", "norm" for "bn":
    #   conv2 -> conv2, bn2 -> norm2, layer3.0.conv2 -> layer3_0_conv2,
    #   layer3.0.bn2 -> layer3_0_norm2,
    #   layer3.0.downsample.0 -> layer3_0_downsample_conv, .1 -> layer3_0_downsample_norm.
    def conv_norm(x: Any, filters: int, kernel_size: int, strides: int, names: tuple) -> Any:
        conv_name, norm_name = names
        if kernel_size == 3:  # "same" would pad an even side by (0, 1) where strides=2
            x = keras.layers.ZeroPadding2D(1, dtype=dtype, name=f"{conv_name}_pad")(x)
        x = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            use_bias=False,
            kernel_initializer="he_normal",
            dtype=dtype,
            name=conv_name,
        )(x)
        return BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype, name=norm_name)(x)

    def relu(x: Any, name: str) -> Any:
        return keras.layers.ReLU(dtype=dtype, name=name)(x)

    def bottleneck(x: Any, filters: int, strides: int, first: bool, block: str, output: str) -> Any:
        shortcut = x
        if first:
            names = (f"{block}_downsample_conv", f"{block}_downsample_norm")
            shortcut = conv_norm(x, 4 * filters, 1, strides, names)
        x = conv_norm(x, filters, 1, 1, (f"{block}_conv1", f"{block}_norm1"))
        x = relu(x, f"{block}_relu1")
        x = conv_norm(x, filters, 3, strides, (f"{block}_conv2", f"{block}_norm2"))
        x = relu(x, f"{block}_relu2")
        x = conv_norm(x, 4 * filters, 1, 1, (f"{block}_conv3", f"{block}_norm3"))
        x = keras.layers.Add(dtype=dtype, name=f"{block}_add")([x, shortcut])
        return relu(x, output)

    images = keras.Input((None, None, 3), name="images")
    x = images
    for i, (filters, strides) in enumerate([(width, 2), (width, 1), (2 * width, 1)], start=1):
        x = conv_norm(x, filters, 3, strides, (f"conv{i}", f"norm{i}"))
        x = relu(x, f"relu{i}")
    # Torch's max pooling with padding=1 and ceil_mode=True. Zeros can pad: x is >= 0.
    x = keras.layers.ZeroPadding2D(((1, 2), (1, 2)), dtype=dtype, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, dtype=dtype, name="maxpool")(x)

    pyramid = {}
    for stage, repeats in enumerate(blocks, start=1):
        stage_output = f"layer{stage}_output"
        for i in range(repeats):
            block = f"layer{stage}_{i}"
            output = stage_output if i == repeats - 1 else f"{block}_output"
            strides = 2 if stage > 1 and i == 0 else 1
            x = bottleneck(x, width * 2 ** (stage - 1), strides, i == 0, block, output)
        pyramid[f"P{stage + 1}"] = stage_output

    model = keras.Model(images, x, name=name)
    model.pyramid_level_inputs = pyramid
    model.pixel_normalization = {
        "mean": [104.00698793, 116.66876762, 122.67891434],
        "std": [1.0, 1.0, 1.0],
        "channel_order": "bgr",
    }
    return model


def resnet50(name: str = "resnet50", **kwargs: Any) -> keras.Model:
    """Returns `resnet` with 50 layers. `kwargs` are those of `resnet`, but for `blocks`."""
    return resnet(blocks=(3, 4, 6, 3), name=name, **kwargs)


def resnet101(name: str = "resnet101", **kwargs: Any) -> keras.Model:
    """Returns `resnet` with 101 layers. `kwargs` are those of `resnet`, but for `blocks`."""
    return resnet(blocks=(3, 4, 23, 3), name=name, **kwargs)


def efficientnet_lite0(
    weights: str | Path | None = "imagenet",
    dtype: Any = None,
    name: str = "efficientnet_lite0",
) -> keras.Model:
    """Returns EfficientNet-Lite0 up to its last map of stride 32, from keras-cv's layers.

    Args:
        weights: "imagenet" for the weights that come with this package, None for random
            ones, or the path of a `.weights.h5` file.
        dtype: dtype or dtype policy of every layer; None means the global policy.
        name: the model's name.

    Input shape:
        (B, H, W, 3), pixels normalised as the attribute `pixel_normalization` says.

    Output shape:
        (B, ceil(H / 32), ceil(W / 32), 320).
    """
    path = WEIGHTS_DIR / "efficientnet_lite0.weights.h5" if weights == "imagenet" else weights
    if path is not None and not (str(path).endswith(".weights.h5") and Path(path).is_file()):
        raise ValueError(
            '`weights` must be "imagenet", None or the path of an existing `.weights.h5` file. '
            f"Received: weights={weights!r}"
        )
    try:
        import keras_cv
    except ImportError as error:
        raise ImportError(
            "efficientnet_lite0() is built from keras-cv, which could not be imported: "
            "`pip install keras-cv keras-core tensorflow`. A `.keras` file of a model with this "
            "backbone loads without keras-cv, on any Keras backend. "
            f"Received: {error}"
        ) from error

    backbone = keras_cv.models.EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
    )
    # keras-cv names the last layer before each stride; its P5 is the 1280-channel map made
    # for the classifier. The last map before that one has the same stride and 320 channels.
    pyramid = {level: backbone.pyramid_level_inputs[level] for level in ("P2", "P3", "P4")}
    pyramid["P5"] = "block7a_project_bn"

    # Where sizes are dynamic, keras-cv pads for even ones: a map of 45 cells became 22, not
    # 23, and lay half a cell off. "same" padding is the reference's at every size.
    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if "strides" in config:
            config["padding"] = "same"
        if dtype is not None:
            config["dtype"] = dtype
        if isinstance(layer, keras.layers.BatchNormalization):
            return BatchNormalization.from_config(config)
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            return DepthwiseConv2D.from_config(config)
        return type(layer).from_config(config)

    def call(layer: keras.layers.Layer, inputs: Any, **kwargs: Any) -> Any:
        return inputs if isinstance(layer, keras.layers.ZeroPadding2D) else layer(inputs, **kwargs)

    trunk = keras.Model(backbone.input, backbone.get_layer(pyramid["P5"]).output)
    images = keras.Input((None, None, 3), name="images")
    trunk = keras.models.clone_model(trunk, images, clone_function=clone, call_function=call)
    model = keras.Model(images, trunk.output, name=name)
    model.pyramid_level_inputs = pyramid
    model.pixel_normalization = {
        "mean": [127.0, 127.0, 127.0],
        "std": [128.0, 128.0, 128.0],
        "channel_order": "rgb",
    }
    if path is not None:
        model.load_weights(path)
    return model


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
