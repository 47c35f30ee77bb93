"""Train AlignSeg: recipe -> data -> model -> fit, top to bottom.

    python -m training.train --data FOLDER --output runs/mine

The output folder holds `run.json` (what the run is), `metrics.csv` and `iou.csv` (a row an epoch),
`best.keras` (for use), `last.keras` (with the optimizer), `evaluation.json`, `report.md` with its
curves, and `tensorboard/`. The same command goes on where a killed run stopped.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg, metrics
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.pipeline import (
    evaluation_dataset,
    steps_per_epoch,
)
from alignseg_tf.data.readers import DataError, Sample
from alignseg_tf.data.sources import DataSource, add_data_arguments, data_from_arguments
from alignseg_tf.evaluation.evaluator import label_encoding, samples_fingerprints
from alignseg_tf.evaluation.report import Report
from alignseg_tf.export.model_card import RUN_FILE, read_run
from alignseg_tf.precision import global_dtype_policy
from alignseg_tf.system.files import DiskFullError, ForeignFileError, check_replaceable, write_text
from alignseg_tf.system.fingerprints import differences, fingerprint, named_fingerprints, names_hash
from alignseg_tf.system.printable import printable_output
from alignseg_tf.system.processor import prepare_processor
from alignseg_tf.system.progress import counter
from training.build import build_model, compile_model
from training.callbacks.averaging import ValidateAveraged
from training.callbacks.progress import Progress
from training.callbacks.run_folder import (
    RunFolder,
    RunStoppedError,
    SeedDropout,
    StopOnNonFinite,
    StopOnSignal,
    locked,
    set_synchronized_batch_norm,
)
from training.callbacks.tensorboard import TensorBoard
from training.data import (
    Checked,
    TrainingBatches,
    check_data,
    for_outputs,
    stages,
    validation_views,
)
from training.distributed import workers
from training.distributed.workers import Worker
from training.dry_run import dry_run
from training.evaluate import evaluate_and_write
from training.recipe import (
    Recipe,
    RecipeError,
    add_recipe_arguments,
    recipe_from_arguments,
    with_defaults,
)
from training.report import REPORT, REPORT_FILES, describe_data, write_report

# What a run replaces in its folder, besides its report.
RUN_FILES = (
    "metrics.csv",
    "iou.csv",
    "best.keras",
    "last.keras",
    "evaluation.json",
    "nan_batch.npz",
)
# In a run's folder: the fingerprint of each file of its data, to say which ones differ.
FILES_FILE = "data_files.json"
# Values of a run that are read from files' bytes; runs from before they were recorded lack them.
CONTENT = {
    "label_encoding", "training_images", "training_labels", "validation_images",
    "validation_labels", "initial_weights",
}  # fmt: skip


def distribution_strategy(cpu_replicas: int) -> tf.distribute.Strategy:
    """Mirror over all visible GPUs, or over logical CPU devices; nothing where there is one."""
    if cpu_replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas
        )
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(cpu_replicas)])
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def training_samples(recipe: Recipe, data: DataSource) -> list[Sample]:
    """List the samples of the splits that a recipe trains on.

    Raises:
        DataError: there is no such split, or a file is missing.
    """
    return [sample for split in recipe.train_on.split("+") for sample in data.samples(split)]


def describe_run(recipe: Recipe, label_space: LabelSpace, samples: Sequence[Sample]) -> dict:
    """Return what makes a run this one, without a look into files: recipe, classes and names."""
    run = dataclasses.asdict(recipe) | {
        "classes": label_space.classes,
        "training_pictures": len(samples),
        "training_picture_names": names_hash(sample.image.name for sample in samples),
    }
    return json.loads(json.dumps(run))


def describe_content(recipe: Recipe, data: DataSource, training: Sequence[Sample]) -> dict:
    """Return what the files of a run hold: the values of `CONTENT`.

    Raises:
        DataError: a file cannot be read.
    """
    content: dict[str, Any] = {"label_encoding": label_encoding(data.label_space)}
    for part, samples in (("training", training), ("validation", data.samples("val"))):
        images, labels = samples_fingerprints(samples)
        content |= {f"{part}_images": images, f"{part}_labels": labels}
    start = Path(recipe.start_from or recipe.backbone_weights)
    if start.is_file():  # not a folder that is called imagenet
        content["initial_weights"] = fingerprint(start)
    return json.loads(json.dumps(content))


def data_files(data: DataSource, training: Sequence[Sample]) -> dict[str, str]:
    """Return a short fingerprint of each file that a run reads, by its name below the data."""
    samples = [*training, *data.samples("val")]
    paths = [path for sample in samples for path in (sample.image, sample.label)]
    root = data.root.parent if data.root.is_file() else data.root
    return {name: sha[:16] for name, sha in named_fingerprints(paths, root).items()}


def check_run_folder(output: Path, run: dict, files: dict[str, str] | None = None) -> None:
    """Refuse to mix two runs in one folder.

    Values of `CONTENT` are compared where both runs have them.

    Args:
        output: the folder.
        run: from `describe_run`, and `describe_content`.
        files: the fingerprints of the files of the data, by name, to say which ones differ.

    Raises:
        RecipeError: the folder has another run.
    """
    try:
        check_replaceable(output, REPORT, REPORT_FILES)
    except ForeignFileError as error:
        raise RecipeError(
            str(error).replace("another name, or --overwrite", "another --output")
        ) from error
    if not (output / RUN_FILE).is_file():
        if found := [name for name in RUN_FILES if (output / name).exists()]:
            raise RecipeError(
                f"{output}: expected a new folder, or that of a run. Received: one with "
                f"{', '.join(found)}, but without {RUN_FILE}; give another --output"
            )
        return
    try:
        before = with_defaults(read_run(output / RUN_FILE))
    except ValueError as error:
        raise RecipeError(f"{error}; give another --output") from error
    here = {name: value for name, value in run.items() if name not in CONTENT or name in before}
    there = {name: value for name, value in before.items() if name not in CONTENT or name in run}
    if different := differences(there, here):
        if files is not None and (output / FILES_FILE).is_file():
            former = json.loads((output / FILES_FILE).read_text(encoding="utf-8"))
            different += differences({"files": former}, {"files": files})
        raise RecipeError(f"{output} holds another run:{different}\ngive another --output")
    if files is not None and not before.keys() & CONTENT:
        print(
            f"{output}: a run from before the content of the data was recorded. Its images are "
            "known by their names only, and taken for those of now"
        )


def load_last(run_folder: RunFolder) -> tuple[AlignSeg, int]:
    """Return the model of an interrupted run and the number of epochs that it has done."""
    try:
        return keras.saving.load_model(run_folder.last_file), run_folder.epochs_done()
    except Exception as error:
        raise RecipeError(
            f"{run_folder.last_file}: not readable ({error}); remove it to start anew"
        ) from error


def check_batch_size(recipe: Recipe, replicas: int) -> None:
    """Refuse a batch that cannot be shared among the devices."""
    if recipe.batch_size % replicas:
        raise RecipeError(
            f"batch_size {recipe.batch_size} must be a multiple of the {replicas} replicas"
        )
    if recipe.accumulate > 1 and replicas > 1:
        raise RecipeError(
            "accumulate works on one device: Keras cannot accumulate under tf.distribute. "
            f"Received: accumulate {recipe.accumulate} on {replicas} devices"
        )
    if recipe.context == "global" and recipe.batch_size == replicas:
        raise RecipeError(
            "context 'global' needs at least 2 crops on each device: batch norm over the one value "
            f"of a map pooled to 1x1 is undefined. Received: batch_size {recipe.batch_size} on "
            f"{replicas} devices"
        )


@dataclass(frozen=True)
class Run:
    """A run that is ready to train.

    Attributes:
        recipe: what to do.
        data: what to do it with.
        model: compiled, new or from the run's last epoch.
        batches: what to train on.
        validation: batches of images, very large ones in tiles.
        initial_epoch: the epoch to start with.
        strategy: what the model was built under.
        worker: which of several machines this is.
    """

    recipe: Recipe
    data: Checked
    model: AlignSeg
    batches: TrainingBatches
    validation: tf.data.Dataset
    initial_epoch: int
    strategy: tf.distribute.Strategy
    worker: Worker

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(len(self.data.training), self.recipe.batch_size)


def prepare(
    recipe: Recipe, data: Checked, run_folder: RunFolder | None, cpu_replicas: int = 1
) -> Run:
    """Build the model, or load that of an interrupted run, and the pipelines.

    To be called under the recipe's dtype policy.

    Args:
        recipe: what to do.
        data: what to do it with.
        run_folder: the folder of a run that may have been interrupted.
        cpu_replicas: logical CPU devices to mirror over.

    Raises:
        RecipeError: the recipe does not fit the devices, or weights do not fit the model.
    """
    worker = workers.this_worker()
    if worker.count > 1:
        strategy = workers.multi_worker_strategy()
    else:
        strategy = distribution_strategy(cpu_replicas)
    replicas = strategy.num_replicas_in_sync
    check_batch_size(recipe, replicas)
    steps = steps_per_epoch(len(data.training), recipe.batch_size)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope():
        if run_folder and run_folder.last_file.is_file():
            model, initial_epoch = load_last(run_folder)
            print(
                f"Going on with {run_folder.last_file} after epoch {initial_epoch}/{recipe.epochs}"
            )
        else:
            model, initial_epoch = build_model(recipe, data.label_space), 0
            compile_model(model, recipe, data.label_space, data.training_summary.pixels, steps)
        set_synchronized_batch_norm(model, replicas > 1)
    devices = tf.config.list_physical_devices("GPU") or ["CPU"]
    print(
        f"{recipe.backbone}, {model.count_params() / 1e6:.2f} M parameters, on "
        + (f"{replicas} devices" if replicas > 1 else getattr(devices[0], "name", "the CPU"))
    )
    views = validation_views(data.validation_summary.sizes)
    if worker.count > 1:
        validation = workers.validation_share(
            data.validation, data.label_space, worker, replicas // worker.count, data.one_size,
            views,
        )  # fmt: skip
    else:
        validation = evaluation_dataset(
            data.validation, data.label_space, replicas, data.one_size, views=views
        )
    return Run(
        recipe,
        data,
        model,
        TrainingBatches(recipe, data, model, worker),
        for_outputs(model, validation),
        initial_epoch,
        strategy,
        worker,
    )


def train(recipe: Recipe, data: DataSource, output: Path, cpu_replicas: int = 1) -> Report | None:
    """Run a recipe, or go on with it, and evaluate its best model.

    Args:
        recipe: what to do.
        data: pictures with labels, with the splits train and val.
        output: the run's folder.
        cpu_replicas: logical CPU devices to mirror over, to try distribution without GPUs.

    Returns:
        The evaluation of `output/best.keras` on the validation pictures; None on a machine that
        helps another, which does that.

    Raises:
        DataError: something is wrong with the data; nothing was trained.
        RecipeError: the recipe does not fit the folder or the devices.
        RunStoppedError: the run ended before its last epoch.
    """
    training = training_samples(recipe, data)
    description = describe_run(recipe, data.label_space, training)
    check_run_folder(output, description)  # at once, where names are enough to tell
    steps_per_epoch(len(training), recipe.batch_size)
    worker = workers.this_worker()
    with locked(output) if worker.is_chief else contextlib.nullcontext():
        checked = check_data(data, training)
        description |= describe_content(recipe, data, training)
        files = data_files(data, training)
        check_run_folder(output, description, files)
        if worker.count > 1:
            if cpu_replicas > 1:
                raise RecipeError(
                    "--cpu-replicas does not go with TF_CONFIG: each worker is a device"
                )
            last = workers.checksum(output / "last.keras")
            facts = {"recipe or data": json.dumps(description), "last.keras": last}
            workers.meet(worker, facts)
        run_folder = RunFolder(output)
        with global_dtype_policy(recipe.dtype_policy):
            run = prepare(recipe, checked, run_folder, cpu_replicas)
            if worker.is_chief:
                write_text(output / FILES_FILE, json.dumps(files, indent=0))
                write_text(output / RUN_FILE, json.dumps(description, indent=1))
            fit(run, run_folder)
        return _evaluated(run, data, run_folder) if worker.is_chief else None


def _evaluated(run: Run, data: DataSource, run_folder: RunFolder) -> Report:
    """Evaluate the best model of a run, and write its evaluation and report."""
    folder, checked = run_folder.folder, run.data
    report = evaluate_and_write(
        run_folder.best_file, checked.validation, data.label_space, folder / "evaluation.json"
    )
    splits = {run.recipe.train_on: checked.training, "val": checked.validation}
    write_report(folder, describe_data(data, **splits), report)
    return report


def try_out(recipe: Recipe, data: DataSource, cpu_replicas: int = 1) -> None:
    """Do all of a run but the training, and two steps of that; say what the run would take.

    Raises:
        DataError: something is wrong with the data.
        RecipeError: the recipe does not fit the devices.
    """
    training = training_samples(recipe, data)
    steps_per_epoch(len(training), recipe.batch_size)
    with global_dtype_policy(recipe.dtype_policy):
        run = prepare(recipe, check_data(data, training), None, cpu_replicas)
        first, last, crop_size = stages(recipe)[-1]
        dry_run(
            run.model, recipe, run.batches(first, last, crop_size), run.validation, run.steps,
            len(validation_epochs(recipe)),
        )  # fmt: skip


def fit(run: Run, run_folder: RunFolder) -> None:
    """Train the epochs that are left.

    Raises:
        RunStoppedError: by a signal, or by a loss or weights that are not finite.
    """
    recipe, data, steps = run.recipe, run.data, run.steps
    parts = stages(recipe)
    work = [float(np.prod(crop)) for first, last, crop in parts for _ in range(first, last)]
    folder = run_folder.folder
    own_folder = folder if run.worker.is_chief else folder / f"worker{run.worker.index}"
    with StopOnSignal() as stop:
        # What may end the run or change weights is for all workers, in the same order.
        callbacks: list[keras.callbacks.Callback] = [
            SeedDropout(recipe.seed + run.worker.index),
            metrics.RaiseOnInvalidLabels(),
            StopOnNonFinite(own_folder, run.batches.of_step),
            ValidateAveraged(),
        ]
        if run.worker.is_chief:
            callbacks += [
                Progress(steps, work, run.initial_epoch, recipe.batch_size),
                run_folder,
                TensorBoard(folder / "tensorboard", data.validation[:4], data.label_space),
            ]
        else:
            callbacks.append(workers.WorkerProgress(run.worker))
        callbacks.append(stop)  # last: an epoch that is done is saved before
        for first, last, crop_size in parts:
            first = max(first, run.initial_epoch)
            if first >= last:
                continue
            batches = run.batches(first, last, crop_size)
            if run.worker.count > 1:
                batches = batches.rebatch(recipe.batch_size // run.strategy.num_replicas_in_sync)
                workers.fit(
                    run.model, run.strategy, batches, run.validation, callbacks, first, last, steps,
                    validation_epochs(recipe),
                )  # fmt: skip
                continue
            run.model.fit(
                batches,
                validation_data=run.validation,
                validation_freq=validation_epochs(recipe),
                initial_epoch=first,
                epochs=last,
                steps_per_epoch=steps,
                callbacks=callbacks,
                shuffle=False,  # the pipeline does
                verbose=0,
            )


def validation_epochs(recipe: Recipe) -> list[int]:
    """Return the epochs, counted from 1, after which to validate; the last is one of them."""
    every = recipe.validate_every
    return sorted({*range(every, recipe.epochs + 1, every), recipe.epochs})


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train AlignSeg. The same command goes on where a killed run stopped.",
    )
    add_data_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder of this run")
    parser.add_argument(
        "--cpu-replicas", type=int, default=1,
        help="mirror over so many logical CPU devices, to try distribution without GPUs",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check the data, train two steps, and say what the run would take; writes nothing",
    )  # fmt: skip
    add_recipe_arguments(parser)
    return parser


@printable_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    prepare_processor()
    try:
        recipe = recipe_from_arguments(parsed)
        data = data_from_arguments(parsed, counter("making the data set"))
        if parsed.dry_run:
            try_out(recipe, data, parsed.cpu_replicas)
            return 0
        worker = workers.this_worker()
        with workers.restart_when_a_worker_is_lost(worker, parsed.output / "last.keras"):
            report = train(recipe, data, parsed.output, parsed.cpu_replicas)
    except (DataError, RecipeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunStoppedError, DiskFullError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, RunStoppedError) else 1
    if report is None:
        return 0
    print(f"\n{parsed.output / 'best.keras'} on the validation pictures:\n\n{report.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
