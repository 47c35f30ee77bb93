"""Figures of what `alignment` sees in a model: offsets, chosen context, moved feature maps.

Vectors and positions are (x, y), x to the right, y down; shapes are those of `alignment`.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.analysis.alignment import OUTSIDE, AlignmentTrace, ContextTrace, trace_alignment
from alignseg_tf.layers.aligned_context_modeling import CONTEXT_BINS
from alignseg_tf.model import AlignSeg
from alignseg_tf.system.files import Output, atomic_result, check_replaceable

# The fine and the coarse map of each step of the decoder, by the layer's name.
STEP_MAPS = {
    "aggregation_p3": ("P2", "P3 (stride 8)"),
    "aggregation_p4": ("P2..P3", "P4 (stride 16)"),
    "aggregation_p5": ("P2..P4", "P5 (stride 32)"),
    "aggregation_context": ("P2..P5", "context (stride 32)"),
}
# Sizes of panels and legends in inches, of fonts in points, and dots an inch.
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_WIDTH, LEGEND_HEIGHT = (1.9, 3.2), (0.9, 3.0), 1.9, 1.35
LINE, FONT, SMALL_FONT, DPI = 0.17, 8.0, 7.0, 200
ARROW_SPACING, MOST_POSITIONS = 0.13, 18
OFFSET_HEADINGS = ("offsets of the {} map", "where the {} map is read")
CONTEXT_HEADINGS = (
    "cell of the context that is read",
    "regular cell, without offsets",
    "from regular cell to what is read",
)
INK, FAINT_INK = "#222222", "#666666"
# The cells of the context in reading order: around the middle the hues of `offset_field`.
CELL_COLORS = (
    (67, 99, 216), (145, 30, 180), (240, 50, 230),
    (66, 212, 244), (235, 235, 235), (230, 25, 75),
    (60, 180, 75), (255, 225, 25), (245, 130, 49),
)  # fmt: skip


def _panel_size(image: np.ndarray, area: float) -> tuple[float, float]:
    """Return width and height of a panel in inches, for its area in square inches."""
    aspect = image.shape[0] / image.shape[1]
    width = float(np.clip((area / aspect) ** 0.5, *PANEL_WIDTH))
    return width, float(np.clip(width * aspect, *PANEL_HEIGHT))


def _sheet(
    image: np.ndarray,
    title: str,
    row_titles: Sequence[str],
    headings: Sequence[str],
    legends: Sequence[str],
    area: float = 4.3,
) -> tuple[Figure, dict[str, Axes]]:
    """Lay out panels in the shape of an image, and a column of legends beside them.

    Args:
        image: uint8 [h, w, 3].
        title: of the figure.
        row_titles: of the rows of panels; empty for none.
        headings: of the columns of panels.
        legends: names of the axes in the column of legends, from the top.
        area: of a panel, in square inches.

    Returns:
        The figure and its axes. Panels are named `ROW,COLUMN`, from 0.
    """
    width, height = _panel_size(image, area)
    rows = len(row_titles)
    lines = 3 if any(row_titles) else 1
    panels = [[f"{row},{column}" for column in range(len(headings))] for row in range(rows)]
    size = (
        len(headings) * (width + LINE) + LEGEND_WIDTH + LINE,
        max(rows * (height + lines * LINE), len(legends) * LEGEND_HEIGHT) + 3 * LINE,
    )
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    mosaic: Any = [[panels, [[name] for name in legends]]]
    axes = figure.subplot_mosaic(mosaic, width_ratios=(size[0] - LEGEND_WIDTH - LINE, LEGEND_WIDTH))
    figure.suptitle(title, x=0.01, ha="left", fontsize=1.25 * FONT, fontweight="bold", color=INK)
    for each in axes.values():
        each.set(xticks=[], yticks=[], anchor="NW")
        each.spines[:].set(linewidth=0.4, color=FAINT_INK)
    for row, text in enumerate(row_titles):
        first = axes[f"{row},0"]
        first.set_title(text, loc="left", fontsize=FONT, fontweight="bold", color=INK, pad=3)
    for column, text in enumerate(headings):
        above = (0, 16 if any(row_titles) else 3)  # points: above the title of the first row
        axes[f"0,{column}"].annotate(
            text, (0, 1), above, "axes fraction", "offset points", fontsize=FONT, color=FAINT_INK
        )
    return figure, axes


def _show(axes: Axes, painted: np.ndarray, image_size: Sequence[int], caption: str = "") -> None:
    """Show a painted map or image, uint8 [any, any, 3], in pixels of the image."""
    height, width = image_size
    # Cells of a map stand where the model's resizing puts them.
    rise, run = (
        (n - 1) / max(1, m - 1) for n, m in zip(image_size, painted.shape[:2], strict=True)
    )
    extent = (-run / 2, width - 1 + run / 2, height - 1 + rise / 2, -rise / 2)
    axes.imshow(painted, extent=extent, interpolation="nearest")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_xlabel(caption, loc="left", fontsize=SMALL_FONT, color=FAINT_INK, labelpad=2)


def _write_notes(axes: Axes, *paragraphs: str) -> None:
    """Write paragraphs into axes of the column of legends."""
    axes.set_axis_off()
    characters = int(LEGEND_WIDTH * 72 / (0.6 * SMALL_FONT))
    text = "\n\n".join("\n".join(textwrap.wrap(x, characters)) for x in paragraphs)
    axes.text(
        0, 1, text, transform=axes.transAxes, fontsize=SMALL_FONT, color=INK, va="top",
        linespacing=1.35,
    ).set_in_layout(False)  # fmt: skip


def _step_title(number: int, name: str) -> str:
    fine, coarse = STEP_MAPS[name]
    return f"AlignFA {number}: {coarse} into {fine} (stride 4)"


def _check_aligns(trace: AlignmentTrace) -> None:
    mode = trace.steps[0].mode
    if not trace.steps[0].offsets:
        raise ValueError(
            "Expected a model whose aggregation is align, align_coarse or align_fine. "
            f"Received: a model whose aggregation is {mode}, which has no offsets"
        )


def _dimmed(image: np.ndarray) -> np.ndarray:
    """Return an image in dark grey, for coloured arrows over it."""
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    return np.repeat((12 + 0.4 * grey).round().astype(np.uint8)[..., None], 3, -1)


def _length(field: np.ndarray) -> np.ndarray:
    return np.hypot(field[..., 0], field[..., 1])


def _round_factor(value: float) -> float:
    """Return the largest of ..., 0.7, 1, 1.5, 2, 3, 5, 7, 10, ... that is not above a value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(m * power for m in (1, 1.5, 2, 3, 5, 7) if m * power <= value))


