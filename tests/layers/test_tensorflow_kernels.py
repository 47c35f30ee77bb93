"""The fused norm and float32 gradients, against layers of Keras, which other backends use."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from alignseg_tf import AlignSeg, backbones
from alignseg_tf.layers import BatchNormalization, DepthwiseConv2D


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


def outputs_and_gradients(kind, dtype, x, weight, **kwargs):
    layer = kind(padding="same", dtype=dtype, **kwargs)
    layer.build(x.shape)
    rng = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    variables = [variable.value for variable in layer.trainable_variables]

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch([x, *variables])
            outputs = layer(x, training=True) if kind is DepthwiseConv2D else layer(x)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weight[: outputs.shape[1]])
        return [outputs, *tape.gradient(loss, [x, *variables])]

    return [ops.convert_to_numpy(ops.cast(value, "float32")) for value in run(x)]


@pytest.mark.parametrize(
    ("kernel_size", "strides", "kwargs"),
    [(5, 1, {}), (5, 2, {}), (3, 2, {"use_bias": False}), (3, 1, {}), (5, 1, {"dilation_rate": 2}),
     (3, 2, {"depth_multiplier": 2, "activation": "relu"})],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_it_is_keras_own_layer(kernel_size, strides, kwargs, dtype):
    rng = np.random.default_rng(0)
    kwargs = {"kernel_size": kernel_size, "strides": strides, **kwargs}
    # Values that bfloat16 holds exactly, so that rounding within decides alone.
    x = tf.cast(tf.cast(rng.normal(size=(2, 9, 12, 4)), tf.bfloat16), tf.float32)
    channels = 4 * kwargs.get("depth_multiplier", 1)
    size = [-(-n // strides) for n in (9, 12)]
    weight = tf.constant(rng.normal(size=(2, *size, channels)), tf.float32)
    ours, keras_own = (
        outputs_and_gradients(kind, dtype, x, weight, **kwargs)
        for kind in (DepthwiseConv2D, keras.layers.DepthwiseConv2D)
    )
    assert len(ours) == (3 if kwargs.get("use_bias") is False else 4)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for one, other in zip(ours, keras_own, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


def test_slow_gradients_are_in_float32(monkeypatch):
    """Of a bfloat16 step: the types of the operations of the way back, by kernel and stride."""

    def types(training, **kwargs):
        layer = DepthwiseConv2D(**kwargs, padding="same", dtype="mixed_bfloat16")
        layer.build((1, 8, 8, 4))

        @tf.function
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = layer(x, training=training)
            return tape.gradient(outputs, [x, layer.kernel.value])

        graph = run.get_concrete_function(tf.TensorSpec((1, 8, 8, 4))).graph
        return {
            tf.as_dtype(operation.get_attr("T")).name
            for operation in graph.get_operations()
            if "Backprop" in operation.type
        }

    devices = []
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    assert types(True, kernel_size=5) == types(True, kernel_size=3, strides=2) == {"float32"}
    assert types(True, kernel_size=3) == types(False, kernel_size=5) == {"bfloat16"}
    devices.append("GPU:0")
    assert types(True, kernel_size=5) == {"bfloat16"}


def test_it_is_saved_and_in_the_backbone(tmp_path):
    backbone = backbones.efficientnet_lite0(weights=None)
    kinds = [type(x) for x in backbone.layers if isinstance(x, keras.layers.DepthwiseConv2D)]
    assert kinds == [DepthwiseConv2D] * 16
    AlignSeg(backbone, 3, channels=16).save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    kinds = [type(x) for x in reloaded._flatten_layers()]
    assert kinds.count(DepthwiseConv2D) == 16
