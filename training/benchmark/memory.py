"""Measure the memory of prediction."""

import argparse
import dataclasses
import time
from typing import Any

import keras
import numpy as np

from alignseg_tf.commands.options import add_protocol_arguments, protocol_from_arguments
from alignseg_tf.evaluation.counts import score_image
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import numbered_classes
from alignseg_tf.prediction.tiling import resized
from alignseg_tf.system.memory import peak_resident_bytes
from training.build import build_model
from training.options import _positive, load_recipe
from training.recipe import Recipe


def measure_memory(
    recipe: Recipe, classes: int, size: tuple[int, int], protocol: Protocol
) -> dict[str, Any]:
    """Predict an image and count it against a label, in this process.

    The weights are random: memory does not depend on them. To be called in a process that has
    done nothing else, for the largest memory is that of its whole life.

    Args:
        recipe: backbone and width of the model.
        classes: of the model.
        size: height and width of the image.
        protocol: how it goes through the model.

    Returns:
        `start_bytes`: the largest memory after an image of 64 x 64; `peak_bytes`: after this one;
        `predict_seconds`, `count_seconds`.
    """
    keras.utils.set_random_seed(0)
    model = build_model(
        dataclasses.replace(recipe, backbone_weights="none"), numbered_classes(classes)
    )
    rng = np.random.default_rng(0)
    predictor = Predictor(model, protocol)
    Predictor(model)(np.zeros((64, 64, 3), np.uint8))
    start_bytes = peak_resident_bytes()
    blocks = rng.integers(0, 256, (size[0] // 16 + 1, size[1] // 16 + 1, 3)).astype(np.uint8)
    image = resized(blocks, size)
    truth = np.repeat(np.repeat(blocks[..., 0] % classes, 16, 0), 16, 1)[: size[0], : size[1]]
    times = [time.perf_counter()]
    prediction = predictor(image)
    times.append(time.perf_counter())
    score_image("image", truth, prediction.class_map, classes, prediction.confidence)
    times.append(time.perf_counter())
    predict_seconds, count_seconds = np.diff(times).tolist()
    return {
        "start_bytes": start_bytes,
        "peak_bytes": peak_resident_bytes(),
        "predict_seconds": predict_seconds,
        "count_seconds": count_seconds,
    }


def run_memory(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run the subcommand `memory`: what is to be written as JSON, and as text."""
    recipe, protocol = load_recipe(parsed.recipe), protocol_from_arguments(parsed)
    size = (parsed.size[0], parsed.size[1])
    result = measure_memory(recipe, parsed.classes, size, protocol)
    settings = {
        "backbone": recipe.backbone,
        "channels": recipe.channels,
        "classes": parsed.classes,
        "size": size,
        "protocol": str(protocol.for_image(*size)),
    }
    lines = [
        f"{recipe.backbone}, {recipe.channels} channels, {parsed.classes} classes, image of "
        f"{size[0]} x {size[1]}, {settings['protocol']}",
        f"{'before':<22}{result['start_bytes'] / 2**30:9.2f} GiB (TensorFlow and the model)",
        f"{'largest':<22}{result['peak_bytes'] / 2**30:9.2f} GiB",
        f"{'predicting':<22}{result['predict_seconds']:9.2f} s",
        f"{'counting':<22}{result['count_seconds']:9.2f} s",
    ]
    return settings | result, "\n".join(lines)


def add_memory(commands: Any) -> None:
    """Add the subcommand `memory`."""
    parser = commands.add_parser(
        "memory", help="the memory that an image takes in evaluation", allow_abbrev=False
    )
    parser.add_argument(
        "--size", type=_positive, nargs=2, default=(8192, 8192), metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (8192 8192)",
    )  # fmt: skip
    parser.add_argument("--classes", type=_positive, default=19, help="of the model (%(default)s)")
    recipe = parser.add_argument_group("the model")
    recipe.add_argument("--recipe", default="own_data", help="its backbone and width (%(default)s)")
    add_protocol_arguments(parser)
    parser.set_defaults(run=run_memory)
