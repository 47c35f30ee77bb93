"""Mean IoU against counts made by hand and by NumPy; runs on every Keras backend."""

import doctest
import json
import math

import keras
import numpy as np
import pytest
from keras import ops

from alignseg_tf import metrics
from alignseg_tf.losses import CrossEntropy
from alignseg_tf.metrics import (
    MeanIoU,
    RaiseOnInvalidLabels,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
)

BACKEND = keras.backend.backend()

# PyTorch's own, from `fit` on that backend.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch.*")


def example(classes=4, size=(2, 7, 9), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    labels[rng.random(size) < 0.3] = 255
    return labels.astype("uint8"), rng.standard_normal((*size, classes)).astype("float32")


def count(labels, predicted, classes, ignored=(255,)):
    """Confusion matrix and pixels out of range, one pixel at a time."""
    confusion, out_of_range = np.zeros((classes, classes), "int64"), 0
    for truth, prediction in zip(labels.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if truth in ignored:
            continue
        if 0 <= truth < classes and 0 <= prediction < classes:
            confusion[truth, prediction] += 1
        else:
            out_of_range += 1
    return confusion, out_of_range


def compiled_update(metric):
    """The update as training runs it: traced, and compiled by XLA where there is one."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(metric.update_state, jit_compile=True)
    if BACKEND == "jax":
        import jax

        step = jax.jit(metric.stateless_update_state)

        def update(labels, logits):
            state = step([variable.value for variable in metric.variables], labels, logits)
            for variable, value in zip(metric.variables, state, strict=True):
                variable.assign(value)

        return update
    return metric.update_state


# Functions of a confusion matrix


def test_functions_of_a_confusion_matrix():
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou_per_class(confusion), [3 / 6, 4 / 7, math.nan])
    assert mean_iou(confusion) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert pixel_accuracy(confusion) == 0.7
    for function in (iou_per_class, mean_iou, pixel_accuracy):
        assert np.isnan(function(np.zeros((2, 2), "int64"))).all()
        with pytest.raises(ValueError, match=r"square.*Received: shape \(2, 3\)"):
            function(np.zeros((2, 3)))


# Counting


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("ignored", [255, (1, 255), None])
def test_logits(ignored, compiled):
    labels, logits = example()
    metric = MeanIoU(4, ignored)
    update = compiled_update(metric) if compiled else metric.update_state
    ids = () if ignored is None else np.atleast_1d(ignored).tolist()
    total, out_of_range = 0, 0
    for seed in range(2):
        labels, logits = example(seed=seed)
        update(ops.convert_to_tensor(labels), ops.convert_to_tensor(logits))
        confusion, bad = count(labels, logits.argmax(-1), 4, ids)
        total, out_of_range = total + confusion, out_of_range + bad
    np.testing.assert_array_equal(metric.confusion_matrix(), total)
    assert metric.confusion_matrix().dtype == np.int64
    assert metric.out_of_range() == out_of_range
    assert (out_of_range > 0) == (ignored is None)
    assert float(metric.result()) == pytest.approx(mean_iou(total), rel=1e-6)
    np.testing.assert_allclose(metric.per_class_iou(), iou_per_class(total))
    metric.reset_state()
    assert metric.confusion_matrix().sum() == 0
    assert metric.out_of_range() == 0
    assert float(metric.result()) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_another_size_are_resized(dtype):
    """Between two cells of an opposite class the middle belongs to the stronger one."""
    logits = np.array([[[[1.0, 0.0], [0.0, 3.0]]]], "float32")
    metric = MeanIoU(2)
    metric.update_state(np.array([[[0, 0, 1]]]), ops.cast(logits, dtype))
    assert metric.confusion_matrix().tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(("dtype", "label_dtype"), [("uint8", "float32"), ("int64", "uint8")])
@pytest.mark.parametrize("shape", [(2, 7, 9), (2, 7, 9, 1)])
def test_predicted_ids(shape, dtype, label_dtype):
    labels, logits = example()
    predicted = logits.argmax(-1).astype(dtype)
    metric = MeanIoU(4)
    metric.update_state(labels.astype(label_dtype).reshape(shape), predicted.reshape(shape))
    np.testing.assert_array_equal(metric.confusion_matrix(), count(labels, predicted, 4)[0])


@pytest.mark.parametrize("compiled", [False, True])
def test_ids_out_of_range_are_counted_apart(compiled):
    labels = np.array([[[0, 1, 2, -1, 9000, 255, 0, 1, 255]]], "int32")
    predicted = np.array([[[0, 1, 1, 0, 0, 0, 2, -5, 7]]], "int32")
    metric = MeanIoU(2)
    update = compiled_update(metric) if compiled else metric.update_state
    update(ops.convert_to_tensor(labels), ops.convert_to_tensor(predicted))
    assert metric.confusion_matrix().tolist() == [[1, 0], [0, 1]]
    assert metric.out_of_range() == 5


def test_absent_classes():
    labels, predicted = np.array([[[0, 0, 255]]]), np.array([[[0, 2, 1]]])
    metric = MeanIoU(4, class_names=["road", "car", "sky", "tree"])
    metric.update_state(labels, predicted)
    assert metric.absent_classes() == ["car", "tree"]
    np.testing.assert_allclose(metric.per_class_iou(), [0.5, np.nan, 0.0, np.nan])
    assert float(metric.result()) == 0.25
    metric = MeanIoU(4)
    metric.update_state(labels, predicted)
    assert metric.absent_classes() == [1, 3]


def test_counts_are_exact_and_an_overflow_is_an_error():
    labels = np.zeros((1, 3, 7), "uint8")
    metric = MeanIoU(2)
    limit = np.iinfo(keras.backend.standardize_dtype(metric._counts.dtype)).max
    for start in (2**24, 2**31 - 1 - 5 * 21, limit - 5 * 21):
        metric._counts.assign(np.full(metric._counts.shape, start))
        for _ in range(5):
            metric.update_state(labels, labels)
        expected = np.full((2, 2), start)
        expected[0, 0] += 5 * 21
        np.testing.assert_array_equal(metric.confusion_matrix(), expected)
        assert float(metric.result()) == pytest.approx(mean_iou(expected), rel=1e-6)
    for _ in range(3):  # at the limit; and what has overflowed stays an error
        metric.update_state(labels, labels)
        assert np.isnan(float(metric.result()))
        for read in (metric.confusion_matrix, metric.out_of_range, metric.per_class_iou):
            with pytest.raises(OverflowError, match="'mean_iou'.*Received: more"):
                read()
    metric.reset_state()
    assert float(metric.result()) == 0


@pytest.mark.slow
def test_one_batch_of_more_pixels_than_float32_counts():
    labels = ops.zeros((1, 4099, 4100), "uint8")
    metric = MeanIoU(1)
    metric.update_state(labels, labels)
    assert metric.confusion_matrix().tolist() == [[4099 * 4100]]
    assert 4099 * 4100 > 2**24


def test_wrong_inputs_are_refused():
    labels, logits = example()
    metric = MeanIoU(4)
    with pytest.raises(ValueError, match=r"one-hot.*Received: shape \(2, 7, 9, 4\)"):
        metric.update_state(logits, logits)
    with pytest.raises(ValueError, match=r"4 classes.*Received: shape \(2, 7, 9, 3\)"):
        metric.update_state(labels, logits[..., :3])
    with pytest.raises(ValueError, match=r"Received: shape \(2, 7, 9\), dtype float32"):
        metric.update_state(labels, labels.astype("float32"))
    with pytest.raises(ValueError, match=r"shape of the labels.*Received: shape \(2, 7, 8\)"):
        metric.update_state(labels, labels[..., 1:])
    with pytest.raises(ValueError, match=r"no `sample_weight`.*Received"):
        metric.update_state(labels, logits, sample_weight=np.ones(2))
    with pytest.raises(ValueError, match=r"each of the 4 classes\. Received: 1 names"):
        MeanIoU(4, class_names=["road"])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has dynamic shapes")
def test_dynamic_shapes():
    import tensorflow as tf

    metric = MeanIoU(4)
    update = tf.function(metric.update_state).get_concrete_function(
        tf.TensorSpec([None, None, None], "uint8"), tf.TensorSpec([None, None, None, 4], "float32")
    )
    labels, logits = example()
    update(tf.constant(labels), tf.constant(logits))
    np.testing.assert_array_equal(metric.confusion_matrix(), count(labels, logits.argmax(-1), 4)[0])


def test_serialisation():
    metric = MeanIoU(3, (0, 255), ["a", "b", "c"], name="city")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(metric)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is MeanIoU
    assert json.dumps(copy.get_config()) == json.dumps(metric.get_config())
    labels, logits = example(classes=3)
    for each in (metric, copy):
        each.update_state(labels, logits)
    np.testing.assert_array_equal(copy.confusion_matrix(), metric.confusion_matrix())


def test_examples():
    assert doctest.testmod(metrics).failed == 0


# In compile() and fit()


def tiny_model(classes=4):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(classes, 3, strides=2, padding="same")]
    )
    model.compile(optimizer="sgd", loss=CrossEntropy(), metrics=[MeanIoU(classes)])
    return model


def labelled_images(count=6, classes=4):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (count, 12, 16))
    labels[:, 0] = 255
    return rng.random((count, 12, 16, 3)).astype("float32"), labels.astype("uint8")


def test_fit_evaluate_save_and_load(tmp_path):
    model, check = tiny_model(), RaiseOnInvalidLabels()
    images, labels = data = labelled_images()
    quiet = {"callbacks": [check], "verbose": 0}
    history = model.fit(*data, batch_size=2, epochs=2, validation_data=data, **quiet).history
    results = model.evaluate(*data, batch_size=4, return_dict=True, **quiet)
    expected = MeanIoU(4)
    expected.update_state(labels, model.predict(images, batch_size=6, verbose=0))
    assert expected.confusion_matrix().sum() == (labels != 255).sum()
    assert results["mean_iou"] == pytest.approx(mean_iou(expected.confusion_matrix()), rel=1e-5)
    assert history["val_mean_iou"][-1] == pytest.approx(results["mean_iou"], rel=1e-5)
    (metric,) = metrics.mean_iou_metrics(model.metrics)
    np.testing.assert_array_equal(metric.confusion_matrix(), expected.confusion_matrix())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.evaluate(*data, batch_size=4, return_dict=True, verbose=0)
    assert again["mean_iou"] == pytest.approx(results["mean_iou"], rel=1e-6)


MESSAGE = r"Labels must be 0 \.\. 3, or ignored: \(255,\)\. Received: 7 pixels"


def with_invalid_labels(image, value=200):
    """The images, and labels of which one image's are wrong."""
    images, labels = labelled_images()
    labels[image, 1, :7] = value
    return images, labels


@pytest.mark.parametrize(
    ("image", "check_every", "validate", "batches"),
    [(0, 100, False, 1), (1, 2, False, 3), (-1, 100, False, 6), (-1, 100, True, 6)],
)
def test_invalid_labels_stop_training(image, check_every, validate, batches):
    """At the first batch, every few, and at the end of the epoch, before validation resets."""
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(1))
    with pytest.raises(ValueError, match=MESSAGE):
        tiny_model().fit(
            *with_invalid_labels(image, 4),
            batch_size=1,
            shuffle=False,
            validation_data=labelled_images() if validate else None,
            callbacks=[watch, RaiseOnInvalidLabels(check_every)],
            verbose=0,
        )
    assert len(seen) == batches


def test_invalid_labels_stop_validation_and_evaluation():
    good, bad = labelled_images(), with_invalid_labels(-1)
    model = tiny_model()
    quiet = {"callbacks": [RaiseOnInvalidLabels()], "verbose": 0}
    with pytest.raises(ValueError, match=MESSAGE):
        model.fit(*good, validation_data=bad, **quiet)
    # What an earlier run has counted is no concern of the next.
    model.evaluate(*good, **quiet)
    with pytest.raises(ValueError, match=MESSAGE):
        model.evaluate(*bad, **quiet)
    model.fit(*good, **quiet)
    model.evaluate(*bad, verbose=0)
    model.evaluate(*good, **quiet)


def test_invalid_labels_need_the_metric():
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    model.compile(optimizer="sgd", loss=CrossEntropy())
    with pytest.raises(ValueError, match=r"expected one in compile.*Received: none"):
        model.fit(*labelled_images(), callbacks=[RaiseOnInvalidLabels()], verbose=0)
    with pytest.raises(ValueError, match="Received: check_every=0"):
        RaiseOnInvalidLabels(check_every=0)
