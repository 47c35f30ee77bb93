"""Train AlignSeg: recipe -> data -> model -> fit, top to bottom.

    python -m training.train --data FOLDER --output runs/mine

The output folder holds `run.json` (what the run is), `metrics.csv` (a row an epoch), `best.keras`
(for use), `last.keras` (with the optimizer), `evaluation.json` and `tensorboard/`. The same command
goes on where a killed run stopped.
"""

import argparse
import dataclasses
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg, backbones, checkpoints, losses, metrics, optimizers
from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.catalog import IGNORE, LabelSpace
from alignseg_tf.data.pipeline import evaluation_dataset, steps_per_epoch, training_dataset
from alignseg_tf.data.readers import (
    DataError,
    DataSummary,
    Sample,
    check_samples,
)
from alignseg_tf.data.sources import DataSource, add_data_arguments, data_from_arguments
from alignseg_tf.evaluation import Report
from alignseg_tf.files import write_text
from training.callbacks import (
    PredictionPictures,
    Progress,
    RunFolder,
    SeedDropout,
    counter,
    set_synchronized_batch_norm,
)
from training.evaluate import evaluate_and_write
from training.recipe import Recipe, RecipeError, add_recipe_arguments, recipe_from_arguments

# What a run is made of, to be compared when it goes on.
RUN_FILE = "run.json"


def build_backbone(recipe: Recipe) -> keras.Model:
    """Return the backbone that a recipe names, with its weights."""
    weights = None if recipe.backbone_weights == "none" else recipe.backbone_weights
    if recipe.backbone == "efficientnet_lite0":
        return backbones.efficientnet_lite0(weights)
    backbone = {"resnet50": backbones.resnet50, "resnet101": backbones.resnet101}[recipe.backbone]()
    if weights == "imagenet":
        raise RecipeError(
            f"{recipe.backbone} comes without ImageNet weights: give --backbone-weights FILE, "
            "the official deep-stem ResNet as .pth or .npz, or --backbone-weights none"
        )
    if weights is not None:
        try:
            checkpoints.load_official_backbone(backbone, checkpoints.read_state_dict(weights))
        except (ValueError, ImportError) as error:
            raise RecipeError(f"backbone_weights: {error}") from error
    return backbone


def build_model(recipe: Recipe, label_space: LabelSpace) -> AlignSeg:
    """Return the model that a recipe describes."""
    return AlignSeg(
        build_backbone(recipe),
        num_classes=label_space.num_classes,
        channels=recipe.channels,
        aggregation=recipe.aggregation,
        context=None if recipe.context == "none" else recipe.context,
        auxiliary_head=recipe.auxiliary_weight > 0,
        label_space=label_space.to_dict(),
    )


def class_weights(recipe: Recipe, pixels: np.ndarray) -> list[float] | None:
    """Return the weight of each class, or None: 1 / sqrt(frequency), with a mean pixel at 1."""
    if recipe.class_weights == "none":
        return None
    frequency = np.maximum(pixels, 1) / pixels.sum()
    weights = 1.0 / np.sqrt(frequency)
    weights[pixels == 0] = 0.0
    return (weights / (weights * frequency).sum()).tolist()


def compile_model(
    model: AlignSeg, recipe: Recipe, label_space: LabelSpace, pixels: np.ndarray, steps: int
) -> None:
    """Give a model its optimizer, losses and metric; `steps` are those of the whole run."""
    schedule = keras.optimizers.schedules.PolynomialDecay(
        recipe.learning_rate, steps, end_learning_rate=0.0, power=recipe.poly_power
    )
    optimizer: keras.optimizers.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
    else:
        optimizer = optimizers.SGDWithL2(schedule, recipe.momentum, recipe.weight_decay)
    weights = class_weights(recipe, pixels)
    cross_entropy = losses.CrossEntropy(IGNORE, weights)
    loss: Any = {
        "cross_entropy": cross_entropy,
        "ohem": losses.OhemCrossEntropy(ignore_class=IGNORE),
        "cross_entropy+lovasz": losses.CombinedLoss(
            [cross_entropy, losses.LovaszSoftmax(IGNORE)], [1.0, 0.8]
        ),
    }[recipe.loss]
    miou = metrics.MeanIoU(label_space.num_classes, IGNORE, label_space.classes)
    loss, loss_weights = {"segmentation": loss}, {"segmentation": 1.0}
    if model.auxiliary_head:
        loss["auxiliary"] = losses.CrossEntropy(IGNORE, weights)
        loss_weights["auxiliary"] = recipe.auxiliary_weight
    # Without XLA: validation reads whole pictures, and it would compile for each of their sizes.
    model.compile(
        optimizer, loss, loss_weights, metrics={"segmentation": [miou]}, jit_compile=False
    )


