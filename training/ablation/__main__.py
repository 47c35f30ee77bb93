"""Measure what aligning is worth, all else being equal.

    python -m training.ablation --data FOLDER --output runs/ablation

trains and evaluates every cell of the grid, seed by seed, and writes tables and a plot after each.
The same command resumes. A cell with a result in --results is not trained again, so results may
outlive the folders of their runs.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from alignseg_tf.analysis.summary import summarize
from alignseg_tf.commands import options
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.bootstrap import check_block
from alignseg_tf.system import files
from alignseg_tf.system.console import command_output
from alignseg_tf.system.environment import machine, versions
from alignseg_tf.system.fingerprints import names_hash
from alignseg_tf.system.progress import duration
from training.ablation import results as records
from training.ablation.report import ablation_csv, ablation_tables, draw_ablation
from training.ablation.results import BLOCK, CELLS, Cell, result_file
from training.build import build_model, for_inference
from training.callbacks.run_folder import describe_run
from training.callbacks.stopping import RunStoppedError
from training.data import training_samples
from training.options import add_recipe_arguments, recipe_from_arguments
from training.recipe import Recipe, RecipeError
from training.train import train

# Height and width of the image whose operations are counted: CamVid's.
COUNTED_SIZE = (360, 480)
OUTCOME_FILES = ("ablation.md", "ablation.csv", "ablation.png")
Plan = Sequence[tuple[Cell, int]]


def _is_ablation(folder: Path) -> bool:
    """Return whether a folder without a record holds an ablation."""
    path = folder / "ablation.csv"
    return path.is_file() and path.read_bytes().startswith(b"cell,seed,")


OUTCOME = files.Output("training.ablation", _is_ablation)


def planned(
    seeds: int, other_seeds: int, cells: Sequence[Cell] = CELLS
) -> Iterator[tuple[Cell, int]]:
    """Yield cells and seeds to train, all cells with one seed before any with the next.

    Main cells have `seeds` seeds, others `other_seeds`.
    """
    for seed in range(max(seeds, other_seeds)):
        for cell in cells:
            if seed < (seeds if cell.main else other_seeds):
                yield cell, seed


def run_cell(recipe: Recipe, data: DataSource, folder: Path) -> dict[str, Any]:
    """Train and evaluate one model; return its result as plain values."""
    keras.backend.clear_session()
    gc.collect()
    report = train(recipe, data, folder)
    if report is None:
        raise RecipeError("the ablation runs on one machine: unset TF_CONFIG")
    model = build_model(dataclasses.replace(recipe, backbone_weights="none"), data.label_space)
    counted = summarize(for_inference(model), COUNTED_SIZE, runs=0).inference
    values = dataclasses.asdict(recipe)
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "recipe": values,
        "data": {key: value for key, value in run.items() if key not in values},
        "classes": list(report.classes),
        "parameters": counted.parameters,
        "macs": counted.macs,
        "macs_size": COUNTED_SIZE,
        "metrics": (folder / "metrics.csv").read_text(encoding="utf-8").splitlines(),
        "machine": machine(),
        "versions": versions(),
        "scores": [score.to_dict() for score in report.scores],
    }


def write_outcome(folder: Path, results: Path, block: int = BLOCK, overwrite: bool = False) -> str:
    """Write the tables and the plot of all results; return the tables."""
    done = records.read_results(results, block)
    tables = ablation_tables(done)
    files.check_replaceable(folder, OUTCOME, OUTCOME_FILES, overwrite)
    texts = {"ablation.md": tables, "ablation.csv": ablation_csv(done)}
    files.write_files(folder, OUTCOME, texts)
    with files.atomic_result(folder, OUTCOME, "ablation.png") as temporary:
        draw_ablation(done, temporary)
    return tables


def check_results(plan: Plan, recipe: Recipe, data: DataSource, results: Path) -> None:
    """Raise a `RecipeError` if a kept result is of another recipe or other images."""
    wanted = records.shared_recipe(describe_run(recipe, data, training_samples(recipe, data)))
    names = names_hash(sample.image.name for sample in data.samples("val"))
    for cell, seed in plan:
        path = result_file(results, cell, seed)
        if path.is_file():
            values = records.shared_values(records.read_result(path))
            ours = wanted | {"validation_image_names": names}
            records.check_alike(path, values, "this ablation", ours)


def ablate(
    recipe: Recipe,
    data: DataSource,
    output: Path,
    results: Path,
    plan: Plan,
    block: int = BLOCK,
    overwrite: bool = False,
) -> str:
    """Train what has no result yet, and return the tables over all results.

    The model of the last epoch is evaluated: choosing the best epoch on the images that decide
    would favour cells that vary more. `plan` has the cells and seeds to train.

    Raises:
        DataError, RunStoppedError: as `train.train`.
        RecipeError: as `train.train`, or a kept result is of another recipe or other images.
    """
    for folder in (output, results):
        files.remove_leftovers(folder)
    files.check_replaceable(output, OUTCOME, OUTCOME_FILES, overwrite)
    recipe = dataclasses.replace(recipe, validate_every=recipe.epochs)
    check_results(plan, recipe, data, results)
    took: list[float] = []
    for number, (cell, seed) in enumerate(plan):
        path = result_file(results, cell, seed)
        head = f"[{number + 1}/{len(plan)}] {cell.name}, seed {seed}"
        if path.is_file():
            print(f"{head}: done before", flush=True)
            continue
        left = sum(not result_file(results, *one).is_file() for one in plan[number:])
        estimate = f", about {duration(statistics.mean(took) * left)} left" if took else ""
        print(f"\n{head}{estimate}", flush=True)
        started = time.monotonic()
        this = dataclasses.replace(
            recipe, aggregation=cell.aggregation, context=cell.context, seed=seed
        )
        records.write_result(path, run_cell(this, data, output / f"{cell.name}-{seed}"))
        took.append(time.monotonic() - started)
        write_outcome(output, results, block, overwrite)
    return write_outcome(output, results, block, overwrite)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.ablation",
        description="Train with and without alignment, all else being equal, and compare. "
        "The same command resumes.",
    )
    options.add_data_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of the results (OUTPUT/results)")
    parser.add_argument("--seeds", type=int, default=3, help="of the four main cells (%(default)s)")
    parser.add_argument(
        "--other-seeds", type=int, default=1, help="of the other four cells (%(default)s)"
    )
    names = [cell.name for cell in CELLS]
    parser.add_argument(
        "--cells", nargs="+", choices=names, default=names, metavar="CELL",
        help=f"which to train, of {', '.join(names)} (all)",
    )  # fmt: skip
    options.add_block_argument(parser)
    options.add_overwrite_argument(parser)
    add_recipe_arguments(parser)
    parser.set_defaults(recipe="camvid_ablation", block=BLOCK)
    return parser


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    try:
        for name in records.DECIDED:
            if getattr(parsed, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise RecipeError(f"{flag} is decided by the cells and --seeds of the ablation")
        check_block(parsed.block)
        if parsed.seeds < 1 or parsed.other_seeds < 0:
            raise RecipeError(
                "--seeds must be at least 1 and --other-seeds at least 0. "
                f"Received: {parsed.seeds} and {parsed.other_seeds}"
            )
        cells = [cell for cell in CELLS if cell.name in parsed.cells]
        plan = list(planned(parsed.seeds, parsed.other_seeds, cells))
        recipe, data = recipe_from_arguments(parsed), options.data_from_arguments(parsed)
        results = parsed.results or parsed.output / "results"
        tables = ablate(recipe, data, parsed.output, results, plan, parsed.block, parsed.overwrite)
    except ValueError as error:  # of data, recipe and options
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunStoppedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "status", 1)
    print(f"\n{tables}\nIn {parsed.output}: {', '.join(OUTCOME_FILES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
