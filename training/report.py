"""The report of a finished run: `report.md`, `report.json`, `curves.png`.

It adds versions, machine, commit and a hash of the data to the numbers of the run folder.
"""

import csv
import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from alignseg_tf.data.listing import Sample
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.provenance import trained_on_validation
from alignseg_tf.evaluation.report import Report, percent
from alignseg_tf.system.environment import machine, versions
from alignseg_tf.system.files import Output, atomic_result, check_replaceable, write_files
from alignseg_tf.system.fingerprints import file_fingerprint
from alignseg_tf.system.fonts import names_in_figures
from alignseg_tf.system.progress import duration
from alignseg_tf.system.tables import markdown_table
from training.callbacks.logs import VALIDATION_METRIC

ROOT = Path(__file__).resolve().parents[1]
# Curves that can be told apart; of more classes those with the lowest final IoU are drawn.
MOST_CURVES = 20

HASH = (
    "SHA-256 over a line an image, in order: name, size and SHA-256 of the image's file, then "
    "of its label's; names are relative to the data's folder"
)


def data_hash(samples: Sequence[Sample], root: Path) -> str:
    """Return one hash of the names and bytes of a data set's files, as `HASH` says.

    Files outside `root` have no folder in their names, so a folder that was moved keeps its hash.
    """
    files = [path for sample in samples for path in (sample.image, sample.label)]
    cells = [
        f"{x.relative_to(root).as_posix() if x.is_relative_to(root) else x.name}\t"
        f"{x.stat().st_size}\t{fingerprint}"
        for x, fingerprint in zip(files, file_fingerprint.of(files), strict=True)
    ]
    lines = (f"{image}\t{label}\n" for image, label in zip(*[iter(cells)] * 2, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def describe_data(data: DataSource, **splits: Sequence[Sample]) -> dict[str, Any]:
    """Return the path of the data, and the number of images and the hash of each split."""
    root = data.root.parent if data.root.is_file() else data.root
    return {
        "path": shown_path(data.root),
        "hash": HASH,
        "splits": {
            name: {"images": len(samples), "sha256": data_hash(samples, root)}
            for name, samples in splits.items()
        },
    }


def shown_path(path: Path) -> str:
    """Return a path with `~` for the user's home."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def code() -> dict[str, Any] | None:
    """Return the commit of this clone and whether it has changes; None without clone or `git`."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", "-C", str(ROOT), *arguments], stderr=subprocess.DEVNULL, text=True
        ).strip()

    try:
        # Another repository may contain the installed package.
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table of numbers, float64 [rows]; an empty cell is NaN."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


REPORT_FILES = ("report.json", "report.md", "curves.png")
REPORT = Output("training.train", lambda folder: (folder / "run.json").is_file(), REPORT_FILES)


def draw_curves(folder: Path) -> str | None:
    """Draw `curves.png`: loss, mean IoU, IoU of each class; return the reason if that fails."""
    iou = read_columns(folder / "iou.csv")
    try:
        with names_in_figures(iou), atomic_result(folder, REPORT, "curves.png") as temporary:
            _curves(read_columns(folder / "metrics.csv"), iou).savefig(temporary)
    except Exception as error:  # the report must be written anyway
        return f"drawing failed ({error})"
    return None


