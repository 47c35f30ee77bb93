import json

import numpy as np
import pytest
from conftest import CLASSES

from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.readers import load_label, read_folder
from alignseg_tf.evaluation import Report, count_confusion, evaluate

SPACE = LabelSpace(CLASSES)


def test_confusion_is_counted_without_ignored_pixels():
    truth = np.array([[0, 1, 255], [2, 2, 1]], np.uint8)
    predicted = np.array([[0, 2, 0], [2, 1, 1]], np.uint8)
    expected = [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    np.testing.assert_array_equal(count_confusion(truth, predicted, 3), expected)


def test_report():
    report = Report(np.array([[6, 2, 0, 0], [2, 0, 0, 0], [0, 0, 90, 0], [0] * 4]), "abcd", 3)
    np.testing.assert_allclose(report.iou, [0.6, 0.0, 1.0, np.nan])
    assert report.mean_iou == pytest.approx(1.6 / 3)
    assert report.pixel_accuracy == pytest.approx(0.96)
    table = report.table()
    assert "absent" in table.splitlines()[4]
    assert "60.00" in table
    assert "53.33" in table
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["iou"] == {"a": 0.6, "b": 0.0, "c": 1.0, "d": None}
    assert content["absent"] == ["d"]


def test_the_truth_scores_one(folder):
    samples = read_folder(folder, "val")
    truth = iter([np.where((x := load_label(s.label, SPACE)) > 2, 0, x) for s in samples])
    seen = []
    report = evaluate(lambda image: next(truth), samples, SPACE, lambda *a: seen.append(a))
    assert report.mean_iou == 1.0
    assert report.pictures == 2
    assert report.confusion.sum() == 2 * 63 * 96
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: np.full(x.shape[:2], 3, np.uint8), r"000\.png: The model predicts class 3"),
        (lambda x: np.zeros((2, 2), np.uint8), r"000\.png: .*label's size \(64, 96\)"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(folder, predict, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predict, read_folder(folder, "val"), SPACE)
