"""The folder of a run: which run it is, its records and its checkpoints."""

import contextlib
import csv
import dataclasses
import fcntl
import json
import os
import platform
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from alignseg_tf import AlignSeg
from alignseg_tf.data.label_space import class_columns
from alignseg_tf.data.listing import Sample
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.evaluator import label_encoding, samples_fingerprints
from alignseg_tf.evaluation.provenance import RUN_FILE, read_run
from alignseg_tf.system.files import atomic_path, check_replaceable, remove_leftovers, write_text
from alignseg_tf.system.fingerprints import differences, fingerprint, named_fingerprints, names_hash
from alignseg_tf.system.tables import csv_text
from training.build import for_inference
from training.callbacks.logs import VALIDATION_METRIC, Logs, class_iou, learning_rate, short_names
from training.callbacks.stopping import RunStoppedError, non_finite_variables
from training.recipe import Recipe, RecipeError, with_defaults
from training.report import REPORT, REPORT_FILES

# The member of `last.keras` that holds the number of finished epochs.
EPOCHS_DONE = "epochs_done.txt"
# Names the process that trains in a folder.
LOCK_FILE = "training.lock"
# Files that a run replaces in its folder, besides its report.
RUN_FILES = (
    "metrics.csv", "iou.csv", "best.keras", "last.keras", "evaluation.json", "nan_batch.npz",
)  # fmt: skip
# The fingerprint of each file of the data, to name those that differ.
FILES_FILE = "data_files.json"
# Values of `run.json` that tell the content of files; older runs lack them.
CONTENT = {
    "label_encoding", "training_images", "training_labels", "validation_images",
    "validation_labels", "initial_weights",
}  # fmt: skip


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Reserve a folder for one training, or raise a `RecipeError` if another one has it.

    The kernel releases it when the process ends.
    """
    path, is_new = folder / LOCK_FILE, not folder.exists()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise RecipeError(
                    f"{folder}: another training, {file.read().strip() or 'just starting'}, writes "
                    "to this folder; wait for its end, or give another --output"
                ) from error
            except OSError as error:  # some file systems of clusters have no locks
                print(
                    f"{folder} cannot be locked ({error.strerror}): start no other training in it"
                )
            # The previous holder may have removed the file since it was opened here.
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if is_new:
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # if nothing was written
            return


class RunFolder(keras.callbacks.Callback):
    """Write `metrics.csv`, `iou.csv`, `best.keras` and `last.keras`, in this order.

    `last.keras` holds the optimizer and the number of finished epochs; the other files replace what
    they say of later epochs. So a run that is killed at any moment resumes from its last whole
    epoch.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.metrics_file, self.iou_file = folder / "metrics.csv", folder / "iou.csv"
        self.best_file, self.last_file = folder / "best.keras", folder / "last.keras"
        remove_leftovers(folder)
        self.started = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the four files, or raise a `RunStoppedError` if the weights are not finite."""
        logs = short_names(logs)
        if spoilt := non_finite_variables(self.model):
            raise RunStoppedError(
                f"epoch {epoch + 1}: {len(spoilt)} weights are not finite ({spoilt[0]}); "
                "the checkpoints are from before"
            )
        earlier = read_rows(self.metrics_file, epoch)
        best = max((float(row[VALIDATION_METRIC] or -1) for row in earlier), default=-1.0)
        row = {
            "epoch": epoch,
            "seconds": round(time.monotonic() - self.started, 1),
            "learning_rate": f"{learning_rate(self.model):.4g}",
            VALIDATION_METRIC: "",
        } | {name: _digits(logs[name]) for name in sorted(logs)}
        write_rows(self.metrics_file, [*earlier, row])
        if VALIDATION_METRIC in logs:
            iou = class_iou(self.model)
            columns = class_columns(list(iou), ["epoch"])
            row = {"epoch": epoch} | dict(zip(columns, map(_digits, iou.values()), strict=True))
            write_rows(self.iou_file, [*read_rows(self.iou_file, epoch), row])
        if logs.get(VALIDATION_METRIC, -1.0) > best:
            with atomic_path(self.best_file) as temporary:
                for_inference(self.model).save(temporary)
        save_resumable(self.model, self.last_file, epoch + 1)


def _digits(value: float) -> str:
    """Return a number with six digits, nothing for NaN."""
    return "" if value != value else f"{float(value):.6g}"


def save_resumable(model: keras.Model, path: Path, epochs_done: int) -> None:
    """Replace a `.keras` file by a model with its optimizer and the number of finished epochs."""
    with atomic_path(path) as temporary:
        model.save(temporary)
        # The optimizer's count would not do: it omits steps that overflow in float16.
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(EPOCHS_DONE, str(epochs_done))


def load_resumable(path: Path) -> tuple[AlignSeg, int]:
    """Return the model of an interrupted run and its number of finished epochs."""
    try:
        with zipfile.ZipFile(path) as archive:
            return keras.saving.load_model(path), int(archive.read(EPOCHS_DONE))
    except Exception as error:
        raise RecipeError(f"{path}: not readable ({error}); remove it to start anew") from error


def read_rows(path: Path, epoch: int) -> list[dict[str, str]]:
    """Return the rows of a table that are before `epoch`; none without a file."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]
    except (KeyError, ValueError) as error:
        raise RunStoppedError(
            f"{path}: expected a column epoch of whole numbers ({error}); remove the file"
        ) from error


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table whose columns are all keys of its rows, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_text(path, csv_text([columns, *([row.get(key) for key in columns] for row in rows)]))


