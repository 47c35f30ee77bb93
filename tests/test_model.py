import contextlib
import importlib.util
import io
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import random_images, shared_tiny_model, tiny_model
from keras import ops

from alignseg_tf import AlignSeg, backbones, losses
from alignseg_tf.model import freeze_batch_norm

BACKEND = keras.backend.backend()


def predict(model, images, **kwargs):
    outputs = model(ops.convert_to_tensor(images.astype("float32")), **kwargs)
    return {key: ops.convert_to_numpy(value) for key, value in outputs.items()}


@pytest.mark.smoke
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (75, 101)])
def test_logits_have_the_size_of_the_image(size):
    outputs = predict(shared_tiny_model(), random_images(2, *size))
    assert set(outputs) == {"segmentation", "auxiliary"}
    for logits in outputs.values():
        assert logits.shape == (2, *size, 3)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()


def test_stride_4_logits_and_no_auxiliary_head():
    model = shared_tiny_model(upsample_logits=False, auxiliary_head=False)
    outputs = predict(model, random_images(1, 64, 96))
    assert {key: value.shape for key, value in outputs.items()} == {
        "segmentation": (1, 17, 25, 3)  # ceil-mode pooling: one cell more than a quarter
    }


@pytest.mark.parametrize(
    ("aggregation", "context"),
    [
        ("align", "align"),
        ("align_coarse", None),
        ("align_fine", "global"),
        ("bilinear", None),
    ],
)
def test_every_variant_trains(aggregation, context):
    model = tiny_model(aggregation=aggregation, context=context, auxiliary_head=False)
    model.compile(keras.optimizers.SGD(0.01), loss="mse", run_eagerly=True)
    images = random_images(2, 64, 64).astype("float32")
    before = [ops.convert_to_numpy(w) for w in model.trainable_weights]
    model.fit(images, {"segmentation": np.zeros((2, 64, 64, 3))}, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        # Only a bias right before a batch norm has no gradient.
        changed = np.abs(ops.convert_to_numpy(weight) - old).max() > 0
        assert changed or weight.path.endswith("block/conv/bias"), weight.path


def test_parameters_of_the_baselines_differ_by_the_offsets_only():
    count = {a: shared_tiny_model(aggregation=a).count_params() for a in ("align", "bilinear")}
    # Four steps, two fields each: 1x1 from 2C, batch norm, 3x3 to 2; C = 8.
    assert count["align"] - count["bilinear"] == 4 * 2 * (16 * 8 + 4 * 8 + 9 * 8 * 2)


def test_summary_is_one_block_a_row():
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        shared_tiny_model().summary(line_length=100)
    names = [layer.name for layer in shared_tiny_model().layers]
    assert len(names) <= 22
    assert {"backbone", "aggregation_p3", "context_modeling", "segmentation_head"} <= set(names)
    assert "aggregation_p5" in text.getvalue()


@pytest.mark.smoke
def test_round_trip_in_a_new_process(tmp_path):
    """A saved model needs `import alignseg_tf` and nothing else: no custom objects, safe mode."""
    space = {"classes": ["a", "b", "c"], "palette": [[0, 0, 0], [9, 9, 9], [8, 8, 8]]}
    images = random_images(1, 64, 96)
    np.save(tmp_path / "images.npy", images.astype("float32"))
    expected = []
    for number, kwargs in enumerate(({"upsample_logits": False}, {"dtype": "mixed_bfloat16"})):
        model = tiny_model(label_space=space, **kwargs)
        model.save(tmp_path / f"{number}.keras")
        expected.append(predict(model, images)["segmentation"])
    code = (
        "import alignseg_tf, keras, numpy as np, sys\n"
        "folder = sys.argv[1]\n"
        "for name in ('SGDWithL2', 'AdamW', 'WarmUp'):  # of a saved run\n"
        "    registered = keras.saving.get_registered_object(f'alignseg_tf>{name}')\n"
        "    assert registered is getattr(alignseg_tf.optimizers, name)\n"
        "for number in '01':\n"
        "    model = keras.saving.load_model(f'{folder}/{number}.keras', safe_mode=True)\n"
        "    assert model.label_space['classes'] == ['a', 'b', 'c']\n"
        "    logits = model(np.load(folder + '/images.npy'))['segmentation']\n"
        "    np.save(f'{folder}/{number}.npy', keras.ops.convert_to_numpy(logits))\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True)
    for number, logits in enumerate(expected):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), logits, atol=1e-5)


def test_config_round_trip():
    model = tiny_model(aggregation="align_fine", context="global", sampling="released")
    config = model.get_config()
    copy = AlignSeg.from_config(config)
    assert copy.get_config() == config
    copy.set_weights(model.get_weights())
    images = random_images(1, 40, 56)
    np.testing.assert_array_equal(
        predict(copy, images)["segmentation"], predict(model, images)["segmentation"]
    )


def pooled_levels(names, rescaling=False):
    """A plain model of five convolutions of stride 2."""
    x = inputs = keras.Input((None, None, 3))
    if rescaling:
        x = keras.layers.Rescaling(1 / 255)(x)
    outputs = {}
    for level, name in enumerate(names, start=1):
        x = outputs[f"P{level}"] = keras.layers.Conv2D(4 * level, 3, 2, "same", name=name)(x)
    return keras.Model(inputs, x), outputs


