"""ONNX files, run by ONNX Runtime."""

import numpy as np
import pytest
from conftest import CLASSES, random_images, shared_tiny_model

from alignseg_tf import Predictor
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.export import export_onnx
from alignseg_tf.prediction.saved_networks import load_network

pytest.importorskip("tf2onnx", reason="needs tf2onnx: pip install 'alignseg_tf[onnx]'")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict())
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, path, export_onnx(model, path, check_images=random_images(2, 64, 96))


@pytest.mark.smoke
def test_any_size_and_batch(exported):
    model, path, agreement = exported
    assert agreement.same_class > 0.999
    assert agreement.difference < 5e-3 * agreement.largest_logit
    network, predictor = load_network(path), Predictor(path)
    assert network.input_size is None
    assert predictor.label_space == LabelSpace(CLASSES)
    for size in ((64, 96), (75, 101)):
        images = random_images(2, *size)
        assert network.logits(images).shape[0] == 2
        same = predictor.class_map(images[1]) == Predictor(model).class_map(images[1])
        assert same.mean() > 0.999


def test_a_fixed_size(exported, tmp_path):
    model, _, _ = exported
    agreement = export_onnx(model, tmp_path / "fixed.onnx", image_size=(64, 96))
    assert agreement.same_class > 0.999
    assert load_network(tmp_path / "fixed.onnx").input_size == (64, 96)


def test_other_files_are_refused(exported, tmp_path):
    import onnx

    model, path, _ = exported
    with pytest.raises(ValueError, match="must end in .onnx. Received: "):
        export_onnx(model, tmp_path / "model.bin")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.onnx: not readable as an ONNX model"):
        load_network(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match="gone.onnx: no such file; expected a .onnx model"):
        load_network(tmp_path / "gone.onnx")
    nameless = onnx.load(path)
    del nameless.metadata_props[:]
    onnx.save(nameless, tmp_path / "nameless.onnx")
    with pytest.raises(ValueError, match="'classes' in the metadata. Received: .* no classes"):
        load_network(tmp_path / "nameless.onnx")
    assert np.asarray(load_network(path).logits(random_images(1, 32, 32))).shape[-1] == 3
