"""Figures of an `AlignmentTrace`: offsets, chosen context, moved feature maps.

Vectors and positions are (x, y), x to the right, y down; shapes are those of `alignment`.
"""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.analysis.alignment import OUTSIDE, AlignmentTrace, trace_alignment
from alignseg_tf.layers.aligned_context_modeling import CONTEXT_BINS
from alignseg_tf.model import AlignSeg
from alignseg_tf.system.files import Output, atomic_result, check_replaceable

# The coarse and the fine map of each step of the decoder, by the layer's name.
STEP_MAPS = {
    "aggregation_p3": "P3 (stride 8) into P2",
    "aggregation_p4": "P4 (stride 16) into P2..P3",
    "aggregation_p5": "P5 (stride 32) into P2..P4",
    "aggregation_context": "context (stride 32) into P2..P5",
}
# Sizes of panels and legends in inches, of fonts in points, and dots an inch.
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_WIDTH, LEGEND_HEIGHT = (1.9, 3.2), (0.9, 3.0), 1.9, 1.35
LINE, FONT, SMALL_FONT, DPI = 0.17, 8.0, 7.0, 200
# Inches between arrows; most arrows on a side of the context map.
ARROW_SPACING, MOST_POSITIONS = 0.13, 18
# Cells of a map that decide on its colours.
MOST_CELLS = 20_000
INK, FAINT_INK = "#222222", "#666666"
# The cells of the context in reading order: around the middle the hues of `offset_field`.
CELL_COLORS = (
    (67, 99, 216), (145, 30, 180), (240, 50, 230),
    (66, 212, 244), (235, 235, 235), (230, 25, 75),
    (60, 180, 75), (255, 225, 25), (245, 130, 49),
)  # fmt: skip


def _panel_width(image: np.ndarray, area: float) -> float:
    """Return the width of a panel in inches, for its area in square inches."""
    return float(np.clip((area * image.shape[1] / image.shape[0]) ** 0.5, *PANEL_WIDTH))


def _sheet(
    image: np.ndarray,
    title: str,
    row_titles: Sequence[str],
    headings: Sequence[str],
    legends: Sequence[str],
    area: float = 4.3,
) -> tuple[Figure, dict[str, Axes]]:
    """Lay out panels in the shape of an image, `area` square inches each, beside legends.

    Return the figure and its axes: `legends` from the top, and panels `ROW,COLUMN` from 0.
    """
    width = _panel_width(image, area)
    height = float(np.clip(width * image.shape[0] / image.shape[1], *PANEL_HEIGHT))
    rows, titled = len(row_titles), any(row_titles)
    panels = [[f"{row},{column}" for column in range(len(headings))] for row in range(rows)]
    panels_width = len(headings) * (width + LINE)
    panels_height = rows * (height + (3 if titled else 1) * LINE)
    size = (
        panels_width + LEGEND_WIDTH + LINE,
        max(panels_height, len(legends) * LEGEND_HEIGHT) + 3 * LINE,
    )
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    mosaic: Any = [[panels, [[name] for name in legends]]]
    axes = figure.subplot_mosaic(mosaic, width_ratios=(panels_width, LEGEND_WIDTH))
    figure.suptitle(title, x=0.01, ha="left", fontsize=1.25 * FONT, fontweight="bold", color=INK)
    for each in axes.values():
        each.set(xticks=[], yticks=[], anchor="NW")
        each.spines[:].set(linewidth=0.4, color=FAINT_INK)
    for row, text in enumerate(row_titles):
        first = axes[f"{row},0"]
        first.set_title(text, loc="left", fontsize=FONT, fontweight="bold", color=INK, pad=3)
    for column, text in enumerate(headings):
        above = (0, 16 if titled else 3)  # points: above the title of the first row
        axes[f"0,{column}"].annotate(
            text, (0, 1), above, "axes fraction", "offset points", fontsize=FONT, color=FAINT_INK
        )
    return figure, axes


def _step_sheet(
    trace: AlignmentTrace, title: str, headings: Sequence[str], legends: Sequence[str], area: float
) -> tuple[Figure, dict[str, Axes]]:
    """Lay out a row a step of AlignFA; refuse a trace without offsets."""
    if not trace.steps[0].offsets:
        raise ValueError(
            "Expected a model whose aggregation is align, align_coarse or align_fine. "
            f"Received: a model whose aggregation is {trace.steps[0].mode}, which has no offsets"
        )
    rows = [
        f"AlignFA {number}: {STEP_MAPS[step.name]} (stride 4)"
        for number, step in enumerate(trace.steps, start=1)
    ]
    figure, axes = _sheet(trace.image, title, rows, headings, legends, area)
    axes["image"].imshow(trace.image)
    return figure, axes


