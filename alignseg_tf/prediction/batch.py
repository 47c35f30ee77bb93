"""Segment many files: images in folders, videos, cameras; write the outcome of each."""

import hashlib
import json
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignseg_tf.data.listing import DataError, special_kind
from alignseg_tf.data.readers import load_image
from alignseg_tf.prediction.outcomes import Outcome, OutcomeLog, relative_names
from alignseg_tf.prediction.outputs import KINDS, paths
from alignseg_tf.prediction.video import CAMERA, Video, VideoWriter
from alignseg_tf.system.files import atomic_path, write_text
from alignseg_tf.system.fingerprints import differences, listed
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.printable import printable
from alignseg_tf.system.progress import progress_bar

if TYPE_CHECKING:
    from alignseg_tf.prediction.outputs import Prediction
    from alignseg_tf.prediction.predictor import Predictor

DEFAULT_KINDS = ("classes", "overlay")
# Model and protocol of the predictions in a folder, and the outcome of each image.
RUN_FILE, OUTCOMES_FILE = "predictions.json", "predictions.csv"


def read_image(
    path: Path, results: Callable[[str], tuple[Sequence[str], bool]]
) -> tuple[Outcome, np.ndarray | None]:
    """Read an image to segment.

    Args:
        path: its file.
        results: SHA-256 of the file -> the names of its results, and whether to keep those.

    Returns:
        The outcome if all goes well, and the image, uint8 RGB [H, W, 3]; None if it is kept or
        skipped. Pipes, sockets and devices are skipped, since they may never end.
    """
    outcome = Outcome(printable(path), "written")
    try:
        if kind := special_kind(path):
            raise DataError(f"{path}: expected a file. Received: {kind}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: not readable ({error.strerror or error})") from error
        sha256 = hashlib.sha256(content).hexdigest()
        files, is_kept = results(sha256)
        outcome = replace(outcome, files=tuple(files), sha256=sha256)
        if is_kept:
            return replace(outcome, outcome="kept"), None
        image = load_image(path, content)
    except DataError as error:
        return outcome.skipped(str(error).removeprefix(f"{path}: ")), None
    return replace(outcome, height=image.shape[0], width=image.shape[1]), image


def predict_images(
    predictor: "Predictor",
    images: Sequence[tuple[Path, Path]],
    output: Path,
    kinds: Sequence[str] = DEFAULT_KINDS,
    log: OutcomeLog | None = None,
) -> Iterator[Outcome]:
    """Segment images, write the results into a folder, and yield the outcomes in order.

    Keep the results of an image if all exist and were made of a file with the same content.

    Args:
        predictor: the model.
        images: (path, name of the results below `output`), see `result_names`.
        output: the folder.
        kinds: which of `KINDS` to write.
        log: log of the folder, to which outcomes are added; None makes all results again.
    """
    from tensorflow.errors import OpError

    def load(item: tuple[Path, Path]) -> tuple[Outcome, np.ndarray | None, Path, Path]:
        path, name = item
        targets = paths(output / name.parent, name.name, kinds)

        def results(sha256: str) -> tuple[Sequence[str], bool]:
            files = relative_names(targets, output)
            exist = [_exists(target) for target in targets]
            return files, all(exist) and log is not None and log.belong(files, sha256)

        return *read_image(path, results), path, name

    def segment(
        loaded: tuple[Outcome, np.ndarray | None, Path, Path],
    ) -> tuple[Outcome, "Prediction | None", Path]:
        outcome, image, path, name = loaded
        if image is None:
            return outcome, None, name
        started = time.monotonic()
        try:
            made = predictor(image)
        except (ValueError, OpError) as error:
            return outcome.skipped(str(error)), None, name
        seconds = time.monotonic() - started
        outcome = replace(outcome, in_windows=made.in_windows, seconds=seconds)
        return outcome, replace(made, file_name=(name.parent / path.name).as_posix()), name

    def write(item: tuple[Outcome, "Prediction | None", Path]) -> Outcome:
        outcome, made, name = item
        if made is not None:
            if log is not None:
                log.begin(outcome)
            made.save(output / name.parent, name.name, kinds)
        if log is not None:
            log.add(outcome)  # here and not by the caller, who may have been interrupted
        return outcome

    segmented = map(segment, in_parallel(load, images, ahead=2))
    written = in_parallel(write, segmented, ahead=1, workers=1)
    yield from progress_bar(written, "predicting", len(images))


def _exists(target: Path) -> bool:
    """Return whether a result exists; raise a `DataError` if it cannot be written."""
    try:
        if stat.S_ISDIR(target.lstat().st_mode):
            raise DataError(f"its result cannot be written: {target} is a folder")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(f"its result cannot be written: {error.strerror}: {target}") from error
    return True


