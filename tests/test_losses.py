"""Losses against the official values, PyTorch and NumPy; runs on every Keras backend."""

import doctest
import functools
import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import absent
from keras import ops

from alignseg_tf import logits_and_labels as resized_logits
from alignseg_tf import losses
from alignseg_tf.logits_and_labels import logits_at_label_size
from alignseg_tf.losses import (
    BoundaryCrossEntropy,
    CombinedLoss,
    CrossEntropy,
    DiceLoss,
    LovaszSoftmax,
    OhemCrossEntropy,
)
from alignseg_tf.metrics import MeanIoU

BACKEND = keras.backend.backend()
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
MODES = ["eager"] if BACKEND == "torch" else ["eager", "compiled"]  # by XLA

# PyTorch's own, from `fit` on that backend.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*")

LOSSES = {
    "cross_entropy": CrossEntropy(),
    "class_weights": CrossEntropy(class_weights=[0.5, 2.0, 1.0, 3.0, 0.0]),
    "ohem": OhemCrossEntropy(threshold=0.3, min_kept=20),
    "lovasz": LovaszSoftmax(),
    "combined": CombinedLoss([CrossEntropy(), LovaszSoftmax()], weights=[1.0, 0.8]),
    "smoothed": CrossEntropy(class_weights=[0.5, 2.0, 1.0, 3.0, 0.0], label_smoothing=0.2),
    "dice": DiceLoss(),
    "boundary": BoundaryCrossEntropy(radius=2, boundary_weight=4.0),
    "boundary_dice": CombinedLoss([BoundaryCrossEntropy(1, 9.0), DiceLoss()], weights=[1.0, 0.5]),
}


def value_and_gradient(loss, labels, logits, mode="eager"):
    """Loss and gradient for the logits, in NumPy, on the backend that runs."""
    labels, logits = ops.convert_to_tensor(labels), ops.convert_to_tensor(logits)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def function(labels, logits):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = loss(labels, logits)
            return value, tape.gradient(value, logits)

        if mode != "eager":
            function = tf.function(function, jit_compile=mode == "compiled")
        if mode == "dynamic":
            function = function.get_concrete_function(
                tf.TensorSpec([None, None, None], labels.dtype),
                tf.TensorSpec([None, None, None, logits.shape[-1]], logits.dtype),
            )
        value, gradient = function(labels, logits)
    elif BACKEND == "jax":
        import jax

        function = jax.value_and_grad(lambda logits, labels: loss(labels, logits))
        value, gradient = (jax.jit(function) if mode == "compiled" else function)(logits, labels)
    else:
        logits = logits.detach().requires_grad_()
        value = loss(labels, logits)
        value.backward()
        gradient = logits.grad
    assert tuple(value.shape) == ()
    return float(ops.convert_to_numpy(value)), ops.convert_to_numpy(ops.cast(gradient, "float32"))


