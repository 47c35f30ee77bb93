"""Keras' depthwise convolution, with gradients in float32 where those of bfloat16 are slow."""

from typing import Any

import keras

Tensor = Any


@keras.saving.register_keras_serializable(package="alignseg_tf")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` whose bfloat16 gradients are computed in float32 on CPUs.

    TensorFlow's bfloat16 kernels for the way back take several times as long as those of float32
    where the stride is 2 (gradient of the map) or the kernel is larger than 3x3 (gradient of the
    kernel). In training on the TensorFlow backend without a GPU, the map and the gradient become
    float32 there, and what is found becomes bfloat16 again; what is kept for the way back stays
    bfloat16. Everything else is Keras' own.

    Args:
        kwargs: those of `keras.layers.DepthwiseConv2D`.

    Input shape:
        [B, H, W, C].

    Output shape:
        That of `keras.layers.DepthwiseConv2D`.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Convolve each channel by kernels of its own."""
        if not (training is True and self._has_slow_gradients()):
            return super().call(inputs)
        import tensorflow as tf

        @tf.custom_gradient
        def convolve(inputs: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
            def backward(upstream: Tensor) -> list[Tensor]:
                full = (tf.cast(array, tf.float32) for array in (inputs, kernel, upstream))
                gradients = zip(self._gradients(*full), (inputs, kernel), strict=True)
                return [tf.cast(gradient, array.dtype) for gradient, array in gradients]

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

    def _gradients(self, inputs: Tensor, kernel: Tensor, upstream: Tensor) -> list[Tensor]:
        """Return the gradients of the map and of the kernel."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = self._convolve(inputs, kernel)
        gradients: list[Tensor] = tape.gradient(outputs, [inputs, kernel], upstream)
        return gradients