def draw_offsets(trace: AlignmentTrace) -> Figure:
    """Draw the offset fields of the AlignFA steps: painted, and as arrows over the image.

    Hue is the direction from a cell to where it is read, brightness the distance. The wheel of
    colours has a scale in pixels of the image for the coarse maps and one for the fine ones,
    which end at the 99th percentile of the distances of all steps.

    Args:
        trace: from `trace_alignment`.

    Returns:
        A row a step, and two panels for each map that the model moves.

    Raises:
        ValueError: the model's aggregation is `bilinear`.
    """
    _check_aligns(trace)
    maps = tuple(trace.steps[0].offsets)
    size = trace.image.shape[:2]
    figure, axes = _sheet(
        trace.image,
        "Offsets of aligned feature aggregation (AlignFA)",
        [_step_title(number, step.name) for number, step in enumerate(trace.steps, start=1)],
        [text.format(name) for name in maps for text in OFFSET_HEADINGS],
        ("image", "wheel", "notes"),
    )
    axes["image"].imshow(trace.image)
    spacing = ARROW_SPACING * size[1] / _panel_size(trace.image, 4.3)[0]
    limits, factors = {}, {}
    for place, name in enumerate(maps):
        lengths = np.concatenate([_length(step.offsets[name]).ravel() for step in trace.steps])
        limit = float(np.percentile(lengths, 99)) or float(lengths.max()) or 1.0
        limits[name], factors[name] = limit, _round_factor(2.3 * spacing / limit)
        for row, step in enumerate(trace.steps):
            field = step.offsets[name]
            length = _length(field)
            caption = f"mean {_pixels(length.mean())}, longest {_pixels(length.max())}"
            painted = visualization.offset_field(field, limit)
            _show(axes[f"{row},{2 * place}"], painted, size, caption)
            arrows = axes[f"{row},{2 * place + 1}"]
            _show(arrows, _dimmed(trace.image), size)
            _draw_arrows(arrows, field, size, spacing, factors[name])
    _draw_wheel(axes["wheel"], limits)
    scales = " and ".join(f"{factors[name]:g}x ({name})" for name in maps)
    _write_notes(
        axes["notes"],
        "Each cell takes its feature from another place: hue is the direction to it, brightness "
        "the distance in pixels of the image, full at the 99th percentile of the four steps.",
        f"Arrows point from a cell to that place; they are drawn {scales} as long.",
    )
    return figure


