"""The faster forms of sampling, resizing and pooling, against those that define them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from alignseg_tf.inference.layers import (
    OPERATIONS,
    ActivatedSum,
    AdaptivePooling,
    ContextSampling,
    MovedSum,
    Resizing,
    Sampling,
    resize_by_kernel,
    sample_by_cropping,
    sample_context,
)
from alignseg_tf.layers import (
    SAMPLING_CONVENTIONS,
    ResizeLike,
    adaptive_average_pool,
    bilinear_sample,
    resize_align_corners,
)


def features(*shape, seed=0):
    return ops.convert_to_tensor(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def offsets(height, width, reach, seed=1):
    """Offsets within the map, across its border, far outside, and exactly zero."""
    field = np.random.default_rng(seed).normal(0, reach, (2, height, width, 2)).astype("float32")
    field[:, 0, :, 0] = 0.0
    field[0, 1] = 0.0
    return ops.convert_to_tensor(field)


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize(("size", "out"), [((9, 14), (9, 14)), ((5, 7), (11, 6)), ((1, 4), (3, 1))])
@pytest.mark.parametrize("reach", [0.4, 1e6])
def test_sampling_by_cropping_is_sampling(sampling, size, out, reach):
    x, field = features(2, *size, 3), offsets(*out, reach)
    expected = ops.convert_to_numpy(bilinear_sample(x, field, sampling))
    result = ops.convert_to_numpy(sample_by_cropping(x, field, sampling))
    np.testing.assert_allclose(result, expected, atol=3e-6)
    assert (reach > 1e3) or np.abs(expected).max() > 0.1


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize("reach", [0.4, 1e6])
def test_sampling_of_a_context_is_sampling(sampling, reach):
    context, field = features(2, 3, 3, 5), offsets(7, 10, reach)
    expected = bilinear_sample(context, field, sampling)
    np.testing.assert_allclose(sample_context(context, field, sampling), expected, atol=3e-6)


def test_positions_that_are_no_numbers_read_nothing():
    field = np.zeros((1, 2, 3, 2), "float32")
    field[0, 0, 0] = np.nan
    field[0, 1, 2] = np.inf
    sampled = ops.convert_to_numpy(sample_by_cropping(ops.ones((1, 2, 3, 1)), field))
    assert sampled[..., 0].tolist() == [[[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]]


@pytest.mark.parametrize(("size", "out"), [((9, 14), (17, 28)), ((5, 7), (5, 7)), ((1, 3), (4, 5))])
def test_resizing_by_the_kernel_is_resizing(size, out):
    x = features(2, *size, 3)
    np.testing.assert_allclose(
        resize_by_kernel(x, out), resize_align_corners(x, out), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("operations", OPERATIONS)
def test_the_layers_say_their_shape_and_survive_saving(operations, tmp_path):
    fine, coarse = keras.Input((None, None, 4)), keras.Input((None, None, 4))
    field = keras.Input((None, None, 2))
    resized = Resizing(operations)(coarse, fine)
    assert resized.shape == (None, None, None, 4)
    sampled = Sampling("fixed", operations)(resized, field)
    assert sampled.shape == (None, None, None, 4)
    context = AdaptivePooling(3)(coarse)
    assert context.shape == (None, 3, 3, 4)
    read = ContextSampling("fixed")(context, field)
    model = keras.Model([fine, coarse, field], sampled + read)
    inputs = [features(2, 8, 11, 4), features(2, 5, 6, 4, seed=2), offsets(8, 11, 3.0)]
    low = ResizeLike()(inputs[1], inputs[0])
    expected = bilinear_sample(low, inputs[2], "fixed") + bilinear_sample(
        adaptive_average_pool(inputs[1], 3), inputs[2], "fixed"
    )
    np.testing.assert_allclose(model(inputs), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs), model(inputs))


@pytest.mark.parametrize("fields", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("known", [True, False], ids=["known size", "any size"])
def test_a_moved_sum_is_its_parts(fields, known, tmp_path):
    shapes = [(8, 11, 4), (5, 6, 4), (8, 11, 2), (8, 11, 2)]
    arrays = [
        features(2, *shapes[0]), features(2, *shapes[1], seed=2), offsets(8, 11, 3.0),
        offsets(8, 11, 3.0)[..., ::-1],
    ]  # fmt: skip
    low = resize_align_corners(arrays[1], (8, 11))
    moved = [
        bilinear_sample(x, field, "fixed") if used else x
        for x, field, used in zip((arrays[0], low), arrays[2:], fields, strict=True)
    ]
    sizes = shapes if known else [(None, None, shape[-1]) for shape in shapes]
    inputs = [keras.Input(size) for size in sizes]
    used = [x if use else None for x, use in zip(inputs[2:], fields, strict=True)]
    summed = MovedSum("fixed")(*inputs[:2], *used)
    assert summed.shape == (None, *sizes[0])
    model = keras.Model(inputs, ActivatedSum()(summed, inputs[1]))
    model.save(tmp_path / "model.keras")
    expected = moved[0] + moved[1] + low
    expected = ops.where(expected > 0, expected, 0.01 * expected)
    for one in (model, keras.saving.load_model(tmp_path / "model.keras")):
        run = tf.function(one)  # where sizes are free, the loop must find them by itself
        specs = [tf.TensorSpec((None, *size)) for size in sizes]
        result = run.get_concrete_function(specs)(*map(tf.constant, arrays))
        np.testing.assert_allclose(result, expected, atol=2e-5)


def test_fused_sums_are_rounded_once():
    rng = np.random.default_rng(0)
    x, y = (ops.cast(rng.normal(size=(1, *size, 64)), "bfloat16") for size in ((9, 9), (5, 5)))
    fields = [ops.cast(offsets(9, 9, 1.0)[:1], "bfloat16") for _ in range(2)]
    exact = [ops.cast(array, "float32") for array in (x, y)]
    exact_fields = [ops.cast(field, "float32") for field in fields]
    for layer, arguments, exact_arguments in (
        (ActivatedSum, [], []), (MovedSum, fields, exact_fields)
    ):  # fmt: skip
        half = layer(dtype="bfloat16")(x, y, *arguments)
        assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
        full = layer(dtype="float32")(*exact, *exact_arguments)
        error = ops.abs(ops.cast(half, "float32") - full)
        assert bool(ops.all(error <= 2**-8 * ops.abs(full) + 1e-6))


def test_maps_in_half_precision_are_sampled_where_they_should():
    x, field = features(2, 6, 300, 2), offsets(6, 300, 2.0)
    expected = ops.convert_to_numpy(bilinear_sample(x, field))
    half = Sampling("standard", "tensorflow", dtype="float16")
    result = half(x, ops.cast(field, "float32"))
    assert keras.backend.standardize_dtype(result.dtype) == "float16"
    np.testing.assert_allclose(
        sample_by_cropping(ops.cast(x, "float16"), field), expected, atol=5e-3
    )


@pytest.mark.parametrize("layer", [Resizing, Sampling])
def test_unknown_operations_are_refused(layer):
    with pytest.raises(ValueError, match=r"operations='cuda'"):
        layer(operations="cuda")