def _curves(columns: dict[str, np.ndarray], iou: dict[str, np.ndarray]) -> Figure:
    """Return the figure of `draw_curves`."""
    figure = Figure(figsize=(13, 6), dpi=110, layout="constrained")
    axes = figure.subplot_mosaic([["loss", "iou"], ["mean", "iou"]], width_ratios=(1, 1.35))
    for panel, column, label, scale in (
        ("loss", "loss", "training", 1),
        ("loss", "val_loss", "validation", 1),
        ("mean", "mean_iou", "training crops", 100),
        ("mean", VALIDATION_METRIC, "validation", 100),
    ):
        if column in columns:
            _draw_line(axes[panel], columns["epoch"], scale * columns[column], label)
    epochs = iou.pop("epoch", np.zeros(0))
    lowest = sorted(iou, key=lambda name: np.nan_to_num(iou[name][-1], nan=-1))[:MOST_CURVES]
    shown = [name for name in iou if name in lowest]
    for number, name in enumerate(shown):
        # A legend omits names that start with an underscore.
        label = f" {name}" if name.startswith("_") else name
        line = _draw_line(axes["iou"], epochs, 100 * iou[name], label)
        line.set(color=f"C{number % 10}", linestyle=("-", "--")[number // 10])
    some = "" if len(shown) == len(iou) else f", the {len(shown)} lowest of {len(iou)} classes"
    axes["iou"].set_title(f"validation{some}", fontsize="medium")
    axes["loss"].set(ylabel="loss")
    axes["mean"].set(ylabel="mean IoU in %", ylim=(0, 100))
    axes["iou"].set(ylabel="IoU in %", ylim=(0, 100))
    for each in axes.values():
        each.grid(alpha=0.3)
        each.set_xlabel("epoch")
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
    for name in ("loss", "mean"):
        axes[name].legend()
    if shown:
        axes["iou"].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    return figure


def _draw_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, label: str) -> Line2D:
    there = np.isfinite(values)
    marker = "o" if there.sum() <= 30 else ""
    return axes.plot(epochs[there] + 1, values[there], marker=marker, markersize=3, label=label)[0]


def write_report(folder: Path, data: dict[str, Any], evaluation: Report) -> None:
    """Write `report.json`, `report.md` and `curves.png` into a run folder.

    `data` is from `describe_data`; the evaluation is that of `best.keras`.
    """
    check_replaceable(folder, REPORT, REPORT_FILES)
    columns = read_columns(folder / "metrics.csv")
    validated = np.nan_to_num(columns[VALIDATION_METRIC], nan=-1.0)
    no_curves = draw_curves(folder)
    result = evaluation.to_dict()
    del result["confusion"]  # evaluation.json has it
    report = {
        "recipe": json.loads((folder / "run.json").read_text(encoding="utf-8")),
        "data": data,
        "training": {
            "epochs": len(validated),
            "best_epoch": int(columns["epoch"][validated.argmax()]) + 1,
            "seconds": round(float(columns["seconds"].sum()), 1),
        },
        "evaluation": result,
        "versions": versions(),
        "machine": machine(),
        "code": code(),
        "curves": "curves.png" if no_curves is None else None,
        "curves_missing_because": no_curves,
    }
    texts = {
        "report.json": json.dumps(report, indent=1),
        "report.md": _markdown(report, evaluation),
    }
    write_files(folder, REPORT, texts)


def _markdown(report: dict[str, Any], evaluation: Report) -> str:
    training, data, code_state = report["training"], report["data"], report["code"]
    shares = evaluation.confusion.sum(1) / max(1, evaluation.confusion.sum())
    classes = [
        (name, "absent" if np.isnan(iou) else percent(iou), percent(share))
        for name, iou, share in zip(evaluation.classes, evaluation.iou, shares, strict=True)
    ]
    commit = "not a clone"
    if code_state is not None:
        commit = code_state["commit"] + ", with changes" * code_state["changed"]
    curves = f"No curves: {report['curves_missing_because']}."
    if report["curves"]:
        curves = f"![Loss and IoU against epochs]({report['curves']})"
    trained_on = "**It was trained on these images**: the figures say nothing of new ones. "
    trained_on *= trained_on_validation(report["recipe"])
    hardware = report["machine"]
    where = {"code": commit} | report["versions"] | {
        "CPU": f"{hardware['cpu']}, {hardware['cores']} cores",
        "GPU": ", ".join(hardware["gpus"]) or "none",
        "system": hardware["system"],
    }  # fmt: skip
    splits = [(k, v["images"], f"`{v['sha256']}`") for k, v in data["splits"].items()]
    recipe = [(k, f"`{json.dumps(v)}`") for k, v in report["recipe"].items()]
    parts = [
        "# Report of a training run",
        f"Mean IoU **{percent(evaluation.mean_iou)} %**, pixel accuracy "
        f"{percent(evaluation.pixel_accuracy)} %, on {evaluation.images} validation images "
        f"by `best.keras`, the model after epoch {training['best_epoch']} of "
        f"{training['epochs']}. {trained_on}The epochs took {duration(training['seconds'])}.",
        curves,
        "## Classes",
        markdown_table(("class", "IoU %", "% of the labelled pixels"), classes),
        "## Data",
        f"`{data['path']}`",
        markdown_table(("split", "images", "SHA-256"), splits),
        f"The hash is {data['hash']}.",
        "## Recipe",
        markdown_table(("value", ""), recipe),
        "## Where it ran",
        markdown_table(("", ""), where.items()),
    ]
    return "\n\n".join(parts) + "\n"
