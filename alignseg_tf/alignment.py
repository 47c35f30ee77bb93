"""Look into a model while it aligns: offset fields, chosen context, moved feature maps.

`trace_alignment` runs a model on a picture up to its alignment layers and keeps what they do as
NumPy arrays; `draw_offsets`, `draw_context` and `draw_features` make figures of it.

Shape legend
    h, w   height and width of the picture, in pixels
    H, W   height and width of a feature map, in cells
    C      channels of the decoder

Vectors and positions are (x, y), x to the right, y down. Cell (0, 0) of a map stands on the centre
of the picture's first pixel and the last cell on that of its last pixel, as the model resizes.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.files import atomic_path
from alignseg_tf.layers import (
    AlignedContextModeling,
    AlignedFeatureAggregation,
    bilinear_sample,
    resize_align_corners,
)
from alignseg_tf.layers.aligned_context_modeling import CONTEXT_BINS
from alignseg_tf.layers.sampling import aligns_corners, offset_scale, sampling_positions
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg

Tensor = Any

# The fine and the coarse map of each step of the decoder, by the layer's name.
STEP_MAPS = {
    "aggregation_p3": ("P2", "P3 (stride 8)"),
    "aggregation_p4": ("P2..P3", "P4 (stride 16)"),
    "aggregation_p5": ("P2..P4", "P5 (stride 32)"),
    "aggregation_context": ("P2..P5", "context (stride 32)"),
}
OUTSIDE = -1

# Figures: inches, points, and dots an inch.
PANEL_WIDTH, PANEL_HEIGHT = (1.9, 3.2), (0.9, 3.0)
GAP, MARGIN, LINE = 0.08, 0.15, 0.17
FONT, SMALL_FONT, DPI = 8.0, 7.0, 200
LEGEND_WIDTH, LEGEND_HEIGHT, WHEEL, KEY = 1.85, 1.9, 1.1, 1.0
ARROW_SPACING, MOST_POSITIONS = 0.13, 18
INK, FAINT_INK = "#222222", "#666666"
# The cells of the context in reading order: around the middle the hues of `offset_field`.
CELL_COLORS = (
    (67, 99, 216), (145, 30, 180), (240, 50, 230),
    (66, 212, 244), (235, 235, 235), (230, 25, 75),
    (60, 180, 75), (255, 225, 25), (245, 130, 49),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class AggregationTrace:
    """What an `AlignedFeatureAggregation` does with its two maps, in one picture.

    Attributes:
        name: the layer's.
        mode: the layer's: which maps it moves.
        offsets: for `coarse` and `fine`, if moved: how far from itself each cell is read, float32
            [H, W, 2], in pixels of the picture.
        before: both maps before they are moved, float32 [H, W, C]; `coarse` is resized.
        after: both maps as they are added; one that is not moved is the one before.
    """

    name: str
    mode: str
    offsets: dict[str, np.ndarray]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    @property
    def unaligned(self) -> np.ndarray:
        """The sum of both maps before they are moved, [H, W, C]: what `bilinear` would return."""
        return self.before["fine"] + self.before["coarse"]

    @property
    def aligned(self) -> np.ndarray:
        """The sum of both maps after they are moved, [H, W, C]: what the layer returns."""
        return self.after["fine"] + self.after["coarse"]


@dataclass(frozen=True, eq=False)
class ContextTrace:
    """Where an `AlignedContextModeling` reads its 3x3 context map, in one picture.

    Attributes:
        name: the layer's.
        offsets: from each pixel to the part of the context that it reads, float32 [H, W, 2], in
            pixels of the picture.
        positions: where each pixel reads, float32 [H, W, 2], in cells: 0 is the centre of the
            first cell, 2 of the last, and there are zeros outside.
        regular_positions: the same without offsets.
    """

    name: str
    offsets: np.ndarray
    positions: np.ndarray
    regular_positions: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """The nearest cell to each position, int [H, W]: 0..8 in reading order, or `OUTSIDE`."""
        return _nearest_cell(self.positions)

    @property
    def regular(self) -> np.ndarray:
        """The nearest cells without offsets."""
        return _nearest_cell(self.regular_positions)


@dataclass(frozen=True, eq=False)
class AlignmentTrace:
    """What the alignment layers of a model do in one picture.

    Attributes:
        image: the picture, uint8 RGB [h, w, 3].
        steps: one for each AlignFA, in the order of the decoder.
        context: of AlignCM; None where the model's context is not `align`.
    """

    image: np.ndarray
    steps: tuple[AggregationTrace, ...]
    context: ContextTrace | None


def _nearest_cell(positions: np.ndarray) -> np.ndarray:
    """Number the context cells in which positions lie; a cell reaches half a cell around."""
    inside = ((positions >= -0.5) & (positions <= CONTEXT_BINS - 0.5)).all(-1)
    x, y = np.moveaxis(np.clip(np.floor(positions + 0.5), 0, CONTEXT_BINS - 1).astype(int), -1, 0)
    return np.where(inside, CONTEXT_BINS * y + x, OUTSIDE)


def trace_alignment(model: AlignSeg, image: np.ndarray) -> AlignmentTrace:
    """Run a model on a picture up to its alignment layers and keep what these do.

    The model runs in inference mode and is left as it is. Its maps are kept, 16 of [h / 4, w / 4,
    C] floats: 2 GB for a picture of 2048 x 1024 pixels and 256 channels.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.

    Returns:
        The trace. A model that aligns nothing has one too: without offsets.

    Raises:
        ValueError: the array is no such picture.

    Example:
        >>> from alignseg_tf import backbones
        >>> model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), num_classes=3, channels=8)
        >>> trace = trace_alignment(model, np.zeros((64, 96, 3), np.uint8))
        >>> [step.name for step in trace.steps]
        ['aggregation_p3', 'aggregation_p4', 'aggregation_p5', 'aggregation_context']
        >>> trace.steps[0].offsets["coarse"].shape, trace.context.positions.shape
        ((17, 25, 2), (3, 4, 2))
    """
    steps, context = [], None
    for layer, inputs in _run_up_to(model, image, _is_fusing):
        offsets, read_size = _offsets(layer, inputs)
        in_pixels = {
            name: _in_pixels(field, layer.sampling, read_size, image.shape[:2])
            for name, field in offsets.items()
        }
        if isinstance(layer, AlignedContextModeling):
            positions, regular_positions = (
                _to_numpy(sampling_positions(field, read_size, layer.sampling))
                for field in (offsets["context"], ops.zeros_like(offsets["context"]))
            )
            context = ContextTrace(layer.name, in_pixels["context"], positions, regular_positions)
            continue
        fine, coarse = inputs
        before = {"coarse": resize_align_corners(coarse, fine.shape[1:3]), "fine": fine}
        after = {
            name: bilinear_sample(x, offsets[name], layer.sampling) if name in offsets else x
            for name, x in before.items()
        }
        steps.append(
            AggregationTrace(
                layer.name,
                layer.mode,
                in_pixels,
                {name: _to_numpy(x) for name, x in before.items()},
                {name: _to_numpy(x) for name, x in after.items()},
            )
        )
    picture = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return AlignmentTrace(picture, tuple(steps), context)


def offset_fields(model: AlignSeg, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return how far a model's alignment layers look from where they stand, in a picture.

    The model is run up to the inputs of these layers, in inference mode, and is left as it is.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.

    Returns:
        Fields float32 [H, W, 2], (x, y) in pixels of the picture, x to the right, y down. Their
        names are `LAYER/coarse` and `LAYER/fine` for the two maps that an
        `AlignedFeatureAggregation` moves, `LAYER` for an `AlignedContextModeling`, whose vectors
        point from a pixel to the part of the context that it reads. H, W are the size of the
        layer's result. Empty for a model that aligns nothing.

    Raises:
        ValueError: the array is no such picture.
    """
    fields = {}
    for layer, inputs in _run_up_to(model, image, _is_aligning):
        offsets, read_size = _offsets(layer, inputs)
        for name, field in offsets.items():
            key = layer.name if name == "context" else f"{layer.name}/{name}"
            fields[key] = _in_pixels(field, layer.sampling, read_size, image.shape[:2])
    return fields