def _show(
    axes: Axes, painted: np.ndarray, size: Sequence[int], caption: str = "", **options: Any
) -> None:
    """Show a map or an image, [any, any] or uint8 [any, any, 3], in pixels of the image."""
    height, width = size
    # Pixels between cells, which stand where the model's resizing puts them.
    rise, run = ((n - 1) / max(1, m - 1) for n, m in zip(size, painted.shape, strict=False))
    extent = (-run / 2, width - 1 + run / 2, height - 1 + rise / 2, -rise / 2)
    axes.imshow(painted, extent=extent, interpolation="nearest", **options)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_xlabel(caption, loc="left", fontsize=SMALL_FONT, color=FAINT_INK, labelpad=2)


def _show_grey(axes: Axes, image: np.ndarray, darkest: float, brightest: float) -> None:
    """Show an image in grey, `darkest` to `brightest` on the scale of grey values 0..255."""
    grey = np.asarray(Image.fromarray(image).convert("L"))
    _show(axes, grey, image.shape[:2], cmap="gray", vmin=darkest, vmax=brightest)


def _write_notes(axes: Axes, *paragraphs: str) -> None:
    """Write paragraphs into axes of the column of legends."""
    axes.set_axis_off()
    characters = int(LEGEND_WIDTH * 72 / (0.6 * SMALL_FONT))
    axes.text(
        0, 1, "\n\n".join(textwrap.fill(x, characters) for x in paragraphs),
        transform=axes.transAxes, fontsize=SMALL_FONT, color=INK, va="top", linespacing=1.35,
    ).set_in_layout(False)  # fmt: skip


def _length(field: np.ndarray) -> np.ndarray:
    return np.hypot(field[..., 0], field[..., 1])


def _pixels(length: float) -> str:
    return f"{length:.0f} px" if length >= 100 else f"{length:.2g} px"


def draw_offsets(trace: AlignmentTrace) -> Figure:
    """Draw the offset fields of the AlignFA steps: painted, and as arrows over the image.

    Each step is a row, with two panels for each map that the model moves. Hue is the direction from
    a cell to where it is read, brightness the distance. The colour wheel has a scale in pixels of
    the image for the coarse maps and one for the fine maps, up to the 99th percentile of all steps.

    Raises:
        ValueError: the model's aggregation is `bilinear`.
    """
    maps, size = tuple(trace.steps[0].offsets), trace.image.shape[:2]
    headings = [
        heading for name in maps
        for heading in (f"offsets of the {name} map", f"where the {name} map is read")
    ]  # fmt: skip
    title, legends = "Offsets of aligned feature aggregation (AlignFA)", ("image", "wheel", "notes")
    figure, axes = _step_sheet(trace, title, headings, legends, 4.3)
    spacing = ARROW_SPACING * size[1] / _panel_width(trace.image, 4.3)
    rims, scales = [], []
    for place, name in enumerate(maps):
        lengths = np.concatenate([_length(step.offsets[name]).ravel() for step in trace.steps])
        limit = float(np.percentile(lengths, 99)) or float(lengths.max()) or 1.0
        factor = float(f"{2.3 * spacing / limit:.1g}")
        rims.append(f"rim: {_pixels(limit)} ({name})")
        scales.append(f"{factor:g}x ({name})")
        for row, step in enumerate(trace.steps):
            field, length = step.offsets[name], _length(step.offsets[name])
            caption = f"mean {_pixels(length.mean())}, longest {_pixels(length.max())}"
            painted = visualization.offset_field(field, limit)
            _show(axes[f"{row},{2 * place}"], painted, size, caption)
            arrows = axes[f"{row},{2 * place + 1}"]
            _show_grey(arrows, trace.image, -30, 607)  # dark, for coloured arrows over it
            _draw_arrows(arrows, field, size, spacing, factor)
    wheel = axes["wheel"]
    wheel.imshow(visualization.offset_legend(1.0, 401)[:401])
    wheel.spines[:].set_visible(False)
    wheel.set_xlabel("\n".join(rims), fontsize=SMALL_FONT, color=INK, labelpad=2)
    _write_notes(
        axes["notes"],
        "Each cell takes its feature from another place: hue is the direction to it, brightness "
        "the distance in pixels of the image, full at the 99th percentile of the four steps.",
        f"Arrows point from a cell to that place; they are drawn {' and '.join(scales)} as long.",
    )
    return figure


