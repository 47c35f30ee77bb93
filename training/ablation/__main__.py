"""The paper's argument again: what aligning is worth, all else being equal.

    python -m training.ablation --data FOLDER --output runs/ablation

trains and evaluates every cell of the grid, seed by seed, and writes a table and a plot of what is
done so far after each. The same command goes on where it was interrupted; a cell whose result is in
--results is not trained again, so results may be kept where runs are not.
"""

import argparse
import dataclasses
import gc
import gzip
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from alignseg_tf.analysis.summary import summarize
from alignseg_tf.commands.options import add_block_argument, add_data_arguments, data_from_arguments
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.bootstrap import check_block
from alignseg_tf.evaluation.counts import ImageScores
from alignseg_tf.evaluation.report import Report
from alignseg_tf.system.console import command_output
from alignseg_tf.system.environment import machine, versions
from alignseg_tf.system.files import (
    Output,
    add_overwrite_argument,
    atomic_result,
    check_replaceable,
    remove_leftovers,
    write_bytes,
    write_files,
)
from alignseg_tf.system.fingerprints import names_hash
from alignseg_tf.system.progress import duration
from training.ablation.report import ablation_csv, ablation_tables, draw_ablation
from training.build import build_model, for_inference
from training.callbacks.run_folder import CONTENT, describe_content, describe_run
from training.callbacks.stopping import RunStoppedError
from training.data import training_samples
from training.options import add_recipe_arguments, recipe_from_arguments
from training.recipe import Recipe, RecipeError, with_defaults
from training.train import train

# Values of a recipe that a cell or a seed decides, or that are always the same.
DECIDED = ("aggregation", "context", "seed", "validate_every", "train_on")
# Of the image for which operations are counted: CamVid's.
COUNTED_SIZE = (360, 480)
# Neighbouring images that are alike: CamVid's validation images are 15 frames a second.
BLOCK = 10


@dataclass(frozen=True)
class Cell:
    """A place in the grid.

    Attributes:
        aggregation: as in the recipe.
        context: as in the recipe.
        main: whether it is one of the four that more seeds are spent on.
    """

    aggregation: str
    context: str
    main: bool = False

    @property
    def name(self) -> str:
        """Return what files and tables call it."""
        return f"{self.aggregation}-{self.context}"


# {bilinear, AlignFA} x {no context, one for all pixels, AlignCM}, and each offset of AlignFA alone.
CELLS = (
    Cell("bilinear", "none", main=True),
    Cell("align", "none", main=True),
    Cell("bilinear", "align", main=True),
    Cell("align", "align", main=True),
    Cell("bilinear", "global"),
    Cell("align", "global"),
    Cell("align_coarse", "align"),
    Cell("align_fine", "align"),
)


def planned(
    seeds: int, other_seeds: int, cells: Sequence[Cell] = CELLS
) -> Iterator[tuple[Cell, int]]:
    """Yield what is to be trained: all cells with one seed before any with the next.

    Args:
        seeds: of each of the main cells.
        other_seeds: of each of the others.
        cells: those to be trained.
    """
    for seed in range(max(seeds, other_seeds)):
        for cell in cells:
            if seed < (seeds if cell.main else other_seeds):
                yield cell, seed


