import colorsys

import keras
import numpy as np
import pytest
from conftest import tiny_model

from alignseg_tf import visualization
from alignseg_tf.data.catalog import CAMVID, IGNORE
from alignseg_tf.layers import (
    SAMPLING_CONVENTIONS,
    AlignedContextModeling,
    AlignedFeatureAggregation,
    bilinear_sample,
)

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


def test_titled():
    image = np.full((5, 60, 3), 9, np.uint8)
    picture = visualization.titled(image, "a name", height=20)
    assert picture.shape == (25, 60, 3)
    np.testing.assert_array_equal(picture[20:], image)
    assert (picture[:20] < 128).any()
    assert (picture[:20, 59] == 255).all()


def test_offset_field_is_hue_and_saturation():
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 2, (6, 7, 2))
    offsets[0, 0] = 0
    limit = 1.5
    painted = visualization.offset_field(offsets, limit)
    for place in np.ndindex(6, 7):
        x, y = offsets[place]
        hue = np.arctan2(y, x) / (2 * np.pi) % 1.0
        expected = colorsys.hsv_to_rgb(hue, min(np.hypot(x, y) / limit, 1.0), 1.0)
        np.testing.assert_allclose(painted[place], np.multiply(expected, 255), atol=0.51)
    assert painted.dtype == np.uint8
    longest = np.hypot(*np.moveaxis(offsets, -1, 0)).max()
    np.testing.assert_array_equal(
        visualization.offset_field(offsets), visualization.offset_field(offsets, longest)
    )


def test_offset_field_of_no_offsets_is_white_and_of_nan_black():
    offsets = np.zeros((1, 2, 2))
    assert (visualization.offset_field(offsets) == 255).all()
    offsets[0, 1] = np.nan, 1.0
    painted = visualization.offset_field(offsets)
    assert painted[0].tolist() == [[255] * 3, [0] * 3]
    with pytest.raises(ValueError, match=r"\[H, W, 2\]. Received: shape \(3, 2\)"):
        visualization.offset_field(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="`limit` must be positive. Received: limit=0"):
        visualization.offset_field(offsets, 0)


def test_offset_legend_is_a_wheel_of_the_same_colors():
    size = 101
    picture = visualization.offset_legend(3.0, size)
    assert picture.shape[1] == size
    for x, y in ((0, 50), (100, 50), (50, 0), (50, 100), (50, 50), (75, 40)):
        vector = np.array([[[x - 50, y - 50]]]) * 3.0 / 50
        np.testing.assert_array_equal(
            picture[y, x], visualization.offset_field(vector, 3.0)[0, 0], err_msg=f"{x}, {y}"
        )
    assert (picture[0, 0] == 255).all(), "outside of the wheel"
    assert (picture[size:] < 128).any(), "the length is written below"


@pytest.mark.parametrize("sampling", SAMPLING_CONVENTIONS)
@pytest.mark.parametrize("read_size", [(12, 10), (3, 3)])
def test_offsets_are_given_in_pixels(sampling, read_size):
    """A map that holds where each of its cells is in the picture tells how far a sample moved."""
    image_size, out_size = (96, 80), (12, 10)
    align_corners = sampling in ("standard", "released_align_corners")
    places = []
    for pixels, cells in zip(image_size, read_size, strict=True):
        index = np.arange(cells)
        places.append(
            index * (pixels - 1) / (cells - 1)
            if align_corners
            else (index + 0.5) * pixels / cells - 0.5
        )
    y, x = np.meshgrid(*places, indexing="ij")
    where = np.stack([x, y], -1)[None].astype("float32")
    offset = np.array([0.2, -0.1], "float32")
    field = np.broadcast_to(offset, (1, *out_size, 2)).copy()
    sampled, still = (
        keras.ops.convert_to_numpy(bilinear_sample(where, keras.ops.convert_to_tensor(f), sampling))
        for f in (field, 0 * field)
    )
    middle = (0, 6, 5)  # far from the border, beyond which is zero
    expected = sampled[middle] - still[middle]
    scale = visualization._pixels_per_offset(sampling, read_size, out_size, image_size)
    assert np.abs(expected).min() > 0.05
    np.testing.assert_allclose(scale * offset, expected, rtol=2e-4)


def test_offset_fields_are_those_that_the_model_samples_with(monkeypatch, scene):
    model = tiny_model()
    image, shapes = scene, {}
    weights = model.get_weights()
    fields = visualization.offset_fields(model, image)

    seen = {}

    def record(cls, name_of):
        original = cls.offsets

        def offsets(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            for name, field in name_of(self, result).items():
                seen[name] = keras.ops.convert_to_numpy(field)[0]
            return result

        monkeypatch.setattr(cls, "offsets", offsets)

    record(AlignedFeatureAggregation, lambda x, r: {f"{x.name}/{k}": v for k, v in r.items()})
    record(AlignedContextModeling, lambda x, r: {x.name: r})
    model(image[None].astype("float32"), training=False)
    assert fields.keys() == seen.keys()
    assert len(fields) == 9
    for name, field in fields.items():
        shapes[name] = field.shape
        # In the standard convention an offset of 1 is the distance of two cells of the result.
        pitch = [(n - 1) / (m - 1) for n, m in zip(image.shape[:2], field.shape[:2], strict=True)]
        np.testing.assert_allclose(field, seen[name] * pitch[::-1], rtol=1e-4, atol=1e-5)
        assert field.dtype == np.float32
    assert shapes["aggregation_p3/fine"] == (25, 33, 2)
    assert shapes["context_modeling"] == (4, 5, 2)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_offset_fields_of_other_modes():
    image = np.zeros((64, 64, 3), np.uint8)
    names = visualization.offset_fields(tiny_model(aggregation="align_fine", context=None), image)
    assert set(names) == {
        f"aggregation_{place}/fine" for place in ("p3", "p4", "p5", "context")
    }  # fmt: skip
    plain = tiny_model(aggregation="bilinear", context="global")
    assert visualization.offset_fields(plain, image) == {}
