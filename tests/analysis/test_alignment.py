"""What is seen of a model's alignment, against its layers and against hand-made fields."""

import keras
import numpy as np
import pytest
from alignment_fixtures import MODES, STEPS, model_of
from conftest import random_images
from keras import ops

from alignseg_tf.analysis.alignment import OUTSIDE, ContextTrace, offset_fields, trace_alignment
from alignseg_tf.layers import (
    SAMPLING_CONVENTIONS,
    AlignedContextModeling,
    AlignedFeatureAggregation,
    bilinear_sample,
    resize_align_corners,
)
from alignseg_tf.layers.sampling import offsets_in_pixels


def layers_inside(model, image) -> dict:
    """The inputs and the output of each alignment layer, by a model of its own."""
    layers = [
        layer
        for layer in model.layers
        if isinstance(layer, AlignedFeatureAggregation | AlignedContextModeling)
    ]
    inside = keras.Model(
        model.inputs, {layer.name: (layer.input, layer.output) for layer in layers}
    )
    return inside(ops.convert_to_tensor(image[None], "float32"), training=False)


def array(x) -> np.ndarray:
    return ops.convert_to_numpy(x)[0]


SOME = [{}, {"aggregation": "align_coarse", "context": "global", "sampling": "released"},
        {"aggregation": "align_fine", "context": None}, {"aggregation": "bilinear"}]  # fmt: skip


@pytest.mark.parametrize("arguments", SOME, ids=str)
def test_steps_are_what_the_layers_do(arguments, scene):
    model = model_of(**arguments)
    mode, weights = model.aggregation, model.get_weights()
    trace = trace_alignment(model, scene)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    inside = layers_inside(model, scene)
    np.testing.assert_array_equal(trace.image, scene)
    assert [step.name for step in trace.steps] == STEPS
    assert (trace.context is None) == (model.context != "align")
    for step in trace.steps:
        (fine, coarse), output = inside[step.name]
        assert step.mode == mode
        assert list(step.offsets) == MODES[mode]
        np.testing.assert_allclose(step.before["fine"], array(fine), atol=1e-5)
        resized = resize_align_corners(coarse, fine.shape[1:3])
        np.testing.assert_allclose(step.before["coarse"], array(resized), atol=1e-5)
        np.testing.assert_allclose(step.aligned, array(output), atol=1e-4)
        plain = AlignedFeatureAggregation("bilinear")(fine, coarse)
        np.testing.assert_allclose(step.unaligned, array(plain), atol=1e-4)
        for name in ("coarse", "fine"):
            still = np.array_equal(step.after[name], step.before[name])
            assert still == (name not in MODES[mode])
    if mode != "bilinear":
        difference = np.abs(trace.steps[0].aligned - trace.steps[0].unaligned)
        assert difference.mean() > 0.05


def test_a_field_of_one_cell_is_a_shift_and_its_pixels(monkeypatch, scene):
    def one_right_half_up(self, fine, coarse, training=None):
        one = ops.ones_like(fine[..., :1])
        return {"coarse": ops.concatenate([one, -0.5 * one], -1)}

    model = model_of("align_coarse", "global")
    monkeypatch.setattr(AlignedFeatureAggregation, "offsets", one_right_half_up)
    step = trace_alignment(model, scene).steps[0]
    height, width = step.before["fine"].shape[:2]
    pixels = [(scene.shape[1] - 1) / (width - 1), -0.5 * (scene.shape[0] - 1) / (height - 1)]
    np.testing.assert_allclose(step.offsets["coarse"][0, 0], pixels, rtol=1e-5)
    before = step.before["coarse"]
    expected = (before[:-1, 1:] + before[1:, 1:]) / 2
    np.testing.assert_allclose(step.after["coarse"][1:, :-1], expected, atol=1e-5)
    assert not step.after["coarse"][:, -1].any(), "zeros outside"


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
def test_context_positions_are_where_the_layer_reads(sampling, scene):
    """Its output is the local branch and hat weights at these positions times the context."""
    model = model_of(**({} if sampling == "standard" else {"sampling": sampling}))
    context = trace_alignment(model, scene).context
    x, output = layers_inside(model, scene)["context_modeling"]
    local, cells = (array(part) for part in model.get_layer("context_modeling").branches(x))
    read = np.zeros_like(local)
    for row, column in np.ndindex(3, 3):
        distance = np.abs(context.positions - [column, row])
        read += np.clip(1 - distance, 0, 1).prod(-1)[..., None] * cells[row, column]
    np.testing.assert_allclose(local + read, array(output), atol=1e-4)
    assert np.abs(read).mean() > 0.01
    ends = (0, 2) if sampling in ("standard", "released_align_corners") else (-0.5, 2.5)
    height, width = x.shape[1:3]
    regular = context.regular_positions
    np.testing.assert_allclose(regular[0, :, 0], np.linspace(*ends, width), atol=1e-6)
    np.testing.assert_allclose(regular[:, 0, 1], np.linspace(*ends, height), atol=1e-6)
    np.testing.assert_array_equal(context.offsets, offset_fields(model, scene)["context_modeling"])