def run_cell(recipe: Recipe, data: DataSource, folder: Path) -> dict[str, Any]:
    """Train and evaluate one model.

    Returns:
        The result, as plain values: the recipe, what the model costs, the record of the epochs,
        and the counts of each validation image.

    Raises:
        As `train.train`.
    """
    keras.backend.clear_session()
    gc.collect()
    report = train(recipe, data, folder)
    if report is None:
        raise RecipeError("the ablation runs on one machine: unset TF_CONFIG")
    model = build_model(dataclasses.replace(recipe, backbone_weights="none"), data.label_space)
    counted = summarize(for_inference(model), COUNTED_SIZE, runs=0).inference
    rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "recipe": dataclasses.asdict(recipe),
        "data": {key: run[key] for key in run.keys() - dataclasses.asdict(recipe).keys()},
        "classes": list(report.classes),
        "parameters": counted.parameters,
        "macs": counted.macs,
        "macs_size": COUNTED_SIZE,
        "metrics": rows,
        "machine": machine(),
        "versions": versions(),
        "scores": [score.to_dict() for score in report.scores],
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as compressed JSON; equal results give equal files."""
    content = json.dumps(result, separators=(",", ":")).encode()
    write_bytes(path, gzip.compress(content, mtime=0))


def read_result(path: Path, block: int = BLOCK) -> dict[str, Any]:
    """Read a result, its counts as a `Report` under `report`.

    Args:
        path: the file.
        block: neighbouring images that intervals draw together, see `Report`.

    Raises:
        RecipeError: the file holds something else.
    """
    try:
        result: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        scores = [ImageScores.from_dict(score) for score in result.pop("scores")]
        result["report"] = Report(result["classes"], scores, block=block)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: not a result of an ablation ({error!r}); remove it") from error
    return result


def result_file(folder: Path, cell: Cell, seed: int) -> Path:
    """Return where the result of a cell and a seed is kept."""
    return folder / f"{cell.name}-{seed}.json.gz"


def read_results(folder: Path, block: int = BLOCK) -> dict[str, list[dict[str, Any]]]:
    """Return the results in a folder by the names of the cells, in the order of `CELLS`.

    Args:
        folder: where they are.
        block: as in `read_result`.

    Raises:
        RecipeError: a file is no result, or they are of different recipes or data.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for cell in CELLS:
        for path in sorted(folder.glob(f"{cell.name}-[0-9]*.json.gz")):
            result = read_result(path, block)
            alike = what_is_alike(result)
            check_alike(path, alike, *(first or (path, alike)))
            if first is None or alike.keys() & CONTENT:  # which old results lack
                first = path, alike
            found.setdefault(cell.name, []).append(result)
    return found


