"""Batch norms written into convolutions: which, and that nothing else changes."""

import keras
import numpy as np
import pytest
from keras import layers

from alignseg_tf.inference.batch_norm_folding import fold_batch_norms, norm_scale_and_shift


def with_statistics(model):
    """Give every batch norm statistics and weights that are no identity."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [
                    rng.uniform(0.3, 2.0, w.shape) if "variance" in w.path else rng.normal(
                        0, 1, w.shape
                    )
                    for w in layer.weights
                ]
            )  # fmt: skip
        elif layer.weights:
            layer.set_weights([rng.normal(0, 0.4, w.shape) for w in layer.weights])
    return model


def batch_norms(model):
    return [x.name for x in model.layers if isinstance(x, layers.BatchNormalization)]


def check_equal(model, norms_left=()):
    with_statistics(model)
    folded = fold_batch_norms(model)
    x = np.random.default_rng(1).normal(size=(2, 9, 12, 3)).astype("float32")
    for result, expected in zip(
        keras.tree.flatten(folded(x, training=False)),
        keras.tree.flatten(model(x, training=False)),
        strict=True,
    ):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert batch_norms(folded) == list(norms_left)
    return folded


def test_convolutions_of_all_kinds_take_in_their_norm():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(x)
    x = layers.BatchNormalization(scale=False, epsilon=1e-2)(x)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv2D(5, 1, name="biased")(x)
    x = layers.BatchNormalization(center=False, axis=3)(x)
    model = keras.Model(inputs, x)
    folded = check_equal(model)
    assert folded.get_layer("conv").use_bias
    assert "dropout" not in " ".join(layer.name for layer in folded.layers)
    assert not model.get_layer("conv").use_bias  # the original is as it was


@pytest.mark.parametrize("why", ["activation", "two readers", "an output", "no convolution"])
def test_other_norms_stay(why):
    inputs = keras.Input((None, None, 3))
    activation = "relu" if why == "activation" else None
    conv = layers.Conv2D(4, 3, padding="same", activation=activation)(inputs)
    if why == "no convolution":
        conv = layers.Activation("sigmoid")(conv)
    x = layers.BatchNormalization(name="stays")(conv)
    outputs = [x]
    if why == "two readers":
        outputs = [layers.Add()([x, conv])]
    if why == "an output":
        outputs = [x, conv]
    check_equal(keras.Model(inputs, outputs), ["stays"])


def test_a_convolution_that_is_used_twice_keeps_its_norms():
    inputs = keras.Input((None, None, 3))
    conv = layers.Conv2D(3, 3, padding="same")
    x = layers.BatchNormalization(name="first")(conv(inputs))
    x = layers.BatchNormalization(name="second")(conv(x))
    check_equal(keras.Model(inputs, x), ["first", "second"])


def test_models_inside_of_a_model_stay_whole():
    inner_inputs = keras.Input((None, None, 3))
    inner = keras.Model(
        inner_inputs, layers.BatchNormalization()(layers.Conv2D(4, 1)(inner_inputs)), name="inner"
    )
    with_statistics(inner)
    inputs = keras.Input((None, None, 3))
    check_equal(keras.Model(inputs, layers.ReLU()(inner(inputs))))


def test_scale_and_shift_are_what_a_norm_does():
    norm = layers.BatchNormalization()
    norm.build((None, 4))
    rng = np.random.default_rng(0)
    norm.set_weights([rng.uniform(0.5, 2, 4) for _ in range(4)])
    scale, shift = norm_scale_and_shift(norm)
    x = rng.normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(norm(x, training=False), x * scale + shift, rtol=1e-5)