NAMES = [f"down{level}" for level in range(1, 6)]
PYRAMID = {f"P{level}": f"down{level}" for level in range(2, 6)}


def plain_backbone():
    return pooled_levels(NAMES)[0], PYRAMID


def hub_backbone():
    """keras-hub's name tensors: `pyramid_outputs`."""
    model, outputs = pooled_levels(NAMES)
    model.pyramid_outputs = outputs
    return model, None


def keras_cv_backbone():
    """Found by attribute, stored by name: the reloaded graph has no such attribute."""
    if importlib.util.find_spec("keras_cv") is None or BACKEND != "tensorflow":
        pytest.skip("keras-cv needs TensorFlow")
    import keras_cv

    backbone = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[8, 8, 16, 16], stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2], include_rescaling=True,
    )  # fmt: skip
    return backbone, None


@pytest.mark.parametrize("build", [plain_backbone, hub_backbone, keras_cv_backbone])
def test_other_backbones_keep_their_levels_when_reloaded(build, tmp_path):
    backbone, pyramid = build()
    model = AlignSeg(backbone, 3, channels=8, pyramid=pyramid)
    assert model.normalization is None
    assert model.pyramid == backbones.pyramid_layers(backbone, pyramid)
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    assert reloaded.pyramid == model.pyramid
    images = random_images(1, 64, 96)
    np.testing.assert_allclose(
        predict(reloaded, images)["auxiliary"], predict(model, images)["auxiliary"], atol=1e-5
    )


def test_normalization_comes_from_the_backbone_and_is_saved(tmp_path):
    # Without sampling, which would enlarge the rounding of the pixels.
    plain = {"aggregation": "bilinear", "context": None}
    model = shared_tiny_model(**plain)
    assert model.normalization["channel_order"] == "bgr"
    assert AlignSeg.from_config(model.get_config()).normalization == model.normalization
    raw = tiny_model(normalization=None, **plain)
    raw.set_weights(model.get_weights())
    images = random_images(1, 64, 64)
    mean = np.array(model.normalization["mean"])
    np.testing.assert_allclose(
        predict(model, images)["segmentation"],
        predict(raw, images[..., ::-1] - mean)["segmentation"],
        rtol=1e-4,
        atol=1e-3,  # of logits in the hundreds
    )


def test_a_wrong_normalization_is_refused():
    backbone = pooled_levels(NAMES, rescaling=True)[0]
    with pytest.raises(ValueError, match="rescales pixels itself"):
        AlignSeg(backbone, 3, channels=8, pyramid=PYRAMID, normalization={"mean": [0, 0, 0]})
    for wrong in ({"std": [1] * 3}, {"mean": [1] * 3, "order": "rgb"}, "imagenet"):
        with pytest.raises(ValueError, match="the key 'mean' and optionally.*Received"):
            tiny_model(normalization=wrong)


def test_arrays_as_normalization_are_saved_as_numbers(tmp_path):
    mean = np.array([1.0, 2.0, 3.0], "float32")
    tiny_model(normalization={"mean": mean, "std": mean}).save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    assert reloaded.normalization == {
        "mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 3.0], "channel_order": "rgb",
    }  # fmt: skip


def test_float16_of_the_model_alone_scales_the_loss():
    if BACKEND != "tensorflow":
        pytest.skip("one backend is enough")
    model = tiny_model(dtype="mixed_float16")
    model.compile(keras.optimizers.SGD(0.01), loss="mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    outputs = predict(model, random_images(1, 64, 64))
    assert outputs["segmentation"].dtype == np.float32


@pytest.mark.parametrize("value", [0, 2.5])
def test_a_wrong_number_of_classes_is_refused(value):
    with pytest.raises(ValueError, match="`num_classes` must be a positive int. Received"):
        tiny_model(num_classes=value)
    with pytest.raises(ValueError, match="must name 3 classes. Received: 2 names"):
        tiny_model(label_space={"classes": ["a", "b"], "palette": []})


def test_a_small_image_is_refused():
    with pytest.raises(ValueError, match=r"at least 32 x 32 pixels. Received: .*31"):
        predict(shared_tiny_model(), random_images(1, 31, 64))


def test_frozen_layers_are_remembered(tmp_path):
    """Backbone and decoder; nothing in them changes, and the rest still learns."""
    model = tiny_model(auxiliary_head=False)
    freeze_batch_norm(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    norms = [x for x in loaded._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) > 20
    assert not any(norm.trainable for norm in norms)
    before = {w.path: ops.convert_to_numpy(w) for w in loaded.weights}
    loaded.compile("sgd", losses.CrossEntropy(), jit_compile=False)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    loaded.train_on_batch(images, {"segmentation": np.zeros((2, 64, 64), "int32")})
    changed = {w.path for w in loaded.weights if (ops.convert_to_numpy(w) != before[w.path]).any()}
    assert changed
    assert not {w.path for norm in norms for w in norm.weights} & changed
