"""Compare what a model sees in many images with their labels."""

import dataclasses
import json
import queue
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, Sample
from alignseg_tf.data.readers import load_sample
from alignseg_tf.evaluation.bootstrap import check_block
from alignseg_tf.evaluation.counts import ImageScores, score_image
from alignseg_tf.evaluation.report import Report
from alignseg_tf.prediction.outputs import Prediction
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.system.files import atomic_path
from alignseg_tf.system.fingerprints import (
    combined,
    differences,
    file_fingerprint,
    fingerprint,
    listed,
)
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.progress import progress_bar

# Keys of the first line of a record from before it held fingerprints.
OLDER_KEYS = ("pictures", "picture names")

Segment = Callable[[np.ndarray], np.ndarray | Prediction]


def evaluate(
    segment: Segment | Sequence[Segment],
    samples: Iterable[Sample],
    label_space: LabelSpace,
    protocol: str = "whole images",
    record: Path | None = None,
    identity: dict[str, Any] | None = None,
    block: int = 1,
) -> Report:
    """Compare predictions with labels, image by image.

    Images are read and counted in threads beside the one that predicts; counts are whole numbers
    and do not depend on the order.

    Args:
        segment: uint8 RGB image [H, W, 3] -> a `Prediction`, as a `Predictor` gives, or class ids
            [H, W] alone. Several, such as one `Predictor` a GPU, share the images; each is called
            by one thread at a time.
        samples: images with labels.
        label_space: what the labels mean.
        protocol: how `segment` treats an image, in words, for the report.
        record: file to which the counts of each image are appended as they are made. If it is
            there, an evaluation goes on where it was interrupted. Images whose file or label has
            another content since are evaluated again, and named on the standard error stream.
        identity: what the record belongs to, such as a hash of the model; another one is refused.
        block: neighbouring images that intervals draw together, see `Report`.

    Returns:
        The report over all images.

    Raises:
        DataError: a file is unreadable.
        ValueError: predictions do not fit the labels, or the record belongs to something else.
    """
    check_block(block)
    samples = list(samples)
    segments = [segment] if callable(segment) else list(segment)
    known: dict[int, ImageScores] = {}
    with ExitStack() as stack:
        append: Callable[[int, ImageScores], None] = known.__setitem__
        if record is not None:
            known, append = stack.enter_context(
                _opened_record(record, _description(label_space, protocol, identity), samples)
            )
        left = [i for i in range(len(samples)) if i not in known]
        found = _score_all(segments, samples, left, label_space)
        for index, scores in progress_bar(found, "evaluating", len(samples), done=len(known)):
            append(index, scores)
    return Report(label_space.classes, [known[i] for i in range(len(samples))], protocol, block)


def _score_all(
    segments: Sequence[Segment], samples: Sequence[Sample], left: Sequence[int], space: LabelSpace
) -> Iterator[tuple[int, ImageScores]]:
    free: queue.SimpleQueue[Segment] = queue.SimpleQueue()
    for segment in segments:
        free.put(segment)

    def score(index: int) -> tuple[int, ImageScores]:
        sample = samples[index]
        image, truth = load_sample(sample, space)
        try:
            segment = free.get()
            try:
                found = segment(image)
            finally:
                free.put(segment)
            confidence, in_windows = None, False
            if isinstance(found, Prediction):
                confidence, in_windows = found.confidence, found.in_windows
                found = found.class_map
            return index, score_image(
                sample.image.name, truth, found, space.num_classes, confidence, in_windows
            )
        except ValueError as error:
            raise ValueError(f"{sample.image}: {error}") from error

    # One image is read and another counted while the network works on a third.
    workers = len(segments) + 2
    yield from in_parallel(score, left, ahead=workers, workers=workers)


def label_encoding(space: LabelSpace) -> dict[str, Any]:
    """Return how label files encode the classes of a label space."""
    encoding = dataclasses.asdict(space)
    del encoding["palette"], encoding["classes"]
    return encoding


def samples_fingerprints(samples: Sequence[Sample]) -> tuple[str, str]:
    """Return a fingerprint of all images and one of all labels, whatever their names and order.

    Raises:
        DataError: a file cannot be read.
    """
    pairs = sorted((content.image, content.label) for content in _contents(samples))
    return combined(image for image, _ in pairs), combined(label for _, label in pairs)


