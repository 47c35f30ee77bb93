"""ResNet with the deep stem of the official code."""

from typing import Any

import keras

from alignseg_tf.layers.conv_blocks import BATCH_NORM
from alignseg_tf.layers.tensorflow_kernels import BatchNormalization


# Layers are called as in the official state dict, "_" for ".", "norm" for "bn":
#   conv2 -> conv2, bn2 -> norm2, layer3.0.conv2 -> layer3_0_conv2, layer3.0.bn2 -> layer3_0_norm2,
#   layer3.0.downsample.0 -> layer3_0_downsample_conv, .1 -> layer3_0_downsample_norm.
def _conv_norm(
    x: Any, filters: int, kernel_size: int, strides: int, dtype: Any, conv: str, norm: str
) -> Any:
    if kernel_size == 3:  # "same" would pad an even side by (0, 1) where strides=2
        x = keras.layers.ZeroPadding2D(1, dtype=dtype, name=f"{conv}_pad")(x)
    x = keras.layers.Conv2D(
        filters, kernel_size, strides, use_bias=False, kernel_initializer="he_normal", dtype=dtype,
        name=conv,
    )(x)  # fmt: skip
    return BatchNormalization(**BATCH_NORM, dtype=dtype, name=norm)(x)


def _bottleneck(
    x: Any, filters: int, strides: int, dtype: Any, block: str, first: bool, output: str
) -> Any:
    def conv_norm(x: Any, filters: int, kernel_size: int, strides: int, number: int) -> Any:
        names = f"{block}_conv{number}", f"{block}_norm{number}"
        return _conv_norm(x, filters, kernel_size, strides, dtype, *names)

    shortcut = x
    if first:
        names = f"{block}_downsample_conv", f"{block}_downsample_norm"
        shortcut = _conv_norm(x, 4 * filters, 1, strides, dtype, *names)
    x = conv_norm(x, filters, 1, 1, 1)
    x = keras.layers.ReLU(dtype=dtype, name=f"{block}_relu1")(x)
    x = conv_norm(x, filters, 3, strides, 2)
    x = keras.layers.ReLU(dtype=dtype, name=f"{block}_relu2")(x)
    x = conv_norm(x, 4 * filters, 1, 1, 3)
    x = keras.layers.Add(dtype=dtype, name=f"{block}_add")([x, shortcut])
    return keras.layers.ReLU(dtype=dtype, name=output)(x)


def resnet(
    blocks: tuple[int, ...] = (3, 4, 23, 3),
    width: int = 64,
    dtype: Any = None,
    name: str = "resnet",
) -> keras.Model:
    """Return AlignSeg's ResNet: bottleneck blocks behind a stem of three 3x3 convolutions.

    Its weights are random; the model has no classifier.

    Args:
        blocks: number of bottleneck blocks in each of the four stages.
        width: filters of the first convolution; all others are multiples of it.
        dtype: dtype or dtype policy of every layer; None for the global policy.
        name: name of the model.

    Shape:
        [B, H, W, 3], pixels normalised as the attribute `pixel_normalization` says ->
        [B, ceil(H / 32), ceil(W / 32), 32 * width] or one cell more on either side.

    Example:
        >>> backbone = resnet(blocks=(1, 1, 1, 1), width=8)
        >>> backbone.pyramid_level_inputs
        {'P2': 'layer1_output', 'P3': 'layer2_output', 'P4': 'layer3_output', 'P5': 'layer4_output'}
    """
    if len(blocks) != 4 or min(blocks) < 1:
        raise ValueError(f"`blocks` must be four positive integers. Received: blocks={blocks}")
    x = images = keras.Input((None, None, 3), name="images")
    for i, (filters, strides) in enumerate([(width, 2), (width, 1), (2 * width, 1)], start=1):
        x = _conv_norm(x, filters, 3, strides, dtype, f"conv{i}", f"norm{i}")
        x = keras.layers.ReLU(dtype=dtype, name=f"relu{i}")(x)
    # Torch's max pooling with padding=1 and ceil_mode=True. Zeros can pad: x is >= 0.
    x = keras.layers.ZeroPadding2D(((1, 2), (1, 2)), dtype=dtype, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, dtype=dtype, name="maxpool")(x)
    pyramid = {}
    for stage, repeats in enumerate(blocks, start=1):
        pyramid[f"P{stage + 1}"] = f"layer{stage}_output"
        for i in range(repeats):
            block = f"layer{stage}_{i}"
            output = f"layer{stage}_output" if i == repeats - 1 else f"{block}_output"
            strides = 2 if stage > 1 and i == 0 else 1
            x = _bottleneck(x, width * 2 ** (stage - 1), strides, dtype, block, i == 0, output)
    model = keras.Model(images, x, name=name)
    model.pyramid_level_inputs = pyramid
    model.pixel_normalization = {
        "mean": [104.00698793, 116.66876762, 122.67891434],
        "std": [1.0, 1.0, 1.0],
        "channel_order": "bgr",
    }
    return model


def resnet50(name: str = "resnet50", **kwargs: Any) -> keras.Model:
    """Return `resnet` with 50 layers. `kwargs` are those of `resnet`, but for `blocks`."""
    return resnet(blocks=(3, 4, 6, 3), name=name, **kwargs)


def resnet101(name: str = "resnet101", **kwargs: Any) -> keras.Model:
    """Return `resnet` with 101 layers. `kwargs` are those of `resnet`, but for `blocks`."""
    return resnet(blocks=(3, 4, 23, 3), name=name, **kwargs)
