"""Segment many files: images in folders, videos, cameras; write the outcome of each."""

import hashlib
import json
import os
import re
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignseg_tf.data.listing import (
    DataError,
    Skipped,
    describe_skipped,
    find_named_images,
    special_kind,
)
from alignseg_tf.data.readers import load_image
from alignseg_tf.prediction.outcomes import Outcome, OutcomeLog, relative_names
from alignseg_tf.prediction.outputs import KINDS, paths
from alignseg_tf.prediction.video import CAMERA, Video, VideoWriter, is_video
from alignseg_tf.system.files import atomic_path, write_text
from alignseg_tf.system.fingerprints import differences
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.printable import printable
from alignseg_tf.system.progress import progress_bar

if TYPE_CHECKING:
    from alignseg_tf.prediction.outputs import Prediction
    from alignseg_tf.prediction.predictor import Predictor

DEFAULT_KINDS = ("classes", "overlay")
# Number of foreign files listed in an error message.
LISTED = 5
# Model and protocol of the predictions in a folder, and the outcome of each image.
RUN_FILE, OUTCOMES_FILE = "predictions.json", "predictions.csv"


def read_image(
    path: Path, results: Callable[[str], tuple[Sequence[str], bool]]
) -> tuple[Outcome, np.ndarray | None]:
    """Read an image that is to be segmented.

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
    """Segment images and write the results into a folder.

    Skip an image whose results are all there and were made of a file with the same content. The
    next image is read and the last one written while the network works.

    Args:
        predictor: the model.
        images: (path, name of the results below `output`), see `result_names`.
        output: the folder.
        kinds: which of `KINDS` to write.
        log: log of the folder, to which outcomes are added; None makes all results again.

    Yields:
        The outcome of each, in order.
    """
    from tensorflow.errors import OpError

    def load(item: tuple[Path, Path]) -> tuple[Outcome, np.ndarray | None]:
        path, name = item
        targets = paths(output / name.parent, name.name, kinds)

        def results(sha256: str) -> tuple[Sequence[str], bool]:
            files = relative_names(targets, output)
            are_there = [_is_there(target) for target in targets]
            return files, all(are_there) and log is not None and log.belong(files, sha256)

        return read_image(path, results)

    def segmented() -> Iterator[tuple[Outcome, "Prediction | None", Path]]:
        loaded = in_parallel(load, images, ahead=2)
        for (path, name), (outcome, image) in zip(images, loaded, strict=True):
            made = None
            if image is not None:
                started = time.monotonic()
                try:
                    made = predictor(image)
                except (ValueError, OpError) as error:
                    outcome = outcome.skipped(str(error))
                else:
                    seconds = time.monotonic() - started
                    made = replace(made, file_name=(name.parent / path.name).as_posix())
                    outcome = replace(outcome, in_windows=made.in_windows, seconds=seconds)
            yield outcome, made, name

    def write(item: tuple[Outcome, "Prediction | None", Path]) -> Outcome:
        outcome, made, name = item
        if made is not None:
            if log is not None:
                log.begin(outcome)
            made.save(output / name.parent, name.name, kinds)
        if log is not None:
            log.add(outcome)  # here and not by the caller, who may have been interrupted
        return outcome

    written = in_parallel(write, segmented(), ahead=1, workers=1)
    yield from progress_bar(written, "predicting", len(images))


def _is_there(target: Path) -> bool:
    """Return whether a result is there; raise a `DataError` if it cannot be written."""
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

    Kinds with `is_video` become a video each, `NAME_overlay.mp4`; of the others each frame is a
    file, `NAME/000000_classes.png`, numbered by the frame.

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
    still = [kind for kind in kinds if not KINDS[kind].is_video]
    outcome = Outcome(printable(source), "written", files=_video_files(name, kinds))
    size, count, seconds = (0, 0), 0, 0.0
    if still:
        _remove_frames(output / name)
    try:
        with ExitStack() as stack:
            video = stack.enter_context(closing(Video(source)))
            writers = {}
            for kind in kinds:
                if KINDS[kind].is_video:
                    path = output / f"{name}_{kind}.mp4"
                    _is_there(path)
                    temporary = stack.enter_context(atomic_path(path))
                    writer = VideoWriter(temporary, video.rate / every)
                    writers[kind] = stack.enter_context(closing(writer))
            total = None if video.frames is None else -(-video.frames // every)
            total = min(filter(None, (total, limit)), default=None)
            try:
                stop = None if limit is None else (limit - 1) * every + 1
                frames = islice(enumerate(video), 0, stop, every)
                for number, frame in progress_bar(frames, source, total, "frame"):
                    started = time.monotonic()
                    prediction = predictor(frame)
                    seconds += time.monotonic() - started
                    size = size if count else frame.shape[:2]
                    for kind, writer in writers.items():
                        writer.write(KINDS[kind].content(prediction))
                    prediction.save(output / name, f"{number:06d}", still)
                    count += 1
            except KeyboardInterrupt:
                if not source.startswith(CAMERA):
                    raise
            if not count:
                raise ValueError(f"{source}: no frames")
    except ValueError as error:
        if still:
            _remove_frames(output / name)
        return outcome.skipped(str(error).removeprefix(f"{source}: "))
    return replace(outcome, height=size[0], width=size[1], frames=count, seconds=seconds)


def _video_files(name: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the videos, and the folder of frames, that a video becomes."""
    moving = [f"{name}_{kind}.mp4" for kind in kinds if KINDS[kind].is_video]
    return tuple(map(printable, [*moving, *([name] if len(moving) < len(kinds) else [])]))


