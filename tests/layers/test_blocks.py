"""The one check that every layer passes, then what is special to each."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from alignseg_tf.layers import (
    AlignedContextModeling,
    AlignedFeatureAggregation,
    BatchNormalization,
    ConvNormAct,
    OffsetPrediction,
    PixelNormalization,
    ResidualRefinement,
    ResizeLike,
    SegmentationHead,
)
from alignseg_tf.layers.nested import nested_layers
from alignseg_tf.layers.offset_prediction import narrow_convolutions

MAP = (2, 9, 13, 8)
FINE, COARSE = (2, 9, 13, 8), (2, 5, 7, 8)

LAYERS = {
    "norm": (lambda **k: BatchNormalization(**k), [MAP], [MAP]),
    "conv_norm_act": (lambda **k: ConvNormAct(4, 3, **k), [MAP], [(2, 9, 13, 4)]),
    "refinement": (lambda **k: ResidualRefinement(12, **k), [MAP], [(2, 9, 13, 12)]),
    "head": (lambda **k: SegmentationHead(5, 4, **k), [MAP], [(2, 9, 13, 5)]),
    "offsets": (lambda **k: OffsetPrediction(2, **k), [FINE, COARSE], [(2, 9, 13, 2)] * 2),
    "align": (lambda **k: AlignedFeatureAggregation(**k), [FINE, COARSE], [FINE]),
    "align_coarse": (
        lambda **k: AlignedFeatureAggregation("align_coarse", "fixed", **k), [FINE, COARSE], [FINE],
    ),
    "align_fine": (
        lambda **k: AlignedFeatureAggregation("align_fine", **k), [FINE, COARSE], [FINE],
    ),
    "bilinear": (lambda **k: AlignedFeatureAggregation("bilinear", **k), [FINE, COARSE], [FINE]),
    "context": (lambda **k: AlignedContextModeling(4, **k), [MAP], [(2, 9, 13, 4)]),
    "global": (lambda **k: AlignedContextModeling(4, "global", **k), [MAP], [(2, 9, 13, 4)]),
    "local": (lambda **k: AlignedContextModeling(4, None, **k), [MAP], [(2, 9, 13, 4)]),
    "normalization": (
        lambda **k: PixelNormalization([1, 2, 3], [2, 2, 4], "bgr", **k), [(2, 4, 5, 3)],
        [(2, 4, 5, 3)],
    ),
    "resize_like": (lambda **k: ResizeLike(**k), [COARSE, FINE], [FINE]),
}  # fmt: skip


def run(layer, *arrays, **kwargs):
    result = layer(*[ops.convert_to_tensor(a) for a in arrays], **kwargs)
    return [ops.convert_to_numpy(x) for x in (result if isinstance(result, list) else [result])]


def run_layer_test(build, shapes, expected, folder: Path):
    """Shapes, config, dynamic sizes, saving in safe mode, and mixed precision."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape).astype("float32") for shape in shapes]
    keras.utils.set_random_seed(0)
    layer = build(name="layer")
    outputs = run(layer, *inputs)
    assert [x.shape for x in outputs] == expected
    assert all(x.dtype == np.float32 for x in outputs)
    for variable in layer.variables:
        if "seed" not in variable.path:
            value = rng.uniform(0.2, 0.6, variable.shape)
            variable.assign(value.astype("float32"))
    outputs = run(layer, *inputs)

    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config

    symbols = [keras.Input((None, None, shape[-1])) for shape in shapes]
    model = keras.Model(symbols, layer(*symbols))
    dynamic = [x.shape for x in model.outputs]
    assert dynamic == [(None, None, None, shape[-1]) for shape in expected]
    model.save(folder / "layer.keras")
    reloaded = keras.saving.load_model(folder / "layer.keras")
    again = reloaded([ops.convert_to_tensor(x) for x in inputs])
    again = again if isinstance(again, list) else [again]
    for before, after in zip(outputs, again, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(after), before, atol=1e-5)

    for policy in ("mixed_bfloat16", "mixed_float16"):
        mixed = build(dtype=policy)
        result = mixed(*[ops.convert_to_tensor(x) for x in inputs])
        for x in result if isinstance(result, list) else [result]:
            assert keras.backend.standardize_dtype(x.dtype) == policy.removeprefix("mixed_")
        assert all(v.dtype == "float32" for v in mixed.trainable_variables)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, tmp_path):
    run_layer_test(*LAYERS[name], tmp_path)


def test_aggregation_starts_as_bilinear():
    """The offset kernels start at zero, so training starts from the baseline."""
    rng = np.random.default_rng(0)
    fine, coarse = (rng.normal(size=shape).astype("float32") for shape in (FINE, COARSE))
    aligned = run(AlignedFeatureAggregation(), fine, coarse)[0]
    bilinear = run(AlignedFeatureAggregation("bilinear"), fine, coarse)[0]
    np.testing.assert_allclose(aligned, bilinear, atol=1e-5)


