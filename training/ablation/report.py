"""What an ablation found, as tables and a plot.

A cell is trained with several seeds and evaluated on the same images. A figure of a cell is the
mean over its seeds, a difference that over the seeds that both cells have.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.data.label_space import class_columns
from alignseg_tf.evaluation.bootstrap import LEVEL
from alignseg_tf.evaluation.comparison import points
from alignseg_tf.evaluation.counts import BOUNDARY_DISTANCES
from alignseg_tf.evaluation.report import Report, percent
from alignseg_tf.system.printable import csv_cell

# The distances, in pixels, of the boundary F-scores that are shown.
SHOWN_DISTANCES = (1, 2, 3)
# What is compared with what: the question, the cell with, the cell without.
QUESTIONS = (
    ("AlignFA, no context", "align-none", "bilinear-none"),
    ("AlignFA, pooled context", "align-global", "bilinear-global"),
    ("AlignFA, AlignCM", "align-align", "bilinear-align"),
    ("pooled context, no AlignFA", "bilinear-global", "bilinear-none"),
    ("pooled context, AlignFA", "align-global", "align-none"),
    ("AlignCM, no AlignFA", "bilinear-align", "bilinear-none"),
    ("AlignCM, AlignFA", "align-align", "align-none"),
    ("AlignCM against pooled context, no AlignFA", "bilinear-align", "bilinear-global"),
    ("AlignCM against pooled context, AlignFA", "align-align", "align-global"),
    ("both", "align-align", "bilinear-none"),
    ("the coarse offset alone", "align_coarse-align", "bilinear-align"),
    ("the fine offset alone", "align_fine-align", "bilinear-align"),
)

Results = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Estimate:
    """A figure and a 95 % interval of it; bounds are NaN where no two seeds tell how they differ.

    Attributes:
        value: the figure, a number or an array.
        low: lower bound, likewise.
        high: upper bound, likewise.
        seeds: over how many seeds it is a mean.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


class GridScores:
    """Figures of the cells of an ablation and of their differences.

    An interval covers two things: another choice of images, whose variance is that of a
    bootstrap with the same samples for all cells, and other seeds, whose variance is taken to be
    the same in all cells and is estimated from all of them. It is a t interval with the degrees of
    freedom of the latter. A seed decides the batches of all cells alike, so what it adds to all of
    them is no part of how their differences vary (a randomized block design).

    Args:
        results: of each cell, one a seed.
    """

    def __init__(self, results: Results):
        self.reports: dict[str, dict[int, Report]] = {
            name: {result["recipe"]["seed"]: result["report"] for result in of_cell}
            for name, of_cell in results.items()
        }

    def values(self, cell: str, score: str) -> np.ndarray:
        """Return a score of a `Report` for each seed of a cell, [K, ...]."""
        return np.array([getattr(report, score) for report in self.reports[cell].values()])

    def of_cell(self, cell: str, score: str) -> Estimate:
        """Return the mean of a score over the seeds of a cell."""
        samples = [getattr(report.resampled, score) for report in self.reports[cell].values()]
        return self._estimate(self.values(cell, score), np.array(samples), score, 1)

    def difference(self, first: str, second: str, score: str) -> Estimate | None:
        """Return by how much the first cell is ahead, over the seeds that both have.

        None where they have none in common.
        """
        a, b = self.reports[first], self.reports[second]
        both = [(a[seed], b[seed]) for seed in a if seed in b]
        if not both:
            return None
        values = [np.asarray(getattr(x, score)) - getattr(y, score) for x, y in both]
        samples = [getattr(x.resampled, score) - getattr(y.resampled, score) for x, y in both]
        return self._estimate(np.array(values), np.array(samples), score, 2)

    def _estimate(
        self, values: np.ndarray, samples: np.ndarray, score: str, cells: int
    ) -> Estimate:
        """Return the mean of values [K, ...] with samples [K, S, ...] over so many cells."""
        seed_variance, freedom = self._seed_variance(score, cells)
        mean, seeds = values.mean(0), len(values)
        if not freedom:
            return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan), seeds)
        variance = (
            np.ma.filled(np.ma.masked_invalid(samples.mean(0)).var(0), np.nan)
            + cells * seed_variance / seeds
        )
        reach = t_quantile((1 + LEVEL) / 2, freedom) * np.sqrt(variance)
        return Estimate(mean, mean - reach, mean + reach, seeds)

    def _seed_variance(self, score: str, cells: int) -> tuple[np.ndarray, int]:
        """Return the variance of a score over seeds, [...], and its degrees of freedom.

        Args:
            score: of a `Report`.
            cells: 1 for the variance of a cell, 2 for what is left of it between cells of the same
                seeds.
        """
        runs = [(name, seed) for name, of_cell in self.reports.items() for seed in of_cell]
        values = np.array([getattr(self.reports[name][seed], score) for name, seed in runs])
        effects = [[name == other for name, _ in runs] for other in self.reports]
        if cells == 2:
            effects += [[seed == other for _, seed in runs] for other in {x for _, x in runs}]
        design = np.array(effects, np.float64).T
        flat = values.reshape(len(runs), -1)
        squares = ((flat - design @ (np.linalg.pinv(design) @ flat)) ** 2).sum(0)
        freedom = len(runs) - int(np.linalg.matrix_rank(design))
        return squares.reshape(values.shape[1:]) / max(1, freedom), freedom


