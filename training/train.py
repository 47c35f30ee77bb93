"""Train AlignSeg: recipe -> data -> model -> fit, top to bottom.

    python -m training.train --data FOLDER --output runs/mine

docs/watching.md lists the files of the output folder. The same command resumes a run.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg, metrics
from alignseg_tf.commands.options import add_data_arguments, data_from_arguments
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.pipeline import TrainingBatches, steps_per_epoch
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.provenance import RUN_FILE
from alignseg_tf.evaluation.report import Report
from alignseg_tf.precision import global_dtype_policy
from alignseg_tf.system.console import command_output
from alignseg_tf.system.files import DiskFullError, write_text
from alignseg_tf.system.fingerprints import file_fingerprint
from alignseg_tf.system.processor import prepare_processor
from training import build
from training.callbacks import run_folder as folders
from training.callbacks.averaging import SeedDropout, ValidateAveraged
from training.callbacks.progress import Progress
from training.callbacks.run_folder import RunFolder
from training.callbacks.stopping import RunStoppedError, StopOnNonFinite, StopOnSignal
from training.callbacks.tensorboard import TensorBoard
from training.data import (
    Checked,
    check_data,
    for_outputs,
    stages,
    training_batches,
    training_samples,
)
from training.distributed import fit as distribution
from training.distributed import workers
from training.distributed.workers import Worker
from training.dry_run import dry_run
from training.evaluate import evaluate_and_write
from training.options import add_recipe_arguments, recipe_from_arguments
from training.recipe import Recipe, RecipeError
from training.report import describe_data, write_report


@dataclass(frozen=True)
class Run:
    """A run that is ready to train: its model is compiled, new or from the last whole epoch."""

    recipe: Recipe
    data: Checked
    model: AlignSeg
    batches: TrainingBatches
    validation: tf.data.Dataset
    initial_epoch: int
    strategy: tf.distribute.Strategy
    worker: Worker

    def training_data(
        self, first: int, end: int, crop_size: tuple[int, int], step: int = 0
    ) -> tf.data.Dataset:
        """Return the batches from `step` of epoch `first` until epoch `end` begins."""
        augmentation = build.build_augmentation(self.recipe, self.model, crop_size)
        return for_outputs(self.model, self.batches.dataset(augmentation, first, end, step))

    def batch_of(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Make one batch again: its images, its labels, and the names of its image files."""
        crop_size = next(crop for first, end, crop in stages(self.recipe) if first <= epoch < end)
        images, labels = next(iter(self.training_data(epoch, epoch + 1, crop_size, step)))
        names = [sample.image.name for sample in self.batches.samples_of(epoch, step)]
        return images.numpy(), labels["segmentation"].numpy(), names