@pytest.mark.parametrize("moved", ["coarse", "fine"])
def test_aggregation_moves_the_map_that_its_mode_names(moved):
    rng = np.random.default_rng(0)
    fine, coarse = (rng.normal(size=(1, 6, 8, 4)).astype("float32") for _ in range(2))
    layer = AlignedFeatureAggregation(f"align_{moved}")
    run(layer, fine, coarse)
    assert list(layer.offsets(fine, coarse)) == [moved]
    # Offsets of exactly one cell to the right everywhere.
    prediction = layer.offset_prediction
    prediction.norm.beta.assign(np.ones(4, "float32"))
    prediction.norm.gamma.assign(np.zeros(4, "float32"))
    kernel = np.zeros((3, 3, 4, 2), "float32")
    kernel[1, 1, 0, 0] = 1.0
    prediction.fields[0].kernel.assign(kernel)

    def shifted(x):
        return np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, 1:]

    parts = {"coarse": coarse, "fine": fine}
    expected = sum(shifted(x) if key == moved else x for key, x in parts.items())
    np.testing.assert_allclose(run(layer, fine, coarse)[0], expected, atol=1e-5)


def test_offset_prediction_equals_convolving_the_concatenation():
    """The rewrite: conv1x1([fine, up(coarse)]) as two convolutions at two sizes."""
    from alignseg_tf.layers import resize_align_corners

    rng = np.random.default_rng(0)
    fine, coarse = (rng.normal(size=shape).astype("float32") for shape in (FINE, COARSE))
    layer = OffsetPrediction(1)
    run(layer, fine, coarse)
    kernel = rng.normal(size=(1, 1, 16, 8)).astype("float32")
    layer.fine_projection.kernel.assign(kernel[:, :, :8])
    layer.coarse_projection.kernel.assign(kernel[:, :, 8:])
    layer.fields[0].kernel.assign(rng.normal(size=(3, 3, 8, 2)).astype("float32"))
    both = ops.concatenate([fine, resize_align_corners(ops.convert_to_tensor(coarse), (9, 13))], -1)
    hidden = layer.norm(ops.conv(both, kernel, padding="same"))
    hidden = ops.where(hidden > 0, hidden, 0.01 * hidden)
    expected = ops.conv(hidden, layer.fields[0].kernel, padding="same")
    np.testing.assert_allclose(
        run(layer, fine, coarse)[0], ops.convert_to_numpy(expected), atol=1e-4
    )


def test_context_takes_a_map_of_one_cell():
    assert run(AlignedContextModeling(4), np.ones((2, 1, 1, 8), "float32"))[0].shape == (2, 1, 1, 4)


def test_head_drops_whole_maps_in_training_only():
    head = SegmentationHead(3, 32, dropout=0.5)
    x = np.ones((2, 5, 6, 8), "float32")
    first, second = run(head, x)[0], run(head, x)[0]
    np.testing.assert_array_equal(first, second)
    assert np.abs(run(head, x, training=True)[0] - run(head, x, training=True)[0]).max() > 0


def test_normalization_reverses_channels_first():
    layer = PixelNormalization([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], "bgr")
    rgb = np.array([11.0, 6.0, 2.0], "float32").reshape(1, 1, 1, 3)
    np.testing.assert_allclose(run(layer, rgb)[0].ravel(), [1.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualRefinement(6), "multiple of 4. Received: filters=6"),
        (lambda: AlignedFeatureAggregation("alignn"), "Received: mode='alignn'"),
        (lambda: AlignedFeatureAggregation(sampling="x"), "Received: sampling='x'"),
        (lambda: AlignedContextModeling(8, "gap"), "Received: context='gap'"),
        (lambda: PixelNormalization([1, 2]), "three values. Received"),
        (lambda: PixelNormalization([1, 2, 3], [1, 0, 1]), "must be positive"),
        (lambda: PixelNormalization([1, 2, 3], channel_order="gbr"), "Received: channel_order"),
        (
            lambda: AlignedFeatureAggregation()(ops.ones((1, 4, 4, 8)), ops.ones((1, 4, 4, 4))),
            "same number of channels",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("groups", [1, 2])
def test_narrow_convolutions_are_convolutions(groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 7, 4 * groups)).astype("float32")
    kernels = [rng.normal(size=(3, 3, 4, 2)).astype("float32") for _ in range(groups)]
    results = narrow_convolutions(
        ops.convert_to_tensor(x), [ops.convert_to_tensor(kernel) for kernel in kernels]
    )
    for number, (kernel, result) in enumerate(zip(kernels, results, strict=True)):
        part = ops.convert_to_tensor(x[..., 4 * number : 4 * number + 4])
        expected = ops.convert_to_numpy(ops.conv(part, kernel, padding="same"))
        np.testing.assert_allclose(ops.convert_to_numpy(result), expected, atol=1e-5)


def test_nested_layers_are_those_at_any_depth():
    inner = ConvNormAct(4, 1)
    outer = keras.Sequential([keras.Sequential([inner])])
    assert nested_layers(outer)[0] is outer.layers[0]
    assert {inner, inner.conv, inner.norm} <= set(nested_layers(outer))
    assert outer not in nested_layers(outer)