def _is_aligning(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, AlignedContextModeling):
        return layer.context == "align"
    return isinstance(layer, AlignedFeatureAggregation) and layer.mode != "bilinear"


def _is_fusing(layer: keras.layers.Layer) -> bool:
    return _is_aligning(layer) or isinstance(layer, AlignedFeatureAggregation)


def _run_up_to(
    model: AlignSeg, image: np.ndarray, wanted: Callable[[keras.layers.Layer], bool]
) -> list[tuple[Any, Any]]:
    """Return the layers that are wanted, in the model's order, and their inputs in a picture."""
    if not isinstance(model, AlignSeg):
        raise ValueError(f"Expected an AlignSeg. Received: a {type(model).__name__}")
    if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape[:2]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"Expected an RGB picture [h, w, 3] of at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} "
            f"pixels. Received: shape {image.shape}"
        )
    layers = [layer for layer in model.layers if wanted(layer)]
    if not layers:
        return []
    inputs = keras.Model(model.inputs, {layer.name: layer.input for layer in layers})(
        ops.convert_to_tensor(image[None], "float32"), training=False
    )
    return [(layer, inputs[layer.name]) for layer in layers]


def _offsets(layer: Any, inputs: Any) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return a layer's offset fields by the map that they move, and the size of that map."""
    if isinstance(layer, AlignedContextModeling):
        local, context = layer.branches(inputs, training=False)
        offsets = layer.offsets(local, context, training=False)
        return {"context": offsets}, (CONTEXT_BINS, CONTEXT_BINS)
    fine, coarse = inputs
    height, width = fine.shape[1:3]
    return layer.offsets(fine, coarse, training=False), (height, width)


