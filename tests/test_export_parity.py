"""Every form of every kind of model computes what the model does."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import CLASSES, calibrate_batch_norms, random_images

from alignseg_tf import AlignSeg, backbones
from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.export import export_onnx, export_saved_model, export_tflite

pytestmark = pytest.mark.slow

SIZE = (64, 96)
PICTURES = list(random_images(2, *SIZE))


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
    calibrate_batch_norms(model)
    return model


@pytest.mark.parametrize("size", [SIZE, None], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("form", ["saved_model", "tflite", "onnx"])
def test_float_forms(model, form, size, tmp_path):
    common = {"image_size": size, "check_images": PICTURES}
    if form == "saved_model":
        agreement = export_saved_model(model, tmp_path / "1", **common)
    elif form == "onnx":
        pytest.importorskip("tf2onnx")
        agreement = export_onnx(model, tmp_path / "model.onnx", **common)
    else:
        agreement = export_tflite(model, tmp_path / "model.tflite", output="logits", **common)
    assert agreement.same_class > 0.999, dataclasses.asdict(agreement)
    assert agreement.difference < 1e-3 * agreement.largest_logit, dataclasses.asdict(agreement)


@pytest.mark.parametrize(
    ("quantization", "size", "least"),
    [("float16", SIZE, 0.99), ("float16", None, 0.99), ("dynamic", SIZE, 0.9),
     ("dynamic", None, 0.9), ("int8", SIZE, 0.8)],
)  # fmt: skip
def test_quantized_forms(model, quantization, size, least, tmp_path):
    agreement = export_tflite(
        model, tmp_path / "model.tflite", size, quantization, "logits", PICTURES, PICTURES
    )
    assert agreement.same_class > least, dataclasses.asdict(agreement)
