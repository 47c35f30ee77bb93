"""ResNet with the deep stem of the official code."""

from typing import Any

import keras

from alignseg_tf.layers.tensorflow_kernels import BatchNormalization


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
