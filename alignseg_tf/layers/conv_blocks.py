"""The convolution blocks of the decoder. NHWC; C is the number of filters."""

from typing import Any

import keras
from keras import ops

from alignseg_tf.layers.tensorflow_kernels import BatchNormalization

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


@keras.saving.register_keras_serializable(package="alignseg_tf")
class ConvNormAct(keras.layers.Layer):
    """Convolution, batch norm, leaky ReLU.

    Args:
        filters: channels of the result.
        kernel_size: side of the square kernel.
        use_bias: whether the convolution has a bias (only the heads' has).

    Shape:
        [B, H, W, any] -> [B, H, W, filters].

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
        return leaky_relu(self.norm(self.conv(x), training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
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

    Shape:
        [B, H, W, any] -> [B, H, W, filters].

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
        x = self.unify(x)
        residual = self.expand(self.reduce(x, training=training))
        return leaky_relu(self.norm(x + residual, training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class SegmentationHead(keras.layers.Layer):
    """Turn features into class logits: 3x3 block, spatial dropout, 1x1 convolution.

    Args:
        num_classes: channels of the result.
        filters: channels in between.
        dropout: share of the channels that spatial dropout zeroes in training.

    Shape:
        [B, H, W, any] -> [B, H, W, num_classes].

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
        x = self.block(x, training=training)
        return self.classifier(self.spatial_dropout(x, training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.num_classes)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "filters": self.filters,
            "dropout": self.dropout,
        }
