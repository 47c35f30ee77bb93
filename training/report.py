"""What a finished run was, for those who read it later: `report.md`, `report.json`, `curves.png`.

All numbers come from the run's folder; added are the versions, the machine, the commit of the
code, and a hash of the data.
"""

import csv
import hashlib
import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.data.listing import Sample
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.provenance import trained_on_validation
from alignseg_tf.evaluation.report import Report
from alignseg_tf.system.environment import machine, versions
from alignseg_tf.system.files import Output, atomic_result, check_replaceable, write_files
from alignseg_tf.system.fingerprints import file_fingerprint
from alignseg_tf.system.fonts import names_in_figures
from alignseg_tf.system.progress import duration
from training.callbacks.logs import VALIDATION_METRIC

ROOT = Path(__file__).resolve().parents[1]
# More curves than this cannot be told apart: those with the lowest IoU at the end are drawn.
MOST_CURVES = 20

HASH = (
    "SHA-256 over a line an image, in order: name, size and SHA-256 of the image's file, then "
    "of its label's; names are relative to the data's folder"
)


def data_hash(samples: Sequence[Sample], root: Path) -> str:
    """Return one hash of the names and of all bytes of a data set's files, as `HASH` says.

    The files are read in parallel: about as fast as the disk, and faster than decoding them.

    Args:
        samples: the files, in their order.
        root: names are relative to it where they are under it, and mere file names elsewhere, so
            that a folder that has moved has the same hash.
    """
    files = [path for sample in samples for path in (sample.image, sample.label)]

    def line(path: Path) -> str:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        return f"{name}\t{path.stat().st_size}\t{file_fingerprint(path)}"

    with ThreadPoolExecutor() as pool:
        lines = list(pool.map(line, files))
    pairs = zip(lines[::2], lines[1::2], strict=True)
    text = "".join(f"{image}\t{label}\n" for image, label in pairs)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_data(data: DataSource, **splits: Sequence[Sample]) -> dict[str, Any]:
    """Return where the data are, how many images each split has, and what they hash to.

    Args:
        data: the source; a path in the user's home is given from there.
        splits: the samples of each, by name.
    """
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
    """Return a path as it was given, but `~` for the user's home."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def code() -> dict[str, Any] | None:
    """Return the commit of the clone that this file is in, and whether it has changes.

    None where this is no clone, or `git` is absent.
    """

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        # The repository may be another one that merely contains the installed package.
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table of numbers, float64 [rows]; NaN where a place is empty."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


# In the folder of a run; those of before there was a record are known by the run.
REPORT_FILES = ("report.json", "report.md", "curves.png")
REPORT = Output("training.train", lambda folder: (folder / "run.json").is_file(), REPORT_FILES)


def draw_curves(folder: Path) -> str | None:
    """Draw loss, mean IoU and the IoU of each class against epochs, as `curves.png`.

    Args:
        folder: with `metrics.csv` and `iou.csv`.

    Returns:
        None, or why there is no image.
    """
    columns = read_columns(folder / "metrics.csv")
    iou = read_columns(folder / "iou.csv")
    try:
        with names_in_figures(iou), atomic_result(folder, REPORT, "curves.png") as temporary:
            _curves(columns, iou).savefig(temporary)
    except ImportError:
        return "matplotlib is not installed"
    except Exception as error:  # of many kinds; the report is written all the same
        return f"drawing failed ({error})"
    return None


def _curves(columns: dict[str, np.ndarray], iou: dict[str, np.ndarray]) -> Any:
    """Return the figure of `draw_curves`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.35))
    loss_axes = figure.add_subplot(grid[0, 0])
    mean_axes = figure.add_subplot(grid[1, 0], sharex=loss_axes)
    class_axes = figure.add_subplot(grid[:, 1], sharex=loss_axes)

    for axes, curves in (
        (loss_axes, (("loss", "training"), ("val_loss", "validation"))),
        (mean_axes, (("mean_iou", "training crops"), (VALIDATION_METRIC, "validation"))),
    ):
        for column, label in curves:
            if column in columns:
                scale = 1 if axes is loss_axes else 100
                _draw_line(axes, columns["epoch"], scale * columns[column], label)
        axes.legend()
    loss_axes.set_ylabel("loss")
    mean_axes.set(xlabel="epoch", ylabel="mean IoU in %", ylim=(0, 100))

    epochs = iou.pop("epoch", np.zeros(0))
    lowest = sorted(iou, key=lambda name: np.nan_to_num(iou[name][-1], nan=-1))[:MOST_CURVES]
    shown = [name for name in iou if name in lowest]
    styles = ("-", "--", ":", "-.")
    for number, name in enumerate(shown):
        # A legend leaves out what starts with an underscore.
        label = f" {name}" if name.startswith("_") else name
        line = _draw_line(class_axes, epochs, 100 * iou[name], label)
        line.set(color=f"C{number % 10}", linestyle=styles[number // 10 % len(styles)])
    few = "" if len(shown) == len(iou) else f", the {len(shown)} of {len(iou)} classes lowest in it"
    class_axes.set(xlabel="epoch", ylabel="IoU in %", ylim=(0, 100))
    class_axes.set_title(f"validation{few}", fontsize="medium")
    if shown:
        class_axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_line(axes: Any, epochs: np.ndarray, values: np.ndarray, label: str) -> Any:
    there = np.isfinite(values)
    marker = "o" if there.sum() <= 30 else ""
    return axes.plot(epochs[there] + 1, values[there], marker=marker, markersize=3, label=label)[0]


def write_report(folder: Path, data: dict[str, Any], evaluation: Report) -> None:
    """Write `report.json`, `report.md` and, where matplotlib is installed, `curves.png`.

    Args:
        folder: the run's, with `run.json`, `metrics.csv` and `iou.csv`.
        data: from `describe_data`.
        evaluation: of `best.keras`.
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
    write_files(folder, REPORT, texts, overwrite=True)  # all were checked above


def _markdown(report: dict[str, Any], evaluation: Report) -> str:
    training, data, code_state = report["training"], report["data"], report["code"]
    pixels = evaluation.confusion.sum(1) / max(1, evaluation.confusion.sum())
    classes = [
        (name, "absent" if np.isnan(iou) else f"{100 * iou:.2f}", f"{100 * share:.2f}")
        for name, iou, share in zip(evaluation.classes, evaluation.iou, pixels, strict=True)
    ]
    if code_state is None:
        commit = "not a clone"
    else:
        commit = code_state["commit"] + (", with changes" if code_state["changed"] else "")
    curves = (
        f"![Loss and IoU against epochs]({report['curves']})"
        if report["curves"]
        else f"No curves: {report['curves_missing_because']}."
    )
    hardware = report["machine"]
    trained_on = ""
    if trained_on_validation(report["recipe"]):
        trained_on = "**It was trained on these images**: the figures say nothing of new ones. "
    parts = [
        "# Report of a training run",
        f"Mean IoU **{100 * evaluation.mean_iou:.2f} %**, pixel accuracy "
        f"{100 * evaluation.pixel_accuracy:.2f} %, on {evaluation.images} validation images "
        f"by `best.keras`, the model after epoch {training['best_epoch']} of "
        f"{training['epochs']}. {trained_on}The epochs took {duration(training['seconds'])}.",
        curves,
        "## Classes",
        _table(("class", "IoU %", "% of the labelled pixels"), classes),
        "## Data",
        f"`{data['path']}`",
        _table(
            ("split", "images", "SHA-256"),
            [(k, v["images"], f"`{v['sha256']}`") for k, v in data["splits"].items()],
        ),
        f"The hash is {data['hash']}.",
        "## Recipe",
        _table(("value", ""), [(k, f"`{json.dumps(v)}`") for k, v in report["recipe"].items()]),
        "## Where it ran",
        _table(
            ("", ""),
            [
                ("code", commit),
                *report["versions"].items(),
                ("CPU", f"{hardware['cpu']}, {hardware['cores']} cores"),
                ("GPU", ", ".join(hardware["gpus"]) or "none"),
                ("system", hardware["system"]),
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[str(value).replace("|", "\\|") for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
