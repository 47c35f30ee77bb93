"""Every form of every kind of model computes what the model does."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import CLASSES, calibrate_batch_norms, random_images

from alignseg_tf import AlignSeg, backbones
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.export import compare_networks, export_onnx, export_saved_model, tflite
from alignseg_tf.prediction.saved_networks import KerasNetwork, TfliteNetwork

pytestmark = pytest.mark.slow

SIZES = ((64, 96), None)
IMAGES = list(random_images(2, 64, 96))


def mobilenet_v3():
    keras_cv = pytest.importorskip("keras_cv")
    return keras_cv.models.MobileNetV3Backbone(
        stackwise_expansion=[1, 2, 2, 2],
        stackwise_filters=[8, 8, 16, 16],
        stackwise_kernel_size=[3, 3, 5, 5],
        stackwise_stride=[2, 2, 2, 2],
        stackwise_se_ratio=[0.25, None, 0.25, None],
        stackwise_activation=["relu", "relu", "hard_swish", "hard_swish"],
        include_rescaling=False,
        input_shape=(None, None, 3),
    )


BACKBONES = {
    "resnet": lambda: backbones.resnet((1, 1, 1, 1), width=8),
    "lite0": lambda: backbones.efficientnet_lite0(),
    "mobilenet_v3": mobilenet_v3,
}


@pytest.fixture(scope="module", params=["align", "bilinear"])
def aggregation(request):
    return request.param


@pytest.fixture(scope="module", params=list(BACKBONES))
def model(request, aggregation):
    """Offsets of a fraction of a cell, as those of trained models, and batch norms in use."""
    keras.utils.set_random_seed(0)
    backbone = BACKBONES[request.param]()
    context = "align" if aggregation == "align" else "global"
    model = AlignSeg(
        backbone, len(CLASSES), channels=8, aggregation=aggregation, context=context,
        label_space=LabelSpace(CLASSES).to_dict(),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        if "field_" in weight.path:
            weight.assign(rng.normal(0, 0.03, weight.shape).astype("float32"))
    # Of few images, pooled contexts hardly vary, and their norms would amplify rounding.
    images = random_images(12, 96, 128, seed=2) * np.linspace(0.2, 1, 12)[:, None, None, None]
    calibrate_batch_norms(model, images)
    return model


@pytest.fixture(scope="module")
def reference(model):
    return KerasNetwork(model)


def check(agreement, least, difference=np.inf):
    assert agreement.same_class > least, dataclasses.asdict(agreement)
    assert agreement.difference < difference * agreement.largest_logit


@pytest.mark.parametrize("size", SIZES, ids=["fixed", "dynamic"])
def test_saved_model(model, size, tmp_path):
    check(export_saved_model(model, tmp_path / "1", IMAGES, size), 0.999, 1e-4)


@pytest.mark.parametrize("size", SIZES, ids=["fixed", "dynamic"])
def test_onnx(model, size, tmp_path):
    pytest.importorskip("tf2onnx")
    check(export_onnx(model, tmp_path / "model.onnx", size, IMAGES), 0.999, 1e-4)


@pytest.mark.parametrize("size", SIZES, ids=["fixed", "dynamic"])
def test_tflite(model, reference, size, tmp_path):
    """As `export_tflite` does, but the graph is traced once for all quantizations."""
    with tflite.saved_graph(model, size, "logits") as folder:
        # Untrained networks amplify the rounding to 8 bits until nothing of their classes is left;
        # how well int8 does is tested on a trained one, in test_tflite.py.
        for quantization, least, difference in (
            ("float32", 0.999, 1e-4), ("float16", 0.98, 0.1), ("dynamic", 0.8, 1.0),
            ("int8", 0.0, np.inf),
        ):  # fmt: skip
            if quantization == "int8" and size is None:
                continue  # refused, see test_tflite.py
            content = tflite.converted(folder, quantization, IMAGES)
            path = tmp_path / f"{quantization}.tflite"
            path.write_bytes(content)
            check(compare_networks(reference, TfliteNetwork(path), IMAGES), least, difference)
            assert "CUSTOM" not in tflite.operators(content)
            assert ("QUANTIZE" in tflite.operators(content)) == (quantization == "int8")