def _draw_arrows(
    axes: Axes, field: np.ndarray, image_size: Sequence[int], spacing: float, factor: float
) -> None:
    """Draw the vectors of some cells, about `spacing` pixels apart, in the hues of the wheel."""
    places = []
    for pixels, cells in zip(image_size, field.shape[:2], strict=True):
        pitch = (pixels - 1) / max(1, cells - 1)
        step = max(1, round(spacing / pitch))
        places.append((np.arange((cells - 1) % step // 2, cells, step), pitch))
    (rows, rise), (columns, run) = places
    vectors = field[np.ix_(rows, columns)]
    hues = visualization.offset_field(vectors / np.maximum(_length(vectors), 1e-9)[..., None], 1.0)
    x, y = np.meshgrid(columns * run, rows * rise)
    _quiver(axes, x, y, vectors, factor, color=hues.reshape(-1, 3) / 255)


def _quiver(
    axes: Axes, x: np.ndarray, y: np.ndarray, vectors: np.ndarray, factor: float, **kwargs: Any
) -> None:
    """Draw arrows in the unit of the axes, `factor` times as long as the vectors."""
    axes.quiver(
        x, y, vectors[..., 0], vectors[..., 1], angles="xy", scale_units="xy", scale=1 / factor,
        units="inches", width=0.011, headwidth=3.6, headlength=4, headaxislength=3.6,
        minlength=0.5, **kwargs,
    )  # fmt: skip


def draw_context(trace: AlignmentTrace) -> Figure:
    """Draw which cell of the 3x3 context map each pixel of AlignCM reads, at stride 32.

    The panels are the chosen cells, the regular ones, and arrows from one to the other in the
    context map; a key has the share of each cell. A pixel's cell is the nearest to the position
    that it reads; reading is bilinear, so that a pixel between two cells mixes them.

    Raises:
        ValueError: the model's context is not `align`.
    """
    if (context := trace.context) is None:
        raise ValueError(
            "Expected a model whose context is align. Received: a model that chooses no context"
        )
    chosen, regular, size = context.chosen, context.regular, trace.image.shape[:2]
    headings = (
        "cell of the context that is read",
        "regular cell, without offsets",
        "from regular cell to chosen position",
    )
    title = "Context chosen by aligned context modeling (AlignCM)"
    figure, axes = _sheet(trace.image, title, [""], headings, ("key", "notes"), 5.5)
    for column, cells in enumerate((chosen, regular)):
        panel = axes[f"0,{column}"]
        _show_grey(panel, trace.image, 0, 255)
        colors = np.array([*CELL_COLORS, (0, 0, 0)], np.uint8)[cells]  # OUTSIDE is the last
        _show(panel, colors, size, alpha=0.55)
    positions, key = axes["0,2"], axes["key"]
    for cell, color in enumerate(CELL_COLORS):
        row, column = divmod(cell, CONTEXT_BINS)
        pale = tuple(0.3 + 0.7 * np.array(color) / 255)
        for panel in (positions, key):
            square = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=pale, edgecolor="w")
            panel.add_patch(square)
        share = f"{100 * (chosen == cell).mean():.0f} %"
        key.text(column, row, share, ha="center", va="center", fontsize=FONT, color=INK)
    key.set(xlim=(-0.5, CONTEXT_BINS - 0.5), ylim=(CONTEXT_BINS - 0.5, -0.5), aspect="equal")
    positions.set(facecolor="#282828", aspect=size[0] / size[1])
    positions.set(xlim=(-1, CONTEXT_BINS), ylim=(CONTEXT_BINS, -1))
    steps = [-(-n // MOST_POSITIONS) for n in chosen.shape]
    picked = tuple(slice((n - 1) % s // 2, n, s) for n, s in zip(chosen.shape, steps, strict=True))
    start, end = context.regular_positions[picked], context.positions[picked]
    _quiver(positions, start[..., 0], start[..., 1], end - start, 1.0, color=INK)
    _write_notes(
        axes["notes"],
        "The 3x3 cells as they lie over the image, and the share of the pixels that read each. "
        f"{100 * (chosen != regular).mean():.0f} % read another cell than their own, "
        f"{100 * (chosen == OUTSIDE).mean():.0f} % outside of the map (black: zeros).",
    )
    return figure


def draw_features(trace: AlignmentTrace) -> Figure:
    """Draw the maps that the AlignFA steps add, before and after they are moved.

    Each step is a row: the coarse map, the fine map and their sum, each before and after. The
    colours of a row are the three main components of all its maps. A map before and after has one
    origin and scale, so that equal colours are equal features.

    Raises:
        ValueError: the model's aggregation is `bilinear`.
    """
    moved = trace.steps[0].offsets
    headings = []
    for name in ("coarse", "fine"):
        is_moved = name in moved
        headings += (
            [f"{name} map", f"{name} map, aligned"] if is_moved else [f"{name} map, not moved"]
        )
    headings += ["sum, unaligned", "sum, aligned"]
    title, legends = "Feature maps before and after alignment", ("image", "notes")
    figure, axes = _step_sheet(trace, title, headings, legends, 3.4)
    for row, step in enumerate(trace.steps):
        groups = [
            [step.before[name]] + [step.after[name]] * (name in moved)
            for name in ("coarse", "fine")
        ]
        groups.append([step.unaligned, step.aligned])
        for column, painted in enumerate(_principal_colors(groups)):
            _show(axes[f"{row},{column}"], painted, trace.image.shape[:2])
    _write_notes(
        axes["notes"],
        "Red, green and blue are the first three principal components of the maps of a row. A map "
        "before and after has one origin and scale: equal colours are equal features.",
        "The coarse map is shown resized to the fine one's size,, before it is moved.",
    )
    return figure


def _principal_colors(groups: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Paint maps [H, W, C] as uint8 [H, W, 3], with one basis, and one scale for each group."""
    samples = []
    for group in groups:
        cells = [x.reshape(-1, x.shape[-1]) for x in group]
        samples.append(np.concatenate([x[:: -(-len(x) // MOST_CELLS)] for x in cells]))
    # Every group has the same weight in the basis, however large its values are.
    covariances = [np.cov(x, rowvar=False) / max(float(x.var()), 1e-24) for x in samples]
    basis = np.linalg.eigh(np.sum(covariances, 0))[1][:, :-4:-1]
    # An eigenvector's sign is arbitrary: its largest entry is positive here.
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), range(3)])
    painted = []
    for group, sample in zip(groups, samples, strict=True):
        origin = sample.mean(0)
        low, high = np.percentile((sample - origin) @ basis, (1, 99), axis=0)
        for x in group:
            values = ((x - origin) @ basis - low) / np.maximum(high - low, 1e-12)
            painted.append((255 * np.clip(values, 0, 1)).round().astype(np.uint8))
    return painted


FIGURES = Output("alignment")


def write_alignment_figures(
    model: AlignSeg, image: np.ndarray, folder: str | Path, stem: str, overwrite: bool = False
) -> list[Path]:
    """Write what `draw_offsets`, `draw_features` and `draw_context` make of an image.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.
        folder: for the figures; made if it is missing.
        stem: start of their names.
        overwrite: replace files of these names even if this function did not write them.

    Returns:
        `STEM_offsets.png` and `STEM_features.png`, unless the aggregation is `bilinear`, and
        `STEM_context.png` where the context is `align`.

    Raises:
        ValueError: the model aligns nothing, the array is not such an image, or there is a file
            that this function did not write.
    """
    draw: dict[str, Callable[[AlignmentTrace], Figure]] = {}
    if model.aggregation != "bilinear":
        draw |= {"offsets": draw_offsets, "features": draw_features}
    if model.context == "align":
        draw["context"] = draw_context
    if not draw:
        raise ValueError(
            "Expected a model that aligns: its aggregation is not bilinear, or its context is "
            f"align. Received: aggregation={model.aggregation!r}, context={model.context!r}"
        )
    names = [f"{stem}_{name}.png" for name in draw]
    check_replaceable(folder, FIGURES, names, overwrite)
    trace = trace_alignment(model, image)
    for name, function in zip(names, draw.values(), strict=True):
        figure = function(trace)
        with atomic_result(folder, FIGURES, name) as temporary:
            figure.savefig(temporary)
    return [Path(folder) / name for name in names]
