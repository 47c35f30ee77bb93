"""`alignseg predict`: segment images, videos or a camera."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from alignseg_tf.commands.options import add_protocol_arguments, protocol_from_arguments
from alignseg_tf.data.listing import Skipped, describe_skipped, find_named_images
from alignseg_tf.prediction.batch import (
    DEFAULT_KINDS,
    claimed_output,
    predict_images,
    predict_video,
    result_names,
    video_files,
)
from alignseg_tf.prediction.outcomes import Outcome
from alignseg_tf.prediction.outputs import KINDS, check_kinds, paths
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.video import CAMERA, is_video
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.files import remove_leftovers
from alignseg_tf.system.fingerprints import fingerprint
from alignseg_tf.system.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    parser.add_argument(
        "model", type=model_path,
        help="a .keras, .tflite or .onnx file, a SavedModel's folder, or a trained model's name",
    )  # fmt: skip
    parser.add_argument(
        "images", nargs="+",
        help="images, folders, patterns in quotes, videos, or camera:N",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--write", nargs="+", choices=KINDS, default=list(DEFAULT_KINDS), metavar="KIND",
        help=f"files to write: {', '.join(KINDS)} ({' '.join(DEFAULT_KINDS)})",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true",
        help="segment images again that have results; without it, an interrupted run is resumed",
    )  # fmt: skip
    videos = parser.add_argument_group("videos and cameras")
    videos.add_argument("--every", type=int, default=1, help="take each N-th frame (%(default)s)")
    videos.add_argument("--frames", type=int, help="stop after this number of frames (all)")
    add_protocol_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Segment images, videos or a camera; return 1 if something was skipped."""
    for option in ("every", "frames"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be at least 1. Received: {value}")
    protocol = protocol_from_arguments(arguments)
    output, kinds = arguments.output, arguments.write
    images, videos = _named_sources(arguments.images, output)
    predictor = Predictor(arguments.model, protocol)
    check_kinds(kinds, predictor.label_space, predictor.network.gives_logits)
    run = {"model": fingerprint(arguments.model), "protocol": str(protocol)}
    targets = [target for _, name in images for target in paths(output, str(name), kinds)]
    targets += [output / file for _, name in videos for file in video_files(str(name), kinds)]
    for folder in {target.parent for target in targets}:
        remove_leftovers(folder)
    started = time.monotonic()
    with claimed_output(output, run, targets, arguments.overwrite) as log:
        for outcome in predict_images(predictor, images, output, kinds, log):
            _report_skipped(outcome)
        for path, name in videos:
            video = str(path)
            if video.startswith(CAMERA) and arguments.frames is None:
                print(f"{video}: recording until Ctrl-C")
            outcome = predict_video(
                predictor, video, str(name), output, kinds, arguments.every, arguments.frames
            )
            log.add(outcome)
            _report_skipped(outcome)
    return log.report(time.monotonic() - started)


def _report_skipped(outcome: Outcome) -> None:
    if outcome.outcome == "skipped":
        print(f"skipped: {outcome.source}: {outcome.message}", file=sys.stderr)


def _named_sources(
    sources: Sequence[str], output: Path
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Return images and videos, each with the name of its results below the output folder."""
    others = [source for source in sources if not is_video(source)]
    for folder in map(Path, others):
        if folder.is_dir() and folder.resolve() == output.resolve():
            raise ValueError(f"--output must not be the images' folder. Received: {output}")
    skipped: Skipped = {}
    images = result_names(find_named_images(others, output.resolve(), skipped))
    if skipped:
        print(f"not read: {printable(describe_skipped(skipped))}", file=sys.stderr)
    # File names must not have a camera's colon everywhere.
    videos = result_names(
        [(Path(v), Path(Path(v).name.replace(":", "_"))) for v in sources if is_video(v)]
    )
    for video, folder in videos:
        if inside := next((path for path, name in images if name.parent == folder), None):
            raise ValueError(
                f"{printable(video)} and {printable(inside)} would have results in one folder, "
                f"{printable(folder)}: predict them into separate folders"
            )
    return images, videos
