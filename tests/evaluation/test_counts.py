import json

import numpy as np

from alignseg_tf.evaluation import boundaries
from alignseg_tf.evaluation.counts import ImageScores, count_confusion, score_image


def test_confusion_is_counted_without_ignored_pixels():
    truth = np.array([[0, 1, 255], [2, 2, 1]], np.uint8)
    predicted = np.array([[0, 2, 0], [2, 1, 1]], np.uint8)
    expected = [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    np.testing.assert_array_equal(count_confusion(truth, predicted, 3), expected)


def test_counts_beyond_float32_are_exact():
    truth = np.zeros((4100, 4100), np.uint8)  # more than 2**24 pixels
    assert count_confusion(truth, truth, 2)[0, 0] == 4100**2


def test_confidence_is_binned_over_labelled_pixels():
    truth = np.array([[0, 1, 255, 1]], np.uint8)
    predicted = np.array([[0, 0, 0, 1]], np.uint8)
    confidence = np.array([[1.0, 0.51, 0.9, 0.5]], np.float32)
    calibration = score_image("a", truth, predicted, 2, confidence).calibration
    assert calibration[14].tolist() == [1, 1, 1.0]
    np.testing.assert_allclose(calibration[7], [2, 1, 1.01], rtol=1e-6)
    assert calibration[:, 0].sum() == 3


def test_scores_survive_json():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (2, 20, 30)).astype(np.uint8)
    confidence = rng.random((20, 30)).astype(np.float32)
    scores = score_image("a b.png", truth, predicted, 5, confidence, in_windows=True)
    again = ImageScores.from_dict(json.loads(json.dumps(scores.to_dict())))
    assert again.name == "a b.png"
    assert again.in_windows
    np.testing.assert_array_equal(again.confusion(5), count_confusion(truth, predicted, 5))
    for name in ("boundary", "trimap", "calibration"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    without = score_image("a", truth, predicted, 5).to_dict()
    assert ImageScores.from_dict(without).calibration is None


def test_bands_of_rows_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (2, 20, 30)).astype(np.uint8)
    truth[:3] = 255
    confidence = rng.random((20, 30)).astype(np.float32)
    whole = score_image("a", truth, predicted, 5, confidence)
    monkeypatch.setattr(boundaries, "BAND_PIXELS", 70)
    parts = score_image("a", truth, predicted, 5, confidence)
    for name in ("cells", "pixels", "boundary", "trimap"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_allclose(parts.calibration, whole.calibration, rtol=1e-12)
