"""What an ablation found, as tables and a plot.

A cell is trained with several seeds and evaluated on the same pictures. A figure of a cell is the
mean over its seeds; an interval is a bootstrap over both, the pictures and the seeds.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.comparison import points
from alignseg_tf.evaluation_report import RESAMPLES, SEED, Interval, interval, percent
from alignseg_tf.files import atomic_path
from alignseg_tf.scores import BOUNDARY_DISTANCES

# The distances, in pixels, of the boundary F-scores that are shown.
SHOWN_DISTANCES = (1, 2, 3)
# What is compared with what: the question, the cell with, the cell without.
QUESTIONS = (
    ("AlignFA, no context", "align-none", "bilinear-none"),
    ("AlignFA, pooled context", "align-global", "bilinear-global"),
    ("AlignFA, AlignCM", "align-align", "bilinear-align"),
    ("AlignCM, no AlignFA", "bilinear-align", "bilinear-none"),
    ("AlignCM, AlignFA", "align-align", "align-none"),
    ("AlignCM against pooled context, AlignFA", "align-align", "align-global"),
    ("both", "align-align", "bilinear-none"),
    ("the coarse offset alone", "align_coarse-align", "bilinear-align"),
    ("the fine offset alone", "align_fine-align", "bilinear-align"),
)

Results = Mapping[str, Sequence[Mapping[str, Any]]]


class CellScores:
    """The scores of a cell over its seeds, and those of bootstrap samples.

    Sample s takes the same pictures for every cell, and draws seeds for each by itself.

    Args:
        results: of the cell, one a seed.
        salt: another one for each cell.

    Attributes:
        seeds: {score: values [K, ...]} of each of the K seeds.
        mean: {score: values [...]}, their means.
        samples: {score: values [S, ...]}.
        pictures: number of pictures.
    """

    def __init__(self, results: Sequence[Mapping[str, Any]], salt: int):
        reports = [result["report"] for result in results]
        names = ("mean_iou", "iou", "mean_boundary_f")
        self.pictures = reports[0].pictures
        self.seeds = {
            name: np.array([getattr(report, name) for report in reports]) for name in names
        }
        self.mean = {name: values.mean(0) for name, values in self.seeds.items()}
        count = len(reports)
        drawn = np.random.default_rng((SEED, salt)).multinomial(
            count, np.full(count, 1 / count), RESAMPLES
        )
        # Seeds drawn from so few vary less than seeds do, by (count - 1) / count in variance.
        shares = 1 / count + (drawn / count - 1 / count) * (count / max(1, count - 1)) ** 0.5
        self.samples = {}
        for name in names:
            resampled = np.array([getattr(report.resampled, name) for report in reports])
            weights = shares.T.reshape(*shares.T.shape, *[1] * (resampled.ndim - 2))
            self.samples[name] = (resampled * weights).sum(0)


def _scores(results: Results) -> dict[str, CellScores]:
    return {name: CellScores(of_cell, salt) for salt, (name, of_cell) in enumerate(results.items())}


def difference(first: CellScores, second: CellScores, name: str) -> tuple[np.ndarray, Interval]:
    """Return by how much the first is ahead, and a 95 % interval of it."""
    samples = first.samples[name] - second.samples[name]
    return first.mean[name] - second.mean[name], interval(samples, first.pictures)


def ablation_tables(results: Results) -> str:
    """Return the Markdown tables: the cells, the differences, the classes."""
    scores = _scores(results)
    parts = [_cells(results, scores), _questions(scores), _classes(results, scores)]
    return "\n".join(parts)


def _places() -> list[int]:
    return [BOUNDARY_DISTANCES.index(distance) for distance in SHOWN_DISTANCES]


def step_seconds(results: Results) -> tuple[str, dict[str, float]]:
    """Return a machine, and the median seconds of a step there of each cell that ran on it.

    It is the one on which most cells ran: seconds of different machines do not compare.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, of_cell in results.items():
        for result in of_cell:
            there = result["machine"]
            devices = [*there["gpus"], f"{there['cores']} cores of {there['cpu']}"]
            found.setdefault(devices[0], {}).setdefault(name, []).append(result["step_seconds"])
    machine = max(found, key=lambda one: len(found[one]))
    return machine, {name: float(np.median(taken)) for name, taken in found[machine].items()}


