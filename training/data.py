"""The data of a run: check every file, choose the views to validate, make the batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg
from alignseg_tf.data.checking import Findings, SplitReport, check_samples
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample, describe_skipped
from alignseg_tf.data.pipeline import RareClassSampling, TrainingBatches, View
from alignseg_tf.data.sources import DataSource
from alignseg_tf.prediction.protocol import Protocol, axis_windows
from alignseg_tf.system.fingerprints import file_fingerprint
from training.distributed.workers import Worker
from training.recipe import Recipe


@dataclass(frozen=True)
class Checked:
    """The data of a run, checked file by file."""

    label_space: LabelSpace
    training: Sequence[Sample]
    validation: Sequence[Sample]
    training_report: SplitReport
    validation_report: SplitReport

    @property
    def one_size(self) -> bool:
        """Return whether all validation images have the same size."""
        return len(np.unique(self.validation_report.sizes, axis=0)) == 1


def validation_views(sizes: np.ndarray) -> list[View]:
    """Return the views to validate: images, or the tiles of very large ones.

    `Protocol` decides by their `sizes` [N, 2] which images are tiled, as in prediction and
    evaluation. Where tiles overlap, each pixel counts once, in the tile whose edge is farther away.
    """
    views = []
    for index, size in enumerate(sizes.tolist()):
        tile = Protocol().for_image(*size).tile
        if tile is None:
            views.append(View(index))
            continue
        rows, columns = (_tiles(side, length) for side, length in zip(size, tile, strict=True))
        views += [
            View(index, *zip(row, column, strict=True)) for row, column in product(rows, columns)
        ]
    return views


def _tiles(side: int, length: int) -> list[tuple[slice, slice]]:
    """Return the tiles of an axis, each with the part of it that counts."""
    length = min(length, side)
    starts = [window.start for window in axis_windows(side, side, length)]
    borders = [(first + length + second) // 2 for first, second in pairwise(starts)]
    counted = pairwise([0, *borders, side])
    return [
        (slice(start, start + length), slice(*ends))
        for start, ends in zip(starts, counted, strict=True)
    ]


def check_data(data: DataSource, training: Sequence[Sample]) -> Checked:
    """Read every file of the data once and print what they are, as `inspect` does.

    A `DataError` says that a file is unfit, or that there is nothing to learn.
    """
    validation = data.samples("val")
    findings = Findings(data.label_space)
    for split, name, samples in (
        ("train", "training", training),
        ("val", "validation", validation),
    ):
        sizes = check_samples(samples, data.label_space, findings, split).sizes
        (low_height, low_width), (height, width) = sizes.min(0), sizes.max(0)
        size = f"{low_width} x {low_height}"
        if (low_width, low_height) != (width, height):
            size += f" to {width} x {height}"
        print(f"{len(sizes)} {name} images, {size} pixels")
        if skipped := describe_skipped(data.skipped(split, samples)):
            print(f"not read: {skipped}")
    for note in findings.notes():
        print(f"Warning: {note}")
    trained_on = set(file_fingerprint.of(sample.image for sample in training))
    judged = file_fingerprint.of(sample.image for sample in validation)
    if seen := sum(image in trained_on for image in judged):
        print(
            f"Warning: {seen} of the validation images are trained on: their scores say nothing "
            "about new images"
        )
    return Checked(data.label_space, training, validation, *findings.splits)


def stages(recipe: Recipe) -> list[tuple[int, int, tuple[int, int]]]:
    """Return (first epoch, epoch to end before, crop size) of the parts of a run."""
    height, width = recipe.crop_size
    small = tuple(max(64, round(side / 2**0.5 / 32) * 32) for side in (height, width))
    border = min(recipe.small_crop_epochs, recipe.epochs)
    parts = [(0, border, small), (border, recipe.epochs, recipe.crop_size)]
    return [part for part in parts if part[0] < part[1]]  # type: ignore[misc]


def training_batches(recipe: Recipe, data: Checked, worker: Worker) -> TrainingBatches:
    """Return the training batches of a run on this worker."""
    rare = None
    if recipe.rare_classes:
        rare = RareClassSampling(data.training_report.counts, recipe.rare_classes)
    shard = worker.index, worker.count
    return TrainingBatches(
        data.training, data.label_space, recipe.batch_size, recipe.seed, rare, shard
    )


def for_outputs(model: AlignSeg, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Give each output of the model the same labels."""
    names = list(model.output)
    return dataset.map(lambda image, label: (image, dict.fromkeys(names, label)))


def training_samples(recipe: Recipe, data: DataSource) -> list[Sample]:
    """List the samples of the splits that a recipe trains on; raise a `DataError` without one."""
    return [sample for split in recipe.train_on.split("+") for sample in data.samples(split)]