def _description(
    space: LabelSpace, protocol: str, identity: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what all counts of a record have in common."""
    description = {
        **(identity or {}),
        "protocol": protocol,
        "classes": space.classes,
        "label encoding": label_encoding(space),
    }
    return json.loads(json.dumps(description))


class _Content(NamedTuple):
    """What the counts of one image belong to."""

    name: str
    image: str
    label: str


def _contents(samples: Sequence[Sample]) -> list[_Content]:
    """Return the names and the fingerprints of samples.

    Raises:
        DataError: a file cannot be read.
    """
    try:
        images = file_fingerprint.of(sample.image for sample in samples)
        labels = file_fingerprint.of(sample.label for sample in samples)
    except OSError as error:
        raise DataError(f"{error.filename}: not readable ({error.strerror})") from error
    return [
        _Content(sample.image.name, image, label)
        for sample, image, label in zip(samples, images, labels, strict=True)
    ]


Counts = dict[_Content, ImageScores]


@contextmanager
def _opened_record(
    path: Path, description: dict[str, Any], samples: Sequence[Sample]
) -> Iterator[tuple[dict[int, ImageScores], Callable[[int, ImageScores], None]]]:
    """Read a record and open it for more.

    The first line says what it belongs to; each other line is an image. The record is written
    again without the images that are no longer the same.

    Yields:
        The counts that are known, by the sample's index, and a function that adds to them and to
        the file.
    """
    contents = _contents(samples)
    there = _read_record(path, description) if path.is_file() else {}
    _say_what_changed(path, there, contents)
    known = {i: there[content] for i, content in enumerate(contents) if content in there}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_line(file, description)
        for index, scores in known.items():
            _write_counts(file, contents[index], scores)
    with path.open("ab") as file:

        def append(index: int, scores: ImageScores) -> None:
            known[index] = scores
            _write_counts(file, contents[index], scores)

        yield known, append


def _read_record(path: Path, description: dict[str, Any]) -> Counts:
    """Read the counts of a record, without a last line that a kill cut short.

    Raises:
        ValueError: the record belongs to something else.
    """
    counts: Counts = {}
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            try:
                content = json.loads(line)
                if number == 0:
                    if not _is_same_evaluation(path, content, description):
                        return {}
                else:
                    key = _Content(content["name"], *content["sha256"])
                    counts[key] = ImageScores.from_dict(content)
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(
                    f"{path}, line {number + 1}: not a record of an evaluation; remove the file"
                ) from error
    return counts


def _write_line(file: IO[bytes], content: dict[str, Any]) -> None:
    file.write(json.dumps(content, separators=(",", ":")).encode() + b"\n")
    file.flush()


def _is_same_evaluation(path: Path, there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Return whether a record holds fingerprints, as older ones do not.

    Raises:
        ValueError: it is of another model, protocol or label space.
    """
    if "label encoding" in there:
        _check_same(path, there, here)
        return True
    values = {key: value for key, value in there.items() if key not in OLDER_KEYS}
    _check_same(path, values, {key: here.get(key) for key in values})
    print(
        f"{path} is from an older version, which told images by their names only: evaluating all "
        "of them again",
        file=sys.stderr,
    )
    return False


def _say_what_changed(path: Path, there: Counts, contents: Sequence[_Content]) -> None:
    """Name the images of a record that have another content now, or are no longer evaluated."""
    now = {content.name for content in contents}
    gone = there.keys() - set(contents)
    changed = sorted(content.name for content in gone if content.name in now)
    removed = sorted(content.name for content in gone if content.name not in now)
    if changed:
        print(
            f"{path}: {len(changed)} images or their labels have changed, evaluating them again: "
            f"{listed(changed)}",
            file=sys.stderr,
        )
    if removed:
        print(
            f"{path}: {len(removed)} images are no longer in the data: {listed(removed)}",
            file=sys.stderr,
        )


def _write_counts(file: IO[bytes], content: _Content, scores: ImageScores) -> None:
    _write_line(file, {"sha256": content[1:], **scores.to_dict()})


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    if different := differences(there, here):
        raise ValueError(
            f"{path} holds another evaluation:{different}\n"
            "give another --output, or remove the file"
        )


def check_classes(predictor: Predictor, label_space: LabelSpace, model: Any) -> None:
    """Refuse a model whose classes are not those of the data.

    Raises:
        ValueError: they differ.
    """
    if predictor.label_space.classes != label_space.classes:
        raise ValueError(
            f"{model} and the data must have the same classes. Received: "
            f"{', '.join(predictor.label_space.classes)} in the model and "
            f"{', '.join(label_space.classes)} in the data"
        )


def evaluate_model(
    model: str | Path,
    predictors: Sequence[Predictor],
    samples: Sequence[Sample],
    label_space: LabelSpace,
    record: Path | None = None,
    block: int = 1,
) -> Report:
    """Evaluate a saved model.

    Args:
        model: a `.keras` or `.tflite` file, or the folder of a SavedModel.
        predictors: the model, loaded once a device, see `prediction.predictors_on_all_gpus`.
        samples: images with labels.
        label_space: what the labels mean; the model must have its classes.
        record: see `evaluate`; it belongs to the model's bytes, the protocol and the images.
        block: neighbouring images that intervals draw together, see `Report`.

    Raises:
        ValueError: the model has other classes; or as `evaluate`.
    """
    protocol = str(predictors[0].protocol)
    check_classes(predictors[0], label_space, model)
    identity = None if record is None else {"model": fingerprint(model)}
    return evaluate(predictors, samples, label_space, protocol, record, identity, block)
