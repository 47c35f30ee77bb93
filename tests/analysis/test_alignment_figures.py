import itertools
from dataclasses import replace

import numpy as np
import pytest
from alignment_fixtures import hand_made, model_of
from conftest import random_images
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation, Text
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.analysis import alignment_figures
from alignseg_tf.analysis.alignment import OUTSIDE, trace_alignment
from alignseg_tf.analysis.alignment_figures import (
    draw_context,
    draw_features,
    draw_offsets,
    write_alignment_figures,
)


def text_artists(figure) -> list[Text]:
    """All text: the figure's title, and what stands in and around its axes."""
    around = [
        text
        for axes in figure.axes
        for text in (*axes.texts, axes.xaxis.label, axes._left_title)
        if text.get_text()
    ]
    return [figure._suptitle, *around]


def texts(figure) -> list[str]:
    return [text.get_text() for text in text_artists(figure)]


def images(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def arrows(figure) -> list[Quiver]:
    return [x for axes in figure.axes for x in axes.collections if isinstance(x, Quiver)]


@pytest.mark.parametrize(
    ("size", "moved"),
    [((360, 480), ("coarse", "fine")), ((480, 360), ("fine",)), ((32, 320), ("coarse", "fine"))],
)
def test_nothing_overlaps_and_nothing_is_cut_off(size, moved):
    trace = hand_made(size, moved=moved)
    for draw in (draw_offsets, draw_context, draw_features):
        figure = draw(trace)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        inside = {text for axes in figure.axes if axes.axison for text in axes.texts}
        inside -= {text for text in inside if isinstance(text, Annotation)}  # headings
        written = [text for text in text_artists(figure) if text not in inside]
        boxes = [text.get_window_extent(renderer) for text in written]
        panels = [axes.get_window_extent(renderer) for axes in figure.axes if axes.axison]
        for box in boxes:
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, draw
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, draw
        pairs = [*itertools.combinations(boxes, 2), *itertools.combinations(panels, 2)]
        for one, other in [*pairs, *itertools.product(boxes, panels)]:
            width = min(one.x1, other.x1) - max(one.x0, other.x0)
            height = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert width < 1 or height < 1, draw


def test_offsets_are_painted_with_one_scale_a_map_and_pointed_at():
    trace = hand_made()
    figure = draw_offsets(trace)
    shown, said = images(figure), " ".join(texts(figure))
    assert "AlignFA 1: P3 (stride 8) into P2 (stride 4)" in texts(figure)
    assert "AlignFA 4: context (stride 32) into P2..P5 (stride 4)" in texts(figure)
    for number, step in enumerate(trace.steps, 1):
        assert f"mean {number} px, longest {number} px" in said
        painted = visualization.offset_field(step.offsets["fine"], 4.0)
        assert sum(np.array_equal(x, painted) for x in shown) == 2, "coarse and fine"
    wheel = visualization.offset_legend(1.0, 401)[:401]
    assert sum(np.array_equal(x, wheel) for x in shown) == 1
    assert "rim: 4 px (coarse)\nrim: 4 px (fine)" in texts(figure)
    assert sum(np.array_equal(x, trace.image) for x in shown) == 1

    fields = arrows(figure)
    assert len(fields) == 8
    factor = 1 / fields[0].scale
    assert f"{factor:g}x (coarse) and {factor:g}x (fine)" in said.replace("\n", " ")
    # The second step points 2 pixels down from cells that lie evenly over the image.
    second, *others = (field for field in fields if np.allclose(field.V, 2, atol=1e-6))
    assert len(others) == 1, "coarse and fine"
    np.testing.assert_allclose(second.U, 0, atol=1e-6)
    assert second.angles == second.scale_units == "xy"
    cells = np.stack([second.X / (59 / 15), second.Y / (39 / 10)])
    np.testing.assert_allclose(cells, cells.round(), atol=1e-6)
    assert cells[0].max() <= 15
    assert cells[1].max() <= 10
    bottom, top = second.axes.get_ylim()
    assert bottom > top, "y is down"


def test_scales_of_outliers_and_of_no_offsets_at_all():
    trace = hand_made(maps=(20, 30))
    trace.steps[0].offsets["coarse"][0, 0] = 500.0, 0.0
    said = texts(draw_offsets(trace))
    assert "rim: 4 px (coarse)\nrim: 4 px (fine)" in said
    assert any("longest 500 px" in text for text in said)
    trace = hand_made(moved=("coarse",))
    for step in trace.steps:
        step.offsets["coarse"][:] = 0.0
    figure = draw_offsets(trace)
    assert sum(x.shape == (11, 16, 3) and not x.any() for x in images(figure)) == 4
    assert "rim: 1 px (coarse)" in texts(figure)


def test_context_shows_the_chosen_and_the_regular_cells():
    trace = hand_made((40, 60))
    trace.context.positions[0] = -3.0, 0.0
    figure = draw_context(trace)
    _, chosen, _, regular = images(figure)
    for place, cell, own in (((3, 0), 8, 6), ((3, 4), 6, 8), ((0, 0), OUTSIDE, 0)):
        color = (0, 0, 0) if cell == OUTSIDE else alignment_figures.CELL_COLORS[cell]
        assert tuple(chosen[place]) == color
        assert tuple(regular[place]) == alignment_figures.CELL_COLORS[own]
    said = " ".join(texts(figure)).replace("\n", " ")
    # Two of the five columns are cell 0's and 1's own; a quarter of the rows is outside.
    assert "25 % outside of the map" in said
    share = 100 * (trace.context.chosen != trace.context.regular).mean()
    assert f"{share:.0f} % read another cell than their own" in said
    cells = [f"{100 * (trace.context.chosen == cell).mean():.0f} %" for cell in range(9)]
    assert sorted(cells) == sorted(text for text in texts(figure) if text.endswith(" %"))
    (field,) = arrows(figure)
    ends = np.stack([field.X + field.U.ravel(), field.Y + field.V.ravel()], -1)
    np.testing.assert_allclose(ends, trace.context.positions.reshape(-1, 2), atol=1e-6)


def test_features_before_and_after_have_the_same_colors_where_they_are_the_same():
    trace = hand_made()
    shown = [x for x in images(draw_features(trace)) if x.shape == (11, 16, 3)]
    assert len(shown) == 24
    for row in range(4):
        maps = shown[6 * row : 6 * row + 6]
        for before, after in zip(maps[::2], maps[1::2], strict=True):
            np.testing.assert_array_equal(np.roll(before, 1, 1), after)
            assert before.std() > 20
    still = draw_features(hand_made(moved=("fine",)))
    assert sum(x.shape == (11, 16, 3) for x in images(still)) == 20
    assert "coarse map, not moved" in texts(still)
    assert "fine map, aligned" in texts(still)


def test_principal_colors_show_the_largest_components():
    """Four channels, of which one hardly varies; and a group of another scale and origin."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(20, 30, 4)) * [0.01, 1.0, 3.0, 2.0]
    second = 1000 * first[::-1] + 5000
    painted = alignment_figures._principal_colors([[first, first], [second, second]])
    np.testing.assert_array_equal(painted[0], painted[1])
    np.testing.assert_allclose(painted[2][::-1], painted[0], atol=1)
    for color, channel in enumerate((2, 3, 1)):
        correlation = np.corrcoef(painted[0][..., color].ravel(), first[..., channel].ravel())
        assert correlation[0, 1] > 0.95
    # A group has no greater say in the basis for having larger values.
    loud = 1000 * rng.normal(size=(20, 30, 4)) * [2.0, 1.0, 0.0, 0.0]
    painted = alignment_figures._principal_colors([[first * [0, 0, 1, 0]], [loud]])
    assert painted[0][..., 0].std() > 20, "red is the third channel, the only one of this group"
    assert painted[0][..., 1:].std() < 1
    constant = alignment_figures._principal_colors([[np.ones((4, 4, 8))]])
    assert (constant[0] == constant[0][0, 0]).all()


def test_what_a_model_does_not_do_has_no_figure():
    trace = replace(hand_made(moved=()), context=None)
    for draw in (draw_offsets, draw_features):
        with pytest.raises(ValueError, match=r"Expected .*aggregation.*Received: .* is bilinear"):
            draw(trace)
    with pytest.raises(ValueError, match=r"Expected .*context is align. Received: "):
        draw_context(trace)


def test_figures_of_others_are_kept(tmp_path, scene):
    arguments = model_of(aggregation="bilinear"), scene, tmp_path, "street"
    (tmp_path / "street_offsets.png").write_text("mine, and of no figure that is drawn")
    for _ in range(2):
        (path,) = write_alignment_figures(*arguments)
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"street_context\.png \(changed since\)"):
        write_alignment_figures(*arguments)
    assert path.read_text() == "mine"
    write_alignment_figures(*arguments, overwrite=True)
    assert "mine" in (tmp_path / "street_offsets.png").read_text()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["offsets", "features", "context"]),
        ({"aggregation": "align_coarse", "context": "global"}, ["offsets", "features"]),
    ],
)
def test_files(arguments, names, tmp_path, scene):
    paths = write_alignment_figures(model_of(**arguments), scene, tmp_path / "new", "street")
    assert paths == [tmp_path / "new" / f"street_{name}.png" for name in names]
    assert sorted(paths) == sorted((tmp_path / "new").glob("[!.]*")), "nothing else is left"
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300


def test_a_model_that_aligns_nothing_has_no_files(tmp_path, scene):
    model = model_of("bilinear", "global")
    with pytest.raises(ValueError, match="Received: aggregation='bilinear', context='global'"):
        write_alignment_figures(model, scene, tmp_path / "new", "street")
    assert not (tmp_path / "new").exists()


def test_the_smallest_image_is_drawn():
    trace = trace_alignment(model_of(), random_images(1, 32, 33)[0])
    assert all(draw(trace).axes for draw in (draw_offsets, draw_context, draw_features))
