import csv
import json

import numpy as np
import pytest

from alignseg_tf.evaluation.bootstrap import interval, sample_weights
from alignseg_tf.evaluation.counts import ImageScores, score_image
from alignseg_tf.evaluation.report import INTERVALS, Report


def image(seed: int, right: float = 0.7, classes: int = 4) -> ImageScores:
    """Regions of the first three classes, some of whose pixels are taken for others."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 3, (4, 6)), np.ones((5, 5), int)).astype(np.uint8)
    noise = rng.integers(0, 3, truth.shape)
    predicted = np.where(rng.random(truth.shape) < right, truth, noise).astype(np.uint8)
    confidence = rng.uniform(0.4, 1, truth.shape).astype(np.float32)
    return score_image(f"{seed}.png", truth, predicted, classes, confidence)


@pytest.fixture(scope="module")
def report():
    return Report("abcd", [image(i, right=0.5 + 0.05 * i) for i in range(8)])


def test_the_numbers_of_a_confusion_matrix():
    truth = np.repeat([0, 1, 2], [8, 2, 90]).astype(np.uint8)[None]
    predicted = np.repeat([0, 1, 0, 2], [6, 2, 2, 90]).astype(np.uint8)[None]
    report = Report("abcd", [score_image("a", truth, predicted, 4)] * 3)
    np.testing.assert_allclose(report.iou, [0.6, 0.0, 1.0, np.nan])
    np.testing.assert_allclose(report.precision, [6 / 8, 0, 1, np.nan])
    np.testing.assert_allclose(report.recall, [6 / 8, 0, 1, np.nan])
    assert report.mean_iou == pytest.approx(1.6 / 3)
    assert report.pixel_accuracy == pytest.approx(0.96)
    assert report.frequency_weighted_iou == pytest.approx(0.08 * 0.6 + 0.9)
    assert report.images == 3
    np.testing.assert_allclose(report.image_iou, 1.6 / 3)


def test_boundary_f_is_the_mean_over_images_that_have_the_class():
    truth, predicted = np.zeros((2, 8, 20), np.uint8)
    truth[:, 10:], predicted[:, 12:] = 1, 1
    off_by_two = score_image("a", truth, predicted, 3)
    right = score_image("b", truth, truth, 3)
    nothing = score_image("c", np.zeros_like(truth), np.zeros_like(truth), 3)
    invented = score_image("d", np.zeros_like(truth), predicted, 3)
    report = Report("xyz", [off_by_two, right, nothing])
    np.testing.assert_allclose(report.boundary_f[:, 0], [0.5, 1, 1, 1])
    np.testing.assert_allclose(report.mean_boundary_f, [0.5, 1, 1, 1])
    assert np.isnan(report.boundary_f[:, 2]).all()
    report = Report("xyz", [off_by_two, right, nothing, invented])
    np.testing.assert_allclose(report.boundary_f[:, 1], [1 / 3, 2 / 3, 2 / 3, 2 / 3])


def test_calibration_error():
    truth = np.zeros((1, 10), np.uint8)
    predicted = np.array([[0] * 6 + [1] * 4], np.uint8)
    sure = score_image("a", truth, predicted, 2, np.full((1, 10), 0.97, np.float32))
    assert Report("ab", [sure]).expected_calibration_error == pytest.approx(0.37, abs=1e-6)
    without = score_image("b", truth, predicted, 2)
    assert Report("ab", [sure, without]).expected_calibration_error is None


def test_intervals_are_those_of_resampled_images(report):
    """The same samples, counted image by image."""
    weights = sample_weights(8)
    assert weights.shape == (1000, 8)
    assert (weights.sum(1) == 8).all()
    samples = [
        Report("abcd", [s for s, n in zip(report.scores, row, strict=True) for _ in range(n)])
        for row in weights.astype(int)
    ]
    for name in INTERVALS:
        expected = [getattr(sample, name) for sample in samples]
        np.testing.assert_allclose(getattr(report.resampled, name), expected)
        low, high = np.quantile(expected, (0.025, 0.975), axis=0)
        np.testing.assert_allclose(report.intervals()[name], (low, high))
    bounds = report.intervals()
    assert np.isnan(bounds["iou"].low[3])
    assert bounds["mean_iou"].low < report.mean_iou < bounds["mean_iou"].high


def test_neighbours_are_drawn_together():
    """In a block of three, what is drawn of an image is drawn of those around it, in a circle."""
    weights = sample_weights(9, 3)
    starts = np.random.default_rng(0).multinomial(3, np.full(9, 1 / 9), 1000)
    for image in range(9):
        expected = starts[:, image] + starts[:, image - 1] + starts[:, image - 2]
        np.testing.assert_array_equal(weights[:, image], expected)
    assert (weights.sum(1) == 9).all()
    np.testing.assert_array_equal(sample_weights(9, 1), sample_weights(9))


def test_intervals_of_blocks_are_wider_where_neighbours_are_alike(report):
    alike = [score for score in report.scores for _ in range(4)]
    alone, together = (Report("abcd", alike, block=block) for block in (1, 4))
    widths = [
        float(bounds.high - bounds.low)
        for bounds in (one.intervals()["mean_iou"] for one in (alone, together))
    ]
    assert widths[1] > 1.5 * widths[0]
    assert together.to_dict()["intervals"]["block"] == 4
    assert together.table().endswith("; intervals of blocks of 4 neighbouring images")
    assert np.isnan(Report("abcd", alike[:7], block=4).intervals()["mean_iou"].low)
    with pytest.raises(ValueError, match="must be at least 1. Received: 0"):
        Report("abcd", alike, block=0)


def test_samples_without_a_class_are_left_out_of_its_interval():
    samples = np.array([[0.1, np.nan], [0.2, 0.5], [0.3, np.nan], [0.4, 0.7], [0.5, 0.6]])
    bounds = interval(samples, 5)
    np.testing.assert_allclose(bounds.low, [np.quantile(samples[:, 0], 0.025), 0.505])
    np.testing.assert_allclose(bounds.high, [np.quantile(samples[:, 0], 0.975), 0.695])


def test_one_image_has_no_intervals():
    report = Report("abcd", [image(0)])
    assert report.to_dict()["intervals"]["mean_iou"] == {"low": None, "high": None}
    assert "-" in report.table()


def test_json_and_csv_hold_the_numbers(report):
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["iou"]["d"] is None
    assert content["absent"] == ["d"]
    assert content["mean_iou"] == report.mean_iou
    assert content["confusion"] == report.confusion.tolist()
    assert content["boundary_f"]["2"]["b"] == pytest.approx(report.boundary_f[1, 1])
    assert content["mean_trimap_iou_by_distance"]["5"] == pytest.approx(report.mean_trimap_iou[3])
    assert content["expected_calibration_error"] == report.expected_calibration_error
    rows = list(csv.DictReader(report.classes_csv().splitlines()))
    assert [row["class"] for row in rows] == list("abcd")
    assert float(rows[1]["iou"]) == pytest.approx(report.iou[1], abs=1e-6)
    assert float(rows[1]["trimap_iou_3px"]) == pytest.approx(report.trimap_iou[2, 1], abs=1e-6)
    assert rows[3]["iou"] == rows[3]["iou_low"] == ""
    rows = list(csv.DictReader(report.images_csv().splitlines()))
    assert [row["image"] for row in rows] == [f"{i}.png" for i in range(8)]
    assert float(rows[2]["mean_iou"]) == pytest.approx(report.image_iou[2], abs=1e-6)
    assert rows[0]["labelled_pixels"] == "600"


def test_the_table_shows_what_was_found(report):
    table = report.table()
    assert "absent" in table.splitlines()[4]
    assert f"{100 * report.iou[0]:.2f}" in table.splitlines()[1]
    assert f"{100 * report.mean_boundary_f[3]:.2f}" in table
    assert table.splitlines()[-1] == "8 images, whole images"
    assert max(map(len, table.splitlines())) <= 100


def test_no_images_are_no_error():
    report = Report("ab", [])
    assert np.isnan(report.mean_iou)
    assert report.images == 0
    assert np.isnan(report.mean_boundary_f).all()


def test_counts_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"1\.png has the counts of 3 classes. Expected: 4"):
        Report("abcd", [image(0), image(1, classes=3)])
