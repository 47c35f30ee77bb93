import numpy as np
import pytest

from alignseg_tf.evaluation import boundaries
from alignseg_tf.evaluation.boundaries import (
    boundary_classes,
    boundary_counts,
    squared_distance_to_border,
    trimap_counts,
)

IGNORE = 255


@pytest.fixture(params=[2**22, 500, 1], ids=["whole", "bands", "rows"], autouse=True)
def bands(request, monkeypatch):
    """Images are counted in bands of rows; their height changes nothing."""
    monkeypatch.setattr(boundaries, "BAND_PIXELS", request.param)


def blobs(seed: int, height: int = 40, width: int = 53, classes: int = 4) -> np.ndarray:
    """Smooth regions, with ignored ones among them."""
    rng = np.random.default_rng(seed)
    small = rng.choice([*range(classes), IGNORE], (height // 6 + 1, width // 6 + 1))
    return np.kron(small, np.ones((6, 6), int))[:height, :width].astype(np.uint8)


def pixels(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask)


def distances(of: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The distance of each point to the nearest of others, by all pairs."""
    if not len(to):
        return np.full(len(of), np.inf)
    return np.sqrt(((of[:, None] - to[None]) ** 2).sum(-1).min(1))


def test_boundary_pixels_have_a_labelled_neighbour_of_another_class():
    class_map = np.array([[0, 0, 0, 1], [0, 255, 0, 1], [2, 255, 0, 0], [2, 2, 255, 0]], np.uint8)
    expected = np.full((4, 4), 255)
    expected[0, 2], expected[0, 3] = 0, 1
    expected[1, 0], expected[1, 2], expected[1, 3] = 0, 0, 1
    expected[2, 0], expected[2, 3] = 2, 0
    np.testing.assert_array_equal(boundary_classes(class_map), expected)


@pytest.mark.parametrize("seed", range(2))
def test_counts_are_those_of_all_pairs(seed):
    truth, predicted = blobs(seed), blobs(seed + 100)
    predicted[predicted == IGNORE] = 0
    predicted[5:20] = np.where(truth == IGNORE, 1, truth)[4:19]  # shifted by a pixel
    steps = (1, 2, 3, 5)
    counts = boundary_counts(truth, predicted, 5, steps)
    seen = np.where(truth == IGNORE, IGNORE, predicted)
    edges = boundary_classes(truth), boundary_classes(seen.astype(np.uint8))
    for k in range(5):
        true, found = (pixels(edge == k) for edge in edges)
        for i, step in enumerate(steps):
            expected = [
                len(found), (distances(found, true) <= step).sum(),
                len(true), (distances(true, found) <= step).sum(),
            ]  # fmt: skip
            np.testing.assert_array_equal(counts[i, k], expected)
    assert (counts[0, :4, 1] < counts[0, :4, 0]).any()
    assert (counts[3] != counts[0]).any()


@pytest.mark.parametrize("seed", range(2))
def test_trimaps_are_those_of_all_pairs(seed):
    truth, predicted = blobs(seed), blobs(seed + 100)
    predicted[predicted == IGNORE] = 2
    edge, steps = boundary_classes(truth), (1, 2, 3, 5)
    distance = np.full(truth.shape, np.inf)
    for k in range(4):
        mask = truth == k
        distance[mask] = distances(pixels(mask), pixels((edge != k) & (edge != IGNORE)))
    squared = squared_distance_to_border(truth, 5)
    near = distance <= 5
    np.testing.assert_array_equal(squared <= 25, near)
    np.testing.assert_array_equal(squared[near], np.rint(distance[near] ** 2))
    counts = trimap_counts(truth, predicted, 4, steps)
    for i, step in enumerate(steps):
        inside = distance <= step
        for k in range(4):
            true, found = (truth == k) & inside, (predicted == k) & inside
            expected = [(true & found).sum(), true.sum(), found.sum()]
            np.testing.assert_array_equal(counts[i, k], expected)
    assert 0 < counts[0, :, 1].sum() < counts[3, :, 1].sum()


def test_what_is_ignored_has_no_border_and_hides_predictions():
    truth = np.zeros((9, 12), np.uint8)
    truth[:, 6:] = IGNORE
    predicted = np.zeros((9, 12), np.uint8)
    predicted[:, 7:] = 1
    assert boundary_counts(truth, predicted, 2, (1, 5)).sum() == 0
    assert trimap_counts(truth, predicted, 2, (1, 5)).sum() == 0


def test_a_border_that_is_off_by_two_is_found_within_two():
    truth, predicted = np.zeros((2, 8, 20), np.uint8)
    truth[:, 10:], predicted[:, 12:] = 1, 1
    counts = boundary_counts(truth, predicted, 2, (1, 2))
    assert counts[0, :, [1, 3]].sum() == 0
    np.testing.assert_array_equal(counts[1, :, 1], [8, 8])
    np.testing.assert_array_equal(counts[1, :, 3], [8, 8])


def test_the_edge_of_the_image_is_no_border():
    assert boundary_counts(*np.zeros((2, 5, 5), np.uint8), 1, (3,)).sum() == 0
