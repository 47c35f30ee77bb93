"""The files next to a model: its run, its evaluation, its description."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignseg_tf.data.listing import DataError
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.evaluator import samples_fingerprints
from alignseg_tf.system.fingerprints import names_hash

# Files next to a model: in a training run's folder by these names, elsewhere with the model's own
# name before them, as camvid_lite0.run.json.
QUALITY_FILE, RUN_FILE, ABOUT_FILE = "evaluation.json", "run.json", "about.md"


def known_facts(model: Path) -> dict[str, Any]:
    """Read the files next to a model.

    Args:
        model: a `.keras` file, or another form of it in the same folder: `NAME.tflite`, or a
            SavedModel in a folder `NAME`.

    Returns:
        The arguments `quality`, `run` and `about` of `model_card`; None, or no text, if missing.

    Raises:
        ValueError: a file holds something else.
    """
    quality, run, about = (_beside(model, name) for name in (QUALITY_FILE, RUN_FILE, ABOUT_FILE))
    return {
        "quality": None if quality is None else read_quality(quality),
        "run": None if run is None else read_run(run),
        "about": "" if about is None else about.read_text(encoding="utf-8"),
    }


def _beside(model: Path, name: str) -> Path | None:
    model = model.absolute()
    in_folder = model.parent / f"{model.parent.name}.keras"
    for form in (model, model.with_suffix(".keras") if model.suffix else in_folder):
        form = form.resolve()  # a release links to the package
        for path in (form.with_name(f"{form.stem}.{name}"), form.with_name(name)):
            if path.is_file():
                return path
    return None


def read_quality(path: Path) -> dict[str, Any]:
    """Read the JSON of an evaluation; raise a `ValueError` if it is none."""
    expected = "the JSON of an evaluation (python -m training.evaluate --json)"
    return _read_record(path, expected, ("mean_iou", "images", "protocol", "iou"))


def read_run(path: Path) -> dict[str, Any]:
    """Read the values of a training run; raise a `ValueError` if it is none."""
    return _read_record(path, "the values of a training run, as training writes them")


def _read_record(path: Path, expected: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object; keys of older versions, which say picture, get their present names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = {key.replace("picture", "image"): value for key, value in content.items()}
        if missing := [key for key in keys if key not in record]:
            raise ValueError(f"no {', '.join(missing)}")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected {expected}. Received: {error!r}") from error
    return record


def trained_on_validation(run: Mapping[str, Any]) -> bool:
    """Return whether a run, see `read_run`, was trained on the validation images too."""
    return "val" in run.get("train_on", "").split("+")


def warn_if_trained_on(model: Path, data: DataSource, split: str) -> None:
    """Warn on the standard error stream if a model was trained on the images of a split.

    Compare the content of the images' files, or their names if the run is older.

    Args:
        model: as in `known_facts`.
        data: images with labels.
        split: the split on which the model is evaluated.

    Raises:
        ValueError: the record of the model's run is not readable.
    """
    path = _beside(model, RUN_FILE)
    run = {} if path is None else read_run(path)
    splits = run.get("train_on", "train").split("+")
    if split not in splits:
        return
    try:
        samples = [sample for part in splits for sample in data.samples(part)]
        if "training_images" in run:
            same = run["training_images"] == samples_fingerprints(samples)[0]
        else:
            names = names_hash(sample.image.name for sample in samples)
            same = run.get("training_image_names") == names
    except DataError:  # without such a part they are other data
        return
    if same:
        print(
            f"Warning: {model} was trained on these images: results say nothing of new images",
            file=sys.stderr,
        )