def predict_video(
    predictor: "Predictor",
    source: str,
    name: str,
    output: Path,
    kinds: Sequence[str] = DEFAULT_KINDS,
    every: int = 1,
    limit: int | None = None,
) -> Outcome:
    """Segment the frames of a video or a camera.

    Write a video for each kind with `is_video`, `NAME_overlay.mp4`, and for the others a file for
    each frame, `NAME/000000_classes.png`.

    Args:
        predictor: the model.
        source: path of a video, or `camera:N`, which records until Ctrl-C or `limit`.
        name: of the results, see `result_names`.
        output: the folder.
        kinds: which of `KINDS` to write.
        every: take each N-th frame.
        limit: largest number of frames.

    Raises:
        ImportError: PyAV is not installed.
    """
    files = tuple(map(printable, video_files(name, kinds)))
    outcome = Outcome(printable(source), "written", files=files)
    size, count, seconds = (0, 0), 0, 0.0
    _remove_frames(output / name, kinds)
    try:
        with ExitStack() as stack:
            video = stack.enter_context(closing(Video(source)))
            writers = {}
            for kind in (kind for kind in kinds if KINDS[kind].is_video):
                path = output / f"{name}_{kind}.mp4"
                _exists(path)
                temporary = stack.enter_context(atomic_path(path))
                writer = VideoWriter(temporary, video.rate / every)
                writers[kind] = stack.enter_context(closing(writer))
            still = [kind for kind in kinds if kind not in writers]
            try:
                for number, frame in _numbered_frames(video, every, limit):
                    started = time.monotonic()
                    made = predictor(frame)
                    seconds += time.monotonic() - started
                    size = size if count else frame.shape[:2]
                    for kind, writer in writers.items():
                        writer.write(KINDS[kind].content(made))
                    made.save(output / name, f"{number:06d}", still)
                    count += 1
            except KeyboardInterrupt:
                if not source.startswith(CAMERA):
                    raise
            if not count:
                raise ValueError(f"{source}: no frames")
    except ValueError as error:
        _remove_frames(output / name, kinds)
        return outcome.skipped(str(error).removeprefix(f"{source}: "))
    return replace(outcome, height=size[0], width=size[1], frames=count, seconds=seconds)


def _numbered_frames(
    video: Video, every: int, limit: int | None
) -> Iterable[tuple[int, np.ndarray]]:
    total = None if video.frames is None else -(-video.frames // every)
    total = min(filter(None, (total, limit)), default=None)
    stop = None if limit is None else (limit - 1) * every + 1
    frames = islice(enumerate(video), 0, stop, every)
    return progress_bar(frames, video.source, total, "frame")


def video_files(name: str, kinds: Sequence[str]) -> list[str]:
    """Return the videos, and the folder of frames, that a video becomes."""
    moving = [f"{name}_{kind}.mp4" for kind in kinds if KINDS[kind].is_video]
    return [*moving, name] if len(moving) < len(kinds) else moving


def _remove_frames(folder: Path, kinds: Sequence[str]) -> None:
    """Remove the frames of an earlier run, which may have had more."""
    if all(KINDS[kind].is_video for kind in kinds):
        return
    endings = "|".join(re.escape(kind.ending) for kind in KINDS.values())
    for path in folder.glob("[0-9]*"):
        if re.fullmatch(rf"\d{{6,}}({endings})", path.name):
            path.unlink()


@contextmanager
def claimed_output(
    output: Path, run: dict[str, str], targets: Sequence[Path], overwrite: bool
) -> Iterator[OutcomeLog]:
    """Write the model and the protocol of a run into its output folder, and open the log there.

    Raises:
        ValueError: without `overwrite`, the folder holds predictions of another run, or files with
            the names of `targets` that `predict` did not write.
    """
    run_file, log = output / RUN_FILE, OutcomeLog(output / OUTCOMES_FILE)
    earlier = json.loads(run_file.read_text(encoding="utf-8")) if run_file.is_file() else {}
    names = zip(targets, relative_names(targets, output), strict=True)
    foreign = [name for path, name in names if os.path.lexists(path) and not log.knows(name)]
    if overwrite:
        log.outdate(foreign)
    else:
        is_older = earlier.pop("since", None) is not None  # earlier versions kept no log
        if not earlier and os.path.lexists(log.path):
            foreign.insert(0, log.path.name)
        problem = ""
        if foreign and not is_older:
            problem = (
                f"{output}: expected a new folder, or only files that predict wrote. Received: "
                f"{listed(foreign)}; "
            )
        elif earlier and (different := differences(earlier, run)):
            problem = f"{output} holds other predictions:{different}\n"
        if problem:
            raise ValueError(f"{problem}give another --output, or --overwrite")
    with log:
        if not earlier or overwrite:
            write_text(run_file, json.dumps(run, indent=1))
        yield log


def result_names(images: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Name the results of images, given as (path, path below the folder that was asked for).

    The name is that path without its suffix. Images in one folder that differ only in the suffix
    keep it: `a_jpg` and `a_png`.

    Returns:
        (path, name).

    Raises:
        ValueError: two images of different folders would have the same results.
    """
    counts = Counter(name.with_suffix("") for _, name in images)
    found: dict[Path, Path] = {}
    for path, name in images:
        stem = name.with_suffix("")
        if counts[stem] > 1:
            stem = name.with_name(f"{name.stem}_{name.suffix.removeprefix('.')}")
        other = found.setdefault(stem, path)
        if other is not path:
            raise ValueError(
                f"{printable(other)} and {printable(path)} would have the same results, "
                f"{printable(stem)}_...: predict them into separate folders"
            )
    return [(path, stem) for stem, path in found.items()]