def mean_color(model: AlignSeg) -> tuple[float, float, float]:
    """Return the RGB colour that the model's normalization turns into zero, or the usual one."""
    if model.normalization is None:
        return Augmentation.fill
    mean = tuple(model.normalization["mean"])
    return mean[::-1] if model.normalization.get("channel_order") == "bgr" else mean  # type: ignore[return-value]


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


def describe_run(recipe: Recipe, label_space: LabelSpace, samples: Sequence[Sample]) -> dict:
    """Return what makes a run this one: its recipe and its data."""
    names = "\n".join(sample.image.name for sample in samples)
    run = dataclasses.asdict(recipe) | {
        "classes": label_space.classes,
        "training_pictures": len(samples),
        "training_picture_names": f"{zlib.crc32(names.encode()):08x}",
    }
    return json.loads(json.dumps(run))


def check_run_folder(output: Path, run: dict) -> None:
    """Refuse to mix two runs in one folder."""
    if not (output / RUN_FILE).is_file():
        return
    before = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    differences = [
        f"{name}: {before.get(name)!r} there, {run.get(name)!r} here"
        for name in sorted(before.keys() | run.keys())
        if before.get(name) != run.get(name)
    ]
    if differences:
        raise RecipeError(
            f"{output} holds another run ({'; '.join(differences)}); give another --output"
        )


def load_last(run_folder: RunFolder) -> tuple[AlignSeg, int]:
    """Return the model of an interrupted run and the number of epochs that it has done."""
    try:
        return keras.saving.load_model(run_folder.last_file), run_folder.epochs_done()
    except Exception as error:
        raise RecipeError(
            f"{run_folder.last_file}: not readable ({error}); remove it to start anew"
        ) from error