def _to_numpy(x: Tensor) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(x, "float32"))[0]


def _in_pixels(
    offsets: Tensor, sampling: str, read_size: Sequence[int], image_size: Sequence[int]
) -> np.ndarray:
    field = _to_numpy(offsets)
    return field * _pixels_per_offset(sampling, read_size, field.shape[:2], image_size)


def _pixels_per_offset(
    sampling: str, read_size: Sequence[int], out_size: Sequence[int], image_size: Sequence[int]
) -> np.ndarray:
    """Return how many pixels of the picture an offset of 1 is along x and along y, [2]."""
    cells = [float(scale) for scale in offset_scale(sampling, *read_size, *out_size)]
    if aligns_corners(sampling):
        # The centres of the outer cells lie on those of the outer pixels.
        pixels = [(n - 1) / max(1, m - 1) for n, m in zip(image_size, read_size, strict=True)]
    else:
        pixels = [n / m for n, m in zip(image_size, read_size, strict=True)]
    return np.array([cells[0] * pixels[1], cells[1] * pixels[0]], np.float32)


class _Sheet:
    """A figure of rows and columns of panels for a picture, laid out in inches.

    The panels have the picture's shape as far as `PANEL_WIDTH` and `PANEL_HEIGHT` let them. Above
    the first row are a title and a line of headings; every row has a line for a title of its own
    above it and, if wanted, one for captions below it. At the right is a column for legends.

    Args:
        rows: rows of panels.
        columns: panels in a row.
        image: the picture, uint8 [h, w, 3].
        title: of the figure.
        area: of a panel, in square inches.
        row_titles: whether rows have titles.
        captions: whether panels have captions.
        picture: whether the picture is on top of the column of legends.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        image: np.ndarray,
        title: str,
        area: float = 4.3,
        row_titles: bool = True,
        captions: bool = True,
        picture: bool = True,
    ):
        self.image_size = image.shape[:2]
        self.aspect = image.shape[0] / image.shape[1]
        self.width = float(np.clip((area / self.aspect) ** 0.5, *PANEL_WIDTH))
        self.height = float(np.clip(self.width * self.aspect, *PANEL_HEIGHT))
        self.first_top = (3.0 + 1.35 * row_titles) * LINE
        self.row_height = self.height + (0.5 + 1.35 * row_titles + 0.9 * captions) * LINE
        self.legend_left = self.left(columns) + 0.5 * MARGIN
        picture_height = min(self.height, LEGEND_WIDTH * self.aspect)
        self.legend_top = self.first_top + picture * (picture_height + LINE)
        self.size = (
            self.legend_left + LEGEND_WIDTH + MARGIN,
            max(self.first_top + rows * self.row_height, self.legend_top + LEGEND_HEIGHT),
        )
        self.figure = Figure(figsize=self.size, dpi=DPI, facecolor="white")
        self.text(MARGIN, 1.2 * LINE, title, fontsize=1.25 * FONT, fontweight="bold")
        if picture:
            axes = self.axes(self.legend_left, self.first_top, LEGEND_WIDTH, picture_height)
            axes.imshow(image)
            axes.set_anchor("NW")

    @property
    def pixels_per_inch(self) -> float:
        """Pixels of the picture in an inch of a panel."""
        return max(self.image_size[1] / self.width, self.image_size[0] / self.height)

    def top(self, row: int) -> float:
        """Distance of a row's panels from the upper edge, in inches."""
        return self.first_top + row * self.row_height

    def left(self, column: int) -> float:
        """Distance of a column's panels from the left edge, in inches."""
        return MARGIN + column * (self.width + GAP)

    def text(self, left: float, top: float, text: str, **kwargs: Any) -> None:
        """Write a text that stands at a distance from the left and the upper edge, in inches."""
        kwargs = {"fontsize": FONT, "color": INK, "va": "baseline", **kwargs}
        self.figure.text(left / self.size[0], 1 - top / self.size[1], text, **kwargs)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes without ticks at a distance from the left and the upper edge, in inches."""
        total_width, total_height = self.size
        axes = self.figure.add_axes(
            (
                left / total_width,
                1 - (top + height) / total_height,
                width / total_width,
                height / total_height,
            )
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.4, color=FAINT_INK)
        return axes

    def panel(self, row: int, column: int, painted: np.ndarray, caption: str = "") -> Axes:
        """Show a painted map or picture, uint8 [any, any, 3], in pixels of the picture."""
        axes = self.axes(self.left(column), self.top(row), self.width, self.height)
        height, width = self.image_size
        # Cells of a map stand where the model's resizing puts them.
        rise, run = (
            (n - 1) / max(1, m - 1) for n, m in zip(self.image_size, painted.shape[:2], strict=True)
        )
        extent = (-run / 2, width - 1 + run / 2, height - 1 + rise / 2, -rise / 2)
        axes.imshow(painted, extent=extent, interpolation="nearest")
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), anchor="NW")
        below = self.top(row) + self.height + 0.75 * LINE
        self.text(self.left(column), below, caption, fontsize=SMALL_FONT, color=FAINT_INK)
        return axes

    def heading(self, column: int, text: str) -> None:
        """Write above the panels of a column."""
        self.text(self.left(column), 2.6 * LINE, text, color=FAINT_INK)

    def row_title(self, row: int, text: str) -> None:
        """Write above the panels of a row."""
        self.text(MARGIN, self.top(row) - 0.35 * LINE, text, fontweight="bold")

    def notes(self, top: float, *paragraphs: str) -> None:
        """Write paragraphs into the column of legends."""
        characters = int(LEGEND_WIDTH * 72 / (0.52 * SMALL_FONT))
        text = "\n\n".join("\n".join(textwrap.wrap(x, characters)) for x in paragraphs)
        self.text(self.legend_left, top, text, fontsize=SMALL_FONT, va="top", linespacing=1.35)


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
    """Return a picture in dark grey, for coloured arrows over it."""
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    return np.repeat((12 + 0.4 * grey).round().astype(np.uint8)[..., None], 3, -1)


def _length(field: np.ndarray) -> np.ndarray:
    return np.hypot(field[..., 0], field[..., 1])


def _round_factor(value: float) -> float:
    """Return the largest of ..., 0.7, 1, 1.5, 2, 3, 5, 7, 10, ... that is not above a value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(m * power for m in (1, 1.5, 2, 3, 5, 7) if m * power <= value))


