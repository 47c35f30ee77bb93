"""The inference graph equals the model that it was made of."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, random_images, shared_tiny_model, tiny_model

from alignseg_tf import AlignSeg, Predictor, backbones
from alignseg_tf import official_weights as checkpoints
from alignseg_tf.analysis.alignment import offset_fields as traced_offset_fields
from alignseg_tf.export import inference_model
from alignseg_tf.inference.graph import offset_fields
from alignseg_tf.inference.layers import OPERATIONS
from alignseg_tf.layers import SAMPLING_CONVENTIONS
from alignseg_tf.layers.sampling import offsets_in_pixels

IMAGES = random_images(2, 75, 101).astype("float32")


def logits(model, images=IMAGES):
    return keras.ops.convert_to_numpy(model(images, training=False)["segmentation"])


def check_equal(model, fast):
    """Rounding is all that may differ; the tiny model's wild offsets amplify it."""
    expected, result = logits(model), logits(fast)
    assert result.shape == expected.shape
    difference = np.abs(result - expected)
    scale = np.abs(expected).max()
    assert np.median(difference) < 2e-5 * scale
    assert difference.max() < 5e-3 * scale


VARIANTS = (
    {"aggregation": "bilinear", "context": None, "auxiliary_head": False},
    {"aggregation": "align_coarse", "context": "global", "upsample_logits": False},
    {"aggregation": "align_fine", "sampling": "released"},
)


@pytest.mark.parametrize(
    ("arguments", "operations"),
    [
        *(({}, operations) for operations in OPERATIONS),
        *((variant, operations) for variant in VARIANTS for operations in ("fused", "tensorflow")),
    ],
)
def test_it_equals_the_model(arguments, operations):
    model = shared_tiny_model(**arguments)
    check_equal(model, inference_model(model, operations))


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
def test_the_official_outputs_come_through(golden, sampling):
    model = AlignSeg(
        backbones.resnet((1, 1, 1, 1)), 7, sampling=sampling, upsample_logits=False,
        normalization=None,
    )  # fmt: skip
    checkpoints.load_official_state_dict(model, golden.state_dict("net_1111_7"))
    for operations in OPERATIONS if sampling == "standard" else ("tensorflow",):
        fast = inference_model(model, operations)
        for name, shape in (("net_even", (1, 3, 96, 160)), ("net_odd", (1, 3, 97, 129))):
            expected = golden[f"{name}.{sampling}.head"]
            difference = np.abs(logits(fast, golden.images(shape, 5)) - expected).max()
            assert difference < 2e-4, (operations, name)


def test_no_norm_no_dropout_and_no_auxiliary_head_is_left():
    fast = inference_model(shared_tiny_model())
    kinds = {type(layer).__name__ for layer in fast._flatten_layers()}
    assert not kinds & {"BatchNormalization", "SpatialDropout2D", "SegmentationHead"}
    assert not any(layer.name.startswith("auxiliary") for layer in fast.layers)
    assert list(fast.output) == ["segmentation"]


def test_a_channel_that_a_norm_switches_off_stays_off():
    model = tiny_model()
    norm = model.get_layer("refinement_d5").norm
    gamma = keras.ops.convert_to_numpy(norm.gamma).copy()
    gamma[:2] = 0.0, 1e-6
    norm.gamma.assign(gamma)
    fast = inference_model(model)
    assert "refinement_d5_scale" in [layer.name for layer in fast.layers]
    assert "refinement_d4_scale" not in [layer.name for layer in fast.layers]
    check_equal(model, fast)


def test_it_is_a_keras_model_like_others(tmp_path, scene):
    model = shared_tiny_model()
    fast = inference_model(model)
    assert type(fast) is keras.Model or type(fast).__name__ == "Functional"
    fast.save(tmp_path / "fast.keras")
    loaded = keras.saving.load_model(tmp_path / "fast.keras")
    np.testing.assert_array_equal(logits(loaded), logits(fast))
    same = Predictor(fast).class_map(scene) == Predictor(model).class_map(scene)
    assert same.mean() > 0.999


@pytest.mark.parametrize("sampling", ["standard", "released"])
def test_its_offset_fields_are_those_of_the_model(sampling):
    model = shared_tiny_model(sampling=sampling)
    fast = inference_model(model)
    fields = offset_fields(model, fast)
    outputs = keras.Model(fast.inputs[0], fields)(IMAGES[:1], training=False)
    expected = traced_offset_fields(model, IMAGES[0])
    assert [name.replace("/", "_") for name in expected] == sorted(fields, key=list(fields).index)
    for name, field in expected.items():
        output = outputs[name.replace("/", "_")]
        read_size = (3, 3) if name == "context_modeling" else output.shape[1:3]
        pixels = offsets_in_pixels(output, sampling, read_size, IMAGES.shape[1:3])
        assert np.abs(pixels[0] - field).max() < 1e-3 * np.abs(field).max()
    bilinear = shared_tiny_model(aggregation="bilinear", context="global")
    assert offset_fields(bilinear, inference_model(bilinear)) == {}


@pytest.mark.parametrize("operations", ["tensorflow", "fused"])
def test_mixed_precision_stays(operations):
    """Rounding moves the samples of the tiny model; it is to be no further off than its model."""
    model = shared_tiny_model(dtype="mixed_bfloat16")
    fast = inference_model(model, operations)
    assert fast.get_layer("aggregation_p3_add").compute_dtype == "bfloat16"
    exact = logits(shared_tiny_model())
    error, fast_error = (np.median(np.abs(logits(one) - exact)) for one in (model, fast))
    assert 0 < fast_error < 1.5 * error < 0.1 * np.abs(exact).max()


def test_what_is_no_alignseg_is_refused():
    with pytest.raises(ValueError, match="Expected an AlignSeg. Received: a Functional"):
        inference_model(inference_model(shared_tiny_model()))
    with pytest.raises(ValueError, match="operations='fast'"):
        inference_model(shared_tiny_model(), "fast")


ONEDNN = """
import numpy as np
from conftest import random_images, tiny_model
from alignseg_tf.prediction.saved_networks import KerasNetwork, inference_network

model, images = tiny_model(), random_images(1, 64, 96)
expected = np.asarray(KerasNetwork(model).logits(images))
difference = np.abs(np.asarray(inference_network(model).logits(images)) - expected)
print(difference.max() / np.abs(expected).max())
"""


@pytest.mark.parametrize("switch", ["0", "1"])
def test_kernels_of_onednn_change_nothing(switch):
    """What commands run. TensorFlow fuses other operations with oneDNN than without."""
    done = subprocess.run(
        [sys.executable, "-c", ONEDNN],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": switch, "PYTHONPATH": str(ROOT)},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5e-3  # as in `check_equal`; a wrong slope is 100 times that
