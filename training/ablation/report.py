"""The results of an ablation as tables and a plot.

All runs are evaluated on the same images. The figure of a cell is the mean over its seeds, a
difference the mean over the seeds that both cells have.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from alignseg_tf.data.label_space import class_columns
from alignseg_tf.evaluation.bootstrap import LEVEL
from alignseg_tf.evaluation.comparison import points
from alignseg_tf.evaluation.counts import BOUNDARY_DISTANCES
from alignseg_tf.evaluation.report import Report, percent
from alignseg_tf.system.tables import csv_text, markdown_table

# Distances of the boundary F-scores in the tables, in pixels.
SHOWN_DISTANCES = (1, 3)
PLACES = [BOUNDARY_DISTANCES.index(distance) for distance in SHOWN_DISTANCES]
# What is added, the cell with it, the cell without it.
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
    ("AlignFA and AlignCM, against neither", "align-align", "bilinear-none"),
    ("the coarse offset only", "align_coarse-align", "bilinear-align"),
    ("the fine offset only", "align_fine-align", "bilinear-align"),
)

Results = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the bounds of its 95 % interval; NaN without two seeds of any cell."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


class GridScores:
    """Scores of the cells of an ablation and their differences, with intervals.

    The variance of an estimate has two parts. That of other images comes from a bootstrap with the
    same samples for all cells. That of other seeds is assumed equal in all cells and estimated from
    all of them; its degrees of freedom are those of the t interval. A seed gives all cells the same
    batches, so its common effect does not count for differences (a randomized block design).
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
        """Return by how much the first cell leads, or None without a common seed."""
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
        """Return the mean of values [K, ...] that have bootstrap samples [K, S, ...]."""
        seed_variance, freedom = self._seed_variance(score, cells)
        mean, seeds = values.mean(0), len(values)
        image_variance = np.ma.filled(np.ma.masked_invalid(samples.mean(0)).var(0), np.nan)
        deviation = np.sqrt(image_variance + cells * seed_variance / seeds)
        reach = deviation * (stats.t.ppf((1 + LEVEL) / 2, freedom) if freedom else np.nan)
        return Estimate(mean, mean - reach, mean + reach, seeds)

    def _seed_variance(self, score: str, cells: int) -> tuple[np.ndarray, int]:
        """Return the variance of a score over seeds, [...], and its degrees of freedom.

        For two cells it leaves out what a seed adds to all cells.
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


def step_seconds(result: Mapping[str, Any]) -> float:
    """Return the seconds of a step in the fastest epoch of a run: other work only adds to them.

    Epochs with a validation count only if there are no others.
    """
    epochs = list(csv.DictReader(result["metrics"]))
    plain = [epoch for epoch in epochs if not epoch["val_mean_iou"]] or epochs
    steps = result["data"]["training_samples"] // result["recipe"]["batch_size"]
    return min(float(epoch["seconds"]) for epoch in plain) / steps


def cell_seconds(results: Results) -> tuple[str, dict[str, float]]:
    """Return the machine on which most cells ran, and the least seconds of a step of each there."""
    found: dict[tuple[str, str | None], dict[str, float]] = {}
    for name, of_cell in results.items():
        for result in of_cell:
            there = result["machine"]
            devices = [*there["gpus"], f"{there['cores']} cores of {there['cpu']}"]
            cells = found.setdefault((devices[0], there.get("cpu_model")), {})
            cells[name] = min(step_seconds(result), cells.get(name, np.inf))
    (machine, _), seconds = max(found.items(), key=lambda one: len(one[1]))
    return machine, seconds


def ablation_tables(results: Results) -> str:
    """Return Markdown tables: the cells, the differences, the IoU of the classes."""
    scores = GridScores(results)
    names = list(results)
    iou = [scores.of_cell(name, "iou").value for name in names]
    classes = next(iter(results.values()))[0]["classes"]
    rows = [(name, *map(percent, of_class)) for name, *of_class in zip(classes, *iou, strict=True)]
    per_class = "IoU per class, %, mean over seeds:\n\n" + markdown_table(("class", *names), rows)
    tables = [_cells(results, scores), _questions(scores), per_class]
    return "\n\n".join(tables) + "\n"


def _cells(results: Results, scores: GridScores) -> str:
    machine, seconds = cell_seconds(results)
    first, *others = (f"{distance} px" for distance in SHOWN_DISTANCES)
    head = (
        "aggregation", "context", "seeds", "mean IoU, %", "of each seed",
        f"boundary F, % at {first}", *others, "parameters, M", "multiply-adds, G",
        f"s a step, {machine}",
    )  # fmt: skip
    rows = []
    for name, of_cell in results.items():
        mean_iou = scores.values(name, "mean_iou")
        boundary = scores.values(name, "mean_boundary_f").mean(0)
        rows.append((
            *(f"`{part}`" for part in name.rsplit("-", 1)), len(of_cell), percent(mean_iou.mean()),
            ", ".join(map(percent, mean_iou)), *(percent(boundary[i]) for i in PLACES),
            f"{of_cell[0]['parameters'] / 1e6:.2f}", f"{of_cell[0]['macs'] / 1e9:.2f}",
            f"{seconds[name]:.2f}" if name in seconds else "",
        ))  # fmt: skip
    return markdown_table(head, rows)


def _questions(scores: GridScores) -> str:
    distances = [f"boundary F, {distance} px" for distance in SHOWN_DISTANCES]
    rows = []
    for question, first, second in QUESTIONS:
        if not {first, second} <= scores.reports.keys():
            continue
        mean = scores.difference(first, second, "mean_iou")
        boundary = scores.difference(first, second, "mean_boundary_f")
        if mean and boundary:
            cells = [_shown(mean, ()), *(_shown(boundary, (i,)) for i in PLACES)]
            rows.append((question, mean.seeds, *cells))
    return markdown_table(("what is added", "seeds", "mean IoU", *distances), rows)


def _shown(estimate: Estimate, place: tuple[int, ...]) -> str:
    """Return a difference with its interval, and a star where that excludes zero."""
    value, low, high = (x[place] for x in (estimate.value, estimate.low, estimate.high))
    if np.isnan(low):
        return points(value)
    star = "*" if low > 0 or high < 0 else ""
    return f"{points(value)}{star} ({points(low)} to {points(high)})"


def ablation_csv(results: Results) -> str:
    """Return a row for each run, shares in 0..1."""
    classes = next(iter(results.values()))[0]["classes"]
    boundary = [f"boundary_f_{distance}px" for distance in BOUNDARY_DISTANCES]
    fixed = ["cell", "seed", "parameters", "macs", "step_seconds", "mean_iou", *boundary]
    rows: list[list[Any]] = [[*fixed, *class_columns(classes, fixed)]]
    for name, of_cell in results.items():
        for result in of_cell:
            report = result["report"]
            shares = np.array([report.mean_iou, *report.mean_boundary_f, *report.iou])
            rows.append([
                name, result["recipe"]["seed"], result["parameters"], result["macs"],
                round(step_seconds(result), 3), *shares.tolist(),
            ])  # fmt: skip
    return csv_text(rows)


def draw_ablation(results: Results, path: Path) -> None:
    """Draw the mean IoU and the boundary F-score at 1 px: a dot for a seed, a line for the mean."""
    scores = GridScores(results)
    figure = Figure(figsize=(10, 1.2 + 0.42 * len(results)), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    nearest = BOUNDARY_DISTANCES.index(1)
    for row, name in enumerate(results):
        for axes, values in (
            (left, 100 * scores.values(name, "mean_iou")),
            (right, 100 * scores.values(name, "mean_boundary_f")[:, nearest]),
        ):
            axes.plot(values, np.full(len(values), row), "o", color=f"C{row}", alpha=0.6)
            axes.vlines(values.mean(), row - 0.3, row + 0.3, color=f"C{row}", linewidth=2.5)
    for axes, title in ((left, "mean IoU, %"), (right, "boundary F-score at 1 px, %")):
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(results)), [name.replace("-", ", ") for name in results])
    left.invert_yaxis()
    figure.savefig(path)
