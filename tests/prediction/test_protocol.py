import argparse

import numpy as np
import pytest

from alignseg_tf.commands.options import add_protocol_arguments, protocol_from_arguments
from alignseg_tf.prediction.protocol import Protocol, axis_windows, scaled_sizes


def test_windows_are_placed_as_by_the_official_code():
    """Stride ceil(2/3 tile); the last one ends with the image."""
    starts = [window.start for window in axis_windows(2048, 2048, 872)]
    assert starts == [0, 582, 1164, 1176]
    assert [w.start for w in axis_windows(900, 900, 900)] == [0]
    assert [w.start for w in axis_windows(500, 500, 900)] == [0]
    assert [w.start for w in axis_windows(901, 901, 900)] == [0, 1]


@pytest.mark.parametrize("blending", ["uniform", "gaussian"])
@pytest.mark.parametrize(("size", "scaled"), [(100, 150), (101, 64), (7, 9)])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.9])
def test_weights_add_up_to_one_at_every_pixel(blending, size, scaled, overlap):
    windows = axis_windows(size, scaled, 40, overlap, blending)
    total = np.zeros(size)
    for window in windows:
        total[window.first : window.end] += window.weight
        assert window.position.min() >= 0
        assert window.position.max() <= min(40, scaled) - 1
        # The centre of a pixel lies where resizing with half-pixel centres puts it.
        place = (np.arange(window.first, window.end) + 0.5) * scaled / size - 0.5
        np.testing.assert_allclose(
            window.position + window.start, np.clip(place, 0, scaled - 1), atol=0.51
        )
        inside = (place > window.start) & (place < window.start + min(40, scaled) - 1)
        np.testing.assert_allclose((window.position + window.start)[inside], place[inside])
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_gaussian_weights_prefer_the_middle_of_a_window():
    first, second = axis_windows(60, 60, 40, 0.5, "gaussian")
    uniform, _ = axis_windows(60, 60, 40, 0.5, "uniform")
    assert uniform.weight[30] == 0.5
    assert first.weight[25] > 0.9 > 0.1 > first.weight[35]
    assert second.weight[5] == pytest.approx(1 - first.weight[25], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile": (31, 64)}, r"`tile` must be at least 32 x 32 pixels. Received: tile=\(31, 64\)"),
        ({"overlap": 1.0}, r"`overlap` must be in \[0, 1\)"),
        ({"blending": "linear"}, "`blending` must be one of"),
        ({"scales": ()}, "`scales` must be positive"),
        ({"scales": (1.0, float("nan"))}, "`scales` must be positive and finite"),
        ({"height": 31}, "`height` must be at least 32 pixels. Received: height=31"),
        ({"average": "votes"}, "`average` must be one of"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**values)


def test_large_images_go_through_in_windows():
    assert Protocol().for_image(2048, 4096) == Protocol()
    assert Protocol().for_image(2049, 4096).tile == (1024, 1024)
    assert Protocol(scales=(2.0,)).for_image(1100, 2048).tile == (1024, 1024)
    assert Protocol(largest_whole=None).for_image(8192, 8192).tile is None
    assert Protocol(height=540).for_image(8192, 8192).tile is None
    assert Protocol(height=8192).for_image(100, 200).tile == (1024, 1024)
    assert Protocol(tile=(512, 512)).for_image(8192, 8192).tile == (512, 512)


def test_sizes():
    assert scaled_sizes(100, 201, Protocol(scales=(0.5, 1.0))) == [(50, 100), (100, 201)]
    assert scaled_sizes(10, 20, Protocol(), (64, 96)) == [(64, 96)]
    assert scaled_sizes(70, 20, Protocol(tile=(64, 96)), (64, 96)) == [(70, 96)]
    with pytest.raises(ValueError, match=r"32 x 32 pixels at scale 0.3. Received: 60 x 30"):
        scaled_sizes(100, 200, Protocol(scales=(1.0, 0.3)))
    for height in (100, 1000, 3000):
        sizes = scaled_sizes(height, 2 * height, Protocol(scales=(0.5, 1.0), height=540))
        assert sizes == [(270, 540), (540, 1080)]
    with pytest.raises(ValueError, match=r"32 x 32 pixels at scale 0.32. Received: 16 x 32"):
        scaled_sizes(100, 50, Protocol(height=32))
    for protocol in (Protocol(scales=(1.5,)), Protocol(height=64), Protocol(tile=(64, 64))):
        with pytest.raises(ValueError, match="takes only images of 64 x 96"):
            scaled_sizes(100, 200, protocol, (64, 96))


def test_arguments():
    parser = argparse.ArgumentParser()
    add_protocol_arguments(parser)
    assert protocol_from_arguments(parser.parse_args([])) == Protocol()
    arguments = "--tile 512 768 --overlap 0.5 --blending gaussian --scales 0.5 1 --flip"
    arguments += " --average logits --batch-size 4 --largest-whole 100 --height 540"
    expected = Protocol((512, 768), 0.5, "gaussian", (0.5, 1.0), True, "logits", 4, 100, 540)
    assert protocol_from_arguments(parser.parse_args(arguments.split())) == expected


def test_words():
    assert str(Protocol()) == "whole images"
    assert str(Protocol(height=540)) == (
        "whole images; resized to a height of 540; probabilities averaged"
    )
    assert str(Protocol((872, 872), scales=(0.5, 1.0), flip=True, average="logits")) == (
        "windows of 872 x 872, overlap 33 %, uniform blending; scales 0.5, 1; mirrored too; "
        "logits averaged"
    )
