import keras
import numpy as np
import pytest
from keras import ops

from alignseg_tf.layers import (
    SAMPLING_CONVENTIONS,
    ResizeLike,
    adaptive_average_pool,
    bilinear_sample,
    resize_align_corners,
)
from alignseg_tf.layers.sampling import sampling_positions
from alignseg_tf.layers.tensorflow_kernels import bilinear_sample_in_training

SIZES = [((7, 11), (7, 11)), ((3, 3), (14, 19)), ((5, 6), (1, 9)), ((1, 1), (4, 1))]


def divisors(sampling: str, source: tuple[int, int], result: tuple[int, int]) -> tuple:
    """What x and y offsets are divided by, written from the table of conventions."""
    (h, w), (oh, ow) = source, result
    return {
        "standard": (max((ow - 1) / 2, 0.5), max((oh - 1) / 2, 0.5)),
        "fixed": (w, h),
        "released": (h, w),
        "released_align_corners": (h, w),
    }[sampling]


def numpy_sample(features: np.ndarray, offsets: np.ndarray, sampling: str) -> np.ndarray:
    """Sample pixel by pixel in float64."""
    batch, h, w, channels = features.shape
    oh, ow = offsets.shape[1:3]
    grid_x = np.linspace(-1, 1, ow) if ow > 1 else np.array([-1.0])
    grid_y = np.linspace(-1, 1, oh) if oh > 1 else np.array([-1.0])
    over_x, over_y = divisors(sampling, (h, w), (oh, ow))
    result = np.zeros((batch, oh, ow, channels))
    for b, i, j in np.ndindex(batch, oh, ow):
        x = grid_x[j] + float(offsets[b, i, j, 0]) / over_x
        y = grid_y[i] + float(offsets[b, i, j, 1]) / over_y
        if sampling in ("standard", "released_align_corners"):
            x, y = (x + 1) / 2 * (w - 1), (y + 1) / 2 * (h - 1)
        else:
            x, y = ((x + 1) * w - 1) / 2, ((y + 1) * h - 1) / 2
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < h and 0 <= column < w:
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    result[b, i, j] += weight * features[b, row, column]
    return result


def sample(features: np.ndarray, offsets: np.ndarray, sampling: str = "standard") -> np.ndarray:
    return ops.convert_to_numpy(
        bilinear_sample(ops.convert_to_tensor(features), ops.convert_to_tensor(offsets), sampling)
    )


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize(("source", "result"), SIZES)
def test_sampling_equals_the_definition(sampling, source, result):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, *source, 5)).astype("float32")
    offsets = (3 * rng.normal(size=(2, *result, 2))).astype("float32")
    expected = numpy_sample(features, offsets, sampling)
    np.testing.assert_allclose(sample(features, offsets, sampling), expected, atol=1e-5)


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize(("source", "result"), SIZES)
def test_positions_are_where_a_map_is_read(sampling, source, result):
    """A map of its own cells' x, y and of ones, read there, tells the place."""
    rng = np.random.default_rng(0)
    offsets = (2 * rng.normal(size=(2, *result, 2))).astype("float32")
    positions = ops.convert_to_numpy(
        sampling_positions(ops.convert_to_tensor(offsets), source, sampling)
    )
    assert positions.dtype == np.float32
    assert positions.shape == offsets.shape
    y, x = np.mgrid[: source[0], : source[1]]
    places = np.stack([x, y, np.ones_like(x)], -1).astype("float32")
    read = sample(np.stack([places] * 2), offsets, sampling)
    last = np.array(source[::-1]) - 1
    inside = ((positions >= 0) & (positions <= last)).all(-1)
    np.testing.assert_allclose(positions[inside], read[inside][:, :2], atol=1e-5)
    # Outside, ones fade to zero over one cell.
    beyond = np.maximum(np.maximum(-positions, positions - last), 0)
    np.testing.assert_allclose(
        read[..., 2], np.clip(1 - beyond, 0, 1).prod(-1), atol=1e-5, err_msg="outside"
    )
    if min(source) > 2:
        assert inside.any()
        assert not inside.all()


def test_an_unknown_convention_is_refused():
    maps = ops.zeros((1, 2, 2, 2))
    for call in (lambda: sampling_positions(maps, (2, 2), "x"), lambda: sample(maps, maps, "x")):
        with pytest.raises(ValueError, match="must be one of .*Received: sampling='x'"):
            call()


def test_an_offset_of_one_is_one_cell():
    features = np.arange(12, dtype="float32").reshape(1, 3, 4, 1)
    right = np.zeros((1, 3, 4, 2), "float32")
    right[..., 0] = 1.0
    expected = [[1, 2, 3, 0], [5, 6, 7, 0], [9, 10, 11, 0]]
    np.testing.assert_array_equal(sample(features, right)[0, ..., 0], expected)
    down = right[..., ::-1].copy()
    expected = [[4, 5, 6, 7], [8, 9, 10, 11], [0, 0, 0, 0]]
    np.testing.assert_array_equal(sample(features, down)[0, ..., 0], expected)


def test_no_offset_is_the_identity_to_the_bit_at_any_width():
    features = np.random.default_rng(0).normal(size=(1, 2, 2049, 1)).astype("float32")
    np.testing.assert_array_equal(sample(features, np.zeros((1, 2, 2049, 2), "float32")), features)


@pytest.mark.parametrize("value", [-1e30, np.inf])
def test_offsets_of_any_size_read_zeros(value):
    offsets = np.full((1, 4, 5, 2), value, "float32")
    result = sample(np.ones((1, 4, 5, 2), "float32"), offsets)
    assert np.isfinite(result).all()
    assert not result.any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
