"""What TensorBoard is given, read back with TensorBoard's own reader."""

import io

import numpy as np
import pytest
from conftest import CLASSES, tiny_model
from PIL import Image

from alignseg_tf import losses, metrics, optimizers
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import read_folder
from training.callbacks import tensorboard
from training.callbacks.logs import weight_norm
from training.callbacks.tensorboard import TensorBoard, middle, offset_panel

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
tensor_util = pytest.importorskip("tensorboard.util.tensor_util")


def compiled(context: str | None = "align", aggregation: str = "align"):
    model = tiny_model(context=context, aggregation=aggregation)
    model.compile(
        optimizers.AdamW(2e-3),
        dict.fromkeys(model.output, losses.CrossEntropy(255)),
        {"segmentation": 1.0, "auxiliary": 0.4},
        metrics={"segmentation": [metrics.MeanIoU(3, class_names=CLASSES)]},
    )
    return model


def events(folder) -> dict[str, list]:
    """The values of each tag, in order of the steps; images as arrays."""
    accumulator = reader.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    found = {}
    for tag in accumulator.Tags()["tensors"]:
        found[tag] = {}
        for event in accumulator.Tensors(tag):
            value = tensor_util.make_ndarray(event.tensor_proto)
            if value.ndim:
                value = np.asarray(Image.open(io.BytesIO(value[2])))
            found[tag][event.step] = value
    return found


@pytest.mark.slow
def test_curves_and_images_of_an_epoch(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "LONGEST_SIDE", 48)
    space = LabelSpace(CLASSES)
    board = TensorBoard(tmp_path / "board", read_folder(folder, "val"), space)
    model = compiled()
    board.set_model(model)
    images = np.stack([image for image, _ in board.images]).astype("float32")
    labels = np.stack([label for _, label in board.images]).astype("int32")
    logs = model.evaluate(images, dict.fromkeys(model.output, labels), verbose=0, return_dict=True)
    board.on_epoch_end(0, {"loss": 3.0, "segmentation_loss": 2.0, "auxiliary_loss": 2.5})
    validation = {f"val_{name}": value for name, value in logs.items()}
    board.on_epoch_end(4, {"loss": 1.5} | validation)

    train = events(tmp_path / "board" / "train")
    assert train["loss/total"] == {0: 3.0, 4: 1.5}
    assert train["loss/segmentation"] == {0: 2.0}
    assert train["learning_rate"][4] == pytest.approx(2e-3)
    assert train["weight_norm"][4] == pytest.approx(weight_norm(model))

    seen = events(tmp_path / "board" / "validation")
    assert seen["loss/total"][4] == pytest.approx(logs["loss"])
    assert seen["loss/auxiliary"][4] == pytest.approx(logs["auxiliary_loss"])
    assert seen["mean_iou"][4] == pytest.approx(logs["segmentation_mean_iou"])
    iou = [seen[f"iou/{name}"][4] for name in CLASSES]
    assert np.mean(iou) == pytest.approx(logs["segmentation_mean_iou"])
    row = seen["image, truth, prediction/1"][4]
    assert row.shape == (32, 3 * 48 + 2 * 4, 3)  # every second pixel of 64 x 96
    np.testing.assert_array_equal(row[:, :48], board.images[1][0][::2, ::2])
    assert "offset fields/0" in seen
    assert seen["mean offset in pixels/aggregation_p3/coarse"][4] > 0
    assert set(seen["iou/ground"]) == {4}, "the first epoch was not validated"


def test_the_panel_has_a_place_for_each_field():
    image = np.full((40, 50, 3), 7, np.uint8)
    rightward = np.stack([np.ones((10, 12)), np.zeros((10, 12))], -1)
    panel = offset_panel(image, {"a": rightward, "b": 0 * rightward, "c": rightward})
    assert panel.shape == (2 * (256 + 18), 3 * 320 + 2 * 4, 3)
    assert (panel[18:274, :320] == 7).all()
    assert (panel[18:274, 324:644] == [255, 0, 0]).all()  # red is to the right
    assert (panel[18:274, 648:] == 0).all()  # black is no offset
    assert (panel[:18, 324:644] < 128).any(), "the name and the longest vector"


def test_a_model_that_aligns_nothing_has_no_fields(folder, tmp_path, monkeypatch):
    space = LabelSpace(CLASSES)
    board = TensorBoard(tmp_path / "board", read_folder(folder, "val")[:1], space)
    board.set_model(compiled(context="global", aggregation="bilinear"))
    monkeypatch.setattr(tensorboard, "class_iou", lambda model: {"ground": 0.5, "disc": np.nan})
    board.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0, "val_mean_iou": 0.5})
    seen = events(tmp_path / "board" / "validation")
    assert "image, truth, prediction/0" in seen
    assert not [tag for tag in seen if "offset" in tag]
    assert "iou/disc" not in seen


def test_offsets_of_a_very_large_image_are_those_of_its_middle():
    image = np.zeros((3000, 4000, 3), np.uint8)
    image[1500, 2000] = 9
    part = middle(image)
    assert part.shape == (1024, 1024, 3)
    assert part[512, 512, 0] == 9
    assert middle(part) is part
