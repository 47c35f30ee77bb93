"""Compare the predictions of a model with the labels of many images."""

import dataclasses
import json
import queue
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, Sample
from alignseg_tf.data.readers import load_sample
from alignseg_tf.evaluation.bootstrap import check_block
from alignseg_tf.evaluation.counts import ImageScores, score_image
from alignseg_tf.evaluation.report import Report
from alignseg_tf.prediction.outputs import Prediction
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.system.files import write_text
from alignseg_tf.system.fingerprints import (
    combined,
    differences,
    file_fingerprint,
    fingerprint,
    listed,
)
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.progress import progress_bar

Segment = Callable[[np.ndarray], np.ndarray | Prediction]
# Counts by the index of the sample, and a function that adds to them.
Known = tuple[dict[int, ImageScores], Callable[[int, ImageScores], None]]


def evaluate(
    segment: Segment | Sequence[Segment],
    samples: Iterable[Sample],
    label_space: LabelSpace,
    protocol: str = "whole images",
    record: Path | None = None,
    identity: dict[str, Any] | None = None,
    block: int = 1,
) -> Report:
    """Compare predictions with labels, image by image, in threads.

    Args:
        segment: uint8 RGB image [H, W, 3] -> a `Prediction`, or class ids [H, W]. Several, such as
            one `Predictor` for each GPU, share the images; one thread at a time calls each.
        samples: images with labels.
        label_space: of the labels.
        protocol: how `segment` treats an image, in words, for the report.
        record: file to which the counts of each image are appended, to resume an interrupted
            evaluation. Images whose file or label has changed since are evaluated again, and
            named on the standard error stream.
        identity: of the record, such as a hash of the model; a record of another one is refused.
        block: number of neighbouring images resampled together, see `Report`.

    Raises:
        DataError: a file is unreadable.
        ValueError: predictions do not fit the labels, or the record belongs to something else.
    """
    check_block(block)
    samples = list(samples)
    segments = [segment] if callable(segment) else list(segment)
    described = {**(identity or {}), "protocol": protocol, "classes": label_space.classes}
    described = json.loads(json.dumps({**described, "label encoding": label_encoding(label_space)}))
    in_memory: dict[int, ImageScores] = {}
    with (
        nullcontext((in_memory, in_memory.__setitem__))
        if record is None
        else _opened_record(record, described, samples)
    ) as (known, add):
        left = [i for i in range(len(samples)) if i not in known]
        found = _score_all(segments, samples, left, label_space)
        for index, scores in progress_bar(found, "evaluating", len(samples), done=len(known)):
            add(index, scores)
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
        confidence, in_windows = None, False
        try:
            segment = free.get()
            try:
                found = segment(image)
            finally:
                free.put(segment)
            if isinstance(found, Prediction):
                confidence, in_windows, found = found.confidence, found.in_windows, found.class_map
            counted = (truth, found, space.num_classes, confidence, in_windows)
            return index, score_image(sample.image.name, *counted)
        except ValueError as error:
            raise ValueError(f"{sample.image}: {error}") from error

    # One image is read and another counted while the network works on a third.
    workers = len(segments) + 2
    yield from in_parallel(score, left, ahead=workers, workers=workers)


def label_encoding(space: LabelSpace) -> dict[str, Any]:
    """Return how label files encode the classes."""
    encoding = dataclasses.asdict(space)
    del encoding["palette"], encoding["classes"]
    return encoding


def samples_fingerprints(samples: Sequence[Sample]) -> tuple[str, str]:
    """Return a fingerprint of all images and one of all labels, whatever their names and order."""
    pairs = sorted((content.image, content.label) for content in _contents(samples))
    return combined(image for image, _ in pairs), combined(label for _, label in pairs)


class _Content(NamedTuple):
    """The name of an image, and the fingerprints of its files."""

    name: str
    image: str
    label: str


def _contents(samples: Sequence[Sample]) -> list[_Content]:
    """Return the content of each sample; a `DataError` names a file that cannot be read."""
    try:
        images = file_fingerprint.of(sample.image for sample in samples)
        labels = file_fingerprint.of(sample.label for sample in samples)
    except OSError as error:
        raise DataError(f"{error.filename}: not readable ({error.strerror})") from error
    names = [sample.image.name for sample in samples]
    return [_Content(*content) for content in zip(names, images, labels, strict=True)]


@contextmanager
def _opened_record(
    path: Path, description: dict[str, Any], samples: Sequence[Sample]
) -> Iterator[Known]:
    """Read a record, without images that have changed, and open it for more.

    The first line describes the evaluation; each other line is an image.
    """

    def line(content: _Content, scores: ImageScores) -> str:
        return _line({"sha256": content[1:], **scores.to_dict()})

    contents = _contents(samples)
    there = _read_record(path, description) if path.is_file() else {}
    _report_changes(path, there.keys() - set(contents), {content.name for content in contents})
    known = {i: there[content] for i, content in enumerate(contents) if content in there}
    lines = [line(contents[index], scores) for index, scores in known.items()]
    write_text(path, "".join([_line(description), *lines]))
    with path.open("a", encoding="utf-8") as file:

        def add(index: int, scores: ImageScores) -> None:
            known[index] = scores
            file.write(line(contents[index], scores))
            file.flush()

        yield known, add


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def _read_record(path: Path, description: dict[str, Any]) -> dict[_Content, ImageScores]:
    """Read the counts of a record, without a last line that a kill cut short.

    Raises:
        ValueError: the file is no record, or one of another model, protocol or label space.
    """
    whole = path.read_bytes().rpartition(b"\n")[0]
    try:
        if not (contents := [json.loads(line) for line in whole.splitlines()]):
            return {}
        there, *images = contents
        is_older = "label encoding" not in there  # has no fingerprints of images
        if is_older:
            description = {key: value for key, value in description.items() if key in there}
            there = {key: there[key] for key in description}
        if (different := differences(there, description)) or not description:
            raise ValueError(
                f"{path} holds another evaluation:{different}\n"
                "give another --output, or remove the file"
            )
        if is_older:
            print(f"{path} is from an older version: evaluating all images again", file=sys.stderr)
            return {}
        return {
            _Content(image["name"], *image["sha256"]): ImageScores.from_dict(image)
            for image in images
        }
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a record of an evaluation; remove the file") from error


def _report_changes(path: Path, gone: set[_Content], names: set[str]) -> None:
    """Name the images of a record that have changed, or are no longer evaluated."""
    for is_here, what in (
        (True, "images or their labels have changed, evaluating them again"),
        (False, "images are no longer in the data"),
    ):
        if found := sorted(content.name for content in gone if (content.name in names) == is_here):
            print(f"{path}: {len(found)} {what}: {listed(found)}", file=sys.stderr)


def check_classes(predictor: Predictor, label_space: LabelSpace, model: Any) -> None:
    """Raise a `ValueError` if the classes of a model are not those of the data."""
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
    """Evaluate a saved model; the record belongs to its bytes, the protocol and the images.

    Args:
        model: its path.
        predictors: the model, once for each device, see `predictors_on_all_gpus`.
        samples: as for `evaluate`, like the other arguments.
        label_space: must have the model's classes.
        record: for the counts.
        block: for the intervals.

    Raises:
        ValueError: the model has other classes; or as `evaluate`.
    """
    protocol = str(predictors[0].protocol)
    check_classes(predictors[0], label_space, model)
    identity = None if record is None else {"model": fingerprint(model)}
    return evaluate(predictors, samples, label_space, protocol, record, identity, block)
