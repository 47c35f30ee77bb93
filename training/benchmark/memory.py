"""`python -m training.benchmark memory`: the memory of prediction."""

import argparse
import dataclasses
import time
from typing import Any

import keras
import numpy as np

from alignseg_tf.commands.options import add_protocol_arguments, protocol_from_arguments
from alignseg_tf.evaluation.counts import score_image
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.saved_networks import numbered_classes
from alignseg_tf.prediction.tiling import resized
from alignseg_tf.system.environment import peak_resident_bytes
from training.build import build_model
from training.options import load_recipe, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `memory`."""
    parser.add_argument(
        "--size", type=positive, nargs=2, default=(8192, 8192), metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (8192 8192)",
    )  # fmt: skip
    parser.add_argument("--classes", type=positive, default=19, help="of the model (%(default)s)")
    parser.add_argument("--recipe", default="own_data", help="backbone and width (%(default)s)")
    add_protocol_arguments(parser)


def measure(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Predict an image, count it against a label, and return the memory as JSON and as text.

    Weights are random: memory does not depend on them. The peak is that of the whole process.
    """
    protocol = protocol_from_arguments(parsed)
    recipe = dataclasses.replace(load_recipe(parsed.recipe), backbone_weights="none")
    size, classes = tuple(parsed.size), parsed.classes
    keras.utils.set_random_seed(0)
    model = build_model(recipe, numbered_classes(classes))
    predictor = Predictor(model, protocol)
    Predictor(model)(np.zeros((64, 64, 3), np.uint8))
    start_bytes = peak_resident_bytes()
    shape = (size[0] // 16 + 1, size[1] // 16 + 1, 3)
    blocks = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image = resized(blocks, size)
    truth = np.kron(blocks[..., 0] % classes, np.ones((16, 16), np.uint8))[: size[0], : size[1]]
    times = [time.perf_counter()]
    prediction = predictor(image)
    times.append(time.perf_counter())
    score_image("image", truth, prediction.class_map, classes, prediction.confidence)
    times.append(time.perf_counter())
    predict_seconds, count_seconds = np.diff(times).tolist()
    result = {
        "backbone": recipe.backbone,
        "channels": recipe.channels,
        "classes": classes,
        "size": size,
        "protocol": str(protocol.for_image(*size)),
        "start_bytes": start_bytes,
        "peak_bytes": peak_resident_bytes(),
        "predict_seconds": predict_seconds,
        "count_seconds": count_seconds,
    }
    lines = [
        f"{recipe.backbone}, {recipe.channels} channels, {classes} classes, image of "
        f"{size[0]} x {size[1]}, {result['protocol']}",
        f"{'before':<22}{start_bytes / 2**30:9.2f} GiB (TensorFlow and the model)",
        f"{'largest':<22}{result['peak_bytes'] / 2**30:9.2f} GiB",
        f"{'predicting':<22}{predict_seconds:9.2f} s",
        f"{'counting':<22}{count_seconds:9.2f} s",
    ]
    return result, "\n".join(lines)
