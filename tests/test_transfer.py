import numpy as np
import pytest
from conftest import shared_tiny_model

from alignseg_tf import AlignSeg, backbones
from alignseg_tf.transfer import transfer_weights

IMAGES = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype("float32")


def scrambled(model: AlignSeg, seed: int) -> AlignSeg:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 0.2, weight.shape).astype("float32"))
    return model


def other(num_classes: int, **kwargs) -> AlignSeg:
    backbone = backbones.resnet((1, 1, 1, 1), width=8)
    return scrambled(AlignSeg(backbone, num_classes, channels=8, **kwargs), 1)


def test_all_is_kept_for_the_same_classes():
    source, target = shared_tiny_model(), other(3)
    transfer = transfer_weights(source, target)
    assert not transfer.new
    assert not transfer.unused
    assert {"backbone", "context_modeling", "segmentation_head"} <= set(transfer.kept)
    np.testing.assert_array_equal(source(IMAGES)["segmentation"], target(IMAGES)["segmentation"])


@pytest.mark.parametrize(
    ("classes", "space"), [(5, None), (3, {"classes": ["x", "y", "z"], "palette": []})]
)
def test_other_classes_get_a_new_classifier_and_no_more(classes, space):
    source = shared_tiny_model(label_space={"classes": ["a", "b", "c"], "palette": []})
    target = other(classes, label_space=space)
    if space is None:
        target.label_space = {"classes": list("abcde")}
    before = {w.path: w.numpy() for w in target.weights}
    transfer = transfer_weights(source, target)
    values = {w.path: w.numpy() for w in source.weights}
    for weight in target.weights:
        expected = before if "/classifier/" in weight.path else values
        np.testing.assert_array_equal(weight.numpy(), expected[weight.path], err_msg=weight.path)
    assert transfer.new == dict.fromkeys(("auxiliary_head", "segmentation_head"), classes * (8 + 1))
    assert f"segmentation_head ({classes * 9} values)" in str(transfer)


def test_what_is_missing_and_what_is_left_out_is_told():
    source = shared_tiny_model(context="global")
    transfer = transfer_weights(source, other(3, auxiliary_head=False))
    assert "context_modeling" in transfer.new
    assert transfer.unused == ("auxiliary_head",)


def test_another_backbone_or_normalization_is_refused():
    target = scrambled(AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), 3, channels=8), 1)
    before = target.get_weights()
    with pytest.raises(ValueError, match="must have the same backbone. .* have no counterpart"):
        transfer_weights(shared_tiny_model(), target)
    deeper = AlignSeg(backbones.resnet((1, 1, 2, 1), width=8), 3, channels=8)
    with pytest.raises(ValueError, match="must have the same backbone. .* 0 of the latter"):
        transfer_weights(deeper, shared_tiny_model())
    for value, old in zip(target.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    with pytest.raises(ValueError, match="must normalise pixels alike. Received: None and"):
        transfer_weights(shared_tiny_model(normalization=None), other(3))