def train(
    recipe: Recipe,
    data: DataSource,
    output: Path,
    cpu_replicas: int = 1,
) -> Report:
    """Run a recipe, or go on with it, and evaluate its best model.

    Args:
        recipe: what to do.
        data: pictures with labels, with the splits train and val.
        output: the run's folder.
        cpu_replicas: logical CPU devices to mirror over, to try distribution without GPUs.

    Returns:
        The evaluation of `output/best.keras` on the validation pictures.

    Raises:
        DataError: something is wrong with the data; nothing was trained.
        RecipeError: the recipe does not fit the folder.
    """
    label_space = data.label_space
    training, validation = data.samples("train"), data.samples("val")
    run = describe_run(recipe, label_space, training)
    check_run_folder(output, run)
    steps = steps_per_epoch(len(training), recipe.batch_size)
    summary = check_samples(training, label_space, counter("checking training pictures"))
    val_summary = check_samples(validation, label_space, counter("checking validation pictures"))
    describe(label_space, summary, val_summary)

    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy(recipe.dtype_policy)
    strategy = distribution_strategy(cpu_replicas)
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise RecipeError(
            f"batch_size {recipe.batch_size} must be a multiple of the {replicas} replicas"
        )
    if recipe.context == "global" and recipe.batch_size == replicas:
        raise RecipeError(
            "context 'global' needs at least 2 crops on each device: batch norm over the one value "
            f"of a map pooled to 1x1 is undefined. Received: batch_size {recipe.batch_size} on "
            f"{replicas} devices"
        )
    run_folder = RunFolder(output)
    with strategy.scope():
        if run_folder.last_file.is_file():
            model, initial_epoch = load_last(run_folder)
            print(
                f"Going on with {run_folder.last_file} after epoch {initial_epoch}/{recipe.epochs}"
            )
        else:
            model = build_model(recipe, label_space)
            compile_model(model, recipe, label_space, summary.pixels, steps * recipe.epochs)
            initial_epoch = 0
        devices = tf.config.list_physical_devices("GPU") or ["CPU"]
        print(
            f"{recipe.backbone}, {model.count_params() / 1e6:.2f} M parameters, on "
            + (f"{replicas} devices" if replicas > 1 else getattr(devices[0], "name", "the CPU"))
        )
        set_synchronized_batch_norm(model, replicas > 1)
    write_text(output / RUN_FILE, json.dumps(run, indent=1))

    def for_outputs(dataset: tf.data.Dataset) -> tf.data.Dataset:
        names = list(model.output)
        return dataset.map(lambda image, label: (image, dict.fromkeys(names, label)))

    one_size = len(np.unique(val_summary.sizes, axis=0)) == 1
    val_batches = evaluation_dataset(validation, label_space, replicas, one_size)
    work = [
        float(np.prod(crop_size))
        for first, last, crop_size in stages(recipe)
        for _ in range(first, last)
    ]
    callbacks = [
        SeedDropout(recipe.seed),
        metrics.RaiseOnInvalidLabels(),
        Progress(steps, work, initial_epoch),
        keras.callbacks.TerminateOnNaN(raise_error=True),
        run_folder,
        keras.callbacks.TensorBoard(output / "tensorboard", write_graph=False),
        PredictionPictures(output / "tensorboard", validation[:4], label_space),
    ]
    for first, last, crop_size in stages(recipe):
        if initial_epoch >= last:
            continue
        augmentation = Augmentation(
            crop_size, recipe.scale, color=recipe.color, fill=mean_color(model)
        )
        batches = training_dataset(
            training, label_space, augmentation, recipe.batch_size, last,
            max(first, initial_epoch), recipe.seed,
        )  # fmt: skip
        model.fit(
            for_outputs(batches),
            validation_data=for_outputs(val_batches),
            validation_freq=validation_epochs(recipe),
            initial_epoch=max(first, initial_epoch),
            epochs=last,
            steps_per_epoch=steps,
            callbacks=callbacks,
            shuffle=False,  # the pipeline does
            verbose=0,
        )
    return evaluate_and_write(
        run_folder.best_file, validation, label_space, output / "evaluation.json"
    )


def stages(recipe: Recipe) -> list[tuple[int, int, tuple[int, int]]]:
    """Return (first epoch, epoch to end before, crop size) of the parts of a run."""
    height, width = recipe.crop_size
    small = tuple(max(64, round(side / 2**0.5 / 32) * 32) for side in (height, width))
    border = min(recipe.small_crop_epochs, recipe.epochs)
    parts = [(0, border, small), (border, recipe.epochs, recipe.crop_size)]
    return [part for part in parts if part[0] < part[1]]  # type: ignore[misc]


def validation_epochs(recipe: Recipe) -> list[int]:
    """Return the epochs, counted from 1, after which to validate; the last is one of them."""
    every = recipe.validate_every
    return sorted({*range(every, recipe.epochs + 1, every), recipe.epochs})


def describe(label_space: LabelSpace, training: DataSummary, validation: DataSummary) -> None:
    """Print what the data are, and warn of classes that cannot be learned or judged."""
    for name, part in (("training", training), ("validation", validation)):
        low, high = part.sizes.min(0), part.sizes.max(0)
        size = f"{low[1]} x {low[0]}" + (
            f" to {high[1]} x {high[0]}" if (low != high).any() else ""
        )
        print(f"{len(part.sizes)} {name} pictures, {size} pixels")
        absent = [c for c, n in zip(label_space.classes, part.pixels, strict=True) if n == 0]
        if absent:
            print(f"Warning: no {name} picture has the classes: {', '.join(absent)}")


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
    add_recipe_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    try:
        recipe = recipe_from_arguments(parsed)
        data = data_from_arguments(parsed, counter("drawing street scenes"))
        report = train(recipe, data, parsed.output, parsed.cpu_replicas)
    except (DataError, RecipeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{parsed.output / 'best.keras'} on the validation pictures:\n\n{report.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
