"""Losses against the official values, PyTorch and NumPy; runs on every Keras backend."""

import doctest
import functools
import json

import keras
import numpy as np
import pytest
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


def check(found, expected, tolerance=1e-7):
    """Compare two pairs of a value and a gradient."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=tolerance)


all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
all_modes = pytest.mark.parametrize("mode", MODES)

# The official values


@pytest.mark.parametrize(
    ("key", "loss", "auxiliary"),
    [
        ("ce_main", CrossEntropy(), 0.0),
        ("lovasz_only", LovaszSoftmax(), 0.0),
        ("ohem_0.7_100", OhemCrossEntropy(0.7, 100), 0.0),
        ("ohem_0.2_3000", OhemCrossEntropy(0.2, 3000), 0.0),
        ("ohem_0.6_1000000000", OhemCrossEntropy(0.6, 1_000_000_000), 0.0),
        ("dsn", CrossEntropy(), 0.1),
        ("lovasz_dsn", CombinedLoss([CrossEntropy(), LovaszSoftmax()], [1.0, 0.8]), 0.1),
    ],
)
def test_official_values(golden, key, loss, auxiliary):
    labels = golden["loss.labels"]
    value, _ = value_and_gradient(loss, labels, 2 * golden.images((2, 7, 24, 32), 6), MODES[-1])
    second = CrossEntropy()(labels, 2 * golden.images((2, 7, 24, 32), 7))
    np.testing.assert_allclose(value + auxiliary * float(second), golden[f"loss.{key}"], rtol=1e-5)


# Independent references


def torch_gradient(function, logits):
    """Value and gradient in float64 by PyTorch, whose autograd needs no formula by hand."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    tensor = torch.tensor(logits.astype("float64"), requires_grad=True)
    value = function(torch, tensor)
    return value.item(), torch.autograd.grad(value, tensor)[0].numpy()


@all_modes
@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0, 3.0, 0.0]])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(class_weights, label_smoothing, mode):
    labels, logits = example(label_size=(13, 17))

    def reference(torch, logits):
        functional = torch.nn.functional
        logits = functional.interpolate(
            logits.permute(0, 3, 1, 2), (13, 17), mode="bilinear", align_corners=True
        )
        weight = class_weights and torch.tensor(class_weights, dtype=torch.float64)
        ids = torch.tensor(labels.astype("int64"))
        return functional.cross_entropy(
            logits, ids, weight, ignore_index=255, label_smoothing=label_smoothing
        )

    loss = CrossEntropy(class_weights=class_weights, label_smoothing=label_smoothing)
    check(value_and_gradient(loss, labels, logits, mode), torch_gradient(reference, logits), 1e-6)


def lovasz_of_class(torch, p, t, w):
    """From the definition: differences of 1 - intersection / union in the order of the errors."""
    errors, order = torch.sort(torch.abs(t - p), descending=True, stable=True)
    ranked = t[order]
    intersection = ranked.sum() - torch.cumsum(ranked, 0)
    union = ranked.sum() + torch.cumsum(1 - ranked, 0)
    growth = torch.diff(1 - intersection / union, prepend=torch.zeros(1))
    return errors @ growth


def dice_of_class(torch, p, t, w):
    return 1 - 2 * (w * p * t).sum() / ((w * p * p).sum() + (w * t * t).sum())


def mean_over_classes(of_class, labels, logits, valid, weights=None):
    """Value and gradient of a loss from the valid pixels of each class that occurs."""
    weights = np.ones(labels.shape) if weights is None else weights.astype("float64")

    def loss(torch, logits):
        probabilities = torch.softmax(logits, -1)[torch.tensor(valid)]
        terms = [
            of_class(
                torch,
                probabilities[:, c],
                torch.tensor((labels[valid] == c).astype("float64")),
                torch.tensor(weights[valid]),
            )
            for c in np.unique(labels[valid])
        ]
        return sum(terms) / len(terms)

    return torch_gradient(loss, logits)


@all_modes
@pytest.mark.parametrize("ignored", [(255,), (0, 2)])
@pytest.mark.parametrize("name", ["lovasz", "dice", "weighted dice"])
def test_losses_of_classes_equal_their_definitions(name, ignored, mode):
    labels, logits = example()
    labels[labels == 3] = 4  # class 3 is absent
    valid = (labels < 5) & ~np.isin(labels, ignored)
    weights = np.random.default_rng(3).random(labels.shape).astype("float32")
    weights = weights if "weighted" in name else None
    loss, of_class = (
        (LovaszSoftmax, lovasz_of_class) if name == "lovasz" else (DiceLoss, dice_of_class)
    )
    loss = functools.partial(loss(ignored), sample_weight=weights)
    expected = mean_over_classes(of_class, labels, logits, valid, weights)
    check(value_and_gradient(loss, labels, logits, mode), expected, 1e-6)


def test_lovasz_gradient_with_errors_of_zero():
    """Pixels that are not valid rank after valid ones without error."""
    labels = np.array([[[0, 255, 255, 0, 1]]])
    logits = np.zeros((1, 1, 5, 2), "float32")
    logits[0, 0, 0] = [60, 0]
    expected = mean_over_classes(lovasz_of_class, labels, logits, labels < 255)
    check(value_and_gradient(LovaszSoftmax(), labels, logits), expected)


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