def _cells(results: Results, scores: Mapping[str, CellScores]) -> str:
    machine, seconds = step_seconds(results)
    distances = " | ".join(f"{distance} px" for distance in SHOWN_DISTANCES)
    rows = [
        "| aggregation | context | seeds | mean IoU, % | of each seed | boundary F, % at "
        f"{distances} | parameters, M | multiply-adds, G | s a step, {machine} |",
        "|---" * (8 + len(SHOWN_DISTANCES)) + "|",
    ]
    for name, of_cell in results.items():
        one = scores[name]
        aggregation, context = name.rsplit("-", 1)
        each = ", ".join(percent(x) for x in one.seeds["mean_iou"])
        boundary = " | ".join(percent(one.mean["mean_boundary_f"][i]) for i in _places())
        step = f"{seconds[name]:.2f}" if name in seconds else ""
        rows.append(
            f"| `{aggregation}` | `{context}` | {len(of_cell)} | {percent(one.mean['mean_iou'])} | "
            f"{each} | {boundary} | {of_cell[0]['parameters'] / 1e6:.2f} | "
            f"{of_cell[0]['macs'] / 1e9:.2f} | {step} |"
        )
    return "\n".join(rows) + "\n"


def _questions(scores: Mapping[str, CellScores]) -> str:
    distances = " | ".join(f"boundary F, {distance} px" for distance in SHOWN_DISTANCES)
    rows = [
        f"| what is added | mean IoU | {distances} |",
        "|---" * (2 + len(SHOWN_DISTANCES)) + "|",
    ]
    for question, first, second in QUESTIONS:
        if first not in scores or second not in scores:
            continue
        cells = [_difference(scores[first], scores[second], "mean_iou", ())]
        cells += [
            _difference(scores[first], scores[second], "mean_boundary_f", (i,)) for i in _places()
        ]
        rows.append(f"| {question} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _difference(first: CellScores, second: CellScores, name: str, place: tuple[int, ...]) -> str:
    value, bounds = difference(first, second, name)
    low, high = np.asarray(bounds.low)[place], np.asarray(bounds.high)[place]
    star = "*" if low > 0 or high < 0 else ""
    return f"{points(np.asarray(value)[place])}{star} ({points(low)} to {points(high)})"


def _classes(results: Results, scores: Mapping[str, CellScores]) -> str:
    names = list(results)
    rows = [f"| class | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    bounds = {name: interval(one.samples["iou"], one.pictures) for name, one in scores.items()}
    for place, of_class in enumerate(next(iter(results.values()))[0]["classes"]):
        cells = [
            f"{percent(scores[name].mean['iou'][place])} "
            f"({percent(bounds[name].low[place])} to {percent(bounds[name].high[place])})"
            for name in names
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
    writer.writerow([*fixed, *boundary, *classes])
    for name, of_cell in results.items():
        for result in of_cell:
            report = result["report"]
            shares = [report.mean_iou, *report.mean_boundary_f, *report.iou]
            writer.writerow(
                [name, result["recipe"]["seed"], result["parameters"], result["macs"],
                 f"{result['step_seconds']:.3f}", *(f"{share:.6f}" for share in shares)]
            )  # fmt: skip
    return text.getvalue()


def draw_ablation(results: Results, path: Path) -> None:
    """Draw the mean IoU and the boundary F-score at 1 px: a dot a seed, a line their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = _scores(results)
    figure = Figure(figsize=(10, 1.2 + 0.42 * len(scores)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    nearest = BOUNDARY_DISTANCES.index(1)
    for row, one in enumerate(scores.values()):
        for axes, values in (
            (left, one.seeds["mean_iou"]),
            (right, one.seeds["mean_boundary_f"][:, nearest]),
        ):
            axes.plot(100 * values, np.full(len(values), row), "o", color=f"C{row}", alpha=0.6)
            mean = 100 * values.mean()
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=f"C{row}", linewidth=2.5)
    for axes, title in ((left, "mean IoU, %"), (right, "boundary F-score at 1 px, %")):
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(scores)), [name.replace("-", ", ") for name in scores])
    left.invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
