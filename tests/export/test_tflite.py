"""TFLite files: what they hold, and that LiteRT computes with them what the model does."""

import json
import zipfile

import flatbuffers.table
import keras
import numpy as np
import pytest
from conftest import CLASSES, random_images, shared_tiny_model

from alignseg_tf import AlignSeg, Predictor, backbones, losses
from alignseg_tf.data.datasets.catalog import label_space_from_file
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import read_folder
from alignseg_tf.data.readers import load_sample
from alignseg_tf.export import export_tflite, tflite
from alignseg_tf.export.tflite import operators
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import load_network

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install ai-edge-litert")

SIZE = (64, 96)
IMAGES = list(random_images(3, *SIZE, seed=3))


@pytest.fixture(scope="module")
def model():
    return shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict())


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A file of each quantization, with its agreement."""
    folder = tmp_path_factory.mktemp("tflite")
    written = {}
    for quantization, output in (
        ("float32", "class_map"), ("float16", "class_map"), ("dynamic", "logits"),
        ("int8", "logits"),
    ):  # fmt: skip
        path = folder / f"{quantization}.tflite"
        written[path] = export_tflite(
            model, path, SIZE, quantization, output,
            calibration_images=IMAGES, check_images=IMAGES,
        )  # fmt: skip
    return written


def path_of(files, quantization):
    return next(path for path in files if path.stem == quantization)


@pytest.mark.parametrize(
    ("quantization", "least"), [("float32", 0.999), ("float16", 0.9), ("dynamic", 0.8),
                                ("int8", 0.7)]
)  # fmt: skip
def test_litert_gives_the_classes_of_the_model(files, model, quantization, least):
    path = path_of(files, quantization)
    assert files[path].same_class > least
    assert (files[path].difference is None) == (quantization in ("float32", "float16"))
    network = load_network(path)
    assert network.input_size == SIZE
    assert network.label_space.classes == CLASSES
    predicted = Predictor(path)
    same = [predicted.class_map(x) == Predictor(model).class_map(x) for x in IMAGES]
    assert np.mean(same) == pytest.approx(files[path].same_class)
    found = operators(path.read_bytes())
    assert {"CONV_2D", "GATHER", "RESIZE_BILINEAR"} <= found
    assert "CUSTOM" not in found
    assert ("QUANTIZE" in found) == (quantization == "int8")
    smaller = path.stat().st_size < path_of(files, "float32").stat().st_size
    assert smaller == (quantization != "float32")


@pytest.mark.slow
def test_int8_keeps_the_classes_of_a_trained_model(folder, tmp_path):
    keras.utils.set_random_seed(0)
    model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=8), len(CLASSES), channels=16)
    samples = read_folder(folder, "train")
    space = label_space_from_file(folder / "classes.json")
    images, labels = (
        np.stack(x) for x in zip(*(load_sample(s, space) for s in samples), strict=True)
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        {"segmentation": losses.CrossEntropy(), "auxiliary": losses.CrossEntropy()},
    )
    images_in_float = images.astype("float32")
    model.fit(
        images_in_float, {"segmentation": labels, "auxiliary": labels}, epochs=80, batch_size=6,
        verbose=0,
    )  # fmt: skip
    right = Predictor(model).class_map(images[0]) == labels[0]
    assert right[labels[0] != IGNORE].mean() > 0.97  # it has learned something to lose
    agreement = export_tflite(
        model, tmp_path / "model.tflite", (64, 96), "int8", calibration_images=list(images),
        check_images=list(images),
    )  # fmt: skip
    assert agreement.same_class > 0.97


def test_a_file_with_other_operators_is_refused(model, tmp_path, monkeypatch):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4, 1))])
    def cropped(x):
        return tf.image.crop_and_resize(x, [[0.0, 0.0, 1.0, 1.0]], [0], (2, 2))

    converter = tf.lite.TFLiteConverter.from_concrete_functions([cropped.get_concrete_function()])
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
    ]  # fmt: skip
    content = converter.convert()
    monkeypatch.setattr(tflite, "converted", lambda *arguments: content)
    with pytest.raises(ValueError, match="model.tflite: the model needs operators"):
        export_tflite(model, tmp_path / "model.tflite", SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.smoke
def test_any_size_and_windows(model, tmp_path):
    path = tmp_path / "any.tflite"
    agreement = export_tflite(model, path, output="logits", check_images=IMAGES[:1])
    assert agreement.same_class > 0.999
    assert load_network(path).input_size is None
    image = random_images(1, 80, 110, seed=5)[0]
    windows = Protocol(tile=(64, 64))
    same = Predictor(path, windows).class_map(image) == Predictor(model, windows).class_map(image)
    assert same.mean() > 0.999


def test_names_are_in_the_archive_and_in_the_metadata(files):
    from ai_edge_litert import schema_py_generated as schema

    path = path_of(files, "float32")
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(CLASSES)
        assert json.loads(archive.read("classes.json"))["classes"] == list(CLASSES)
    model = schema.Model.GetRootAs(path.read_bytes())
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    (entry,) = (entry for entry in entries if entry.Name() == b"TFLITE_METADATA")
    metadata = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    assert metadata[4:8] == b"M001"
    root = table(metadata, int.from_bytes(metadata[:4], "little"))
    assert text(root, 0) == "AlignSeg"
    subgraph = member(root, 3)
    assert text(member(subgraph, 2), 0) == "images"
    result = member(subgraph, 3)
    assert text(result, 0) == "class_map"
    assert text(member(result, 6), 0) == "labels.txt"


def table(buffer, position):
    return flatbuffers.table.Table(buffer, position)


def slot(parent, number):
    return parent.Offset(4 + 2 * number)


def text(parent, number):
    return parent.String(parent.Pos + slot(parent, number)).decode()


def member(parent, number):
    """The first table of a vector of tables."""
    start = parent.Vector(slot(parent, number))
    return table(parent.Bytes, parent.Indirect(start))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "int4"}, "`quantization` must be one of .*Received: quantization='int4'"),
        ({"output": "mask"}, "`output` must be one of .* Received: output='mask'"),
        ({"image_size": (31, 64)}, r"at least 32 x 32. Received: image_size=\(31, 64\)"),
        ({"quantization": "int8"}, "int8 needs a fixed `image_size`.*0 calibration images"),
        ({"quantization": "int8", "image_size": None, "calibration_images": IMAGES},
         "Received: image_size=None, 3 calibration"),
        ({"path": "model.lite"}, "must end in .tflite. Received: model.lite"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(model, tmp_path, arguments, message):
    arguments = {"path": tmp_path / "model.tflite", "image_size": SIZE, **arguments}
    with pytest.raises(ValueError, match=message):
        export_tflite(model, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_float_file_that_disagrees_is_not_kept(model, files, tmp_path, monkeypatch):
    import dataclasses

    wrong = dataclasses.replace(next(iter(files.values())), same_class=0.7)
    monkeypatch.setattr(tflite, "compare_networks", lambda *arguments: wrong)
    (tmp_path / "model.tflite").write_text("mine")
    with pytest.raises(ValueError, match=r"model.tflite: .* same class on 70\.0000 %"):
        export_tflite(model, tmp_path / "model.tflite", SIZE, overwrite=True)
    assert (tmp_path / "model.tflite").read_text() == "mine"