def test_coordinates_are_float32_in_half_precision(sampling, dtype):
    """A shift by a quarter of a cell at column 2000, which no half float holds."""
    features = (np.arange(2048, dtype="float32") % 2).reshape(1, 1, 2048, 1)
    offsets = np.zeros((1, 1, 2048, 2), "float32")
    offsets[..., 0] = 0.25
    result = bilinear_sample(ops.cast(features, dtype), ops.cast(offsets, dtype), sampling)
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    expected = sample(features, offsets, sampling)
    result = ops.convert_to_numpy(ops.cast(result, "float32"))
    np.testing.assert_allclose(result, expected, atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (17, 2)])
def test_resize_equals_numpy_interpolation(size):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype("float32")
    rows = np.linspace(0, 4, size[0]) if size[0] > 1 else np.zeros(1)
    columns = np.linspace(0, 6, size[1]) if size[1] > 1 else np.zeros(1)
    low, high = np.floor(rows).astype(int), np.ceil(rows).astype(int)
    share = (rows - low)[:, None, None]
    tall = x[:, low] * (1 - share) + x[:, high] * share
    low, high = np.floor(columns).astype(int), np.ceil(columns).astype(int)
    share = (columns - low)[:, None]
    expected = tall[:, :, low] * (1 - share) + tall[:, :, high] * share
    result = ops.convert_to_numpy(resize_align_corners(ops.convert_to_tensor(x), size))
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 10), (3, 3), (1, 2), (14, 19)])
@pytest.mark.parametrize("bins", [1, 3])
def test_adaptive_pool_equals_its_windows(size, bins):
    x = np.random.default_rng(0).normal(size=(2, *size, 4)).astype("float32")
    result = ops.convert_to_numpy(adaptive_average_pool(ops.convert_to_tensor(x), bins))
    for i, j in np.ndindex(bins, bins):
        rows = slice(i * size[0] // bins, int(np.ceil((i + 1) * size[0] / bins)))
        columns = slice(j * size[1] // bins, int(np.ceil((j + 1) * size[1] / bins)))
        expected = x[:, rows, columns].mean((1, 2))
        np.testing.assert_allclose(result[:, i, j], expected, atol=1e-5)


def test_resize_like_takes_the_reference_size():
    assert ResizeLike()(ops.ones((1, 2, 3, 4)), ops.ones((1, 5, 7, 1))).shape == (1, 5, 7, 4)
    assert ResizeLike().compute_output_shape((None, 2, 3, 4), (None, None, 7, 3)) == (
        None, None, 7, 4,
    )  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize("zero", [True, False])
def test_gradients_equal_torch(sampling, zero):
    """Feature and offset gradients, also at offset zero, where hat functions have none."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("takes gradients with TensorFlow")
    import tensorflow as tf

    rng = np.random.default_rng(1)
    source = result = (5, 9)  # torch's grid is exact where n - 1 is a power of two
    features = rng.normal(size=(2, *source, 3)).astype("float32")
    offsets = np.zeros((2, *result, 2), "float32")
    if not zero:
        offsets = (2 * rng.normal(size=offsets.shape)).astype("float32")
    upstream = rng.normal(size=(2, *result, 3)).astype("float32")

    x = torch.tensor(features, dtype=torch.float64, requires_grad=True)
    d = torch.tensor(offsets, dtype=torch.float64, requires_grad=True)
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in result]
    grid_y, grid_x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([grid_x, grid_y], -1) + d / torch.tensor(divisors(sampling, source, result))
    sampled = torch.nn.functional.grid_sample(
        x.permute(0, 3, 1, 2),
        grid,
        align_corners=sampling in ("standard", "released_align_corners"),
    ).permute(0, 2, 3, 1)
    sampled.backward(torch.tensor(upstream, dtype=torch.float64))

    with tf.GradientTape() as tape:
        inputs = [tf.constant(features), tf.constant(offsets)]
        tape.watch(inputs)
        loss = tf.reduce_sum(bilinear_sample(*inputs, sampling) * upstream)
    to_features, to_offsets = tape.gradient(loss, inputs)
    np.testing.assert_allclose(tf.convert_to_tensor(to_features), x.grad, atol=2e-5)
    np.testing.assert_allclose(to_offsets, d.grad, atol=1e-4)
    assert np.abs(to_offsets).max() > 0.1


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="elsewhere the two are one function"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
def test_in_training_values_and_gradients_are_the_same(sampling, dtype):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    features = tf.constant(rng.standard_normal((2, 7, 9, 4)), dtype)
    offsets = tf.constant(3 * rng.standard_normal((2, 5, 6, 2)), "float32")
    upstream = tf.constant(rng.standard_normal((2, 5, 6, 4)), dtype)

    def value_and_gradients(sample, features, offsets):
        with tf.GradientTape() as tape:
            tape.watch([features, offsets])
            sampled = sample(features, offsets, sampling)
        return [sampled, *tape.gradient(sampled, [features, offsets], upstream)]

    expected = value_and_gradients(bilinear_sample, features, offsets)
    for run in (value_and_gradients, tf.function(value_and_gradients)):
        found = run(bilinear_sample_in_training, features, offsets)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            tolerance = 1e-5 if one.dtype == tf.float32 and dtype == "float32" else 0.05
            np.testing.assert_allclose(
                tf.cast(one, tf.float32), tf.cast(other, tf.float32), atol=tolerance
            )
