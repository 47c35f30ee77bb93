import dataclasses
import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, ROOT, random_images, shared_tiny_model, tiny_model
from PIL import Image

from alignseg_tf import AlignSeg, Predictor, backbones
from alignseg_tf import official_weights as checkpoints
from alignseg_tf.analysis.alignment import offset_fields
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.export import compare_networks, export_saved_model, saved_model
from alignseg_tf.layers import resize_align_corners
from alignseg_tf.prediction.saved_networks import KerasNetwork, SavedModelNetwork, load_network

# Written before folders had a record.
RELEASED = ROOT / "savedmodels" / "camvid_lite0"

# What a server does: nothing is imported but TensorFlow and NumPy.
SERVER = """
import sys
import numpy as np
import tensorflow as tf
folder = sys.argv[1]
model = tf.saved_model.load(folder + "/model/1")
images = np.load(folder + "/images.npy")
np.save(folder + "/served.npy", model.signatures["serving_default"](images=images)["class_map"])
files = [open(folder + f"/{name}", "rb").read() for name in ("a.png", "b.jpg")]
masks = model.signatures["serve_bytes"](image_bytes=tf.constant(files))["class_map_bytes"]
for number, mask in enumerate(masks.numpy()):
    open(folder + f"/mask{number}.png", "wb").write(mask)
assert not {name.split(".")[0] for name in sys.modules} & {"alignseg_tf", "keras_cv", "keras_hub"}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model = shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    agreement = export_saved_model(model, folder / "model" / "1")
    return folder, model, agreement


@pytest.mark.smoke
def test_a_process_with_tensorflow_alone_serves_it(exported):
    folder, model, agreement = exported
    assert agreement.same_class > 0.999
    images = random_images(2, 50, 70)
    np.save(folder / "images.npy", images)
    inputs = random_images(1, 64, 96)[0], random_images(1, 41, 80, seed=1)[0]
    Image.fromarray(inputs[0]).save(folder / "a.png")
    Image.fromarray(inputs[1]).save(folder / "b.jpg", quality=95)
    result = subprocess.run([sys.executable, "-c", SERVER, folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    predictor = Predictor(model)
    served = np.load(folder / "served.npy")
    assert served.dtype == np.uint8
    for class_map, image in zip(served, images, strict=True):
        assert (class_map == predictor.class_map(image)).mean() > 0.999
    # Decoders of JPEG differ by a grey level here and there, so TensorFlow's is the reference.
    decoded = inputs[0], tf.io.decode_jpeg((folder / "b.jpg").read_bytes()).numpy()
    assert decoded[1].shape == inputs[1].shape
    for number, image in enumerate(decoded):
        with Image.open(folder / f"mask{number}.png") as mask:
            assert mask.mode == "L"
            same = np.asarray(mask) == predictor.class_map(image)
        assert same.mean() > 0.999


def test_stride_4_logits_are_resized_before_the_classes_are_chosen(tmp_path, scene):
    model = shared_tiny_model(upsample_logits=False)
    full = tiny_model()
    full.set_weights(model.get_weights())
    export_saved_model(model, tmp_path / "1")
    served = Predictor(tmp_path / "1").class_map(scene)
    assert (served == Predictor(full).class_map(scene)).mean() > 0.999


def test_halves_take_half_the_space_and_give_the_same_classes(tmp_path, scene):
    # Random offsets move far for a small change of the weights, so this one does not align.
    model = shared_tiny_model(aggregation="bilinear", context="global")
    counts = {}
    for quantization in ("float32", "float16"):
        path = tmp_path / quantization
        agreement = export_saved_model(model, path, [scene], quantization=quantization)
        assert agreement.same_class > 0.998
        counts[quantization] = large_constants(path)
    assert 1e-5 < agreement.difference / agreement.largest_logit < 1e-2
    full, half = counts["float32"], counts["float16"]
    assert full["float32"] > 10_000
    assert full["float16"] == half["float32"] == 0
    assert half["float16"] == full["float32"]
    assert "offsets" not in tf.saved_model.load(str(path)).signatures
    with pytest.raises(ValueError, match="must be one of .*Received: quantization='int8'"):
        export_saved_model(model, tmp_path / "2", quantization="int8")
    assert not (tmp_path / "2").exists()


def test_bfloat16_is_computed_with(tmp_path, scene):
    model = shared_tiny_model(aggregation="bilinear", context="global")
    agreement = export_saved_model(model, tmp_path / "1", [scene], quantization="bfloat16")
    assert agreement.same_class > 0.97
    assert 1e-3 < agreement.difference / agreement.largest_logit < 0.3
    counts = large_constants(tmp_path / "1")
    assert counts["bfloat16"] > 10_000
    assert counts["float32"] == 0
    convolutions = [node for node in nodes(tmp_path / "1") if node.op == "Conv2D"]
    kinds = [tf.as_dtype(node.attr["T"].type).name for node in convolutions]
    assert kinds.count("float32") == 1  # the first, which normalises pixels
    assert set(kinds) == {"float32", "bfloat16"}
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}


def nodes(path):
    """The nodes of all functions behind the signature `logits`."""
    loaded = tf.saved_model.load(str(path))  # signatures do not keep it alive
    graph = loaded.signatures["logits"].graph.as_graph_def()
    return [node for function in graph.library.function for node in function.node_def]


def large_constants(path):
    """Count the values in the constants of 1024 or more, by type."""
    counts = dict.fromkeys(("float32", "float16", "bfloat16"), 0)
    for node in nodes(path):
        if node.op == "Const":
            values = tf.make_ndarray(node.attr["value"].tensor)
            if values.size >= 1024:
                counts[values.dtype.name] += values.size
    return counts


def test_the_comparison_sees_another_model(exported, scene):
    folder, model, _ = exported
    other = tiny_model()
    rng = np.random.default_rng(7)
    for weight in other.trainable_weights:
        weight.assign(weight.numpy() + rng.normal(0, 0.2, weight.shape))
    network = SavedModelNetwork(folder / "model" / "1")
    agreement = compare_networks(KerasNetwork(other), network, [scene])
    assert agreement.same_class < 0.95
    assert agreement.difference > 0.1
    assert Predictor(network).label_space == LabelSpace(CLASSES)
    same = compare_networks(KerasNetwork(model), network, [scene, scene])
    assert same.same_class > 0.999
    assert same.difference < 5e-3 * same.largest_logit
    assert same.latency > 0
    assert (same.images, same.size) == (2, (96, 128))


def test_an_export_that_disagrees_is_not_written(exported, tmp_path, monkeypatch):
    _, model, agreement = exported
    wrong = dataclasses.replace(agreement, same_class=0.5)
    monkeypatch.setattr(saved_model, "compare_networks", lambda *arguments: wrong)
    (tmp_path / "1").mkdir()
    with pytest.raises(ValueError, match=r"same class on 50\.0000 % .* at least 99 % expected"):
        export_saved_model(model, tmp_path / "1")
    assert list(tmp_path.rglob("*")) == [tmp_path / "1"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="expected a folder to write. Received: a file"):
        export_saved_model(model, tmp_path / "file")


def test_probabilities_and_offsets_are_those_of_the_model(exported, scene):
    folder, model, _ = exported
    loaded = tf.saved_model.load(str(folder / "model" / "1"))
    signatures = loaded.signatures
    images = scene[None]
    probabilities = signatures["probabilities"](images=images)["probabilities"].numpy()[0]
    np.testing.assert_allclose(probabilities, Predictor(model).probabilities(scene), atol=5e-3)
    offsets = signatures["offsets"](images=images)
    expected = offset_fields(model, scene)
    assert {name.replace("/", "_") for name in expected} == set(offsets)
    for name, field in expected.items():
        difference = np.abs(offsets[name.replace("/", "_")].numpy()[0] - field).max()
        assert difference < 1e-3 * np.abs(field).max()


def test_a_fixed_size_is_in_every_signature(exported, tmp_path, scene):
    _, model, _ = exported
    agreement = export_saved_model(
        model, tmp_path / "fixed", image_size=(64, 96), operations="keras"
    )
    assert agreement.same_class > 0.999
    assert agreement.size == (64, 96)
    network = load_network(tmp_path / "fixed")
    assert network.input_size == (64, 96)
    same = Predictor(network).class_map(scene) == Predictor(model).class_map(scene)
    assert same.shape == scene.shape[:2]
    loaded = tf.saved_model.load(str(tmp_path / "fixed"))
    signatures = loaded.signatures
    shapes = {name: s.structured_outputs for name, s in signatures.items()}
    assert shapes["logits"]["logits"].shape.as_list() == [None, 17, 25, 3]
    # XLA needs that, and operations that it can compile.
    compiled = tf.function(lambda x: signatures["serving_default"](images=x), jit_compile=True)
    images = random_images(1, 64, 96)
    class_map = signatures["serving_default"](images=images)["class_map"].numpy()
    assert (compiled(tf.constant(images))["class_map"].numpy() == class_map).mean() > 0.999


def test_fused_parts_are_compiled(exported, tmp_path, scene):
    _, model, _ = exported
    path = tmp_path / "fused"
    agreement = export_saved_model(
        model, path, [scene[:64, :96]], image_size=(64, 96), operations="fused"
    )
    assert agreement.same_class > 0.999
    loaded = tf.saved_model.load(str(path))  # signatures do not keep it alive
    graph = loaded.signatures["serving_default"].graph.as_graph_def()
    compiled = [f for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    # What leads to four pairs of offset fields and to that of the context, and four moved sums;
    # those of one shape share one.
    assert 5 <= len(compiled) <= 9
    # Nothing is left of the operations that they replace.
    assert "CropAndResize" not in {node.op for node in nodes(path)}
    assert "CropAndResize" in {node.op for node in nodes(exported[0] / "model" / "1")}
    with pytest.raises(ValueError, match="operations='fused'` wants an `image_size`"):
        export_saved_model(model, tmp_path / "2", operations="fused")
    assert not (tmp_path / "2").exists()


def test_the_official_outputs_come_through_the_signature_logits(golden, tmp_path):
    model = AlignSeg(backbones.resnet((1, 1, 1, 1)), 7, sampling="released", normalization=None)
    checkpoints.load_official_state_dict(model, golden.state_dict("net_1111_7"))
    export_saved_model(model, tmp_path / "1")
    logits = tf.saved_model.load(str(tmp_path / "1")).signatures["logits"]
    for name, shape in (("net_even", (1, 3, 96, 160)), ("net_odd", (1, 3, 97, 129))):
        images = tf.constant(golden.images(shape, 5), tf.float32)
        difference = np.abs(logits(images=images)["logits"] - golden[f"{name}.released.head"])
        assert difference.max() < 2e-4


def test_the_card_lies_beside_the_model_and_inside_of_it(exported):
    folder, _, _ = exported
    card = (folder / "model" / "MODEL_CARD.md").read_text()
    assert card == (folder / "model" / "1" / "assets.extra" / "MODEL_CARD.md").read_text()
    assert card.startswith("# model\n")
    assert "Weights and computation in float32.\n" in card
    assert "XLA" not in card
    form = saved_model._form((360, 480), "fused", "bfloat16")
    for words in ("activations of 16 bits", "480 x 360 pixels only", "XLA"):
        assert words in form


def test_an_export_replaces_an_older_one_as_a_whole(exported, tmp_path):
    _, model, _ = exported
    target = tmp_path / "model" / "1"
    shutil.copytree(RELEASED / "1", target)
    shutil.copy(RELEASED / "MODEL_CARD.md", target.parent)
    export_saved_model(model, target)  # that was before there was a record
    assert load_network(target).label_space == LabelSpace(CLASSES)
    assert sorted(p.name for p in target.parent.iterdir()) == ["1", "MODEL_CARD.md"]
    cards = [path.read_text() for path in target.parent.rglob("MODEL_CARD.md")]
    assert cards[0] == cards[1]
    assert "| 1 | box |" in cards[0]


def test_an_export_removes_nothing_of_others(exported, tmp_path, capsys):
    """Neither the other versions, where a version's number was forgotten, nor a user's card."""
    folder, model, _ = exported
    target = tmp_path / "model"
    shutil.copytree(folder / "model" / "1", target / "1")
    (target / "MODEL_CARD.md").write_text("# Mine")
    with pytest.raises(
        ValueError, match=r"model: expected .*that export wrote.*MODEL_CARD\.md, 1/"
    ):
        export_saved_model(model, target)
    assert (target / "1" / "saved_model.pb").is_file()
    (target / "1" / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"Received: notes\.txt; give another name, or --overwrite"
    ):
        export_saved_model(model, target / "1")
    export_saved_model(model, target / "1", overwrite=True)
    assert not (target / "1" / "notes.txt").exists()
    assert (target / "MODEL_CARD.md").read_text().startswith("# model\n")
    (target / "MODEL_CARD.md").write_text("# Mine")
    export_saved_model(model, target / "2")
    assert (target / "MODEL_CARD.md").read_text() == "# Mine"
    assert "MODEL_CARD.md is not a version's card" in capsys.readouterr().err


def test_bytes_that_are_no_fit_image_fail(exported):
    folder, _, _ = exported
    serve = tf.saved_model.load(str(folder / "model" / "1")).signatures["serve_bytes"]
    with pytest.raises(tf.errors.InvalidArgumentError):
        serve(image_bytes=tf.constant([b"nothing"]))
    small = tf.io.encode_png(np.zeros((31, 40, 3), np.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least 32 x 32 pixels"):
        serve(image_bytes=tf.stack([small]))
    image = io.BytesIO()
    Image.fromarray(random_images(1, 32, 32)[0]).save(image, "PNG")
    assert serve(image_bytes=tf.constant([image.getvalue()]))["class_map_bytes"].shape == (1,)


OLDER_TENSORFLOW = "2.20"
OLDER = """
import sys
import numpy as np
import tensorflow as tf
assert tf.__version__.startswith(sys.argv[2]), tf.__version__
signatures = tf.saved_model.load(sys.argv[1] + "/model/1").signatures
images = np.load(sys.argv[1] + "/images.npy")
np.save(sys.argv[1] + "/older.npy", signatures["serving_default"](images=tf.constant(images))["class_map"])
logits = signatures["logits"](images=tf.constant(images, tf.float32))["logits"]
np.save(sys.argv[1] + "/older_logits.npy", logits)
"""  # noqa: E501


@pytest.mark.slow
def test_an_older_tensorflow_serves_it(exported, tmp_path):
    folder, model, _ = exported
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, f"tensorflow=={OLDER_TENSORFLOW}.*"], check=True)
    images = random_images(2, 64, 96)
    np.save(folder / "images.npy", images)
    result = subprocess.run(
        [python, "-c", OLDER, folder, OLDER_TENSORFLOW], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    predictor = Predictor(model)
    for class_map, image in zip(np.load(folder / "older.npy"), images, strict=True):
        assert (class_map == predictor.class_map(image)).mean() > 0.999
    network = SavedModelNetwork(folder / "model" / "1")
    difference = np.abs(np.load(folder / "older_logits.npy") - network.logits(images))
    assert difference.max() < 5e-3 * np.abs(network.logits(images)).max()


@pytest.mark.parametrize("at_a_time", [2**24, 400])
def test_classes_are_decided_in_bands(monkeypatch, at_a_time):
    """In one piece, in bands that do not divide the height, and row by row."""
    monkeypatch.setattr(saved_model, "LOGITS_AT_A_TIME", at_a_time)
    logits = np.random.default_rng(0).normal(size=(2, 6, 9, 5)).astype("float32")
    expected = resize_align_corners(tf.constant(logits), (23, 33)).numpy().argmax(-1)
    size = (tf.constant(23), tf.constant(33))
    ids = tf.function(saved_model.class_ids)(tf.constant(logits), size).numpy()
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, expected)
