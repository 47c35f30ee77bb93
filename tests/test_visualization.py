import colorsys

import numpy as np
import pytest

from alignseg_tf import visualization
from alignseg_tf.data.datasets.camvid import CAMVID
from alignseg_tf.data.label_space import IGNORE

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
    image = visualization.legend(CAMVID, width=300)
    assert image.shape[1] == 300
    colors = {tuple(c) for c in image.reshape(-1, 3)}
    assert set(CAMVID.palette) <= colors


def test_side_by_side():
    row = visualization.side_by_side(*(np.full((2, 3, 3), v, np.uint8) for v in (1, 2)), gap=1)
    np.testing.assert_array_equal(row[0, :, 0], [1, 1, 1, 255, 2, 2, 2])


def test_titled():
    image = np.full((5, 60, 3), 9, np.uint8)
    pixels = visualization.titled(image, "a name", height=20)
    assert pixels.shape == (25, 60, 3)
    np.testing.assert_array_equal(pixels[20:], image)
    assert (pixels[:20] < 128).any()
    assert (pixels[:20, 59] == 255).all()


def test_offset_field_is_hue_and_brightness():
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 2, (6, 7, 2))
    offsets[0, 0] = 0
    limit = 1.5
    painted = visualization.offset_field(offsets, limit)
    for place in np.ndindex(6, 7):
        x, y = offsets[place]
        hue = np.arctan2(y, x) / (2 * np.pi) % 1.0
        expected = colorsys.hsv_to_rgb(hue, 1.0, min(np.hypot(x, y) / limit, 1.0))
        np.testing.assert_allclose(painted[place], np.multiply(expected, 255), atol=0.51)
    assert painted.dtype == np.uint8
    longest = np.hypot(*np.moveaxis(offsets, -1, 0)).max()
    np.testing.assert_array_equal(
        visualization.offset_field(offsets), visualization.offset_field(offsets, longest)
    )


def test_offset_field_of_no_offsets_is_black_and_of_nan_white():
    offsets = np.zeros((1, 2, 2))
    assert (visualization.offset_field(offsets) == 0).all()
    offsets[0, 1] = np.nan, 1.0
    painted = visualization.offset_field(offsets)
    assert painted[0].tolist() == [[0] * 3, [255] * 3]
    with pytest.raises(ValueError, match=r"\[H, W, 2\]. Received: shape \(3, 2\)"):
        visualization.offset_field(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="`limit` must be positive. Received: limit=0"):
        visualization.offset_field(offsets, 0)


def test_offset_legend_is_a_wheel_of_the_same_colors():
    size = 101
    image = visualization.offset_legend(3.0, size)
    assert image.shape[1] == size
    for x, y in ((0, 50), (100, 50), (50, 0), (50, 100), (50, 50), (75, 40)):
        vector = np.array([[[x - 50, y - 50]]]) * 3.0 / 50
        np.testing.assert_array_equal(
            image[y, x], visualization.offset_field(vector, 3.0)[0, 0], err_msg=f"{x}, {y}"
        )
    assert (image[0, 0] == 255).all(), "outside of the wheel"
    assert (image[size:] < 128).any(), "the length is written below"