def _pixels(length: float) -> str:
    return f"{length:.0f} px" if length >= 100 else f"{length:.2g} px"


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


def _draw_wheel(axes: Axes, limits: Mapping[str, float]) -> None:
    """Draw the colours of `visualization.offset_field`, and what the rim means for each map."""
    axes.imshow(visualization.offset_legend(1.0, 401)[:401])
    axes.spines[:].set_visible(False)
    rims = [f"rim: {_pixels(limit)} ({name})" for name, limit in limits.items()]
    axes.set_xlabel("\n".join(rims), fontsize=SMALL_FONT, color=INK, labelpad=2)


def draw_context(trace: AlignmentTrace) -> Figure:
    """Draw which cell of the 3x3 context map each pixel chose, and which is its own.

    A pixel's cell is the nearest to the position that it reads; what is read is bilinear, so a
    pixel between two cells mixes them. Pixels are those of AlignCM's map, of stride 32.

    Args:
        trace: from `trace_alignment`.

    Returns:
        The chosen cells, the regular ones, the way from one to the other in the context map, and
        a key with the share of the pixels that chose each cell.

    Raises:
        ValueError: the model's context is not `align`.
    """
    if trace.context is None:
        raise ValueError(
            "Expected a model whose context is align. Received: a model that chooses no context"
        )
    chosen, regular = trace.context.chosen, trace.context.regular
    size = trace.image.shape[:2]
    figure, axes = _sheet(
        trace.image,
        "Context chosen by aligned context modeling (AlignCM)",
        [""],
        CONTEXT_HEADINGS,
        ("key", "notes"),
        area=5.5,
    )
    grey = np.asarray(Image.fromarray(trace.image).convert("L"), np.float32)[..., None]
    for column, cells in enumerate((chosen, regular)):
        colors = np.array([*CELL_COLORS, (0, 0, 0)], np.uint8)[cells]  # OUTSIDE is the last
        painted = np.round(0.45 * grey + 0.55 * _enlarged(colors, size)).astype(np.uint8)
        _show(axes[f"0,{column}"], painted, size)
    positions = axes["0,2"]
    positions.set(facecolor="#282828", aspect=size[0] / size[1])
    _draw_positions(positions, trace.context)
    key = axes["key"]
    _draw_cells(key)
    key.set(xlim=(-0.5, CONTEXT_BINS - 0.5), ylim=(CONTEXT_BINS - 0.5, -0.5), aspect="equal")
    for cell in range(CONTEXT_BINS**2):
        row, column = divmod(cell, CONTEXT_BINS)
        share = f"{100 * (chosen == cell).mean():.0f} %"
        key.text(column, row, share, ha="center", va="center", fontsize=FONT, color=INK)
    _write_notes(
        axes["notes"],
        "The 3x3 cells as they lie over the image, and the share of the pixels that read each. "
        f"{100 * (chosen != regular).mean():.0f} % read another cell than their own, "
        f"{100 * (chosen == OUTSIDE).mean():.0f} % outside of the map (black: zeros).",
    )
    return figure


def _draw_cells(axes: Axes) -> None:
    """Draw the cells of the context in a pale form of their colours; the unit is cells."""
    for cell, color in enumerate(CELL_COLORS):
        row, column = divmod(cell, CONTEXT_BINS)
        pale = tuple(0.3 + 0.7 * np.array(color) / 255)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=pale, edgecolor="w"))


