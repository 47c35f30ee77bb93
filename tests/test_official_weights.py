"""The official outputs from the official weights, for every part and sampling convention."""

import numpy as np
import pytest
from conftest import tiny_model
from keras import ops
from official_fixtures import official_state_dict

from alignseg_tf import AlignSeg, backbones
from alignseg_tf import official_weights as checkpoints
from alignseg_tf.layers import (
    SAMPLING_CONVENTIONS,
    AlignedContextModeling,
    AlignedFeatureAggregation,
    ResidualRefinement,
    adaptive_average_pool,
    resize_align_corners,
)

TOLERANCE = 2e-4


def load(layer, tensors, *inputs):
    layer(*inputs)
    checkpoints.load_official_state_dict(layer, tensors)
    return layer


def difference(output, expected):
    output = ops.convert_to_numpy(output)
    assert output.shape == expected.shape
    return np.abs(output - expected).max()


def test_refinement(golden):
    x = golden.images((2, 24, 13, 17), 4)
    layer = load(ResidualRefinement(16), golden.state_dict("rrb"), x)
    assert difference(layer(x), golden["rrb.out"]) < TOLERANCE


def test_resize(golden):
    x = ops.convert_to_tensor(golden.images((2, 16, 10, 14), 1))
    assert difference(resize_align_corners(x, (20, 28)), golden["up_align_corners"]) < TOLERANCE


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize(("name", "size", "salt"), [("cab", (10, 14), 1), ("cab_odd", (11, 15), 2)])
def test_aggregation(golden, name, size, salt, sampling):
    fine, coarse = golden.images((2, 16, 20, 28), 0), golden.images((2, 16, *size), salt)
    layer = AlignedFeatureAggregation(sampling=sampling)
    layer = load(layer, golden.state_dict("cab"), fine, coarse)
    assert difference(layer(fine, coarse), golden[f"{name}.{sampling}"]) < TOLERANCE
    if name == "cab":
        offsets = layer.offsets(fine, coarse)
        assert difference(offsets["coarse"], golden["cab.delta1"]) < TOLERANCE
        assert difference(offsets["fine"], golden["cab.delta2"]) < TOLERANCE


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
def test_context(golden, sampling):
    x = golden.images((2, 48, 14, 19), 3)
    layer = AlignedContextModeling(16, sampling=sampling)
    layer = load(layer, golden.state_dict("cam"), x)
    assert difference(layer(x), golden[f"cam.{sampling}"]) < TOLERANCE
    pooled = adaptive_average_pool(ops.convert_to_tensor(x), 3)
    assert difference(pooled, golden["cam.pool3x3"]) < TOLERANCE


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
def test_network(golden, sampling):
    model = AlignSeg(
        backbones.resnet((1, 1, 1, 1)), 7, sampling=sampling, upsample_logits=False,
        normalization=None,
    )  # fmt: skip
    checkpoints.load_official_state_dict(model, golden.state_dict("net_1111_7"))
    for name, shape in (("net_even", (1, 3, 96, 160)), ("net_odd", (1, 3, 97, 129))):
        logits = model(ops.convert_to_tensor(golden.images(shape, 5)))
        assert difference(logits["segmentation"], golden[f"{name}.{sampling}.head"]) < TOLERANCE
        assert difference(logits["auxiliary"], golden[f"{name}.{sampling}.dsn"]) < TOLERANCE


@pytest.mark.slow
def test_the_published_network_takes_every_tensor(golden):
    state_dict = golden.state_dict("resnet101_19")
    model = checkpoints.model_from_official(state_dict)
    assert model.num_classes == 19
    assert model.sampling == "released"
    assert model.normalization["channel_order"] == "bgr"
    used = sum(tensor.size for tensor in state_dict.values())
    assert model.count_params() == used
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert round(trainable / 1e6, 1) == 66.8


