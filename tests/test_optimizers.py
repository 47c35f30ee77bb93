"""Optimizers against PyTorch and by hand; runs on every Keras backend."""

import re

import keras
import numpy as np
import pytest
from conftest import ROOT, tiny_model
from keras import ops

from alignseg_tf.losses import CrossEntropy
from alignseg_tf.optimizers import AdamW, SGDWithL2, WarmUp, averaged_weights, layer_factors

BACKEND = keras.backend.backend()
BACKENDS_WITH_COMPILER = ("tensorflow", "jax")
PolynomialDecay = keras.optimizers.schedules.PolynomialDecay
FACTORS = {"stem": 0.1, "head": 10.0}

# PyTorch's own, from `fit` on that backend.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*")


def images_and_labels():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (8, 6, 8, 3)).astype("float32")
    labels = rng.integers(0, 3, (8, 6, 8))
    labels[:, 0] = 255  # equally many of each image
    return images, labels


def small_model(optimizer=None, norm=True, dtype=None, **compile_arguments):
    keras.utils.set_random_seed(0)
    x = images = keras.Input((6, 8, 3))
    # No bias before a norm: its gradient is rounding alone.
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=not norm, name="stem", dtype=dtype)(x)
    if norm:
        x = keras.layers.BatchNormalization(name="norm", dtype=dtype)(x)
    x = keras.layers.Conv2D(3, 1, name="head", dtype="float32")(keras.layers.ReLU()(x))
    model = keras.Model(images, x)
    if optimizer is not None:
        if dtype == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, CrossEntropy(), **compile_arguments)
    return model


def fit(model, epochs=1, initial_epoch=0, batch_size=2, **kwargs):
    """Four steps an epoch."""
    x, y = images_and_labels()
    model.fit(
        x, y, batch_size=batch_size, epochs=epochs, initial_epoch=initial_epoch, shuffle=False,
        verbose=0, **kwargs,
    )  # fmt: skip
    return model


def inner(model):
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def assert_equal(arrays, expected, **tolerance):
    for array, other in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(array, other, **{"rtol": 0, "atol": 0, **tolerance})


# Updates


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("decay_norms_and_biases", [True, False])
def test_groups_equal_the_parameter_groups_of_torch(kind, decay_norms_and_biases):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    groups = {"learning_rate_factors": FACTORS, "decay_norms_and_biases": decay_norms_and_biases}
    variables = small_model().trainable_variables
    assert {v.name for v in variables} == {"kernel", "bias", "gamma", "beta"}
    factors = [FACTORS.get(v.path.split("/")[0], 1.0) for v in variables]
    assert set(factors) == {0.1, 1.0, 10.0}
    parameters = [torch.nn.Parameter(torch.tensor(ops.convert_to_numpy(v))) for v in variables]
    decays = [0.3 if decay_norms_and_biases or v.name == "kernel" else 0.0 for v in variables]
    settings = [
        {"params": [parameter], "weight_decay": decay}
        for parameter, decay in zip(parameters, decays, strict=True)
    ]
    if kind == "adamw":
        rates = 0.01 * (1 - np.arange(6) / 9) ** 0.9
        optimizer = AdamW(PolynomialDecay(0.01, 9, 0.0, 0.9), weight_decay=0.3, **groups)
        reference = torch.optim.AdamW(settings, lr=1.0, eps=1e-10)
        optimizer.epsilon = 1e-10  # added at another place
    else:  # torch's momentum has the learning rate outside of it: equal while the rate stays
        rates = np.full(6, 0.01)
        optimizer = SGDWithL2(0.01, 0.9, 0.3, **groups)
        reference = torch.optim.SGD(settings, lr=1.0, momentum=0.9)
    optimizer.build(variables)
    rng = np.random.default_rng(1)
    for rate in rates:
        gradients = [rng.normal(size=v.shape).astype("float32") for v in variables]
        for parameter, gradient, group, factor in zip(
            parameters, gradients, reference.param_groups, factors, strict=True
        ):
            parameter.grad = torch.tensor(gradient)
            group["lr"] = rate * factor
        reference.step()
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients])
    expected = [parameter.detach().numpy() for parameter in parameters]
    assert_equal(map(ops.convert_to_numpy, variables), expected, rtol=1e-4, atol=1e-5)


def test_the_longest_fitting_path_counts():
    factors = {"head": 10.0, "head/bias": 3.0, "stem": 0.0, "ste": 5.0, "nor": 7.0}
    variables = small_model().trainable_variables
    before = [ops.convert_to_numpy(v) for v in variables]
    optimizer = SGDWithL2(0.5, momentum=0.0, l2=0.0, learning_rate_factors=factors)
    optimizer.build(variables)
    optimizer.apply([ops.ones(v.shape) for v in variables])
    used = {"head/kernel": 10.0, "head/bias": 3.0, "stem/kernel": 0.0}
    for variable, value in zip(variables, before, strict=True):
        step = 0.5 * used.get(variable.path, 1.0)
        np.testing.assert_allclose(ops.convert_to_numpy(variable), value - step, atol=1e-6)


