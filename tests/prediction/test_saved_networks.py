import io
import json
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, random_images, shared_tiny_model
from prediction_fixtures import SPACE, ColorNetwork

from alignseg_tf import AlignSeg, Predictor
from alignseg_tf.layers import resize_align_corners
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import (
    LABEL_SPACE_FILE,
    TfliteNetwork,
    load_model,
    load_network,
    logits_model,
)

SIZE = (64, 96)
COLORS = ColorNetwork()


@pytest.fixture(scope="module")
def model():
    return shared_tiny_model(label_space=SPACE.to_dict())


def convert(function, shape, dtype=tf.uint8, quantize=None):
    """A TFLite file of a function of images, built-in operations only."""
    graph = tf.function(function)
    concrete = graph.get_concrete_function(tf.TensorSpec(shape, dtype))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], graph)
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image] for image in quantize)
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    return converter.convert()


def with_archive(content, **files):
    """Append the archive that holds a TFLite file's associated files."""
    archive = io.BytesIO(content)
    with zipfile.ZipFile(archive, "a") as opened:
        for name, text in files.items():
            opened.writestr(name.replace("__", "."), text)
    return archive.getvalue()


@pytest.fixture(scope="module")
def tflite(tmp_path_factory):
    """Files of `COLORS` for one size: logits, and class maps."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("tflite")
    logits = COLORS._compute_logits

    def classes(images):
        scores = resize_align_corners(logits(images), SIZE)
        return tf.cast(tf.argmax(scores, -1, output_type=tf.int32), tf.uint8)

    fixed = convert(logits, (1, *SIZE, 3))
    names = json.dumps(SPACE.to_dict())
    (folder / "logits.tflite").write_bytes(with_archive(fixed, classes__json=names))
    (folder / "numbered.tflite").write_bytes(fixed)
    (folder / "labels.tflite").write_bytes(with_archive(fixed, labels__txt="a\nb\nc\n"))
    maps = convert(classes, (1, *SIZE, 3))
    (folder / "nameless_maps.tflite").write_bytes(maps)
    (folder / "maps.tflite").write_bytes(with_archive(maps, classes__json=names))
    (folder / "float.tflite").write_bytes(convert(logits, (1, *SIZE, 3), tf.float32))
    return folder


def test_logits_have_stride_4(model):
    images = random_images(2, 50, 67)
    logits = load_network(model).logits(images).numpy()
    assert logits.dtype == np.float32
    assert logits.shape == (2, 13, 18, 3)  # the pooling's ceil mode
    expected = logits_model(model)(images.astype("float32"), training=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert logits.std() > 0.1


def test_a_file_runs_one_inference_graph_with_variables(model, keras_file):
    network, images = load_network(keras_file), random_images(2, *SIZE)
    first = network.logits(images).numpy()
    expected = load_network(model).logits(images).numpy()
    np.testing.assert_allclose(first, expected, atol=5e-3 * abs(expected).max())
    network.logits(random_images(1, 40, 50))
    np.testing.assert_array_equal(network.logits(images), first)
    assert network._run.experimental_get_tracing_count() == 1
    operations = network._run.get_concrete_function().graph.get_operations()
    kinds = [operation.type for operation in operations]
    assert not any(kind.startswith("FusedBatchNorm") for kind in kinds)  # folded
    constants = [op.outputs[0].shape.num_elements() for op in operations if op.type == "Const"]
    assert max(filter(None, constants)) < 1000


def spoilt(model):
    """The same model with NaN in its classifier."""
    copy = AlignSeg.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    copy.get_layer("segmentation_head").classifier.bias.assign([0.0, np.nan, 0.0])
    return copy


def test_logits_and_weights_that_are_not_finite_are_an_error(model, tmp_path):
    bad, image = spoilt(model), random_images(1, *SIZE)[0]
    message = "expected finite logits from the model.* NaN or infinity in 425 of 1275 values"
    for predictor in (Predictor(bad), Predictor(bad, Protocol(tile=SIZE))):
        for run in (predictor, predictor.class_map, predictor.probabilities):
            with pytest.raises(ValueError, match=message):
                run(image)
    bad.save(tmp_path / "bad.keras")
    with pytest.raises(ValueError, match=r"bad\.keras: expected finite weights.*classifier/bias"):
        Predictor(tmp_path / "bad.keras")


def test_what_is_no_model_is_named(model, keras_file, tmp_path):
    with pytest.raises(ValueError, match=r"Expected an AlignSeg, a path.*Received: a Functional"):
        Predictor(keras.Model(model.inputs, model.outputs))
    with pytest.raises(ValueError, match="Received: a NoneType"):
        Predictor(None)
    for name, content, there in (
        ("empty.keras", b"", "0 bytes"),
        ("text.keras", b"hello", "5 bytes that start with b'hello'"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not readable .*Received: {there}"):
            load_network(tmp_path / name)
    (tmp_path / "m.zip").write_bytes(keras_file.read_bytes())
    with pytest.raises(ValueError, match=r"m\.zip: .*name ends in \.keras.*start with b'PK"):
        load_network(tmp_path / "m.zip")
    with pytest.raises(ValueError, match="not readable as a Keras model.*Received: a folder"):
        load_model(tmp_path)


def test_mixed_precision_gives_float32_logits():
    network = load_network(shared_tiny_model(dtype="mixed_bfloat16"))
    assert network.logits(random_images(1, 64, 64)).dtype == tf.float32


def test_tflite_gives_the_models_logits_and_names(tflite):
    image = random_images(1, *SIZE)
    expected = COLORS.logits(image).numpy()
    numbered = ("class 0", "class 1", "class 2")
    names = {"logits": CLASSES, "float": numbered, "numbered": numbered, "labels": tuple("abc")}
    for name, classes in names.items():
        network = load_network(tflite / f"{name}.tflite")
        assert network.input_size == SIZE
        assert network.label_space.classes == classes
        twice = network.logits(np.repeat(image, 2, 0))
        np.testing.assert_allclose(twice[:1], expected, atol=2e-3)
        np.testing.assert_array_equal(twice[0], twice[1])


def test_tflite_predicts_images_of_any_size(tflite):
    image = random_images(1, *SIZE)[0]
    for name in ("logits", "maps"):
        predictor = Predictor(tflite / f"{name}.tflite")
        found = predictor(image)
        assert (found.class_map == Predictor(COLORS).class_map(image)).mean() > 0.99
        other = random_images(1, 90, 70)[0]
        found = predictor(other)
        assert found.class_map.shape == (90, 70)
        assert len(np.unique(found.class_map)) > 1
    large = Predictor(tflite / "logits.tflite", Protocol(largest_whole=1000))(other)
    assert not large.in_windows
    # One pixel is enlarged; nothing in it is smaller than the model's input.
    assert predictor.class_map(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1)
    windows = Predictor(tflite / "logits.tflite", Protocol(tile=SIZE))
    whole = Predictor(COLORS, Protocol(tile=SIZE))
    tall = random_images(1, 100, 150)[0]
    np.testing.assert_allclose(windows.probabilities(tall), whole.probabilities(tall), atol=1e-3)


def test_class_maps_alone_have_no_probabilities(tflite):
    network = load_network(tflite / "maps.tflite")
    assert not network.gives_logits
    prediction = Predictor(tflite / "maps.tflite")(random_images(1, *SIZE)[0])
    assert prediction.confidence is None
    for wrong in (
        lambda: prediction.probabilities,
        lambda: network.logits(random_images(1, *SIZE)),
        lambda: Predictor(tflite / "maps.tflite", Protocol(flip=True)),
        lambda: Predictor(tflite / "maps.tflite").probabilities(random_images(1, *SIZE)[0]),
    ):
        with pytest.raises(ValueError, match=r"only class maps|without a model"):
            wrong()


def test_quantised_tensors_are_converted(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 1, 32, 48, 3)).astype(np.float32)
    kernel = tf.constant(rng.normal(size=(4, 4, 3, 5)).astype(np.float32) / 50)
    function = lambda x: tf.nn.conv2d(x / 255 - 0.5, kernel, 4, "SAME")  # noqa: E731
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs")
        content = convert(function, (1, 32, 48, 3), tf.float32, quantize=images)
    (tmp_path / "int8.tflite").write_bytes(content)
    network = TfliteNetwork(tmp_path / "int8.tflite")
    assert network._input["dtype"] == np.uint8
    found = network.logits(images[0].astype(np.uint8)).numpy()
    expected = function(images[0]).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * abs(expected).max())


def test_what_cannot_be_read(tmp_path, tflite):
    fixed = (tflite / "numbered.tflite").read_bytes()
    vector = convert(lambda x: tf.reduce_mean(tf.cast(x, tf.float32), (1, 2)), (1, *SIZE, 3))
    for name, content, message in (
        ("bad", b"not a flatbuffer", ": not readable as a TFLite model"),
        (
            "nameless",
            (tflite / "nameless_maps.tflite").read_bytes(),
            ": the names of the classes are",
        ),
        ("vector", vector, r": expected one input .*\[1, 3\]"),
        (
            "grey",
            convert(lambda x: tf.cast(x, tf.float32), (1, *SIZE, 1)),
            ": expected one input .*64, 96, 1]",
        ),
        ("four", with_archive(fixed, labels__txt="a\nb\nc\nd"), ": 4 classes .* output has 3"),
        ("json", with_archive(fixed, classes__json="{"), r", classes\.json: not readable as JSON"),
        ("twice", with_archive(fixed, labels__txt="a\na\nb"), r", labels\.txt"),
    ):
        (tmp_path / f"{name}.tflite").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.tflite{message}"):
            load_network(tmp_path / f"{name}.tflite")
    with pytest.raises(ValueError, match=r"gone\.tflite: no such file"):
        load_network(tmp_path / "gone.tflite")
    with pytest.raises(ValueError, match=r"only \.keras models run on a chosen device"):
        load_network(tflite / "logits.tflite", "GPU:1")


def test_without_litert_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    (tmp_path / "m.tflite").write_bytes(b"x")
    with pytest.raises(ImportError, match="pip install ai-edge-litert"):
        load_network(tmp_path / "m.tflite")


def test_a_saved_model_with_class_maps_alone(tmp_path):
    """As servers have it that need nothing else."""
    module = tf.Module()
    spec = tf.TensorSpec((None, None, None, 3), tf.uint8, "images")

    @tf.function(input_signature=[spec])
    def class_map(images):
        scores = tf.cast(images, tf.float32) @ COLORS.mix
        return {"class_map": tf.cast(tf.argmax(scores, -1), tf.uint8)}

    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": class_map})
    (tmp_path / "1" / LABEL_SPACE_FILE).parent.mkdir()
    (tmp_path / "1" / LABEL_SPACE_FILE).write_text(json.dumps(SPACE.to_dict()))
    predictor, image = Predictor(tmp_path / "1"), random_images(1, *SIZE)[0]
    found = predictor(image)
    np.testing.assert_array_equal(found.class_map, (image @ COLORS.mix).argmax(-1))
    assert found.confidence is None
    with pytest.raises(ValueError, match="1, with only class maps"):
        predictor.probabilities(image)
    with pytest.raises(ValueError, match="at least 32 x 32 pixels. Received: 96 x 20"):
        predictor(np.zeros((20, 96, 3), np.uint8))