def test_the_network_is_read_off_the_tensors():
    tensors = official_state_dict(width=64, channels=12, classes=4)
    del_aux = {name: value for name, value in tensors.items() if not name.startswith("dsn.")}
    model = checkpoints.model_from_official(del_aux, "fixed")
    assert (model.num_classes, model.channels, model.sampling) == (4, 12, "fixed")
    assert not model.auxiliary_head
    gamma = model.backbone.get_layer("norm1").gamma
    expected = np.abs(tensors["bn1.weight"]) + 1e-5
    np.testing.assert_allclose(ops.convert_to_numpy(gamma), expected, rtol=1e-6)


def test_a_prefix_is_stripped_and_an_unused_auxiliary_head_left():
    tensors = {f"module.{k}": v for k, v in official_state_dict().items()}
    tensors["module.bn1.num_batches_tracked"] = np.array(3)
    model = tiny_model(auxiliary_head=False)
    checkpoints.load_official_state_dict(model, tensors)
    kernel = ops.convert_to_numpy(model.backbone.get_layer("conv1").kernel)
    np.testing.assert_array_equal(kernel, tensors["module.conv1.weight"].transpose(2, 3, 1, 0))


def test_the_backbone_alone_ignores_its_classifier():
    everything = official_state_dict()
    tensors = {k: v for k, v in everything.items() if k.startswith(("conv", "bn", "layer"))}
    tensors["fc.weight"] = np.zeros((10, 256), "float32")
    model = tiny_model()
    checkpoints.load_official_backbone(model, tensors)
    loaded = ops.convert_to_numpy(model.backbone.get_layer("layer4_0_conv2").kernel)
    expected = tensors["layer4.0.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(loaded, expected)
    with pytest.raises(ValueError, match=r"tensors of no use: CAB2"):
        checkpoints.load_official_backbone(model, everything | {"fc.bias": np.zeros(10)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("CAB3.delta_gen2.1.bias"), r"lacks 1 tensors: CAB3\.delta_gen2\.1\.bias"),
        (lambda t: t.update(extra=np.zeros(3)), r"1 tensors of no use: extra"),
        (
            lambda t: t.update({"RRB1a.norm.bias": np.zeros(9)}),
            r"RRB1a\.norm\.bias: expected .* \(8,\)\. Received: \(9,\)",
        ),
        (
            lambda t: t.update({"CAB2.delta_gen1.0.weight": np.zeros((8, 15, 1, 1))}),
            r"CAB2\.delta_gen1\.0\.weight.*unfit shapes",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change, message):
    tensors = official_state_dict()
    change(tensors)
    model = tiny_model()
    before = [ops.convert_to_numpy(w) for w in model.weights]
    with pytest.raises(ValueError, match=message):
        checkpoints.load_official_state_dict(model, tensors)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), old)


def test_a_baseline_takes_no_official_weights():
    with pytest.raises(ValueError, match="aggregation='align', context='align'"):
        checkpoints.load_official_state_dict(
            tiny_model(aggregation="bilinear"), official_state_dict()
        )


def test_something_else_is_named():
    with pytest.raises(ValueError, match=r"not AlignSeg's.*Received: a, b"):
        checkpoints.model_from_official({"a": np.zeros(1), "b": np.zeros(1)})


def test_reading_files(tmp_path):
    tensors = {"a": np.arange(3, dtype="float32")}
    np.savez(tmp_path / "x.npz", **tensors)
    np.testing.assert_array_equal(
        checkpoints.read_state_dict(tmp_path / "x.npz")["a"], tensors["a"]
    )
    with pytest.raises(ValueError, match=r"missing\.pth: no such file"):
        checkpoints.read_state_dict(tmp_path / "missing.pth")
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    torch.save({"state_dict": {"a": torch.arange(3.0)}, "epoch": 3}, tmp_path / "x.pth")
    np.testing.assert_array_equal(
        checkpoints.read_state_dict(tmp_path / "x.pth")["a"], tensors["a"]
    )
    torch.save({"code": print}, tmp_path / "evil.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:200])
    for name in ("evil.pth", "cut.pth"):
        with pytest.raises(ValueError, match=rf"{name}: not a PyTorch file of plain tensors"):
            checkpoints.read_state_dict(tmp_path / name)