@pytest.mark.parametrize("kind", [AdamW, SGDWithL2])
def test_two_batches_of_two_are_one_of_four(kind):
    """Accumulated gradients are averaged: equal where nothing depends on the batch as a whole."""
    # Clipping acts on the average.
    groups = {"learning_rate_factors": FACTORS, "global_clipnorm": 0.05}
    together = fit(small_model(kind(0.01, **groups), norm=False), batch_size=4, epochs=2)
    halves = kind(0.01, gradient_accumulation_steps=2, **groups)
    apart = fit(small_model(halves, norm=False), batch_size=2, epochs=2)
    assert_equal(apart.get_weights(), together.get_weights(), atol=2e-6)
    assert int(ops.convert_to_numpy(together.optimizer.iterations)) == 4
    assert int(ops.convert_to_numpy(apart.optimizer.iterations)) == 4


def test_a_schedule_counts_steps_not_updates():
    for accumulated, updates in ((None, 4), (2, 2)):
        optimizer = AdamW(
            PolynomialDecay(0.1, 8, 0.0, 1.0), gradient_accumulation_steps=accumulated
        )
        optimizer.build([keras.Variable([1.0])])
        for _ in range(4):
            optimizer.apply([ops.ones((1,))])
        assert float(ops.convert_to_numpy(optimizer.learning_rate)) == pytest.approx(0.05)
        assert int(ops.convert_to_numpy(optimizer.iterations)) == updates


# Averages


class Record(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


@pytest.mark.parametrize("accumulated", [None, 2])
@pytest.mark.parametrize("kind", [AdamW, SGDWithL2])
def test_averages_follow_the_updates(kind, accumulated):
    """One term an update, the first as it is; statistics of batch norms are not averaged."""
    optimizer = kind(0.05, use_ema=True, ema_momentum=0.7, gradient_accumulation_steps=accumulated)
    model, record = small_model(optimizer), Record()
    assert averaged_weights(model) is None
    fit(model, callbacks=[record])
    updates = record.weights[(accumulated or 1) - 1 :: accumulated or 1]
    expected = updates[0]
    for weights in updates[1:]:
        expected = [0.7 * a + 0.3 * w for a, w in zip(expected, weights, strict=True)]
    last = model.get_weights()
    expected = [
        average if weight.trainable else now
        for average, weight, now in zip(expected, model.weights, last, strict=True)
    ]
    averages = averaged_weights(model)
    assert_equal(averages, expected, atol=1e-6)
    assert max(np.abs(a - w).max() for a, w in zip(averages, last, strict=True)) > 1e-3
    assert_equal(last, record.weights[-1])  # `fit` has not put the average in their place


def test_averages_of_what_is_not_trained():
    model = small_model()
    model.get_layer("norm").trainable = False
    model.compile(AdamW(0.01, use_ema=True), CrossEntropy())
    before = model.get_weights()
    fit(model)
    averages = averaged_weights(model)
    for weight, old, average in zip(model.weights, before, averages, strict=True):
        assert np.array_equal(old, average) == weight.path.startswith("norm"), weight.path


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_variable_without_gradient_is_its_own_average():
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer = AdamW(0.1, use_ema=True)
    optimizer.build(variables)
    optimizer.apply([ops.ones((2,)), None], variables)
    average = optimizer._model_variables_moving_average[1]
    np.testing.assert_array_equal(ops.convert_to_numpy(average), [3.0])


@pytest.mark.parametrize("optimizer", [None, AdamW(0.1), keras.optimizers.SGD(0.1, use_ema=True)])
def test_no_averages(optimizer):
    model = small_model()
    if optimizer is not None:
        model.compile(optimizer, CrossEntropy())
        optimizer.build(model.trainable_variables)
    assert averaged_weights(model) is None


# Saving

EVERYTHING = {
    "learning_rate_factors": FACTORS, "decay_norms_and_biases": False, "use_ema": True,
    "ema_momentum": 0.8, "global_clipnorm": 0.05,
}  # fmt: skip


def schedule():
    return WarmUp(PolynomialDecay(0.05, 20, 0.0, 0.9), 3)


@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [
        (AdamW, {"weight_decay": 0.1}, None),
        (SGDWithL2, {"l2": 0.01}, None),
        # Saved between two updates.
        pytest.param(AdamW, {"gradient_accumulation_steps": 3}, None, marks=pytest.mark.slow),
        pytest.param(
            AdamW, {"gradient_accumulation_steps": 2}, "mixed_float16", marks=pytest.mark.slow
        ),
    ],
)
def test_a_saved_model_trains_on_as_if_never_saved(kind, options, dtype, tmp_path):
    def start():
        return small_model(kind(schedule(), **options, **EVERYTHING), dtype=dtype)

    expected = fit(start(), epochs=2)
    fit(start()).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    optimizer = inner(model)
    assert isinstance(optimizer, kind)
    assert (inner(model) is not model.optimizer) == (dtype == "mixed_float16")
    assert dict(optimizer.learning_rate_factors) == FACTORS
    assert optimizer.decay_norms_and_biases is False
    fit(model, epochs=2, initial_epoch=1)
    assert_equal(model.get_weights(), expected.get_weights())
    assert_equal(averaged_weights(model), averaged_weights(expected))
    assert_equal(
        [ops.convert_to_numpy(v) for v in model.optimizer.variables],
        [ops.convert_to_numpy(v) for v in expected.optimizer.variables],
    )


