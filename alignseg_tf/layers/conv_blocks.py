"""The convolution blocks that the decoder is made of. NHWC; C is the number of filters."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from alignseg_tf.layers.batch_normalization import BatchNormalization

Tensor = Any
Shape = tuple[int | None, ...]

LEAKY_RELU_SLOPE = 0.01
# The official values; Keras' defaults (0.99, 1e-3) differ.
BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with the slope of the official activated batch norm, 0.01."""
    return ops.leaky_relu(x, LEAKY_RELU_SLOPE)


def conv2d(filters: int, kernel_size: int, **kwargs: Any) -> keras.layers.Conv2D:
    """A channels-last convolution that keeps the size, without bias unless asked for."""
    kwargs = {"padding": "same", "use_bias": False, **kwargs}
    return keras.layers.Conv2D(filters, kernel_size, data_format="channels_last", **kwargs)


def products_kernel(kernels: Sequence[Tensor]) -> Tensor:
    """Return the 1x1 kernel with which `narrow_convolutions` starts.

    Args:
        kernels: of G 3x3 convolutions, each [3, 3, C, f].

    Returns:
        [1, 1, G C, 9 G f]: for each of the nine cells of a 3x3 kernel, row by row, the products of
        every group.
    """
    groups = len(kernels)
    rows = []
    for number, kernel in enumerate(kernels):
        _, _, channels, filters = kernel.shape
        kernel = ops.transpose(kernel, (2, 0, 1, 3))
        around = (number * filters, (groups - 1 - number) * filters)
        kernel = ops.pad(kernel, ((0, 0), (0, 0), (0, 0), around))
        rows.append(ops.reshape(kernel, (1, 1, channels, 9 * groups * filters)))
    return ops.concatenate(rows, axis=2)


def shifts_kernel(filters: int) -> np.ndarray:
    """Return the 3x3 kernel with which `narrow_convolutions` ends, float32 [3, 3, 9 f, f].

    It adds up the products of the nine cells, each from where its cell lies.
    """
    return (
        np.eye(9 * filters, dtype="float32")
        .reshape(3, 3, filters, 9 * filters)
        .transpose(0, 1, 3, 2)
    )


def narrow_convolutions(x: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """Convolve each part of a map by a 3x3 kernel of few filters.

    A 3x3 convolution to two filters leaves most of a processor's vector units idle. Here a 1x1
    convolution makes all products at once, and a fixed 3x3 one over these few channels shifts and
    adds them. The sums are the same, in another order.

    Args:
        x: [B, H, W, G C].
        kernels: of the G convolutions, each [3, 3, C, f]; the first C channels are the first's.

    Returns:
        G maps [B, H, W, f]: `keras.ops.conv(part, kernel, padding="same")`.
    """
    filters = sum(kernel.shape[-1] for kernel in kernels)
    products = ops.conv(x, products_kernel(kernels), padding="valid", data_format="channels_last")
    shifts = ops.cast(ops.convert_to_tensor(shifts_kernel(filters)), x.dtype)
    sums = ops.conv(products, shifts, padding="same", data_format="channels_last")
    return ops.split(sums, len(kernels), axis=-1)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ConvNormAct(keras.layers.Layer):
    """Convolution, batch norm, leaky ReLU.

    Args:
        filters: channels of the result.
        kernel_size: side of the square kernel.
        use_bias: whether the convolution has a bias (only the heads' has).

    Input shape:
        [B, H, W, any].

    Output shape:
        [B, H, W, filters].

    Reference:
        "ABN" in the official code, whose norm multiplies by `|gamma| + eps`; here it is a plain
        batch norm, and the checkpoint converter writes that into gamma.
    """

    def __init__(self, filters: int, kernel_size: int, use_bias: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.use_bias = use_bias
        dtype = self.dtype_policy
        self.conv = conv2d(filters, kernel_size, use_bias=use_bias, dtype=dtype, name="conv")
        self.norm = BatchNormalization(**BATCH_NORM, dtype=dtype, name="norm")

    def build(self, input_shape: Shape) -> None:
        """Create the convolution's and the norm's variables."""
        self.conv.build(input_shape)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        """Apply the block."""
        return leaky_relu(self.norm(self.conv(x), training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return [B, H, W, filters]."""
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
        }


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ResidualRefinement(keras.layers.Layer):
    """Bring a map to `filters` channels and refine it by a residual branch.

    y = conv1x1(x); result = leaky_relu(norm(y + conv3x3(leaky_relu(norm(conv3x3(y)))))), where
    the branch has a quarter of the channels in between.

    Args:
        filters: channels of the result, a multiple of 4.

    Input shape:
        [B, H, W, any].

    Output shape:
        [B, H, W, filters].

    Reference:
        The refinement block "RRB" of the official code.
    """

    def __init__(self, filters: int, **kwargs: Any):
        super().__init__(**kwargs)
        if filters < 4 or filters % 4:
            raise ValueError(
                f"`filters` must be a positive multiple of 4. Received: filters={filters}"
            )
        self.filters = filters
        dtype = self.dtype_policy
        self.unify = conv2d(filters, 1, dtype=dtype, name="unify")
        self.reduce = ConvNormAct(filters // 4, 3, dtype=dtype, name="reduce")
        self.expand = conv2d(filters, 3, dtype=dtype, name="expand")
        self.norm = BatchNormalization(**BATCH_NORM, dtype=dtype, name="norm")

    def build(self, input_shape: Shape) -> None:
        """Create the variables of the four parts."""
        output_shape = self.compute_output_shape(input_shape)
        self.unify.build(input_shape)
        self.reduce.build(output_shape)
        self.expand.build(self.reduce.compute_output_shape(output_shape))
        self.norm.build(output_shape)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        """Apply the block."""
        x = self.unify(x)
        residual = self.expand(self.reduce(x, training=training))
        return leaky_relu(self.norm(x + residual, training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return [B, H, W, filters]."""
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class SegmentationHead(keras.layers.Layer):
    """Turn features into class logits: 3x3 block, spatial dropout, 1x1 convolution.

    Args:
        num_classes: channels of the result.
        filters: channels in between.
        dropout: share of the channels that spatial dropout zeroes in training.

    Input shape:
        [B, H, W, any].

    Output shape:
        [B, H, W, num_classes].

    Reference:
        "head" and "dsn" of the official code.
    """

    def __init__(self, num_classes: int, filters: int, dropout: float = 0.1, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.filters = filters
        self.dropout = dropout
        dtype = self.dtype_policy
        self.block = ConvNormAct(filters, 3, use_bias=True, dtype=dtype, name="block")
        self.spatial_dropout = keras.layers.SpatialDropout2D(
            dropout, data_format="channels_last", dtype=dtype, name="spatial_dropout"
        )
        self.classifier = conv2d(num_classes, 1, use_bias=True, dtype=dtype, name="classifier")

    def build(self, input_shape: Shape) -> None:
        """Create the variables of the block and the classifier."""
        self.block.build(input_shape)
        self.classifier.build(self.block.compute_output_shape(input_shape))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        """Return logits."""
        x = self.block(x, training=training)
        return self.classifier(self.spatial_dropout(x, training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return [B, H, W, num_classes]."""
        return (*input_shape[:-1], self.num_classes)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "filters": self.filters,
            "dropout": self.dropout,
        }