def test_the_chosen_cell_is_the_nearest_one():
    places = {
        (0.0, 0.0): 0, (2.0, 0.0): 2, (0.0, 2.0): 6, (1.4, 0.6): 4, (-0.5, 2.5): 6,
        (-0.6, 1.0): OUTSIDE, (1.0, 2.6): OUTSIDE, (1.6, 1.0): 5,
    }  # fmt: skip
    positions = np.array([list(places)], np.float32)
    context = ContextTrace("context_modeling", positions, positions, positions[:, ::-1])
    assert context.chosen.tolist() == [list(places.values())]
    assert context.regular.tolist() == [list(places.values())[::-1]]


def test_images_of_any_size_and_dtype():
    image = random_images(1, 47, 33)[0]
    trace = trace_alignment(model_of(), image.astype("float64"))
    assert trace.image.dtype == np.uint8
    np.testing.assert_array_equal(trace.image, image)
    fields = offset_fields(model_of(), image)
    for step in trace.steps:
        for name, field in step.offsets.items():
            np.testing.assert_array_equal(field, fields[f"{step.name}/{name}"])
            assert field.shape[:2] == step.aligned.shape[:2]


def test_half_precision_models_are_traced_in_float32(scene):
    trace = trace_alignment(model_of(dtype="mixed_bfloat16"), scene)
    for step in trace.steps:
        for maps in (step.offsets, step.before, step.after):
            assert {x.dtype for x in maps.values()} == {np.dtype("float32")}
    assert trace.context.positions.dtype == np.float32
    exact = trace_alignment(model_of(), scene).steps[0].aligned
    assert np.abs(trace.steps[0].aligned - exact).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.parametrize("look", [trace_alignment, offset_fields])
def test_what_cannot_be_traced(look):
    image = random_images(1, 32, 40)[0]
    with pytest.raises(ValueError, match="Expected an AlignSeg. Received: a Functional"):
        look(model_of().backbone, image)
    for wrong in (image[:31], image[..., 0], image[..., :2]):
        with pytest.raises(ValueError, match=r"at least 32 x 32 .*Received: shape \(3\d, 4\d"):
            look(model_of(), wrong)


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize("read_size", [(12, 10), (3, 3)])
def test_offsets_are_given_in_pixels(sampling, read_size):
    """A map that holds where each of its cells is in the image tells how far a sample moved."""
    image_size, middle = (96, 80), (6, 5)  # far from the border, beyond which is zero
    y, x = (
        np.arange(cells) * (pixels - 1) / (cells - 1)
        if sampling in ("standard", "released_align_corners")
        else (np.arange(cells) + 0.5) * pixels / cells - 0.5
        for pixels, cells in zip(image_size, read_size, strict=True)
    )
    where = np.stack(np.meshgrid(x, y), -1)[None].astype("float32")
    field = np.full((1, 12, 10, 2), (0.2, -0.1), "float32")
    moved, still = (array(bilinear_sample(where, f, sampling))[middle] for f in (field, 0 * field))
    assert np.abs(moved - still).min() > 0.05
    pixels = array(offsets_in_pixels(field, sampling, read_size, image_size))
    np.testing.assert_allclose(pixels[middle], moved - still, rtol=2e-4)


def test_offset_fields_are_those_that_the_model_samples_with(monkeypatch, scene):
    model = model_of()
    fields, seen = offset_fields(model, scene), {}

    def record(cls, name_of):
        original = cls.offsets

        def offsets(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            for name, field in name_of(self, result).items():
                seen[name] = array(field)
            return result

        monkeypatch.setattr(cls, "offsets", offsets)

    record(AlignedFeatureAggregation, lambda x, r: {f"{x.name}/{k}": v for k, v in r.items()})
    record(AlignedContextModeling, lambda x, r: {x.name: r})
    model(scene[None].astype("float32"), training=False)
    assert fields.keys() == seen.keys()
    assert len(fields) == 9
    for name, field in fields.items():
        # In the standard convention an offset of 1 is the distance of two cells of the result.
        pitch = [(n - 1) / (m - 1) for n, m in zip(scene.shape[:2], field.shape[:2], strict=True)]
        np.testing.assert_allclose(field, seen[name] * pitch[::-1], rtol=1e-4, atol=1e-4)
        assert field.dtype == np.float32
    assert fields["aggregation_p3/fine"].shape == (25, 33, 2)
    assert fields["context_modeling"].shape == (4, 5, 2)


def test_offset_fields_of_other_modes():
    image = np.zeros((64, 64, 3), np.uint8)
    names = offset_fields(model_of("align_fine", None), image)
    assert set(names) == {f"{step}/fine" for step in STEPS}
    assert offset_fields(model_of("bilinear", "global"), image) == {}
