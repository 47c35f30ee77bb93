"""`python -m training.benchmark input`: does training wait for its data?"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.commands.options import add_data_arguments, data_from_arguments
from alignseg_tf.data.pipeline import SampleCache, read_ahead, steps_per_epoch
from alignseg_tf.data.sources import DataSource
from alignseg_tf.precision import global_dtype_policy
from alignseg_tf.system.progress import progress_bar
from training.build import build_augmentation, build_model, compile_model
from training.data import check_data, for_outputs, training_batches
from training.distributed.workers import Worker
from training.options import add_recipe_arguments, positive, recipe_from_arguments
from training.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `input`."""
    add_data_arguments(parser)
    parser.add_argument("--steps", type=positive, default=10, help="in a turn (%(default)s)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each (%(default)s)")
    parser.add_argument(
        "--cached", action="store_true",
        help="keep decoded images in memory, as after the first epoch, where they fit",
    )  # fmt: skip
    add_recipe_arguments(parser)


def measure(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the times as JSON and as text."""
    recipe, data = recipe_from_arguments(parsed), data_from_arguments(parsed)
    result = {
        "recipe": parsed.recipe,
        "backbone": recipe.backbone,
        "crop_size": recipe.crop_size,
        "batch_size": recipe.batch_size,
        "images": len(data.samples("train")),
        "steps": parsed.steps,
        "cached": parsed.cached,
    } | measure_input(recipe, data, parsed.steps, parsed.rounds, parsed.cached)
    lines = [
        f"{name:<22}{np.median(seconds):9.4f} s/step   ({', '.join(f'{x:.4f}' for x in seconds)})"
        for name, seconds in (
            ("fed by the pipeline", result["pipeline_seconds"]),
            ("fed from memory", result["memory_seconds"]),
        )
    ]
    lines += [
        f"{'waiting for data':<22}{result['waiting']:9.1%} of a step",
        f"{'processor time':<22}{result['pipeline_cpu_share']:9.1%} is the pipeline's",
        f"{'pipeline alone':<22}{result['images_per_second']:9.1f} images/s",
    ]
    return result, "\n".join(lines)


def measure_input(
    recipe: Recipe, data: DataSource, steps: int, rounds: int, cached: bool
) -> dict[str, Any]:
    """Time training steps that are fed alternately by the pipeline and by one batch in memory.

    Batches made during the other turn are used up before the clock starts.

    Returns:
        `pipeline_seconds` and `memory_seconds`: seconds of a step in each of the `rounds`;
        `waiting`: the share of a step that the pipeline costs, of the medians;
        `pipeline_cpu_share`: the same of processor time, which other processes disturb less;
        `images_per_second` that the pipeline makes when nothing else runs.
    """
    keras.utils.set_random_seed(recipe.seed)
    checked = check_data(data, data.samples("train"))
    with global_dtype_policy(recipe.dtype_policy):
        model = build_model(recipe, data.label_space)
        epoch_steps = steps_per_epoch(len(checked.training), recipe.batch_size)
        pixels = checked.training_report.pixels
        compile_model(model, recipe, data.label_space, pixels, epoch_steps)
    cache = SampleCache() if cached else SampleCache(0)
    batches = replace(training_batches(recipe, checked, Worker()), cache=cache)
    augmentation = build_augmentation(recipe, model, recipe.crop_size)
    if cached:
        for sample in progress_bar(checked.training, "decoding"):
            cache.load(sample, data.label_space)

    def endless(first_epoch: int) -> tf.data.Dataset:
        return for_outputs(model, batches.dataset(augmentation, first_epoch, 10**6))

    ahead = read_ahead(recipe.batch_size, recipe.crop_size)
    alone = images_per_second(iter(endless(0)), ahead, 2 * ahead + steps, recipe.batch_size)
    one_batch = tf.data.Dataset.from_tensors(next(iter(endless(0)))).repeat()
    model.fit(one_batch, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)  # traces
    pipeline, memory = iter(endless(1)), iter(one_batch)
    times = []
    for _ in progress_bar(range(rounds), "measuring", unit="round"):
        time_steps(model, pipeline, ahead)
        from_pipeline = time_steps(model, pipeline, steps)
        time_steps(model, memory, 1)
        times.append([from_pipeline, time_steps(model, memory, steps)])
    turns = np.array(times)  # [rounds, pipeline and memory, wall and processor]
    costs = 1.0 - np.median(turns[:, 1], axis=0) / np.median(turns[:, 0], axis=0)
    return {
        "pipeline_seconds": turns[:, 0, 0].tolist(),
        "memory_seconds": turns[:, 1, 0].tolist(),
        "waiting": float(costs[0]),
        "pipeline_cpu_share": float(costs[1]),
        "images_per_second": alone,
    }


def time_steps(model: keras.Model, batches: Iterator[Any], steps: int) -> tuple[float, float]:
    """Return seconds and processor seconds of a training step of a model that `fit` has traced."""
    logs: dict[str, Any] = {}
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(steps):
        logs = model.train_function(batches)
    float(logs["loss"])  # a GPU may have queued the steps only
    return (time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps


def images_per_second(batches: Iterator[Any], untimed: int, timed: int, batch_size: int) -> float:
    """Return the speed of a pipeline after `untimed` batches."""
    for _ in range(untimed):
        next(batches)
    start = time.perf_counter()
    for _ in range(timed):
        next(batches)
    return timed * batch_size / (time.perf_counter() - start)
