"""Keras' batch norm, in one pass in training on TensorFlow."""

import math
from typing import Any

import keras
from keras import ops

Tensor = Any


@keras.saving.register_keras_serializable(package="alignseg_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` whose training step is TensorFlow's fused operation.

    Keras takes the moments, subtracts, multiplies and adds in passes of their own, and keeps a map
    of each for the gradient. The fused operation is used in training on the TensorFlow backend, for
    maps [B, H, W, C] whose norm is over the last axis and is not synchronised between replicas;
    everything else is Keras' own. Results, moving statistics and gradients are the same.

    Args:
        kwargs: those of `keras.layers.BatchNormalization`.

    Input shape:
        Any; [B, H, W, C] in a network of this library.

    Output shape:
        That of the input.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Any = None) -> Tensor:
        """Normalise by the batch's moments in training, by the moving statistics otherwise."""
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