@pytest.mark.slow
@pytest.mark.skipif(BACKEND not in BACKENDS_WITH_COMPILER, reason="no XLA on this backend")
@pytest.mark.parametrize("kind", [AdamW, SGDWithL2])
def test_compiled_equals_not_compiled(kind):
    def train(jit_compile):
        optimizer = kind(schedule(), gradient_accumulation_steps=2, **EVERYTHING)
        model = fit(small_model(optimizer, jit_compile=jit_compile))
        return model.get_weights() + averaged_weights(model)

    assert_equal(train(True), train(False), atol=1e-5)


def test_a_config_from_before_the_groups_loads():
    config = SGDWithL2(0.1, 0.8, 1e-3).get_config()
    del config["learning_rate_factors"], config["decay_norms_and_biases"]
    copy = SGDWithL2.from_config(config)
    assert (dict(copy.learning_rate_factors), copy.decay_norms_and_biases) == ({}, True)


# Factors of an AlignSeg


def test_layer_factors(tmp_path):
    model = tiny_model()
    factors = layer_factors(model, backbone=0.1, heads=10.0)
    of_backbone = {id(v) for v in model.backbone.variables}
    for variable in model.trainable_variables:
        expected = 1.0
        if id(variable) in of_backbone:
            expected = 0.1
        elif variable.path.startswith(("segmentation_head/", "auxiliary_head/")):
            expected = 10.0
        assert factors.get(variable.path.split("/")[0], 1.0) == expected, variable.path
    assert {0.1, 10.0} == set(factors.values())
    assert layer_factors(model) == {}
    assert set(layer_factors(model, heads=2.0)) == {"segmentation_head", "auxiliary_head"}
    model.compile(AdamW(0.1, learning_rate_factors=factors))
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    paths = [v.path for v in model.trainable_variables]
    assert [v.path for v in loaded.trainable_variables] == paths
    assert len(set(paths)) == len(paths)
    assert list(loaded.optimizer._factors) == list(model.optimizer._factors)
    assert layer_factors(loaded, backbone=0.1, heads=10.0) == factors


def test_layers_of_the_same_name_are_refused():
    x = images = keras.Input((None, None, 3))
    for level in range(2, 6):
        x = keras.layers.Conv2D(4, 3, 2, "same", name=f"refinement_p{level}")(x)
    backbone = keras.Model(images, x)
    model = keras.Model(images, keras.layers.Conv2D(2, 1, name="segmentation_head")(x))
    model.backbone = backbone
    assert set(layer_factors(model, 0.1)) == {f"refinement_p{level}" for level in range(2, 6)}
    again = keras.Model(images, keras.layers.Conv2D(2, 1, name="refinement_p3")(images))
    model = keras.Model(images, [model(images), again(images)])
    model.backbone = backbone
    with pytest.raises(ValueError, match=r"other names.*Received: \['refinement_p3'\]"):
        layer_factors(model, 0.1)


# The warm-up


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_warm_up(steps):
    decay = PolynomialDecay(0.8, 10, 0.0, 0.9)
    warm_up = WarmUp(decay, steps)
    expected = [0.8 * (i + 1) / (steps + 1) for i in range(steps)]
    expected += [0.8 * (1 - i / 10) ** 0.9 for i in range(11)]
    got = [float(ops.convert_to_numpy(warm_up(i))) for i in range(len(expected))]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(warm_up))
    assert copy.get_config() == warm_up.get_config()


# Arguments


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="must not be negative. Received: l2=-1"):
        SGDWithL2(l2=-1)
    with pytest.raises(ValueError, match="must not be negative. Received: -0.1 for 'stem'"):
        AdamW(learning_rate_factors={"stem": -0.1})
    with pytest.raises(ValueError, match="must not be negative. Received: steps=-1"):
        WarmUp(PolynomialDecay(0.1, 10), -1)
    optimizer = AdamW(learning_rate_factors={"sten": 0.1})
    with pytest.raises(ValueError, match=r"such as 'stem/kernel'. Received: \['sten'\]"):
        optimizer.build(small_model().trainable_variables)


def test_the_example_of_the_documentation_runs():
    text = (ROOT / "docs" / "optimisation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, "optimisation.md", "exec"), {})