def prepare(recipe: Recipe, data: Checked, last_file: Path | None, cpu_replicas: int) -> Run:
    """Build the model, or load `last_file` of an interrupted run, and the pipelines.

    Call it under the recipe's dtype policy.

    Raises:
        RecipeError: the recipe does not fit the devices, or weights do not fit the model.
    """
    worker = workers.this_worker()
    strategy = distribution.strategy(worker, cpu_replicas)
    replicas = strategy.num_replicas_in_sync
    build.check_batch_size(recipe, replicas)
    steps = steps_per_epoch(len(data.training), recipe.batch_size)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope():
        if last_file and last_file.is_file():
            model, initial_epoch = folders.load_resumable(last_file)
            print(f"Resuming {last_file} after epoch {initial_epoch}/{recipe.epochs}")
        else:
            model, initial_epoch = build.build_model(recipe, data.label_space), 0
            build.compile_model(model, recipe, data.label_space, data.training_report.pixels, steps)
        build.set_synchronized_batch_norm(model, replicas > 1)
    devices = tf.config.list_physical_devices("GPU") or ["CPU"]
    print(
        f"{recipe.backbone}, {model.count_params() / 1e6:.2f} M parameters, on "
        + (f"{replicas} devices" if replicas > 1 else getattr(devices[0], "name", "the CPU"))
    )
    batches = training_batches(recipe, data, worker)
    validation = distribution.validation_batches(data, worker, replicas // worker.count)
    validation = for_outputs(model, validation)
    return Run(recipe, data, model, batches, validation, initial_epoch, strategy, worker)


def train(recipe: Recipe, data: DataSource, output: Path, cpu_replicas: int = 1) -> Report | None:
    """Run a recipe, or resume it, and evaluate its best model.

    Returns:
        The evaluation of `output/best.keras` on the validation images; None on a worker other than
        the chief.

    Raises:
        DataError: something is wrong with the data; nothing was trained.
        RecipeError: the recipe does not fit the folder or the devices.
        RunStoppedError: the run ended before its last epoch.
    """
    training = training_samples(recipe, data)
    steps_per_epoch(len(training), recipe.batch_size)
    worker = workers.this_worker()
    if worker.count > 1 and cpu_replicas > 1:
        raise RecipeError("--cpu-replicas does not go with TF_CONFIG: each worker is a device")
    with folders.locked(output) if worker.is_chief else contextlib.nullcontext():
        description = folders.describe_run(recipe, data, training)
        files = folders.data_files(data, training)
        folders.check_run_folder(output, description, files)
        checked = check_data(data, training)
        run_folder = RunFolder(output)
        if worker.count > 1:
            last = run_folder.last_file
            checksum = file_fingerprint(last) if last.is_file() else "none"
            facts = {"recipe or data": json.dumps(description), "last.keras": checksum}
            workers.meet(worker, facts)
        with global_dtype_policy(recipe.dtype_policy):
            run = prepare(recipe, checked, run_folder.last_file, cpu_replicas)
            if worker.is_chief:
                write_text(output / folders.FILES_FILE, json.dumps(files, indent=0))
                write_text(output / RUN_FILE, json.dumps(description, indent=1))
            fit(run, run_folder)
        if not worker.is_chief:
            return None
        report = evaluate_and_write(
            run_folder.best_file, checked.validation, data.label_space, output / "evaluation.json"
        )
        splits = {recipe.train_on: training, "val": checked.validation}
        write_report(output, describe_data(data, **splits), report)
        return report


def try_out(recipe: Recipe, data: DataSource, cpu_replicas: int = 1) -> None:
    """Prepare a run, train a few steps of it, and print what the whole would take."""
    training = training_samples(recipe, data)
    steps_per_epoch(len(training), recipe.batch_size)
    with global_dtype_policy(recipe.dtype_policy):
        run = prepare(recipe, check_data(data, training), None, cpu_replicas)
        batches = run.training_data(*stages(recipe)[-1])
        validations = len(validation_epochs(recipe))
        dry_run(run.model, recipe, batches, run.validation, run.batches.steps, validations)


def run_callbacks(
    run: Run, run_folder: RunFolder, stop: StopOnSignal
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of this worker, in the order in which they must act."""
    recipe, folder, worker = run.recipe, run_folder.folder, run.worker
    own_folder = folder if worker.is_chief else folder / f"worker{worker.index}"
    # Callbacks that may end the run or change weights are on all workers, in the same order.
    callbacks: list[keras.callbacks.Callback] = [
        SeedDropout(recipe.seed + worker.index),
        metrics.RaiseOnInvalidLabels(),
        StopOnNonFinite(own_folder, run.batch_of),
        ValidateAveraged(),
    ]
    if worker.is_chief:
        work = [
            float(np.prod(crop)) for first, last, crop in stages(recipe) for _ in range(first, last)
        ]
        callbacks += [
            Progress(run.batches.steps, work, run.initial_epoch, recipe.batch_size),
            run_folder,
            TensorBoard(folder / "tensorboard", run.data.validation[:4], run.data.label_space),
        ]
    else:
        callbacks.append(distribution.worker_progress(worker, recipe.epochs))
    return [*callbacks, stop]  # last: a finished epoch is saved first


def fit(run: Run, run_folder: RunFolder) -> None:
    """Train the remaining epochs."""
    recipe, steps = run.recipe, run.batches.steps
    validation_freq = validation_epochs(recipe)
    with StopOnSignal() as stop:
        callbacks = run_callbacks(run, run_folder, stop)
        for first, last, crop_size in stages(recipe):
            first = max(first, run.initial_epoch)
            if first >= last:
                continue
            batches = run.training_data(first, last, crop_size)
            if run.worker.count > 1:
                batches = batches.rebatch(recipe.batch_size // run.strategy.num_replicas_in_sync)
                distribution.fit_workers(
                    run.model, run.strategy, batches, run.validation, callbacks,
                    range(first, last), steps, validation_freq,
                )  # fmt: skip
                continue
            if run.strategy.num_replicas_in_sync == 1:  # else Keras does this, in its scope
                build.build_variables(run.model, batches.element_spec)
            run.model.fit(
                batches,
                validation_data=run.validation,
                validation_freq=validation_freq,
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
        description="Train AlignSeg. The same command resumes a run.",
    )
    add_data_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder of this run")
    parser.add_argument(
        "--cpu-replicas", type=int, default=1,
        help="number of logical CPU devices to mirror over, to try distribution without GPUs",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check the data, train a few steps, and print what the run would take; writes nothing",
    )  # fmt: skip
    add_recipe_arguments(parser)
    return parser


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    prepare_processor()
    try:
        recipe = recipe_from_arguments(parsed)
        data = data_from_arguments(parsed)
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
        return getattr(error, "status", 1)
    if report is not None:
        print(f"\n{parsed.output / 'best.keras'} on the validation images:\n\n{report.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
