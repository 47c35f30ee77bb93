"""Segment many files: pictures in folders, videos, cameras; what became of each is written down."""

import argparse
import csv
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignseg_tf.data.readers import (
    DataError,
    Skipped,
    describe_skipped,
    find_named_pictures,
    in_parallel,
    load_image,
)
from alignseg_tf.files import atomic_path, write_text
from alignseg_tf.fingerprints import differences, fingerprint
from alignseg_tf.prediction_files import KINDS, check_kinds, paths
from alignseg_tf.pretrained import model_path
from alignseg_tf.printable import csv_cell
from alignseg_tf.progress import counter, duration
from alignseg_tf.protocols import add_protocol_arguments, protocol_from_arguments
from alignseg_tf.video import CAMERA, VideoWriter, is_video, opened_video

if TYPE_CHECKING:
    from alignseg_tf.prediction import Prediction, Predictor

DEFAULT_KINDS = ("classes", "overlay")
# What the folder holds predictions of, and what became of each picture.
RUN_FILE, OUTCOMES_FILE = "predictions.json", "predictions.csv"


@dataclass(frozen=True)
class Outcome:
    """What became of a picture or a video.

    Attributes:
        source: its path.
        outcome: `written`, `kept` (it was there from an earlier run) or `skipped`.
        height: pixels, of pictures and first frames.
        width: pixels.
        frames: of a video; 1 for a picture.
        in_windows: whether it was too large to go through whole.
        seconds: that the network took.
        files: names of what was written, below the output folder.
        message: why it was skipped.
    """

    source: str
    outcome: str
    height: int | None = None
    width: int | None = None
    frames: int = 1
    in_windows: bool = False
    seconds: float | None = None
    files: tuple[str, ...] = ()
    message: str = ""


def predict_pictures(
    predictor: "Predictor",
    pictures: Sequence[tuple[Path, Path]],
    output: Path,
    kinds: Sequence[str] = DEFAULT_KINDS,
    progress: Callable[[int, int], None] | None = None,
    since: float = 0.0,
) -> Iterator[Outcome]:
    """Segment pictures and write the results into a folder.

    A picture whose files are all there, and older neither than itself nor than `since`, is left
    alone. The next picture is read and the last one written while the network works.

    Args:
        predictor: the model.
        pictures: (path, name of the results below `output`), see `result_names`.
        output: the folder.
        kinds: which of `KINDS` to write.
        progress: called with (done, total).
        since: seconds since the epoch; older files are made again.

    Yields:
        What became of each, in order.
    """

    def files(name: Path) -> list[Path]:
        return paths(output / name.parent, name.name, kinds)

    def load(item: tuple[Path, Path]) -> np.ndarray | str | None:
        path, name = item
        if all(_is_newer(file, path, since) for file in files(name)):
            return None
        try:
            return load_image(path)
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")

    def segmented() -> Iterator[tuple[Outcome, "Prediction | None", Path]]:
        for (path, name), image in zip(pictures, in_parallel(load, pictures, ahead=2), strict=True):
            if image is None:
                there = tuple(str(file.relative_to(output)) for file in files(name))
                yield Outcome(str(path), "kept", files=there), None, name
                continue
            if isinstance(image, str):
                yield Outcome(str(path), "skipped", message=image), None, name
                continue
            outcome = Outcome(str(path), "written", *image.shape[:2])
            started = time.monotonic()
            try:
                made = predictor(image)
            except ValueError as error:
                yield replace(outcome, outcome="skipped", message=str(error)), None, name
                continue
            seconds = time.monotonic() - started
            made = replace(made, file_name=(name.parent / path.name).as_posix())
            yield replace(outcome, in_windows=made.in_windows, seconds=seconds), made, name

    def write(item: tuple[Outcome, "Prediction | None", Path]) -> Outcome:
        outcome, made, name = item
        if made is None:
            return outcome
        written = made.save(output / name.parent, name.name, kinds)
        return replace(outcome, files=tuple(str(path.relative_to(output)) for path in written))

    for done, outcome in enumerate(in_parallel(write, segmented(), ahead=1, workers=1), start=1):
        if progress is not None:
            progress(done, len(pictures))
        yield outcome


