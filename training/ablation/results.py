"""Results of an ablation: one compressed JSON file for a cell and a seed."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignseg_tf.evaluation.counts import ImageScores
from alignseg_tf.evaluation.report import Report
from alignseg_tf.system.files import write_bytes
from alignseg_tf.system.fingerprints import names_hash
from training.callbacks.run_folder import run_differences
from training.recipe import RecipeError, with_defaults

# Values of a recipe that a cell or a seed decides, or that are the same in every ablation.
DECIDED = ("aggregation", "context", "seed", "validate_every", "train_on")
# Neighbouring images that are alike: CamVid's validation images are 15 frames a second.
BLOCK = 10


@dataclass(frozen=True)
class Cell:
    """A variant of the model, by values of the recipe; the main ones are trained more often."""

    aggregation: str
    context: str
    main: bool = False

    @property
    def name(self) -> str:
        """Return its name in files and tables."""
        return f"{self.aggregation}-{self.context}"


# {bilinear, AlignFA} x {no context, pooled context, AlignCM}, and one offset of AlignFA only.
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


def result_file(folder: Path, cell: Cell, seed: int) -> Path:
    """Return the file of a cell and a seed."""
    return folder / f"{cell.name}-{seed}.json.gz"


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result; equal results give equal files."""
    content = json.dumps(result, separators=(",", ":")).encode()
    write_bytes(path, gzip.compress(content, mtime=0))


def read_result(path: Path, block: int = BLOCK) -> dict[str, Any]:
    """Return a result, with a `Report` under `report`; raise a `RecipeError` if it is none."""
    try:
        result: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        scores = [ImageScores.from_dict(score) for score in result.pop("scores")]
        result["report"] = Report(result["classes"], scores, block=block)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: not a result of an ablation ({error!r}); remove it") from error
    return result


def read_results(folder: Path, block: int = BLOCK) -> dict[str, list[dict[str, Any]]]:
    """Return the results in a folder by the names of their cells, in the order of `CELLS`.

    A `RecipeError` says that a file is no result, or that two have different recipes or data.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    first: dict[str, Any] = {}
    first_path = folder
    for cell in CELLS:
        for path in sorted(folder.glob(f"{cell.name}-[0-9]*.json.gz")):
            result = read_result(path, block)
            values = shared_values(result)
            check_alike(path, values, first_path, first or values)
            # Older results lack the fingerprints of the data.
            if len(values) > len(first):
                first, first_path = values, path
            found.setdefault(cell.name, []).append(result)
    return found


def shared_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all results of an ablation have in common: recipe, data, evaluated images."""
    names = (score.name for score in result["report"].scores)
    return shared_recipe(result["recipe"] | result["data"]) | {
        "validation_image_names": names_hash(names)
    }


def shared_recipe(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe or a run that no cell or seed decides, as JSON has them."""
    values = with_defaults(json.loads(json.dumps(run)))
    return {name: value for name, value in values.items() if name not in DECIDED}


def check_alike(
    path: Path, values: dict[str, Any], other: Path | str, others: dict[str, Any]
) -> None:
    """Raise a `RecipeError` if results cannot be compared."""
    if different := run_differences(others, values):
        raise RecipeError(
            f"{path} (here) and {other} (there) cannot be compared:{different}\n"
            "give another --output and --results for another ablation"
        )
