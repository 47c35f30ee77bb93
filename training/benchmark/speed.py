"""`training.benchmark speed` and `growth`: time forms of the model in turn."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.system.environment import cores
from alignseg_tf.system.files import atomic_path, check_file
from training.benchmark.contest import Contestant, Runs, Task, hold_contest, ratio

OURS = Path(__file__).with_name("forms.py")
BACKBONES = ("efficientnet_lite0", "resnet50", "resnet101")
WORKS = ("inference", "training", "sampling", "sampling_training")
# What `growth` changes of a task, and by which factors. Height and width change together.
GROWTH = {"pixels": (1, 2, 4), "classes": (1, 4, 16), "channels": (1, 2, 4), "batch": (1, 2, 4)}


def measure_speed(
    task: Task, ours: Sequence[Contestant], theirs: Sequence[Contestant], rounds: int
) -> dict[str, Any]:
    """Let forms do a task in turn.

    Args:
        task: what all do.
        ours: whose times are divided ...
        theirs: ... by those of each of these; there may be none.
        rounds: how often each runs.

    Returns:
        `forms`: for each, all seconds, their median, images per second, share of the cores that
        worked, and peak memory; `ratios`: for each of ours, its ratio to each of theirs.
    """
    contestants = [*ours, *theirs]
    results = hold_contest([(one, task) for one in contestants], rounds)
    runs = dict(zip(map(str, contestants), results, strict=True))
    return {
        "task": dataclasses.asdict(task),
        "forms": {name: describe(one, task.batch) for name, one in runs.items()},
        "ratios": {
            str(one): {str(other): ratio(runs[str(one)], runs[str(other)]) for other in theirs}
            for one in ours
        },
    }


def describe(runs: Runs, batch: int) -> dict[str, Any]:
    """Return what a contestant took, as numbers."""
    return {
        "seconds": runs.seconds,
        "median_seconds": runs.median(),
        "images_per_second": batch / runs.median(),
        "busy": runs.busy(cores()),
        "peak_bytes": runs.peak_bytes,
    }


def speed_table(result: dict[str, Any]) -> str:
    """Return what `measure_speed` found as a table."""
    forms, ratios = result["forms"], result["ratios"]
    others = list(next(iter(ratios.values())))
    width = max(map(len, forms))
    lines = [f"{'':{width}}  {'ms':>8}  {'images/s':>8}  {'busy':>5}  {'peak GiB':>8}"]
    lines[0] += "".join(f"  {'/ ' + other:>21}" for other in others)
    for name, form in forms.items():
        line = (
            f"{name:{width}}  {1e3 * form['median_seconds']:8.1f}  "
            f"{form['images_per_second']:8.2f}  {form['busy']:5.0%}  "
            f"{form['peak_bytes'] / 2**30:8.2f}"
        )
        for other in others if name in ratios else ():
            line += f"  {ratios[name][other]!s:>{max(21, len(other) + 2)}}"
        lines.append(line)
    if others:
        lines.append("Ratios are medians of neighbouring runs, in brackets the quartiles.")
    return "\n".join(lines)


def draw_speed(result: dict[str, Any], path: Path) -> None:
    """Write the times of `measure_speed` as bars."""
    from matplotlib.figure import Figure

    forms = result["forms"]
    names = sorted(forms, key=lambda name: forms[name]["median_seconds"])
    figure = Figure(figsize=(8, 1 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    milliseconds = [1e3 * np.array(forms[name]["seconds"]) for name in names]
    medians = [np.median(each) for each in milliseconds]
    spread = [
        [m - np.quantile(each, 0.25) for m, each in zip(medians, milliseconds, strict=True)],
        [np.quantile(each, 0.75) - m for m, each in zip(medians, milliseconds, strict=True)],
    ]
    colors = ["tab:blue" if name in result["ratios"] else "tab:gray" for name in names]
    axes.barh(names, medians, xerr=spread, color=colors)
    axes.invert_yaxis()
    axes.set_xlabel("ms, median and quartiles")
    task = result["task"]
    axes.set_title(
        f"{task['work']}, {task['backbone']}, {task['height']} x {task['width']}, "
        f"batch {task['batch']}"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def measure_growth(task: Task, form: str, rounds: int) -> dict[str, Any]:
    """Time a task and larger ones, each in a process of its own, in turn.

    Returns:
        For each of pixels, classes, channels and batch: `values`, `seconds` (medians),
        `peak_bytes`, and the `exponent` p of the fit seconds ~ value ** p.
    """
    result: dict[str, Any] = {"task": dataclasses.asdict(task), "form": form}
    one = Contestant(OURS, form)
    for what, factors in GROWTH.items():
        tasks = [_larger(task, what, factor) for factor in factors]
        found = hold_contest([(one, each) for each in tasks], rounds, what)
        seconds = [runs.median() for runs in found]
        exponent = np.polyfit(np.log(factors), np.log(seconds), 1)[0]
        result[what] = {
            "values": [_value(each, what) for each in tasks],
            "seconds": seconds,
            "peak_bytes": [runs.peak_bytes for runs in found],
            "exponent": float(exponent),
        }
    return result


def _larger(task: Task, what: str, factor: int) -> Task:
    if what == "pixels":
        side = factor**0.5
        return dataclasses.replace(
            task, height=round(task.height * side), width=round(task.width * side)
        )
    return dataclasses.replace(task, **{what: factor * getattr(task, what)})


def _value(task: Task, what: str) -> int:
    return task.height * task.width if what == "pixels" else getattr(task, what)


def growth_table(result: dict[str, Any]) -> str:
    """Return what `measure_growth` found as a table."""
    lines = [f"{'':9}  {'value':>9}  {'ms':>9}  {'peak GiB':>8}  exponent of the time"]
    for what in GROWTH:
        rows = result[what]
        for number, value in enumerate(rows["values"]):
            line = (
                f"{what if not number else '':9}  {value:9d}  "
                f"{1e3 * rows['seconds'][number]:9.1f}  {rows['peak_bytes'][number] / 2**30:8.2f}"
            )
            lines.append(line + (f"  {rows['exponent']:8.2f}" if not number else ""))
    return "\n".join(lines)


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what describes a `Task`."""
    default = Task()
    parser.add_argument("--work", choices=WORKS, default=default.work, help="(%(default)s)")
    parser.add_argument("--backbone", choices=BACKBONES, default=default.backbone)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(default.height, default.width),
        metavar=("HEIGHT", "WIDTH"), help="of an image in pixels, or of a map to sample in cells",
    )  # fmt: skip
    for name in ("batch", "classes", "channels"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--rounds", type=int, default=7, help="runs of each form (%(default)s)")


def task_from_arguments(parsed: argparse.Namespace) -> Task:
    """Return the task, and refuse what cannot be one.

    Raises:
        ValueError: a size, batch, number or rounds below one.
    """
    for name in ("size", "batch", "classes", "channels", "rounds"):
        value = getattr(parsed, name)
        if np.min(value) < 1:
            raise ValueError(f"--{name}: expected 1 or more. Received: {value}")
    return Task(
        work=parsed.work, backbone=parsed.backbone, height=parsed.size[0], width=parsed.size[1],
        batch=parsed.batch, classes=parsed.classes, channels=parsed.channels,
    )  # fmt: skip


def run_speed(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run the subcommand `speed`: what is to be written as JSON, and as text."""
    task = task_from_arguments(parsed)
    if parsed.against is None and parsed.against_forms:
        raise ValueError("--against-forms needs --against FILE")
    environment = dict(_assignment(text) for text in parsed.against_environment)
    ours = [Contestant(OURS, form) for form in parsed.forms]
    theirs = [
        Contestant(parsed.against, form, environment)
        for form in (parsed.against_forms or ["eager"] if parsed.against else [])
    ]
    if parsed.plot:  # a plot does not say who drew it
        check_file(parsed.plot, "training.benchmark", lambda path: False, parsed.overwrite)
    result = measure_speed(task, ours, theirs, parsed.rounds)
    if parsed.plot:
        draw_speed(result, parsed.plot)
    text = speed_table(result)
    for values in result["ratios"].values():
        for name, value in values.items():
            values[name] = dataclasses.asdict(value)
    return result, text


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--against-environment: expected NAME=VALUE. Received: {text!r}")
    return name, value


def run_growth(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run the subcommand `growth`."""
    result = measure_growth(task_from_arguments(parsed), parsed.form, parsed.rounds)
    return result, growth_table(result)


def add_speed(commands: Any) -> None:
    """Add the subcommands of this file."""
    speed = commands.add_parser(
        "speed", help="forms of a model in turn, also against another library's",
        allow_abbrev=False,
    )  # fmt: skip
    add_task_arguments(speed)
    speed.add_argument(
        "--forms", nargs="+", default=["frozen"], help="of training/benchmark/forms.py"
    )
    speed.add_argument("--against", type=Path, metavar="FILE", help="Python with a dict FORMS")
    speed.add_argument("--against-forms", nargs="+", metavar="FORM", help="of it (eager)")
    speed.add_argument(
        "--against-environment", nargs="+", default=[], metavar="NAME=VALUE",
        help="variables of their processes",
    )  # fmt: skip
    speed.add_argument("--plot", type=Path, metavar="PNG", help="file to draw the times into")
    speed.set_defaults(run=run_speed)

    growth = commands.add_parser(
        "growth", help="how time and memory grow with pixels, classes, channels and batch",
        allow_abbrev=False,
    )  # fmt: skip
    add_task_arguments(growth)
    growth.add_argument(
        "--form", default="frozen", help="of training/benchmark/forms.py (%(default)s)"
    )
    growth.set_defaults(run=run_growth)
