"""Faster training on the TensorFlow backend: fused norms, gradients and compiled sampling."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from alignseg_tf.layers.sampling import bilinear_sample

Tensor = Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with XLA on the TensorFlow backend, anew for each size of its arguments.

    Its arguments are tensors and hashable values.
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


@keras.saving.register_keras_serializable(package="alignseg_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with TensorFlow's fused operation in training.

    Keras uses several passes and keeps a map of each for the gradient. The fused operation runs
    for maps [B, H, W, C] normalised over the last axis and not synchronised between replicas.
    Results, moving statistics and gradients are the same.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Any = None) -> Tensor:
        fused = (
            keras.backend.backend() == "tensorflow"
            and training is True
            and self.trainable
            and mask is None
            and not (self.synchronized or self.renorm)
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
        )
        if not fused:
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        inputs = tf.convert_to_tensor(inputs)
        channels = inputs.shape[-1]
        gamma = ops.cast(self.gamma, "float32") if self.scale else tf.ones(channels)
        beta = ops.cast(self.beta, "float32") if self.center else tf.zeros(channels)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=self.epsilon,
            exponential_avg_factor=1.0, is_training=True,
        )  # fmt: skip
        # It divides the variance by one less than the number of values, Keras by their number.
        values = tf.cast(math.prod(ops.shape(inputs)[:3]), "float32")
        variance = variance * tf.maximum(values - 1.0, 1.0) / values
        for statistic, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            before = ops.cast(statistic, "float32")
            statistic.assign(before * self.momentum + value * (1.0 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable(package="alignseg_tf")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with bfloat16 gradients computed in float32 on CPUs.

    TensorFlow's bfloat16 gradient kernels are several times slower than those of float32 for
    stride 2 or kernels above 3x3. In training without a GPU their inputs are cast to float32 and
    the gradients back. Maps kept for the gradient stay bfloat16.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if not (training is True and self._has_slow_gradients()):
            return super().call(inputs)
        import tensorflow as tf

        @tf.custom_gradient
        def convolve(inputs: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
            def backward(upstream: Tensor) -> list[Tensor]:
                full = (tf.cast(array, tf.float32) for array in (inputs, kernel, upstream))
                gradients = _gradients(self._convolve, *full)
                return [
                    tf.cast(x, array.dtype)
                    for x, array in zip(gradients, (inputs, kernel), strict=True)
                ]

            # Else a tape would keep what `backward` does not need.
            return self._convolve(tf.stop_gradient(inputs), tf.stop_gradient(kernel)), backward

        outputs = convolve(tf.convert_to_tensor(inputs), tf.convert_to_tensor(self.kernel))
        if self.use_bias:
            outputs = keras.ops.add(outputs, self.bias)
        return self.activation(outputs)

    def _has_slow_gradients(self) -> bool:
        if keras.backend.backend() != "tensorflow" or self.compute_dtype != "bfloat16":
            return False
        import tensorflow as tf

        return (
            self.data_format == "channels_last"
            and (max(self.strides) > 1 or max(self.kernel_size) > 3)
            and not tf.config.list_logical_devices("GPU")
        )

    def _convolve(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return keras.ops.depthwise_conv(
            inputs, kernel, strides=self.strides, padding=self.padding,
            dilation_rate=self.dilation_rate, data_format=self.data_format,
        )  # fmt: skip


def bilinear_sample_in_training(
    features: Tensor, offsets: Tensor, sampling: str = "standard"
) -> Tensor:
    """`bilinear_sample`, compiled with XLA on the TensorFlow backend.

    Gathers, weights and sums become one loop, as do their gradients, which gather again instead of
    keeping four maps of the result's size. XLA compiles for each size, which suits crops of one
    size. Second derivatives are not defined.
    """
    if keras.backend.backend() != "tensorflow":
        return bilinear_sample(features, offsets, sampling)
    import tensorflow as tf

    @tf.custom_gradient
    def sample(features: Tensor, offsets: Tensor) -> tuple[Tensor, Any]:
        # Else a tape would look into the compiled function and keep what it gathers.
        fixed = tf.stop_gradient(features), tf.stop_gradient(offsets)
        return _sampled(*fixed, sampling), lambda upstream: _sampling_gradients(
            features, offsets, upstream, sampling
        )

    return sample(features, offsets)


_sampled = compiled(bilinear_sample)


@compiled
def _sampling_gradients(
    features: Tensor, offsets: Tensor, upstream: Tensor, sampling: str
) -> list[Tensor]:
    sample = functools.partial(bilinear_sample, sampling=sampling)
    return _gradients(sample, features, offsets, upstream)


def _gradients(
    function: Callable[..., Any], first: Tensor, second: Tensor, upstream: Tensor
) -> list[Tensor]:
    """Return the gradients of both arguments of a function."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch([first, second])
        result = function(first, second)
    gradients: list[Tensor] = tape.gradient(result, [first, second], upstream)
    return gradients