@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.7, 1), (0.2, 40), (0.0, 10), (1.0, 1), (0.1, 10**6)]
)
def test_ohem_equals_reference(threshold, min_kept):
    labels, logits = example()
    valid = labels < 5
    probability = softmax(logits)[valid, labels[valid]]
    kth = np.sort(probability)[min(min_kept, valid.sum()) - 1]
    kept = probability <= max(threshold, kth)
    assert kept.sum() >= min(min_kept, valid.sum())
    loss = OhemCrossEntropy(threshold, min_kept)
    value, gradient = value_and_gradient(loss, labels, logits, MODES[-1])
    np.testing.assert_allclose(value, -np.log(probability[kept]).mean(), rtol=1e-5)
    touched = np.abs(gradient).max(-1) > 0
    np.testing.assert_array_equal(touched[valid], kept)
    assert not touched[~valid].any()


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


@all_modes
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

    loss = BoundaryCrossEntropy(1, 7.0, 255, class_weights, label_smoothing)
    check(value_and_gradient(loss, labels, logits, mode), torch_gradient(reference, logits))


@pytest.mark.parametrize("label_size", [(7, 9), (13, 17)])
def test_classes_of_weight_zero_give_zero_also_smoothed(label_size):
    labels, logits = np.full((2, *label_size), 4), example()[1]
    value, gradient = value_and_gradient(LOSSES["smoothed"], labels, logits)
    assert value == 0
    assert not gradient.any()


# Pixels without a say


@all_losses
def test_invalid_pixels_have_no_influence(loss):
    """Whatever their ids and logits are, also -inf, as of models that rule out a class."""
    labels, logits = example()
    invalid = labels == 255
    expected = value_and_gradient(loss, labels, logits)
    assert expected[0] > 0
    assert np.abs(expected[1][~invalid]).max() > 0
    assert np.abs(expected[1][invalid]).max() == 0
    ids = np.where(invalid, np.resize([5, 99, -1, 100_000], labels.shape), labels)
    logits[invalid] = 50 * np.random.default_rng(1).standard_normal(logits[invalid].shape)
    check(value_and_gradient(loss, ids.astype("int32"), logits), expected)
    logits[invalid, 4] = -np.inf
    check(value_and_gradient(loss, labels, logits), expected)


@all_losses
@pytest.mark.parametrize("label_size", [(7, 9), (13, 17)])
def test_nothing_valid_gives_zero(loss, label_size):
    _, logits = example()
    labels = np.full((2, *label_size), 255)
    value, gradient = value_and_gradient(loss, labels, logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@pytest.mark.parametrize("ignored", [(2, 255), [0, 2], None])
@pytest.mark.parametrize(
    "loss_class", [CrossEntropy, OhemCrossEntropy, LovaszSoftmax, DiceLoss, BoundaryCrossEntropy]
)
def test_ignored_ids(loss_class, ignored):
    """Ignoring classes equals mapping them to 255."""
    labels, logits = example()
    mapped = np.where(np.isin(labels, ignored or ()), 255, labels)
    expected = value_and_gradient(loss_class(), mapped, logits)
    check(value_and_gradient(loss_class(ignore_class=ignored), labels, logits), expected)
    if ignored is not None:
        assert abs(float(loss_class()(labels, logits)) - expected[0]) > 1e-4


# Inputs


@all_losses
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_label_dtypes_and_channel(loss, dtype):
    labels, logits = example(label_size=(13, 17))
    expected = float(loss(labels, logits))
    assert float(loss(labels.astype(dtype)[..., None], logits)) == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@all_losses
def test_half_precision_logits_are_computed_in_float32(loss, dtype):
    labels, logits = example(size=(40, 50))
    half = ops.cast(logits, dtype)
    rounded = ops.convert_to_numpy(ops.cast(half, "float32"))
    value, gradient = value_and_gradient(loss, labels, half)
    expected, expected_gradient = value_and_gradient(loss, labels, rounded)
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
@all_losses
@pytest.mark.parametrize("label_size", [(7, 9), (13, 17)])
def test_dynamic_shapes(loss, label_size):
    """Also of an empty batch, as `tf.distribute` leaves a replica."""
    labels, logits = example(label_size=label_size)
    expected = value_and_gradient(loss, labels, logits)
    check(value_and_gradient(loss, labels, logits, "dynamic"), expected, 1e-6)
    value, gradient = value_and_gradient(loss, labels[:0], logits[:0], "dynamic")
    assert value == 0
    assert gradient.shape == (0, 7, 9, 5)


# Logits of fewer cells


@pytest.mark.parametrize("mode", [MODES[-1], *["dynamic"] * (BACKEND == "tensorflow")])
@pytest.mark.parametrize(
    ("name", "rows"),
    [("cross_entropy", 99), ("cross_entropy", 3), ("class_weights", 3), ("smoothed", 3),
     ("boundary", 3)],
)  # fmt: skip
def test_cells_give_what_pixels_give(name, rows, mode, monkeypatch):
    """Band by band, the value and the gradient are those of logits that were resized before."""
    monkeypatch.setattr(resized_logits, "BAND_VALUES", rows * 17 * 5)
    labels, logits = example(label_size=(13, 17))
    weights = np.random.default_rng(2).random(labels.shape).astype("float32")
    loss = functools.partial(LOSSES[name], sample_weight=ops.convert_to_tensor(weights))

    def of_pixels(labels, logits):
        return loss(labels, logits_at_label_size(logits, labels))

    value, gradient = value_and_gradient(of_pixels, labels, logits)
    doubled = value_and_gradient(lambda *pair: 2 * loss(*pair), labels, logits, mode)
    check(doubled, (2 * value, 2 * gradient))


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


def test_examples():
    assert doctest.testmod(losses).failed == 0
