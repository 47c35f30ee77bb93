"""`python -m training.benchmark speed`: time forms of the model alternately."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.system.environment import cores
from alignseg_tf.system.files import atomic_path, check_file
from alignseg_tf.system.progress import progress_bar
from alignseg_tf.system.quiet import SETTINGS
from alignseg_tf.system.tables import text_table
from training.benchmark.timing import Implementation, Task, ratio, time_alternately
from training.options import positive

OURS = Path(__file__).with_name("forms.py")
BACKBONES = ("efficientnet_lite0", "resnet50", "resnet101")
WORKS = ("inference", "training", "sampling", "sampling_training")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `speed`."""
    default = Task()
    parser.add_argument("--work", choices=WORKS, default=default.work, help="(%(default)s)")
    parser.add_argument("--backbone", choices=BACKBONES, default=default.backbone)
    parser.add_argument(
        "--size", type=positive, nargs=2, default=(default.height, default.width),
        metavar=("HEIGHT", "WIDTH"), help="of an image in pixels, or of a sampled map in cells",
    )  # fmt: skip
    for name in ("batch", "classes", "channels"):
        parser.add_argument(f"--{name}", type=positive, default=getattr(default, name))
    parser.add_argument("--rounds", type=positive, default=7, help="of each form (%(default)s)")
    parser.add_argument(
        "--forms", nargs="+", default=["frozen"], help="of training/benchmark/forms.py"
    )
    parser.add_argument("--against", type=Path, metavar="FILE", help="Python with a dict FORMS")
    parser.add_argument("--against-forms", nargs="+", metavar="FORM", help="of it (eager)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="file to draw the times into")


def measure(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the times as JSON and as a table.

    `forms` has, for each form, all seconds, their median, images per second, the share of the cores
    that worked, and peak memory; `ratios` divides our seconds by those of each other form.
    """
    if parsed.against is None and parsed.against_forms:
        raise ValueError("--against-forms needs --against FILE")
    height, width = parsed.size
    task = Task(
        parsed.work, parsed.backbone, height, width, parsed.batch, parsed.classes, parsed.channels
    )
    their_forms = (parsed.against_forms or ["eager"]) if parsed.against else []
    ours = [Implementation(OURS, form) for form in parsed.forms]
    theirs = [Implementation(parsed.against, form) for form in their_forms]
    if parsed.plot:  # a plot does not say who drew it
        check_file(parsed.plot, "training.benchmark", lambda path: False, parsed.overwrite)
    everything = [*ours, *theirs]
    rounds = progress_bar(range(parsed.rounds), "measuring", unit="round")
    found = time_alternately(everything, task, rounds, SETTINGS)
    runs = dict(zip(map(str, everything), found, strict=True))
    forms = {
        name: {
            "seconds": one.seconds,
            "median_seconds": (median := float(np.median(one.seconds))),
            "images_per_second": task.batch / median,
            "busy": one.busy(cores()),
            "peak_bytes": one.peak_bytes,
        }
        for name, one in runs.items()
    }
    ratios = {
        str(one): {str(other): ratio(runs[str(one)], runs[str(other)]) for other in theirs}
        for one in ours
    }
    result = {"task": dataclasses.asdict(task), "forms": forms, "ratios": ratios}
    if parsed.plot:
        draw(result, parsed.plot)
    return result, table(result)


def table(result: dict[str, Any]) -> str:
    """Return the result of `measure` as a table of text."""
    forms, ratios = result["forms"], result["ratios"]
    others = list(next(iter(ratios.values())))
    rows = [["", "ms", "images/s", "busy", "peak GiB", *(f"/ {other}" for other in others)]]
    for name, form in forms.items():
        compared = [ratios[name][other] for other in others] if name in ratios else []
        rows.append([
            name, f"{1e3 * form['median_seconds']:.1f}", f"{form['images_per_second']:.2f}",
            f"{form['busy']:.0%}", f"{form['peak_bytes'] / 2**30:.2f}",
            *(f"{x['median']:.2f} ({x['low']:.2f} to {x['high']:.2f})" for x in compared),
        ])  # fmt: skip
    note = "\nRatios are medians of neighbouring runs, with quartiles in brackets."
    return text_table(rows) + note * bool(others)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the result of `measure` as bars."""
    from matplotlib.figure import Figure

    forms, task = result["forms"], result["task"]
    names = sorted(forms, key=lambda name: forms[name]["median_seconds"])
    low, medians, high = np.array(
        [1e3 * np.quantile(forms[name]["seconds"], [0.25, 0.5, 0.75]) for name in names]
    ).T
    figure = Figure(figsize=(8, 1 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue" if name in result["ratios"] else "tab:gray" for name in names]
    axes.barh(names, medians, xerr=[medians - low, high - medians], color=colors)
    axes.invert_yaxis()
    axes.set_xlabel("ms, median and quartiles")
    axes.set_title("{work}, {backbone}, {height} x {width}, batch {batch}".format(**task))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