def _draw_positions(axes: Axes, context: ContextTrace) -> None:
    """Draw arrows from the regular position of some pixels to what they read, in cells."""
    _draw_cells(axes)
    axes.set(xlim=(-1, CONTEXT_BINS), ylim=(CONTEXT_BINS, -1))
    rows, columns = (
        np.arange((n - 1) % step // 2, n, step)
        for n in context.offsets.shape[:2]
        for step in [-(-n // MOST_POSITIONS)]
    )
    picked = np.ix_(rows, columns)
    start, end = context.regular_positions[picked], context.positions[picked]
    _quiver(axes, start[..., 0], start[..., 1], end - start, 1.0, color=INK)


def _enlarged(colors: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Give each pixel of an image the colour of the nearest cell of a map."""
    rows, columns = (
        np.round(np.linspace(0, m - 1, n)).astype(int)
        for n, m in zip(size, colors.shape[:2], strict=True)
    )
    return colors[rows][:, columns]


def draw_features(trace: AlignmentTrace) -> Figure:
    """Draw the maps that the AlignFA steps add, before and after they are moved.

    The colours of a row are the three main components of all its maps, one basis for all; a map
    and what became of it have one scale as well, so that they can be compared.

    Args:
        trace: from `trace_alignment`.

    Returns:
        A row a step: the coarse map, the fine map and their sum, each before and after.

    Raises:
        ValueError: the model's aggregation is `bilinear`.
    """
    _check_aligns(trace)
    moved = tuple(trace.steps[0].offsets)
    headings = []
    for name in ("coarse", "fine"):
        if name in moved:
            headings += [f"{name} map", f"{name} map, aligned"]
        else:
            headings += [f"{name} map, not moved"]
    headings += ["sum, unaligned", "sum, aligned"]
    figure, axes = _sheet(
        trace.image,
        "Feature maps before and after alignment",
        [_step_title(number, step.name) for number, step in enumerate(trace.steps, start=1)],
        headings,
        ("image", "notes"),
        area=3.4,
    )
    axes["image"].imshow(trace.image)
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
        "The coarse map is shown resized to the fine one's size, as it is moved.",
    )
    return figure


def _principal_colors(
    groups: Sequence[Sequence[np.ndarray]], most_cells: int = 20_000
) -> list[np.ndarray]:
    """Paint maps [H, W, C] with one basis for all, and one origin and scale for each group.

    Args:
        groups: maps to compare with each other.
        most_cells: as many cells of a map, evenly spread, decide on basis and scale.

    Returns:
        uint8 [H, W, 3] a map, the groups one after the other.
    """
    samples = []
    for group in groups:
        cells = [x.reshape(-1, x.shape[-1]) for x in group]
        cells = [x[:: -(-len(x) // most_cells)] for x in cells]
        samples.append(np.concatenate(cells))
    origins = [sample.mean(0) for sample in samples]
    # Every group has the same say in the basis, however large its values are.
    scales = [max(float(sample.std()), 1e-12) for sample in samples]
    covariance = np.zeros((samples[0].shape[-1],) * 2)
    for sample, origin, scale in zip(samples, origins, scales, strict=True):
        centred = (sample - origin) / scale
        covariance += centred.T @ centred / len(centred)
    basis = np.linalg.eigh(covariance)[1][:, :-4:-1]
    # An eigenvector's sign is arbitrary: its largest entry is positive here.
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), range(3)])
    painted = []
    for group, sample, origin in zip(groups, samples, origins, strict=True):
        low, high = np.percentile((sample - origin) @ basis, (1, 99), axis=0)
        for x in group:
            values = ((x - origin) @ basis - low) / np.maximum(high - low, 1e-12)
            painted.append((255 * np.clip(values, 0, 1)).round().astype(np.uint8))
    return painted


FIGURES = Output("alignment")


def write_alignment_figures(
    model: AlignSeg, image: np.ndarray, folder: str | Path, stem: str, overwrite: bool = False
) -> list[Path]:
    """Write what `draw_offsets`, `draw_context` and `draw_features` make of an image.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.
        folder: where the figures go; made where it is missing.
        stem: what their names begin with.
        overwrite: replace files of these names even if this function did not write them.

    Returns:
        `STEM_offsets.png` and `STEM_features.png`, unless the aggregation is `bilinear`, and
        `STEM_context.png` where the context is `align`.

    Raises:
        ValueError: the model aligns nothing, the array is no such image, or there is a file
            that this function did not write.
    """
    if model.aggregation == "bilinear" and model.context != "align":
        raise ValueError(
            "Expected a model that aligns: its aggregation is not bilinear, or its context is "
            f"align. Received: aggregation={model.aggregation!r}, context={model.context!r}"
        )
    names = ["offsets", "features"] if model.aggregation != "bilinear" else []
    names += ["context"] if model.context == "align" else []
    check_replaceable(folder, FIGURES, [f"{stem}_{name}.png" for name in names], overwrite)
    trace = trace_alignment(model, image)
    draw: dict[str, Callable[[AlignmentTrace], Figure]] = {}
    if trace.steps[0].offsets:
        draw |= {"offsets": draw_offsets, "features": draw_features}
    if trace.context is not None:
        draw["context"] = draw_context
    paths = []
    for name, function in draw.items():
        paths.append(Path(folder) / f"{stem}_{name}.png")
        figure = function(trace)
        with atomic_result(folder, FIGURES, paths[-1].name) as temporary:
            figure.savefig(temporary)
    return paths