def t_quantile(share: float, freedom: int) -> float:
    """Return the value below which a share of Student's t distribution lies.

    Under t = sqrt(freedom) tan(a) the density of a is proportional to cos(a) ** (freedom - 1).
    """
    angles = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.cumsum(density) - density / 2
    angle = np.interp(share, below / density.sum(), angles)
    return float(freedom**0.5 * np.tan(angle))


def ablation_tables(results: Results) -> str:
    """Return the Markdown tables: the cells, the differences, the classes."""
    scores = GridScores(results)
    parts = [_cells(results, scores), _questions(scores), _classes(results, scores)]
    return "\n".join(parts)


def _places() -> list[int]:
    return [BOUNDARY_DISTANCES.index(distance) for distance in SHOWN_DISTANCES]


def step_seconds(result: Mapping[str, Any]) -> float:
    """Return the seconds of a step of a run, in its fastest epoch: other work only adds to them.

    Epochs with a validation are left out if there are others.
    """
    head, *epochs = (row.split(",") for row in result["metrics"])
    place, validated = head.index("seconds"), head.index("val_mean_iou")
    seconds = [float(row[place]) for row in epochs if not row[validated]] or [
        float(row[place]) for row in epochs
    ]
    steps = result["data"]["training_samples"] // result["recipe"]["batch_size"]
    return min(seconds) / steps


def cell_seconds(results: Results) -> tuple[str, dict[str, float]]:
    """Return a machine, and the least seconds of a step there of each cell that ran on it.

    It is the one on which most cells ran: seconds of different machines do not compare.
    """
    found: dict[tuple[str, str | None], dict[str, list[float]]] = {}
    for name, of_cell in results.items():
        for result in of_cell:
            there = result["machine"]
            devices = [*there["gpus"], f"{there['cores']} cores of {there['cpu']}"]
            machine = devices[0], there.get("cpu_model")
            found.setdefault(machine, {}).setdefault(name, []).append(step_seconds(result))
    most = max(found, key=lambda one: len(found[one]))
    return most[0], {name: min(taken) for name, taken in found[most].items()}


def _cells(results: Results, scores: GridScores) -> str:
    machine, seconds = cell_seconds(results)
    distances = " | ".join(f"{distance} px" for distance in SHOWN_DISTANCES)
    rows = [
        "| aggregation | context | seeds | mean IoU, % | of each seed | boundary F, % at "
        f"{distances} | parameters, M | multiply-adds, G | s a step, {machine} |",
        "|---" * (8 + len(SHOWN_DISTANCES)) + "|",
    ]
    for name, of_cell in results.items():
        mean, boundary_f = (scores.values(name, x).mean(0) for x in ("mean_iou", "mean_boundary_f"))
        aggregation, context = name.rsplit("-", 1)
        each = ", ".join(percent(x) for x in scores.values(name, "mean_iou"))
        boundary = " | ".join(percent(boundary_f[i]) for i in _places())
        step = f"{seconds[name]:.2f}" if name in seconds else ""
        rows.append(
            f"| `{aggregation}` | `{context}` | {len(of_cell)} | {percent(mean)} | "
            f"{each} | {boundary} | {of_cell[0]['parameters'] / 1e6:.2f} | "
            f"{of_cell[0]['macs'] / 1e9:.2f} | {step} |"
        )
    return "\n".join(rows) + "\n"


