import numpy as np

from alignseg_tf import visualization
from alignseg_tf.data.catalog import CAMVID, IGNORE

PALETTE = [[255, 0, 0], [0, 0, 255]]


def test_colorize():
    painted = visualization.colorize(np.array([[0, 1, IGNORE]], np.uint8), PALETTE)
    np.testing.assert_array_equal(painted, [[[255, 0, 0], [0, 0, 255], [0, 0, 0]]])


def test_overlay_mixes_draws_edges_and_leaves_the_ignored():
    image = np.full((3, 6, 3), 100, np.uint8)
    class_map = np.zeros((3, 6), np.uint8)
    class_map[:, 3:] = 1
    class_map[0] = IGNORE
    painted = visualization.overlay(image, class_map, PALETTE)
    np.testing.assert_array_equal(painted[0], image[0])
    np.testing.assert_array_equal(painted[2, 0], [178, 50, 50])
    np.testing.assert_array_equal(painted[2, 5], [50, 50, 178])
    np.testing.assert_array_equal(painted[2, 2], [255, 191, 191])


def test_legend_has_every_color_and_fits():
    picture = visualization.legend(CAMVID, width=300)
    assert picture.shape[1] == 300
    colors = {tuple(c) for c in picture.reshape(-1, 3)}
    assert set(CAMVID.palette) <= colors


def test_side_by_side():
    row = visualization.side_by_side(*(np.full((2, 3, 3), v, np.uint8) for v in (1, 2)), gap=1)
    np.testing.assert_array_equal(row[0, :, 0], [1, 1, 1, 255, 2, 2, 2])
