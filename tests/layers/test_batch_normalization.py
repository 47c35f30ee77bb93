"""The fused operation, against Keras' own layer; other backends have Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from alignseg_tf.layers import BatchNormalization


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("trainable", [True, False])
def test_fused_batch_norm_is_batch_norm(dtype, trainable):
    """Output, gradients and moving statistics, with a mean far from zero and few values."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(3, 2, (2, 3, 5, 4)), tf.float32)
    weight = tf.constant(rng.normal(size=x.shape), tf.float32)
    found = []
    for kind in (BatchNormalization, keras.layers.BatchNormalization):
        layer = kind(momentum=0.9, epsilon=1e-5, dtype=dtype)
        layer.build(x.shape)
        layer.gamma.assign([0.5, 1.0, -1.5, 2.0])
        layer.beta.assign([0.0, 1.0, 2.0, -1.0])
        layer.trainable = trainable
        with tf.GradientTape() as tape:
            tape.watch([x, layer.gamma.value, layer.beta.value])
            outputs = layer(x, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weight)
        gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
        found.append([outputs, *gradients, layer.moving_mean, layer.moving_variance])
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for fused, plain in zip(*found, strict=True):
        fused, plain = (ops.convert_to_numpy(ops.cast(v, "float32")) for v in (fused, plain))
        np.testing.assert_allclose(fused, plain, rtol=tolerance, atol=tolerance)


def test_batch_norm_of_training_is_one_operation():
    layer = BatchNormalization()
    layer.build((None, None, None, 4))

    def kinds():
        graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(
            tf.TensorSpec((2, None, None, 4))
        )
        return {operation.type for operation in graph.graph.get_operations()}

    assert "FusedBatchNormV3" in kinds()
    layer.synchronized = True
    assert "FusedBatchNormV3" not in kinds()
