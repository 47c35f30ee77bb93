"""`alignseg predict-distributed`: segment millions of images with Ray."""

import argparse
import time
from pathlib import Path

from alignseg_tf.prediction.distributed import predict_distributed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict-distributed`."""
    parser.add_argument("model", type=Path, help="folder of a SavedModel, e.g. savedmodels/NAME/1")
    parser.add_argument("folder", type=Path, help="folder of images, searched at all depths")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--actors", type=int, help="processes with a copy of the model (all cores)")
    parser.add_argument(
        "--threads", type=int, default=1, help="TensorFlow threads of each (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (%(default)s)")
    parser.add_argument("--address", help="of a Ray cluster, or auto (this machine only)")


def run(arguments: argparse.Namespace) -> int:
    """Segment millions of images with Ray; return 1 if some were skipped."""
    started = time.monotonic()
    log = predict_distributed(
        arguments.model, arguments.folder, arguments.output, arguments.actors, arguments.threads,
        arguments.batch_size, arguments.address,
    )  # fmt: skip
    return log.report(time.monotonic() - started)