def describe_run(recipe: Recipe, data: DataSource, training: Sequence[Sample]) -> dict[str, Any]:
    """Return the identity of a run: recipe, classes, names of the images, content of the files."""
    run = dataclasses.asdict(recipe) | {
        "classes": data.label_space.classes,
        "training_samples": len(training),
        "training_image_names": names_hash(sample.image.name for sample in training),
        "label_encoding": label_encoding(data.label_space),
    }
    for part, samples in (("training", training), ("validation", data.samples("val"))):
        run[f"{part}_images"], run[f"{part}_labels"] = samples_fingerprints(samples)
    start = Path(recipe.start_from or recipe.backbone_weights)
    if start.is_file():  # not a folder called imagenet
        run["initial_weights"] = fingerprint(start)
    return json.loads(json.dumps(run))


def data_files(data: DataSource, training: Sequence[Sample]) -> dict[str, str]:
    """Return a short fingerprint of each file that a run reads, by its name below the data."""
    samples = [*training, *data.samples("val")]
    paths = [path for sample in samples for path in (sample.image, sample.label)]
    root = data.root.parent if data.root.is_file() else data.root
    return {name: sha[:16] for name, sha in named_fingerprints(paths, root).items()}


def run_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say in which values two runs differ; skip values of `CONTENT` that one of them lacks."""
    skipped = CONTENT - (there.keys() & here.keys())
    return differences(*({k: run[k] for k in run if k not in skipped} for run in (there, here)))


def check_run_folder(output: Path, run: dict[str, Any], files: dict[str, str]) -> None:
    """Raise a `RecipeError` if a folder holds another run.

    `run` is from `describe_run`, `files` from `data_files`.
    """
    before: dict[str, Any] | None = None
    try:
        check_replaceable(output, REPORT, REPORT_FILES)
        if (output / RUN_FILE).is_file():
            before = with_defaults(read_run(output / RUN_FILE))
    except ValueError as error:
        problem = str(error).removesuffix("; give another name, or --overwrite")
        raise RecipeError(f"{problem}; give another --output") from error
    if before is None:
        if found := [name for name in RUN_FILES if (output / name).exists()]:
            raise RecipeError(
                f"{output}: expected a new folder, or that of a run. Received: one with "
                f"{', '.join(found)}, but without {RUN_FILE}; give another --output"
            )
        return
    if different := run_differences(before, run):
        if (output / FILES_FILE).is_file():
            former = json.loads((output / FILES_FILE).read_text(encoding="utf-8"))
            different += differences({"files": former}, {"files": files})
        raise RecipeError(f"{output} holds another run:{different}\ngive another --output")
    if not before.keys() & CONTENT:
        print(
            f"{output}: an older run that did not record the content of the data. Images with the "
            "same names are taken for the same images"
        )