def example(batch=2, size=(7, 9), classes=5, label_size=None, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((batch, *size, classes)).astype("float32")
    labels = rng.integers(0, classes, (batch, *(label_size or size)))
    labels[rng.random(labels.shape) < 0.3] = 255
    return labels.astype("uint8"), logits


def softmax(logits):
    exponents = np.exp(logits.astype("float64") - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def lovasz_reference(labels, logits, ignored=(255,)):
    """Value and gradient from the definition: quotients, class by class, valid pixels only."""
    probabilities = softmax(logits)
    classes = logits.shape[-1]
    valid = (labels < classes) & ~np.isin(labels, ignored)
    to_probabilities, terms = np.zeros_like(probabilities), []
    for c in np.unique(labels[valid]):
        truth = (labels[valid] == c).astype("float64")
        errors = np.abs(truth - probabilities[valid][:, c])
        order = np.argsort(-errors)
        ranked = truth[order]
        intersection = ranked.sum() - np.cumsum(ranked)
        union = ranked.sum() + np.cumsum(1 - ranked)
        growth = np.diff(1 - intersection / union, prepend=0.0)
        terms.append(errors[order] @ growth)
        per_pixel = np.zeros_like(errors)
        per_pixel[order] = growth
        to_probabilities[valid, c] = per_pixel * np.where(truth, -1, 1)
    to_probabilities /= len(terms)
    mean = (to_probabilities * probabilities).sum(-1, keepdims=True)
    return np.mean(terms), probabilities * (to_probabilities - mean)


# The official values


@functools.cache
def golden():
    if not GOLDEN.exists():
        absent(f"the official values are not at {GOLDEN}")
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    with np.load(GOLDEN / "official.npz") as arrays:
        values = {key: arrays[key] for key in arrays if key.startswith("loss.")}
    main, auxiliary = (
        (2 * weights.images((2, 7, 24, 32), salt)).transpose(0, 2, 3, 1) for salt in (6, 7)
    )
    return values, main, auxiliary


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("key", "loss"),
    [
        ("ce_main", CrossEntropy()),
        ("lovasz_only", LovaszSoftmax()),
        ("ohem_0.7_100", OhemCrossEntropy(0.7, 100)),
        ("ohem_0.2_3000", OhemCrossEntropy(0.2, 3000)),
        ("ohem_0.6_1000000000", OhemCrossEntropy(0.6, 1_000_000_000)),
    ],
)
def test_official_values(key, loss, mode):
    values, main, _ = golden()
    value, _ = value_and_gradient(loss, values["loss.labels"], main, mode)
    np.testing.assert_allclose(value, values[f"loss.{key}"], rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "loss"),
    [
        ("dsn", CrossEntropy()),
        ("lovasz_dsn", CombinedLoss([CrossEntropy(), LovaszSoftmax()], [1.0, 0.8])),
    ],
)
def test_official_values_with_auxiliary_head(key, loss):
    values, main, auxiliary = golden()
    labels = values["loss.labels"]
    value = float(loss(labels, main)) + 0.1 * float(CrossEntropy()(labels, auxiliary))
    np.testing.assert_allclose(value, values[f"loss.{key}"], rtol=1e-5)


# Independent references


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0, 3.0, 0.0]])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(class_weights, label_smoothing, mode):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    labels, logits = example(label_size=(13, 17))
    tensor = torch.tensor(logits.transpose(0, 3, 1, 2), requires_grad=True)
    resized = torch.nn.functional.interpolate(tensor, (13, 17), mode="bilinear", align_corners=True)
    expected = torch.nn.functional.cross_entropy(
        resized,
        torch.tensor(labels.astype("int64")),
        weight=None if class_weights is None else torch.tensor(class_weights),
        ignore_index=255,
        label_smoothing=label_smoothing,
    )
    (expected_gradient,) = torch.autograd.grad(expected, tensor)
    loss = CrossEntropy(class_weights=class_weights, label_smoothing=label_smoothing)
    value, gradient = value_and_gradient(loss, labels, logits, mode)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient.numpy().transpose(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ignored", [(255,), (0, 2)])
def test_lovasz_equals_reference(ignored, mode):
    labels, logits = example()
    labels[labels == 3] = 4  # class 3 is absent
    value, gradient = value_and_gradient(LovaszSoftmax(ignored), labels, logits, mode)
    expected, expected_gradient = lovasz_reference(labels, logits, ignored)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_lovasz_gradient_with_errors_of_zero():
    """Pixels that are not valid rank after valid ones without error."""
    labels = np.array([[[0, 255, 255, 0, 1]]])
    logits = np.zeros((1, 1, 5, 2), "float32")
    logits[0, 0, 0] = [60, 0]
    _, gradient = value_and_gradient(LovaszSoftmax(), labels, logits)
    np.testing.assert_allclose(gradient, lovasz_reference(labels, logits)[1], atol=1e-7)
    weights = losses._lovasz_weights(
        ops.convert_to_tensor([0.0, 0.0, 0.0, 0.5], "float32"),
        ops.convert_to_tensor([0.0, 0.0, 0.0, 1.0], "float32"),
        ops.convert_to_tensor([False, False, True, True]),
    )
    # The missed pixel costs all of the IoU; after it nothing is left to lose.
    np.testing.assert_allclose(ops.convert_to_numpy(weights)[2:], [0.0, 1.0], atol=1e-7)
    weights = losses._lovasz_weights(
        ops.convert_to_tensor([0.0, 0.0, 0.1, 0.0], "float32"),
        ops.convert_to_tensor([0.0, 0.0, 0.0, 1.0], "float32"),
        ops.convert_to_tensor([False, False, True, True]),
    )
    np.testing.assert_allclose(ops.convert_to_numpy(weights)[2:], [0.5, 0.5], atol=1e-7)


def test_lovasz_weights_keep_their_digits_on_large_maps():
    """Differences of quotients would be wrong by a tenth here."""
    pixels = 1 << 20
    truth = np.zeros(pixels, "float32")
    truth[: pixels // 2] = 1
    errors = np.linspace(1, 0.001, pixels, dtype="float32")
    weights = losses._lovasz_weights(*map(ops.convert_to_tensor, (errors, truth, truth >= 0)))
    missed = np.cumsum(truth, dtype="float64")
    union = truth.sum(dtype="float64") + np.arange(1, pixels + 1) - missed
    expected = np.diff(1 - (truth.sum(dtype="float64") - missed) / union, prepend=0.0)
    np.testing.assert_allclose(ops.convert_to_numpy(weights), expected, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.7, 1), (0.2, 40), (0.0, 10), (1.0, 1), (0.1, 10**6)]
)
def test_ohem_equals_reference(threshold, min_kept, mode):
    labels, logits = example()
    valid = labels < 5
    probability = softmax(logits)[valid, labels[valid]]
    kth = np.sort(probability)[min(min_kept, valid.sum()) - 1]
    kept = probability <= max(threshold, kth)
    assert kept.sum() >= min(min_kept, valid.sum())
    value, gradient = value_and_gradient(
        OhemCrossEntropy(threshold, min_kept), labels, logits, mode
    )
    np.testing.assert_allclose(value, -np.log(probability[kept]).mean(), rtol=1e-5)
    touched = np.abs(gradient).max(-1) > 0
    np.testing.assert_array_equal(touched[valid], kept)
    assert not touched[~valid].any()


