"""Measure the input pipeline."""

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.commands.options import add_data_arguments, data_from_arguments
from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.pipeline import (
    RareClassSampling,
    SampleCache,
    read_ahead,
    steps_per_epoch,
    training_dataset,
)
from alignseg_tf.data.sources import DataSource
from alignseg_tf.precision import global_dtype_policy
from alignseg_tf.system.progress import progress_bar
from training.build import build_augmentation, build_model, compile_model
from training.data import for_outputs
from training.options import _positive, add_recipe_arguments, recipe_from_arguments
from training.recipe import Recipe


def measure_input(
    recipe: Recipe, data: DataSource, steps: int, rounds: int, cached: bool = False
) -> dict[str, Any]:
    """Time training steps that are fed by the pipeline, and by one batch in memory, in turns.

    Both kinds run in one process and alternate, so that what else the machine does hits both.
    Batches that were made during the other kind's turn are used up before the clock starts.

    Args:
        recipe: of the run; its model is built and trained for a few steps.
        data: the training images.
        steps: timed steps in a turn.
        rounds: turns of each kind.
        cached: keep all decoded images in memory, as far as they fit, before the clock starts,
            as in all epochs but the first; otherwise every image is decoded each time.

    Returns:
        `pipeline_seconds` and `memory_seconds`: seconds a step of each turn; `waiting`: the share
        of a step that the pipeline costs, of the medians; `pipeline_cpu_share`: the same of the
        processor time of this process, which other processes disturb less; `images_per_second`
        that the pipeline makes when nothing else runs.
    """
    label_space, samples = data.label_space, data.samples("train")
    keras.utils.set_random_seed(recipe.seed)
    rare_classes, pixels = None, np.ones(label_space.num_classes)
    if recipe.rare_classes:
        summary = check_samples(samples, label_space)
        rare_classes = RareClassSampling(summary.counts, recipe.rare_classes)
        pixels = summary.pixels
    cache = SampleCache() if cached else SampleCache(0)
    if cached:
        for sample in progress_bar(samples, "decoding"):
            cache.load(sample, label_space)
    with global_dtype_policy(recipe.dtype_policy):
        model = build_model(recipe, label_space)
        compile_model(
            model, recipe, label_space, pixels, steps_per_epoch(len(samples), recipe.batch_size)
        )
    augmentation = build_augmentation(recipe, model, recipe.crop_size)

    def batches(first_epoch: int = 0) -> tf.data.Dataset:
        dataset = training_dataset(
            samples, label_space, augmentation, recipe.batch_size, 10**6, first_epoch,
            recipe.seed, cache, rare_classes,
        )  # fmt: skip
        return for_outputs(model, dataset)

    ahead = read_ahead(recipe.batch_size, recipe.crop_size)
    alone = images_per_second(iter(batches()), ahead, 2 * ahead + steps, recipe.batch_size)
    one_batch = tf.data.Dataset.from_tensors(next(iter(batches()))).repeat()
    model.fit(one_batch, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)  # traces
    pipeline, memory = iter(batches(1)), iter(one_batch)
    times: dict[str, list[tuple[float, float]]] = {"pipeline": [], "memory": []}
    for _ in progress_bar(range(rounds), "measuring", unit="round"):
        time_steps(model, pipeline, ahead)
        times["pipeline"].append(time_steps(model, pipeline, steps))
        time_steps(model, memory, 1)
        times["memory"].append(time_steps(model, memory, steps))
    (from_pipeline, cpu), (from_memory, own_cpu) = (
        np.median(times[kind], axis=0) for kind in ("pipeline", "memory")
    )
    return {
        "pipeline_seconds": [wall for wall, _ in times["pipeline"]],
        "memory_seconds": [wall for wall, _ in times["memory"]],
        "waiting": float(1.0 - from_memory / from_pipeline),
        "pipeline_cpu_share": float(1.0 - own_cpu / cpu),
        "images_per_second": alone,
    }


def time_steps(model: keras.Model, batches: Iterator[Any], steps: int) -> tuple[float, float]:
    """Return seconds and processor seconds of a training step, without what `fit` does around it.

    Args:
        model: compiled, and trained by `fit` for a step at least.
        batches: what each step takes the next of.
        steps: how many to take the mean of.
    """
    logs: dict[str, Any] = {}
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(steps):
        logs = model.train_function(batches)
    float(logs["loss"])  # on a GPU the steps have only been ordered so far
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return wall / steps, cpu / steps


def images_per_second(batches: Iterator[Any], untimed: int, timed: int, batch_size: int) -> float:
    """Return how many samples a pipeline makes in a second, after `untimed` batches."""
    for _ in range(untimed):
        next(batches)
    start = time.perf_counter()
    for _ in range(timed):
        next(batches)
    return timed * batch_size / (time.perf_counter() - start)


def describe_input(result: dict[str, Any]) -> str:
    """Return what `measure_input` found as lines of text."""

    def line(name: str, values: Sequence[float]) -> str:
        each = ", ".join(f"{value:.4f}" for value in values)
        return f"{name:<22}{np.median(values):9.4f} s/step   ({each})"

    return "\n".join(
        [
            line("fed by the pipeline", result["pipeline_seconds"]),
            line("fed from memory", result["memory_seconds"]),
            f"{'waiting for data':<22}{result['waiting']:9.1%} of a step",
            f"{'processor time':<22}{result['pipeline_cpu_share']:9.1%} is the pipeline's",
            f"{'pipeline alone':<22}{result['images_per_second']:9.1f} images/s",
        ]
    )


def run_input(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run the subcommand `input`: what is to be written as JSON, and as text."""
    recipe = recipe_from_arguments(parsed)
    data = data_from_arguments(parsed)
    result = measure_input(recipe, data, parsed.steps, parsed.rounds, parsed.cached)
    settings = {
        "recipe": parsed.recipe,
        "backbone": recipe.backbone,
        "crop_size": recipe.crop_size,
        "batch_size": recipe.batch_size,
        "images": len(data.samples("train")),
        "steps": parsed.steps,
        "cached": parsed.cached,
    }
    return settings | result, describe_input(result)


def add_input(commands: Any) -> None:
    """Add the subcommand `input`."""
    parser = commands.add_parser(
        "input", help="the share of a training step that waits for data", allow_abbrev=False
    )
    add_data_arguments(parser)
    parser.add_argument("--steps", type=_positive, default=10, help="in a turn (%(default)s)")
    parser.add_argument("--rounds", type=_positive, default=3, help="turns of each (%(default)s)")
    parser.add_argument(
        "--cached", action="store_true",
        help="with the images in memory, as after the first epoch, where they fit",
    )  # fmt: skip
    add_recipe_arguments(parser)
    parser.set_defaults(run=run_input)