def _remove_frames(folder: Path) -> None:
    """Remove the frames of an earlier run, which may have had more."""
    endings = "|".join(re.escape(kind.ending) for kind in KINDS.values())
    for path in folder.glob("[0-9]*"):
        if re.fullmatch(rf"\d{{6,}}({endings})", path.name):
            path.unlink()


@contextmanager
def claimed_output(
    output: Path, run: dict[str, str], targets: Sequence[Path], overwrite: bool
) -> Iterator[OutcomeLog]:
    """Write the model and the protocol of a folder's predictions, and open its log.

    Args:
        output: the folder.
        run: what tells these predictions from others.
        targets: the files that will be written.
        overwrite: whether to make all results again.

    Raises:
        ValueError: the folder holds predictions of another model or protocol, or files with the
            names of `targets` that `predict` did not write.
    """
    run_file, log = output / RUN_FILE, OutcomeLog(output / OUTCOMES_FILE)
    there = json.loads(run_file.read_text(encoding="utf-8")) if run_file.is_file() else None
    names = zip(targets, relative_names(targets, output), strict=True)
    foreign = [name for path, name in names if os.path.lexists(path) and not log.knows(name)]
    if overwrite:
        log.outdate(foreign)
    elif there is None or "since" not in there:  # earlier versions wrote it, and kept no log
        if there is None and os.path.lexists(log.path):
            foreign.insert(0, log.path.name)
        if foreign:
            raise ValueError(
                f"{output}: expected a new folder, or only files that predict wrote. Received: "
                f"{', '.join(foreign[:LISTED])}{' ...' if foreign[LISTED:] else ''}; give another "
                "--output, or --overwrite"
            )
    if there is not None and not overwrite:
        before = {key: value for key, value in there.items() if key != "since"}
        if different := differences(before, run):
            raise ValueError(
                f"{output} holds other predictions:{different}\n"
                "give another --output, or --overwrite"
            )
    with log:
        if there is None or overwrite:
            write_text(run_file, json.dumps(run, indent=1))
        yield log


def result_names(images: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Give each image a name for its results, below the output folder.

    The name is the image's without its suffix. Images in one folder that differ only in the
    suffix keep it: `a_jpg` and `a_png`.

    Args:
        images: (path, path below the folder that was asked for).

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


def report(log: OutcomeLog, seconds: float) -> int:
    """Print the outcomes of a run; return the exit status."""
    print(log.summary(seconds))
    if skipped := log.counts["skipped"]:
        print(f"error: {skipped} of {log.counts.total()} were skipped", file=sys.stderr)
    return 1 if skipped else 0


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
    # A camera's name has a colon, which names of files must not have everywhere.
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