def what_is_alike(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the results of an ablation have in common: recipe, data, evaluated images."""
    images = names_hash(score.name for score in result["report"].scores)
    shared = constant_values(result["recipe"]) | result["data"]
    return shared | {"validation_image_names": images}


def constant_values(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe or a run that all cells share, as JSON gives them."""
    values = with_defaults(json.loads(json.dumps(recipe)))
    return {name: value for name, value in values.items() if name not in DECIDED}


def check_alike(path: Path, values: dict[str, Any], other: Path, others: dict[str, Any]) -> None:
    """Refuse results that cannot be compared.

    Values of `CONTENT` are compared where both have them.

    Raises:
        RecipeError: a value differs.
    """
    for name in values.keys() | others.keys():
        if name in CONTENT and not (name in values and name in others):
            continue
        if values.get(name) != others.get(name):
            raise RecipeError(
                f"{path} has {name} {values.get(name)!r}, {other} has {others.get(name)!r}: give "
                "another --output and --results for another ablation"
            )


def _is_ablation(folder: Path) -> bool:
    """Whether a folder has an ablation of before there was a record."""
    try:
        return (folder / OUTCOME_FILES[1]).read_text(encoding="utf-8").startswith("cell,seed,")
    except (OSError, UnicodeDecodeError):
        return False


# Of the tables and the plot.
OUTCOME_FILES = ("ablation.md", "ablation.csv", "ablation.png")
OUTCOME = Output("training.ablation", _is_ablation)


def write_outcome(folder: Path, results: Path, block: int = BLOCK, overwrite: bool = False) -> str:
    """Write the tables and the plot of what is done so far; return the tables.

    Raises:
        ForeignFileError: a file of these names is there that no ablation wrote.
    """
    done = read_results(results, block)
    tables = ablation_tables(done)
    texts = {"ablation.md": tables, "ablation.csv": ablation_csv(done)}
    check_replaceable(folder, OUTCOME, OUTCOME_FILES, overwrite)
    write_files(folder, OUTCOME, texts, overwrite=True)
    with atomic_result(folder, OUTCOME, "ablation.png") as temporary:
        draw_ablation(done, temporary)
    return tables


def ablate(
    recipe: Recipe,
    data: DataSource,
    output: Path,
    results: Path,
    seeds: int,
    other_seeds: int,
    block: int = BLOCK,
    cells: Sequence[Cell] = CELLS,
    overwrite: bool = False,
) -> str:
    """Train what has no result yet, and return the tables over all results.

    Args:
        recipe: what the cells share. The last epoch is what is evaluated, whatever it says:
            choosing the best on the images that decide would favour a restless cell.
        data: images with labels.
        output: folder of the runs, the tables and the plot.
        results: folder of what is kept of each run.
        seeds: of each of the main cells.
        other_seeds: of each of the others.
        block: neighbouring images that intervals draw together, see `Report`.
        cells: those to be trained; the tables are of all that have results.
        overwrite: replace tables and a plot that no ablation wrote.

    Raises:
        DataError, RecipeError, RunStoppedError: as `train.train`; RecipeError too where a kept
            result is of another recipe or of other images, before anything is trained.
    """
    for folder in (output, results):
        remove_leftovers(folder)
    check_replaceable(output, OUTCOME, OUTCOME_FILES, overwrite)
    recipe = dataclasses.replace(recipe, validate_every=recipe.epochs)
    plan = list(planned(seeds, other_seeds, cells))
    training = training_samples(recipe, data)
    run = describe_run(recipe, data.label_space, training)
    images = names_hash(sample.image.name for sample in data.samples("val"))
    run |= describe_content(recipe, data, training)
    wanted = constant_values(run) | {"validation_image_names": images}
    for path in (result_file(results, *one) for one in plan):
        if path.is_file():
            alike = what_is_alike(read_result(path))
            check_alike(path, alike, Path("this ablation"), wanted)
            if not alike.keys() & CONTENT:
                print(f"{path}: from before the content of the data was recorded; known by names")
    took: list[float] = []
    tables = ""
    for number, (cell, seed) in enumerate(plan, start=1):
        path = result_file(results, cell, seed)
        if path.is_file():
            print(f"[{number}/{len(plan)}] {cell.name}, seed {seed}: done before", flush=True)
            continue
        left = sum(not result_file(results, *one).is_file() for one in plan[number - 1 :])
        estimate = f", about {duration(statistics.mean(took) * left)} left" if took else ""
        print(f"\n[{number}/{len(plan)}] {cell.name}, seed {seed}{estimate}", flush=True)
        started = time.monotonic()
        this = dataclasses.replace(
            recipe, aggregation=cell.aggregation, context=cell.context, seed=seed
        )
        write_result(path, run_cell(this, data, output / f"{cell.name}-{seed}"))
        took.append(time.monotonic() - started)
        tables = write_outcome(output, results, block, overwrite)
    return tables or write_outcome(output, results, block, overwrite)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.ablation",
        description="Train with and without alignment, all else being equal, and compare. "
        "The same command goes on where it was interrupted.",
    )
    add_data_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs")
    parser.add_argument(
        "--results", type=Path, help="folder of what is kept of each run (OUTPUT/results)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the four main cells (%(default)s)")
    parser.add_argument(
        "--other-seeds", type=int, default=1, help="of the other four cells (%(default)s)"
    )
    names = [cell.name for cell in CELLS]
    parser.add_argument(
        "--cells", nargs="+", choices=names, default=names, metavar="CELL",
        help=f"which to train, of {', '.join(names)} (all)",
    )  # fmt: skip
    add_block_argument(parser)
    add_overwrite_argument(parser)
    add_recipe_arguments(parser)
    parser.set_defaults(recipe="camvid_ablation", block=BLOCK)
    return parser


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    try:
        for name in DECIDED:
            if getattr(parsed, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise RecipeError(f"{flag} is decided by the cells and --seeds of the ablation")
        check_block(parsed.block)
        if parsed.seeds < 1 or parsed.other_seeds < 0:
            raise RecipeError(
                "--seeds must be at least 1 and --other-seeds at least 0. "
                f"Received: {parsed.seeds} and {parsed.other_seeds}"
            )
        data = data_from_arguments(parsed)
        tables = ablate(
            recipe_from_arguments(parsed), data, parsed.output,
            parsed.results or parsed.output / "results", parsed.seeds, parsed.other_seeds,
            parsed.block, [cell for cell in CELLS if cell.name in parsed.cells],
            parsed.overwrite,
        )  # fmt: skip
    except ValueError as error:  # of data, recipe and options
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunStoppedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, RunStoppedError) else 1
    print(f"\n{tables}\nIn {parsed.output}: ablation.md, ablation.csv, ablation.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
