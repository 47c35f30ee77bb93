"""Losses, metrics and optimizers on two replicas of `tf.distribute` do what they do on one."""

import subprocess
import sys

import keras
import pytest
from conftest import ROOT

SCRIPT = """
import contextlib
import keras
import numpy as np
import tensorflow as tf
from alignseg_tf.losses import (
    BoundaryCrossEntropy, CombinedLoss, CrossEntropy, DiceLoss, LovaszSoftmax, OhemCrossEntropy)
from alignseg_tf.metrics import MeanIoU, RaiseOnInvalidLabels, mean_iou
from alignseg_tf.optimizers import AdamW, SGDWithL2, averaged_weights

cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
# Replicas have equal shares of the images, of which all are one.
x = np.tile(rng.random((1, 6, 8, 3)).astype("float32"), (4, 1, 1, 1))
y = np.tile(rng.integers(0, 5, (1, 6, 8)), (4, 1, 1))  # logits are 4 x 6
y[:, 0] = 255
# In the last batch one replica has less.
more_x, more_y = rng.random((7, 6, 8, 3)).astype("float32"), rng.integers(0, 5, (7, 6, 8))

def train(scope, kind):
    keras.utils.set_random_seed(0)
    with scope:
        images = keras.Input((6, 8, 3))
        model = keras.Model(images, keras.layers.Conv2D(5, 3, name="head")(images))
        loss = CrossEntropy()  # AdamW enlarges the rounding of gradients near zero
        if kind is SGDWithL2:
            loss = CombinedLoss([
                CrossEntropy(label_smoothing=0.1), LovaszSoftmax(), OhemCrossEntropy(0.3, 5),
                DiceLoss(), BoundaryCrossEntropy(1)])
        optimizer = kind(
            0.1, learning_rate_factors={"head": 0.5}, decay_norms_and_biases=False,
            use_ema=True, ema_momentum=0.8)
        metric = MeanIoU(5)
        model.compile(optimizer, loss, metrics=[metric], jit_compile=False)
    check = RaiseOnInvalidLabels()
    history = model.fit(
        x, y, batch_size=4, epochs=4, verbose=0, shuffle=False, callbacks=[check]).history
    assert metric.confusion_matrix().sum() == (y != 255).sum()
    np.testing.assert_allclose(history["mean_iou"][-1], mean_iou(metric.confusion_matrix()), 1e-6)
    weights = model.get_weights() + averaged_weights(model)
    evaluated = model.evaluate(more_x, more_y, batch_size=4, verbose=0, return_dict=True)
    confusion = metric.confusion_matrix()
    assert confusion.sum() == more_y.size
    np.testing.assert_allclose(evaluated["mean_iou"], mean_iou(confusion), 1e-6)
    bad = np.where(np.arange(6)[:, None] == 1, 77, more_y)
    model.evaluate(more_x, bad, batch_size=4, verbose=0)
    assert metric.out_of_range() == 7 * 8
    try:
        model.evaluate(more_x, bad, batch_size=4, verbose=0, callbacks=[check])
    except ValueError as error:
        assert "56 pixels" in str(error)
    else:
        raise SystemExit("bad labels went unnoticed")
    metric.reset_state()
    assert metric.confusion_matrix().sum() == 0
    return [history["loss"], *weights], confusion

for kind in (AdamW, SGDWithL2):
    one, two = train(contextlib.nullcontext(), kind), train(strategy.scope(), kind)
    for a, b in zip(one[0], two[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(one[1], two[1])
print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_two_replicas_train_and_count_as_one():
    """The step must not depend on the number of replicas, as it does for a scalar loss."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("same\n")