def draw_offsets(trace: AlignmentTrace) -> Figure:
    """Draw the offset fields of the AlignFA steps: painted, and as arrows over the picture.

    Hue is the direction from a cell to where it is read, brightness the distance. The wheel of
    colours has a scale in pixels of the picture for the coarse maps and one for the fine ones,
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
    title = "Offsets of aligned feature aggregation (AlignFA)"
    sheet = _Sheet(len(trace.steps), 2 * len(maps), trace.image, title)
    spacing = ARROW_SPACING * sheet.pixels_per_inch
    limits, factors = {}, {}
    for place, name in enumerate(maps):
        sheet.heading(2 * place, f"offsets of the {name} map")
        sheet.heading(2 * place + 1, f"where the {name} map is read")
        lengths = np.concatenate([_length(step.offsets[name]).ravel() for step in trace.steps])
        limit = float(np.percentile(lengths, 99)) or float(lengths.max()) or 1.0
        limits[name], factors[name] = limit, _round_factor(2.3 * spacing / limit)
        for row, step in enumerate(trace.steps):
            field = step.offsets[name]
            length = _length(field)
            caption = f"mean {_pixels(length.mean())}, longest {_pixels(length.max())}"
            sheet.panel(row, 2 * place, visualization.offset_field(field, limit), caption)
            axes = sheet.panel(row, 2 * place + 1, _dimmed(trace.image))
            _draw_arrows(axes, field, trace.image.shape[:2], spacing, factors[name])
    for row, step in enumerate(trace.steps):
        sheet.row_title(row, _step_title(row + 1, step.name))
    scales = " and ".join(f"{factors[name]:g}x ({name})" for name in maps)
    sheet.notes(
        _draw_wheel(sheet, limits),
        "Each cell takes its feature from another place: hue is the direction to it, brightness "
        "the distance in pixels of the picture, full at the 99th percentile of the four steps.",
        f"Arrows point from a cell to that place; they are drawn {scales} as long.",
    )
    return sheet.figure


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


def _draw_wheel(sheet: _Sheet, limits: Mapping[str, float]) -> float:
    """Draw the colours of `visualization.offset_field`, and scales from the centre to the rim.

    Returns:
        Where there is room below it, in inches from the upper edge.
    """
    top, left = sheet.legend_top, sheet.legend_left + (LEGEND_WIDTH - WHEEL) / 2
    axes = sheet.axes(left, top, WHEEL, WHEEL)
    axes.imshow(visualization.offset_legend(1.0, 401)[:401])
    axes.spines[:].set_visible(False)
    bottom = top + WHEEL + 0.08
    for name, limit in limits.items():
        axes = sheet.axes(left + WHEEL / 2, bottom, WHEEL / 2, 0.06)
        axes.spines[["top"]].set_visible(False)
        beside = {"fontsize": SMALL_FONT, "va": "top"}
        sheet.text(left + WHEEL / 2 - 0.05, bottom - 0.02, f"{name} 0", ha="right", **beside)
        sheet.text(left + WHEEL + 0.05, bottom - 0.02, _pixels(limit), **beside)
        bottom += LINE
    return bottom + 0.5 * LINE


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
    title = "Context chosen by aligned context modeling (AlignCM)"
    sheet = _Sheet(
        1, 3, trace.image, title, area=5.5, row_titles=False, captions=False, picture=False
    )
    grey = np.asarray(Image.fromarray(trace.image).convert("L"), np.float32)[..., None]
    for column, cells in enumerate((chosen, regular)):
        colors = np.array([*CELL_COLORS, (0, 0, 0)], np.uint8)[cells]  # OUTSIDE is the last
        painted = np.round(0.45 * grey + 0.55 * _enlarged(colors, size)).astype(np.uint8)
        sheet.panel(0, column, painted)
    axes = sheet.panel(0, 2, np.full((1, 1, 3), 40, np.uint8))
    _draw_positions(axes, trace.context)
    axes.set_aspect(sheet.aspect)
    sheet.heading(0, "cell of the context that is read")
    sheet.heading(1, "regular cell, without offsets")
    sheet.heading(2, "from regular cell to what is read")
    axes = sheet.axes(sheet.legend_left, sheet.legend_top, KEY, KEY)
    _draw_cells(axes)
    axes.set(xlim=(-0.5, CONTEXT_BINS - 0.5), ylim=(CONTEXT_BINS - 0.5, -0.5))
    for cell in range(CONTEXT_BINS**2):
        row, column = divmod(cell, CONTEXT_BINS)
        share = f"{100 * (chosen == cell).mean():.0f} %"
        axes.text(column, row, share, ha="center", va="center", fontsize=FONT, color=INK)
    sheet.notes(
        sheet.legend_top + KEY + 0.6 * LINE,
        "The 3x3 cells as they lie over the picture, and the share of the pixels that read each. "
        f"{100 * (chosen != regular).mean():.0f} % read another cell than their own, "
        f"{100 * (chosen == OUTSIDE).mean():.0f} % outside of the map (black: zeros).",
    )
    return sheet.figure


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
    """Give each pixel of a picture the colour of the nearest cell of a map."""
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
    title = "Feature maps before and after alignment"
    sheet = _Sheet(len(trace.steps), len(headings), trace.image, title, area=3.4, captions=False)
    for row, step in enumerate(trace.steps):
        sheet.row_title(row, _step_title(row + 1, step.name))
        groups = [
            [step.before[name]] + [step.after[name]] * (name in moved)
            for name in ("coarse", "fine")
        ]
        groups.append([step.unaligned, step.aligned])
        for column, painted in enumerate(_principal_colors(groups)):
            sheet.panel(row, column, painted)
    for column, heading in enumerate(headings):
        sheet.heading(column, heading)
    sheet.notes(
        sheet.legend_top,
        "Red, green and blue are the first three principal components of the maps of a row. A map "
        "before and after has one origin and scale: equal colours are equal features.",
        "The coarse map is shown resized to the fine one's size, as it is moved.",
    )
    return sheet.figure


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


def write_alignment_figures(
    model: AlignSeg, image: np.ndarray, folder: str | Path, stem: str
) -> list[Path]:
    """Write what `draw_offsets`, `draw_context` and `draw_features` make of a picture.

    Args:
        model: an `AlignSeg`.
        image: RGB 0..255 [h, w, 3], any dtype, both sides at least 32.
        folder: where the figures go; made where it is missing.
        stem: what their names begin with.

    Returns:
        `STEM_offsets.png` and `STEM_features.png`, unless the aggregation is `bilinear`, and
        `STEM_context.png` where the context is `align`.

    Raises:
        ValueError: the model aligns nothing, or the array is no such picture.
    """
    if model.aggregation == "bilinear" and model.context != "align":
        raise ValueError(
            "Expected a model that aligns: its aggregation is not bilinear, or its context is "
            f"align. Received: aggregation={model.aggregation!r}, context={model.context!r}"
        )
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
        with atomic_path(paths[-1]) as temporary:
            figure.savefig(temporary)
    return paths