def _is_newer(file: Path, picture: Path, since: float) -> bool:
    try:
        return file.stat().st_mtime >= max(picture.stat().st_mtime, since)
    except OSError:
        return False


def predict_video(
    predictor: "Predictor",
    source: str,
    name: str,
    output: Path,
    kinds: Sequence[str] = DEFAULT_KINDS,
    every: int = 1,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Segment the frames of a video or a camera.

    Kinds that are pictures for people become a video each, `NAME_overlay.mp4`; of the others each
    frame is a file, `NAME/000000_classes.png`, numbered by the frame.

    Args:
        predictor: the model.
        source: path of a video, or `camera:N`, which goes on until Ctrl-C or `limit`.
        name: of the results, see `result_names`.
        output: the folder.
        kinds: which of `KINDS` to write.
        every: take each so-many-th frame.
        limit: stop after so many frames.
        progress: called with (done, total), where the number of frames is known.

    Raises:
        ImportError: PyAV is not installed.
    """
    moving = [kind for kind in kinds if KINDS[kind].picture is not None]
    still = [kind for kind in kinds if kind not in moving]
    size: tuple[int, int] = (0, 0)
    count, seconds = 0, 0.0
    try:
        with ExitStack() as stack:
            video = stack.enter_context(opened_video(source))
            writers = {}
            for kind in moving:
                path = output / f"{name}_{kind}.mp4"
                temporary = stack.enter_context(atomic_path(path))
                writers[path.name] = kind, VideoWriter(temporary, video.rate / every)
                stack.callback(writers[path.name][1].close)
            total = None if video.frames is None else -(-video.frames // every)
            total = min(filter(None, (total, limit)), default=None)
            try:
                for number, frame in enumerate(video):
                    if number % every:
                        continue
                    started = time.monotonic()
                    prediction = predictor(frame)
                    seconds += time.monotonic() - started
                    size = size if count else frame.shape[:2]
                    for kind, writer in writers.values():
                        picture = KINDS[kind].picture
                        if picture is not None:
                            writer.write(picture(prediction))
                    prediction.save(output / name, f"{number:06d}", still)
                    count += 1
                    if progress is not None and total is not None:
                        progress(min(count, total), total)
                    if count == limit:
                        break
            except KeyboardInterrupt:
                if not source.startswith(CAMERA):
                    raise
            if not count:
                raise ValueError(f"{source}: no frames")
    except ValueError as error:
        return Outcome(source, "skipped", message=str(error).removeprefix(f"{source}: "))
    files = [*writers, *([f"{name}/"] if still else [])]
    return Outcome(source, "written", *size, count, seconds=seconds, files=tuple(files))


def write_outcomes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write what became of each picture as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Outcome))
    for outcome in outcomes:
        row = [getattr(outcome, field.name) for field in fields(Outcome)]
        writer.writerow(
            "" if value is None else f"{value:.3f}" if isinstance(value, float)
            else csv_cell(" ".join(value) if isinstance(value, tuple) else value)
            for value in row
        )  # fmt: skip
    write_text(path, text.getvalue())


def claim_output(output: Path, run: dict[str, str], overwrite: bool) -> float:
    """Write down what a folder holds predictions of, and refuse to mix two models or protocols.

    Args:
        output: the folder.
        run: what tells these predictions from others.
        overwrite: whether older predictions, also of others, are to be made again.

    Returns:
        The time, in seconds since the epoch, from which on files are of this run. It is kept when
        an interrupted run goes on, so that what an interrupted `overwrite` left is not taken for
        its own.

    Raises:
        ValueError: the folder holds other predictions.
    """
    path = output / RUN_FILE
    if path.is_file() and not overwrite:
        there = json.loads(path.read_text(encoding="utf-8"))
        since = there.pop("since")
        if different := differences(there, run):
            raise ValueError(
                f"{output} holds other predictions:{different}\n"
                "give another --output, or --overwrite"
            )
        return since
    since = time.time()
    write_text(path, json.dumps({**run, "since": since}, indent=1))
    return since


def result_names(pictures: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Give each picture a name for its results, below the output folder.

    The name is the picture's without its suffix; of pictures in one folder that differ in the
    suffix alone, it keeps that: `a_jpg` and `a_png`.

    Args:
        pictures: (path, path below the folder that was asked for).

    Returns:
        (path, name).

    Raises:
        ValueError: two pictures of different folders would have the same results.
    """
    counts = Counter(name.with_suffix("") for _, name in pictures)
    found: dict[Path, Path] = {}
    for path, name in pictures:
        stem = name.with_suffix("")
        if counts[stem] > 1:
            stem = name.with_name(f"{name.stem}_{name.suffix.removeprefix('.')}")
        other = found.setdefault(stem, path)
        if other is not path:
            raise ValueError(
                f"{other} and {path} would have the same results, {stem}_...: predict them into "
                "folders of their own"
            )
    return [(path, stem) for stem, path in found.items()]


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    parser.add_argument(
        "model",
        type=model_path,
        help="a .keras, .tflite or .onnx file, a SavedModel's folder, or a trained model's name",
    )
    parser.add_argument(
        "pictures", nargs="+",
        help="pictures, folders, patterns in quotes, videos, or camera:N",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--write", nargs="+", choices=KINDS, default=list(DEFAULT_KINDS), metavar="KIND",
        help=f"what to write: {', '.join(KINDS)} ({' '.join(DEFAULT_KINDS)})",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true",
        help="do pictures again that have results; otherwise an interrupted run goes on",
    )  # fmt: skip
    videos = parser.add_argument_group("videos and cameras")
    videos.add_argument("--every", type=int, default=1, help="take each N-th frame (%(default)s)")
    videos.add_argument("--frames", type=int, help="stop after so many frames (all)")
    add_protocol_arguments(parser)


def predict_from_arguments(arguments: argparse.Namespace) -> int:
    """Run `predict`; return 1 if something was skipped.

    Raises:
        ValueError: an argument is wrong; nothing was written.
    """
    for option in ("every", "frames"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be at least 1. Received: {value}")
    protocol = protocol_from_arguments(arguments)
    output = arguments.output
    videos = [source for source in arguments.pictures if is_video(source)]
    others = [source for source in arguments.pictures if not is_video(source)]
    for folder in map(Path, others):
        if folder.is_dir() and folder.resolve() == output.resolve():
            raise ValueError(f"--output must not be the pictures' folder. Received: {output}")
    skipped: Skipped = {}
    pictures = result_names(find_named_pictures(others, output.resolve(), skipped))
    if skipped:
        print(f"not read: {describe_skipped(skipped)}", file=sys.stderr)
    # A camera's name has a colon, which names of files must not have everywhere.
    named_videos = result_names([(Path(v), Path(Path(v).name.replace(":", "_"))) for v in videos])
    from alignseg_tf.prediction import Predictor

    predictor = Predictor(arguments.model, protocol)
    check_kinds(arguments.write, predictor.label_space, predictor.network.gives_logits)
    run = {"model": fingerprint(arguments.model), "protocol": str(protocol)}
    since = claim_output(output, run, arguments.overwrite)

    outcomes: list[Outcome] = []
    started = time.monotonic()
    try:
        for outcome in predict_pictures(
            predictor,
            pictures,
            output,
            arguments.write,
            counter("predicting"),
            since,
        ):
            outcomes.append(outcome)
            _report_skipped(outcome)
        for path, name in named_videos:
            video = str(path)
            if video.startswith(CAMERA) and arguments.frames is None:
                print(f"{video}: recording until Ctrl-C")
            show = counter(f"{video}: frame")
            outcome = predict_video(
                predictor, video, str(name), output, arguments.write, arguments.every,
                arguments.frames, show,
            )  # fmt: skip
            outcomes.append(outcome)
            _report_skipped(outcome)
    finally:
        write_outcomes(outcomes, output / OUTCOMES_FILE)
    counts = {
        kind: sum(outcome.outcome == kind for outcome in outcomes)
        for kind in ("written", "kept", "skipped")
    }
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    print(
        f"{len(outcomes)} in {duration(time.monotonic() - started)}: {shown}; what became of each "
        f"is in {output / OUTCOMES_FILE}"
    )
    if counts["skipped"]:
        print(f"error: {counts['skipped']} of {len(outcomes)} were skipped", file=sys.stderr)
    return 1 if counts["skipped"] else 0


def _report_skipped(outcome: Outcome) -> None:
    if outcome.outcome == "skipped":
        print(f"skipped: {outcome.source}: {outcome.message}", file=sys.stderr)