def _questions(scores: GridScores) -> str:
    distances = " | ".join(f"boundary F, {distance} px" for distance in SHOWN_DISTANCES)
    rows = [
        f"| what is added | seeds | mean IoU | {distances} |",
        "|---" * (3 + len(SHOWN_DISTANCES)) + "|",
    ]
    for question, first, second in QUESTIONS:
        if first not in scores.reports or second not in scores.reports:
            continue
        mean = scores.difference(first, second, "mean_iou")
        boundary = scores.difference(first, second, "mean_boundary_f")
        if mean is None or boundary is None:
            continue
        cells = [_shown(mean, ()), *(_shown(boundary, (i,)) for i in _places())]
        rows.append(f"| {question} | {mean.seeds} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _shown(estimate: Estimate, place: tuple[int, ...]) -> str:
    """Return a difference with its interval, and a star where that leaves out zero."""
    value, low, high = (x[place] for x in (estimate.value, estimate.low, estimate.high))
    if np.isnan(low):
        return points(value)
    star = "*" if low > 0 or high < 0 else ""
    return f"{points(value)}{star} ({points(low)} to {points(high)})"


def _classes(results: Results, scores: GridScores) -> str:
    names = list(results)
    rows = [f"| class | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    estimates = [scores.of_cell(name, "iou") for name in names]
    for place, of_class in enumerate(next(iter(results.values()))[0]["classes"]):
        cells = [
            f"{percent(one.value[place])}"
            + (
                ""
                if np.isnan(one.low[place])
                else f" ({percent(one.low[place])} to {percent(one.high[place])})"
            )
            for one in estimates
        ]
        rows.append(f"| {of_class} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def ablation_csv(results: Results) -> str:
    """Return a row for each run, shares in 0..1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = next(iter(results.values()))[0]["classes"]
    boundary = [f"boundary_f_{distance}px" for distance in BOUNDARY_DISTANCES]
    fixed = ["cell", "seed", "parameters", "macs", "step_seconds", "mean_iou"]
    columns = [*fixed, *boundary]
    writer.writerow([*columns, *map(csv_cell, class_columns(classes, columns))])
    for name, of_cell in results.items():
        for result in of_cell:
            report = result["report"]
            shares = [report.mean_iou, *report.mean_boundary_f, *report.iou]
            writer.writerow(
                [name, result["recipe"]["seed"], result["parameters"], result["macs"],
                 f"{step_seconds(result):.3f}", *(f"{share:.6f}" for share in shares)]
            )  # fmt: skip
    return text.getvalue()


def draw_ablation(results: Results, path: Path) -> None:
    """Draw the mean IoU and the boundary F-score at 1 px: a dot a seed, a line their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = GridScores(results)
    figure = Figure(figsize=(10, 1.2 + 0.42 * len(results)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    nearest = BOUNDARY_DISTANCES.index(1)
    for row, name in enumerate(results):
        for axes, values in (
            (left, scores.values(name, "mean_iou")),
            (right, scores.values(name, "mean_boundary_f")[:, nearest]),
        ):
            axes.plot(100 * values, np.full(len(values), row), "o", color=f"C{row}", alpha=0.6)
            mean = 100 * values.mean()
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=f"C{row}", linewidth=2.5)
    for axes, title in ((left, "mean IoU, %"), (right, "boundary F-score at 1 px, %")):
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(results)), [name.replace("-", ", ") for name in results])
    left.invert_yaxis()
    figure.savefig(path)
