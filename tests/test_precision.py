"""What half precision and XLA may not change."""

import keras
import numpy as np
import pytest
from conftest import random_images, tiny_model
from keras import ops

from alignseg_tf.losses import CrossEntropy
from alignseg_tf.optimizers import AdamW, averaged_weights
from alignseg_tf.precision import global_dtype_policy, with_dtype_policy

BACKEND = keras.backend.backend()
POLICIES = ("mixed_bfloat16", "mixed_float16")


@pytest.fixture
def policy(request):
    """The dtype policy of all layers, as training sets it."""
    with global_dtype_policy(request.param):
        yield request.param


# Another policy


def test_a_model_takes_another_policy_and_back():
    model = tiny_model(dtype="float32")
    model.get_layer("refinement_p2").trainable = False
    half = with_dtype_policy(model, "mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert {x.dtype for x in half.outputs} == {"float32"}
    kinds = {layer.compute_dtype for layer in half._flatten_layers() if layer.weights}
    assert kinds == {"bfloat16"}
    again = with_dtype_policy(half, "float32")
    for changed in (half, again):
        frozen = [weight.path for weight in changed.weights if not weight.trainable]
        assert frozen == [weight.path for weight in model.weights if not weight.trainable]
    image = random_images(1, 64, 96).astype("float32")
    expected, other, same = (
        ops.convert_to_numpy(one(image)["segmentation"]) for one in (model, half, again)
    )
    np.testing.assert_array_equal(same, expected)
    assert np.abs(other - expected).max() > 1e-4


# Training


def compiled_model(optimizer, **kwargs):
    """Without dropout, so that steps can be compared."""
    model = tiny_model(num_classes=2, auxiliary_head=False)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.SpatialDropout2D):
            layer.rate = 0.0
    model.compile(optimizer, CrossEntropy(), **kwargs)
    return model


def train(model, steps):
    images = random_images(4, 32, 32).astype("float32")
    labels = (images.mean(-1) > 128).astype("int32")
    return [float(model.train_on_batch(images, labels)) for _ in range(steps)]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="training is TensorFlow's")
@pytest.mark.parametrize("policy", POLICIES, indirect=True)
def test_half_precision_trains_and_outlives_an_overflow(policy):
    model = compiled_model(AdamW(0.01, use_ema=True, ema_momentum=0.5), jit_compile=False)
    assert {x.dtype for x in model.outputs} == {"float32"}
    assert {w.dtype for w in model.weights} == {"float32"}
    assert all(layer.compute_dtype == policy[6:] for layer in model.backbone.layers[5:])
    losses = train(model, 20)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-2:]) < 0.95 * losses[0]
    assert averaged_weights(model) is not None

    optimizer = model.optimizer
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    if not scaled:
        return
    updates = int(optimizer.iterations)
    assert updates > 10
    state = [*model.trainable_weights, *optimizer.inner_optimizer.variables]
    before = [ops.convert_to_numpy(variable) for variable in state]
    optimizer.dynamic_scale.assign(2.0**100)
    assert np.isfinite(train(model, 1)).all()
    for variable, value in zip(state, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    assert float(optimizer.dynamic_scale) == 2.0**99
    optimizer.dynamic_scale.assign(2.0**5)
    assert np.isfinite(train(model, 2)).all()
    assert int(optimizer.iterations) == updates + 2


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="training is TensorFlow's")
def test_a_step_compiled_by_xla_is_the_same_step():
    """Up to rounding, which batch norms of few values and the kinks of the sampling enlarge."""
    losses, steps = [], []
    for jit_compile in (False, True):
        model = compiled_model(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        assert model.jit_compile == jit_compile
        before = [ops.convert_to_numpy(weight) for weight in model.trainable_weights]
        losses += train(model, 1)
        after = [ops.convert_to_numpy(weight) for weight in model.trainable_weights]
        moved = [new - old for new, old in zip(after, before, strict=True)]
        steps.append(np.concatenate([step.ravel() for step in moved]))
    step, compiled = steps
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert np.linalg.norm(compiled - step) < 0.1 * np.linalg.norm(step)
