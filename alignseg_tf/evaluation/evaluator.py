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
    """Compare predictions with labels, image by image.

    Threads read and count images while another one predicts.

    Args:
        segment: uint8 RGB image [H, W, 3] -> a `Prediction`, as a `Predictor` gives, or class ids
            [H, W]. Several, such as one `Predictor` a GPU, share the images; each is called by one
            thread at a time.
        samples: images with labels.
        label_space: what the labels mean.
        protocol: how `segment` treats an image, in words, for the report.
        record: file to which the counts of each image are appended. An interrupted evaluation
            resumes from it. Images whose file or label has changed since are evaluated again, and
            named on the standard error stream.
        identity: what the record belongs to, such as a hash of the model; another one is refused.
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


class _Content(NamedTuple):
    """What the counts of one image belong to: its name, and the fingerprints of its files."""

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
    """Read a record and open it for more.

    The first line describes the evaluation; each other line is an image. Images that have changed
    are removed from the file.
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
        ValueError: the record belongs to something else.
    """
    counts: dict[_Content, ImageScores] = {}
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines()):
        try:
            content = json.loads(line)
            if number > 0:
                key = _Content(content["name"], *content["sha256"])
                counts[key] = ImageScores.from_dict(content)
            elif not _has_fingerprints(path, content, description):
                return {}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path}, line {number + 1}: not a record of an evaluation; remove the file"
            ) from error
    return counts


def _has_fingerprints(path: Path, there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Return whether a record tells images by fingerprints, as those of older versions do not.

    Raises:
        ValueError: it is of another model, protocol or label space.
    """
    has_fingerprints = "label encoding" in there
    if not has_fingerprints:
        here = {key: value for key, value in here.items() if key in there}
        there = {key: there[key] for key in here}
    if not here or (different := differences(there, here)):
        raise ValueError(
            f"{path} holds another evaluation:{different if here else ''}\n"
            "give another --output, or remove the file"
        )
    if not has_fingerprints:
        print(f"{path} is from an older version: evaluating all images again", file=sys.stderr)
    return has_fingerprints


def _report_changes(path: Path, gone: set[_Content], names: set[str]) -> None:
    """Name the images of a record that have changed, or are no longer evaluated."""
    changed = sorted(content.name for content in gone if content.name in names)
    removed = sorted(content.name for content in gone if content.name not in names)
    for found, what in (
        (changed, "images or their labels have changed, evaluating them again"),
        (removed, "images are no longer in the data"),
    ):
        if found:
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
    """Evaluate a saved model; the record belongs to the model's bytes, the protocol and the images.

    Args:
        model: its path.
        predictors: the model, loaded once a device, see `predictors_on_all_gpus`.
        samples: images with labels.
        label_space: what the labels mean; the model must have its classes.
        record: see `evaluate`.
        block: see `evaluate`.

    Raises:
        ValueError: the model has other classes; or as `evaluate`.
    """
    protocol = str(predictors[0].protocol)
    check_classes(predictors[0], label_space, model)
    identity = None if record is None else {"model": fingerprint(model)}
    return evaluate(predictors, samples, label_space, protocol, record, identity, block)