def torch_gradient(function, logits):
    """Value and gradient in float64 by PyTorch, whose autograd needs no formula by hand."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    tensor = torch.tensor(logits.astype("float64"), requires_grad=True)
    value = function(torch, tensor)
    return value.item(), torch.autograd.grad(value, tensor)[0].numpy()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [(255,), (0, 2)])
def test_dice_equals_reference(ignored, weighted, mode):
    """From the definition: class by class, valid pixels only."""
    labels, logits = example()
    labels[labels == 3] = 4  # class 3 is absent
    valid = (labels < 5) & ~np.isin(labels, ignored)
    weights = np.random.default_rng(3).random(labels.shape).astype("float32")
    weights = weights if weighted else np.ones_like(weights)

    def dice_loss(torch, logits):
        probabilities = torch.softmax(logits, -1)[torch.tensor(valid)]
        terms = []
        for c in np.unique(labels[valid]):
            p, w = probabilities[:, c], torch.tensor(weights[valid].astype("float64"))
            t = torch.tensor((labels[valid] == c).astype("float64"))
            terms.append(1 - 2 * (w * p * t).sum() / ((w * p * p).sum() + (w * t * t).sum()))
        return sum(terms) / len(terms)

    expected, expected_gradient = torch_gradient(dice_loss, logits)

    def loss(ids, logits):
        return DiceLoss(ignored)(ids, logits, sample_weight=weights if weighted else None)

    value, gradient = value_and_gradient(loss, labels, logits, mode)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)


def test_dice_of_a_perfect_and_of_a_wrong_prediction():
    labels = np.array([[[0, 0, 1, 255]]])
    right = 200 * np.eye(3, dtype="float32")[[0, 0, 1, 2]][None, None]
    assert float(DiceLoss()(labels, right)) == 0
    assert float(DiceLoss()(labels, np.roll(right, 1, axis=-1))) == 1


def near_boundary_reference(ids, valid, radius):
    near = np.zeros(ids.shape, bool)
    for b, y, x in np.ndindex(ids.shape):
        window = np.s_[b, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
        near[b, y, x] = np.any(valid[window] & (ids[window] != ids[b, y, x]))
    return near & valid


@pytest.mark.parametrize("radius", [1, 4, 30])
@pytest.mark.parametrize("ignored", [(255,), (0, 2)])
def test_near_boundary_equals_reference(radius, ignored):
    rng = np.random.default_rng(radius)
    ids = np.repeat(np.repeat(rng.integers(0, 5, (2, 3, 4)), 5, axis=1), 6, axis=2)
    ids[0, :, 3:7] = 255
    ids[1, 8, 9] = 3
    ids[1, 5:, 18:] = ids[1, 6, 20]  # a region that is wider than most of the radii
    valid = (ids < 5) & ~np.isin(ids, ignored)
    near = losses.near_boundary(
        ops.convert_to_tensor(ids, "int32"), ops.convert_to_tensor(valid), radius
    )
    expected = near_boundary_reference(ids, valid, radius)
    assert radius > 4 or (expected[valid].any() and not expected[valid].all())
    np.testing.assert_array_equal(ops.convert_to_numpy(near) & valid, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_boundary_cross_entropy_equals_weighted_torch(label_smoothing, mode):
    """PyTorch has no pixel weights: they are put on its losses of single pixels."""
    labels, logits = example()
    labels[:, :, :4] = 1
    labels[1] = np.where(labels[1] == 255, 255, 3)  # an image without boundary
    valid = labels < 5
    near = near_boundary_reference(labels, valid, 1)
    assert near[0].any() and not near[0][valid[0]].all()
    pixel_weights = np.where(near, 7.0, 1.0) * valid
    class_weights = [0.5, 2.0, 1.0, 3.0, 4.0]

    def reference(torch, logits):
        per_pixel = torch.nn.functional.cross_entropy(
            logits.permute(0, 3, 1, 2),
            torch.tensor(labels.astype("int64")),
            weight=torch.tensor(class_weights, dtype=torch.float64),
            ignore_index=255,
            label_smoothing=label_smoothing,
            reduction="none",
        )
        total = (pixel_weights * np.array([*class_weights, 0])[np.minimum(labels, 5)]).sum()
        return (per_pixel * torch.tensor(pixel_weights)).sum() / total

    expected, expected_gradient = torch_gradient(reference, logits)
    loss = BoundaryCrossEntropy(1, 7.0, 255, class_weights, label_smoothing)
    value, gradient = value_and_gradient(loss, labels, logits, mode)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)


def test_boundary_weight_one_is_cross_entropy():
    labels, logits = example()
    value = float(BoundaryCrossEntropy(2, 1.0)(labels, logits))
    np.testing.assert_allclose(value, float(CrossEntropy()(labels, logits)), rtol=1e-6)


def test_classes_of_weight_zero_alone_give_zero_also_smoothed():
    labels, logits = np.full((2, 7, 9), 4), example()[1]
    value, gradient = value_and_gradient(LOSSES["smoothed"], labels, logits)
    assert value == 0
    assert not gradient.any()


# Pixels without a say


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_ignored_pixels_have_no_influence(loss, mode):
    labels, logits = example()
    ignored = labels == 255
    changed = logits.copy()
    changed[ignored] = 50 * np.random.default_rng(1).standard_normal(changed[ignored].shape)
    value, gradient = value_and_gradient(loss, labels, logits, mode)
    other_value, other_gradient = value_and_gradient(loss, labels, changed, mode)
    assert value > 0
    assert np.abs(gradient[~ignored]).max() > 0
    assert np.abs(gradient[ignored]).max() == 0
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("label_size", [(7, 9), (13, 17)])
def test_nothing_valid_gives_zero(loss, mode, label_size):
    _, logits = example()
    labels = np.full((2, *label_size), 255)
    value, gradient = value_and_gradient(loss, labels, logits, mode)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@pytest.mark.parametrize("ignored", [(2, 255), (255, 2), (0, 2), [2]])
@pytest.mark.parametrize(
    "loss_class", [CrossEntropy, OhemCrossEntropy, LovaszSoftmax, DiceLoss, BoundaryCrossEntropy]
)
def test_several_ignored_ids(loss_class, ignored):
    """Ignoring classes equals mapping them to 255."""
    labels, logits = example()
    mapped = np.where(np.isin(labels, ignored), 255, labels)
    expected = value_and_gradient(loss_class(), mapped, logits)
    value, gradient = value_and_gradient(loss_class(ignore_class=ignored), labels, logits)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-7)
    assert abs(float(loss_class()(labels, logits)) - value) > 1e-4


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_logits_of_minus_infinity_at_ignored_pixels(loss):
    """As models write that rule a class out; the clipped id 255 is that class."""
    labels, logits = example()
    expected = value_and_gradient(loss, labels, logits)
    logits[labels == 255, 4] = -np.inf
    value, gradient = value_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_labels_out_of_range_are_left_out(loss):
    labels, logits = example()
    expected = value_and_gradient(loss, labels, logits)
    bad = np.resize([5, 99, -1, 100_000], labels.shape)
    labels = np.where(labels == 255, bad, labels.astype("int32"))
    value, gradient = value_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-7)


def test_nothing_ignored():
    labels, logits = example()
    labels %= 5
    assert float(CrossEntropy(None)(labels, logits)) == float(CrossEntropy()(labels, logits))


# Inputs


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_label_dtypes_and_channel(loss, dtype):
    labels, logits = example(label_size=(13, 17))
    expected = float(loss(labels, logits))
    assert float(loss(labels.astype(dtype)[..., None], logits)) == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_half_precision_logits_are_computed_in_float32(loss, dtype):
    labels, logits = example(size=(40, 50))
    mode = MODES[-1] if dtype == "bfloat16" else "eager"
    half = ops.cast(logits, dtype)
    rounded = ops.convert_to_numpy(ops.cast(half, "float32"))
    value, gradient = value_and_gradient(loss, labels, half, mode)
    expected, expected_gradient = value_and_gradient(loss, labels, rounded, mode)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-2, atol=1e-6)


def test_wrong_shapes_and_arguments_are_refused():
    labels, logits = example()
    with pytest.raises(ValueError, match=r"one-hot.*Received: shape \(2, 7, 9, 5\)"):
        LovaszSoftmax()(np.eye(256)[labels][..., :5], logits)
    with pytest.raises(ValueError, match=r"class ids.*Received: shape \(7, 9\)"):
        CrossEntropy()(labels[0], logits)
    with pytest.raises(ValueError, match=r"logits.*Received: shape \(7, 9, 5\)"):
        CrossEntropy()(labels, logits[0])
    with pytest.raises(ValueError, match=r"each of the 5 classes\. Received: 2 weights"):
        CrossEntropy(class_weights=[1.0, 2.0])(labels, logits)
    with pytest.raises(ValueError, match=r"Received: threshold=1\.5"):
        OhemCrossEntropy(threshold=1.5)
    with pytest.raises(ValueError, match="Received: min_kept=0"):
        OhemCrossEntropy(min_kept=0)
    with pytest.raises(ValueError, match=r"in 0 .. 1\. Received: label_smoothing=1\.1"):
        CrossEntropy(label_smoothing=1.1)
    with pytest.raises(ValueError, match="Received: radius=0"):
        BoundaryCrossEntropy(radius=0)
    with pytest.raises(ValueError, match="Received: boundary_weight=-1"):
        BoundaryCrossEntropy(boundary_weight=-1)
    with pytest.raises(ValueError, match=r"each of the 1 losses\. Received: 2 weights"):
        CombinedLoss([CrossEntropy()], [1.0, 2.0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has dynamic shapes")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("label_size", [(7, 9), (13, 17)])
def test_dynamic_shapes(loss, label_size):
    labels, logits = example(label_size=label_size)
    value, gradient = value_and_gradient(loss, labels, logits, "dynamic")
    expected, expected_gradient = value_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only tf.distribute leaves a replica empty")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_empty_batch_gives_zero(loss):
    labels, logits = np.zeros((0, 13, 17), "int32"), np.zeros((0, 7, 9, 5), "float32")
    value, gradient = value_and_gradient(loss, labels, logits, "dynamic")
    assert value == 0
    assert gradient.shape == logits.shape


# Logits of fewer cells


@pytest.mark.parametrize("mode", [MODES[-1], *["dynamic"] * (BACKEND == "tensorflow")])
@pytest.mark.parametrize("rows", [3, 99])
@pytest.mark.parametrize("name", ["cross_entropy", "class_weights", "smoothed", "boundary"])
def test_cells_give_what_pixels_give(name, rows, mode, monkeypatch):
    """Band by band, the value and the gradient are those of logits that were resized before."""
    monkeypatch.setattr(resized_logits, "BAND_VALUES", rows * 17 * 5)
    labels, logits = example(label_size=(13, 17))
    weights = np.random.default_rng(2).random(labels.shape).astype("float32")
    loss = functools.partial(LOSSES[name], sample_weight=ops.convert_to_tensor(weights))

    def of_pixels(labels, logits):
        return loss(labels, logits_at_label_size(logits, labels))

    value, gradient = value_and_gradient(loss, labels, logits, mode)
    expected, expected_gradient = value_and_gradient(of_pixels, labels, logits)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)
    doubled = value_and_gradient(lambda *pair: 2 * loss(*pair), labels, logits, mode)[1]
    np.testing.assert_allclose(doubled, 2 * expected_gradient, atol=1e-7)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow's tapes see metrics")
def test_a_tape_does_not_mind_the_metric():
    import tensorflow as tf

    labels, logits = example(label_size=(13, 17))
    metric = MeanIoU(5)

    @tf.function
    def step(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            metric.update_state(labels, logits)
            loss = CrossEntropy()(labels, logits)
        return tape.gradient(loss, logits)

    assert np.abs(step(tf.constant(logits))).max() > 0
    assert metric.result() > 0


def test_classes_of_cells_are_those_of_resized_logits(monkeypatch):
    labels, logits = example(label_size=(13, 17))
    resized = logits_at_label_size(ops.convert_to_tensor(logits), labels)
    expected = ops.convert_to_numpy(resized).argmax(-1)
    for rows in (1, 13):
        monkeypatch.setattr(resized_logits, "BAND_VALUES", rows * 17 * 5)
        ids = resized_logits.classes_at(ops.convert_to_tensor(logits), (13, 17))
        np.testing.assert_array_equal(ops.convert_to_numpy(ids), expected)


# Sample weights


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1), (2, 7, 9), (2, 7, 9, 1)])
def test_sample_weight_is_a_weight_of_the_mean(shape):
    labels, logits = example()
    weights = np.random.default_rng(2).random(shape).astype("float32")
    per_pixel = np.broadcast_to(weights.reshape((2, 7, 9) if 7 in shape else (2, 1, 1)), (2, 7, 9))
    valid = labels < 5
    pixels = -np.log(softmax(logits)[valid, labels[valid]])
    expected = (pixels * per_pixel[valid]).sum() / per_pixel[valid].sum()
    value = float(CrossEntropy()(labels, logits, sample_weight=weights))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    value = float(OhemCrossEntropy(1.0, 1)(labels, logits, sample_weight=weights))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_sample_weight_corner_cases():
    labels, logits = example()
    plain = float(CrossEntropy()(labels, logits))
    assert float(CrossEntropy()(labels, logits, sample_weight=3.0)) == pytest.approx(plain)
    assert float(CrossEntropy()(labels, logits, sample_weight=0.0)) == 0
    weighted = (CrossEntropy(), OhemCrossEntropy(), DiceLoss(), CrossEntropy(label_smoothing=0.3))
    for loss in (*weighted, BoundaryCrossEntropy(1, 5.0), CombinedLoss([CrossEntropy()])):
        first = float(loss(labels[:1], logits[:1]))
        value = float(loss(labels, logits, sample_weight=np.array([1.0, 0.0])))
        np.testing.assert_allclose(value, first, rtol=1e-5)
    with pytest.raises(ValueError, match=r"`sample_weight` must be.*Received: shape \(2, 7\)"):
        CrossEntropy()(labels, logits, sample_weight=np.ones((2, 7)))


def test_ohem_keeps_no_pixel_of_weight_zero():
    labels = np.zeros((1, 1, 3), "int32")
    logits = np.array([[[[-5.0, 0.0], [0.0, 0.0], [5.0, 0.0]]]], "float32")
    loss = OhemCrossEntropy(threshold=0.0, min_kept=1)
    value = float(loss(labels, logits, sample_weight=np.array([[[0.0, 1.0, 1.0]]])))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", ["lovasz", "combined"])
def test_lovasz_refuses_sample_weight(name):
    labels, logits = example()
    with pytest.raises(ValueError, match=r"no `sample_weight`. Received: .*\(2,\)"):
        LOSSES[name](labels, logits, sample_weight=np.ones(2))


# Keras


def test_combined_loss_takes_any_keras_loss():
    labels, logits = example()
    labels %= 5
    loss = CombinedLoss(
        [LovaszSoftmax(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)]
    )
    expected = float(LovaszSoftmax()(labels, logits)) + float(CrossEntropy()(labels, logits))
    np.testing.assert_allclose(float(loss(labels, logits)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy((0, 255), class_weights=[1.0, 2.0, 1.0, 3.0, 0.5], name="ce"),
        OhemCrossEntropy(0.4, 7, ignore_class=1, name="hard"),
        LovaszSoftmax(None, name="iou"),
        CrossEntropy(class_weights=[1.0, 2.0, 1.0, 3.0, 0.5], label_smoothing=0.1, name="soft"),
        DiceLoss((1, 255), name="overlap"),
        BoundaryCrossEntropy(2, 5.0, (1, 255), [1.0, 2.0, 1.0, 3.0, 0.5], 0.1, name="edges"),
        CombinedLoss([CrossEntropy(3), LovaszSoftmax((1, 255))], [0.3, 0.8], name="sum"),
    ],
    ids=lambda loss: loss.name,
)
def test_serialisation(loss):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(loss)
    assert copy.name == loss.name
    assert json.dumps(copy.get_config()) == json.dumps(loss.get_config())
    labels, logits = example()
    assert float(copy(labels, logits)) == float(loss(labels, logits))


def test_fit_two_heads_save_and_load(tmp_path):
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(images)
    outputs = {
        name: keras.layers.Conv2D(5, 1, name=name, dtype="float32")(features)
        for name in ("segmentation", "auxiliary")
    }
    model = keras.Model(images, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(0.02),
        loss={"segmentation": LOSSES["combined"], "auxiliary": CrossEntropy()},
        loss_weights={"segmentation": 1.0, "auxiliary": 0.1},
    )
    rng = np.random.default_rng(0)
    x = rng.random((4, 12, 16, 3)).astype("float32")
    y = (4.99 * x.mean(-1)).astype("int32")
    y[:, :2] = 255
    targets = {"segmentation": y, "auxiliary": y}
    history = model.fit(x, targets, batch_size=2, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    expected = model.evaluate(x, targets, batch_size=4, verbose=0, return_dict=True)["loss"]
    prediction = model.predict(x, batch_size=4, verbose=0)
    by_hand = float(LOSSES["combined"](y, prediction["segmentation"]))
    by_hand += 0.1 * float(CrossEntropy()(y, prediction["auxiliary"]))
    np.testing.assert_allclose(expected, by_hand, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    value = loaded.evaluate(x, targets, batch_size=4, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_examples():
    assert doctest.testmod(losses).failed == 0


DISTRIBUTED = """
import sys
import numpy as np, tensorflow as tf, keras
from alignseg_tf.losses import (
    BoundaryCrossEntropy, CombinedLoss, CrossEntropy, DiceLoss, LovaszSoftmax, OhemCrossEntropy)

cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
x = np.tile(rng.random((1, 6, 8, 3)).astype("float32"), (4, 1, 1, 1))  # equal shares
y = np.tile(rng.integers(0, 5, (1, 6, 8)), (4, 1, 1))  # logits are 4 x 6
y[:, 0] = 255

def train(scope):
    keras.utils.set_random_seed(0)
    with scope:
        model = keras.Sequential([keras.Input((6, 8, 3)), keras.layers.Conv2D(5, 3)])
        loss = CombinedLoss([
            CrossEntropy(label_smoothing=0.1), LovaszSoftmax(), OhemCrossEntropy(0.3, 5),
            DiceLoss(), BoundaryCrossEntropy(1)])
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss=loss)
    history = model.fit(x, y, batch_size=4, epochs=3, verbose=0, shuffle=False).history["loss"]
    return history, model.get_weights()

import contextlib
one = train(contextlib.nullcontext())
two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
np.testing.assert_allclose(two[0], one[0], rtol=1e-5)
for a, b in zip(two[1], one[1]):
    np.testing.assert_allclose(a, b, atol=1e-5)
print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute needs TensorFlow")
def test_two_replicas_train_as_one():
    """The step must not depend on the number of replicas, as it does for a scalar loss."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DISTRIBUTED)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("same\n")
