"""From the data that a command names to the batches of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg
from alignseg_tf.data.checking import DataSummary, Findings, check_samples
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample, describe_skipped
from alignseg_tf.data.pipeline import (
    RareClassSampling,
    SampleCache,
    View,
    batch_samples,
    training_dataset,
)
from alignseg_tf.data.sources import DataSource
from alignseg_tf.prediction.protocol import Protocol, axis_windows
from alignseg_tf.system.fingerprints import file_fingerprint
from training.build import build_augmentation
from training.distributed.workers import Worker
from training.recipe import Recipe


@dataclass(frozen=True)
class Checked:
    """The data of a run, every file of which has been read once."""

    label_space: LabelSpace
    training: Sequence[Sample]
    validation: Sequence[Sample]
    training_summary: DataSummary
    validation_summary: DataSummary

    @property
    def one_size(self) -> bool:
        """Whether all validation images have the same size."""
        return len(np.unique(self.validation_summary.sizes, axis=0)) == 1


def validation_views(sizes: np.ndarray) -> list[View]:
    """Return what validation puts through the network: the images, and tiles of very large ones.

    `Protocol` decides which are too large, as in prediction and evaluation. Where tiles overlap,
    each pixel counts once: in the tile whose edge is farther away.

    Args:
        sizes: height and width of each image, [N, 2].
    """
    views = []
    for index, size in enumerate(sizes.tolist()):
        tile = Protocol().for_image(*size).tile
        if tile is None:
            views.append(View(index))
            continue
        rows, columns = (_tiles(side, length) for side, length in zip(size, tile, strict=True))
        views += [
            View(index, (row, column), (counted_rows, counted_columns))
            for row, counted_rows in rows
            for column, counted_columns in columns
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
    """Read every file of the data once, and say what they are, as `inspect` does.

    Raises:
        DataError: something is wrong with them, or there is nothing to learn.
    """
    validation = data.samples("val")
    findings = Findings(data.label_space)
    summaries = []
    for split, name, samples in (
        ("train", "training", training),
        ("val", "validation", validation),
    ):
        summary = check_samples(samples, data.label_space, findings, split)
        describe(name, summary)
        if skipped := describe_skipped(data.skipped(split, samples)):
            print(f"not read: {skipped}")
        summaries.append(summary)
    for note in findings.notes():
        print(f"Warning: {note}")
    trained_on = set(file_fingerprint.of(sample.image for sample in training))
    judged = file_fingerprint.of(sample.image for sample in validation)
    if seen := sum(image in trained_on for image in judged):
        print(
            f"Warning: {seen} of the validation images are trained on: what is measured on "
            "them says nothing of new images"
        )
    return Checked(data.label_space, training, validation, *summaries)


def describe(name: str, summary: DataSummary) -> None:
    """Print how many images there are, and of which sizes."""
    low, high = summary.sizes.min(0), summary.sizes.max(0)
    size = f"{low[1]} x {low[0]}" + (f" to {high[1]} x {high[0]}" if (low != high).any() else "")
    print(f"{len(summary.sizes)} {name} images, {size} pixels")


def stages(recipe: Recipe) -> list[tuple[int, int, tuple[int, int]]]:
    """Return (first epoch, epoch to end before, crop size) of the parts of a run."""
    height, width = recipe.crop_size
    small = tuple(max(64, round(side / 2**0.5 / 32) * 32) for side in (height, width))
    border = min(recipe.small_crop_epochs, recipe.epochs)
    parts = [(0, border, small), (border, recipe.epochs, recipe.crop_size)]
    return [part for part in parts if part[0] < part[1]]  # type: ignore[misc]


class TrainingBatches:
    """The training batches of a run, as this worker sees them.

    Args:
        recipe: how they are made.
        data: what they are made of.
        model: what they are made for.
        worker: this process.
    """

    def __init__(self, recipe: Recipe, data: Checked, model: AlignSeg, worker: Worker):
        self.recipe, self.data, self.model = recipe, data, model
        self.shard = worker.index, worker.count
        self.cache = SampleCache()
        self.rare: RareClassSampling | None = None
        if recipe.rare_classes:
            self.rare = RareClassSampling(data.training_summary.counts, recipe.rare_classes)

    def __call__(
        self, first: int, last: int, crop_size: tuple[int, int], initial_step: int = 0
    ) -> tf.data.Dataset:
        """Return the batches from a step of the epoch `first` to the end of `last` - 1."""
        recipe, data = self.recipe, self.data
        augmentation = build_augmentation(recipe, self.model, crop_size)
        dataset = training_dataset(
            data.training, data.label_space, augmentation, recipe.batch_size, last, first,
            recipe.seed, self.cache, self.rare, self.shard, initial_step,
        )  # fmt: skip
        return for_outputs(self.model, dataset)

    def of_step(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Make one batch again: its images, its labels, and the names of the images' files."""
        recipe = self.recipe
        crop_size = next(crop for first, last, crop in stages(recipe) if first <= epoch < last)
        images, labels = next(iter(self(epoch, epoch + 1, crop_size, step)))
        samples = batch_samples(
            self.data.training, recipe.batch_size, epoch, step, recipe.seed, self.rare, self.shard
        )
        names = [sample.image.name for sample in samples]
        return images.numpy(), labels["segmentation"].numpy(), names


def for_outputs(model: AlignSeg, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Give each output of the model the same labels."""
    names = list(model.output)
    return dataset.map(lambda image, label: (image, dict.fromkeys(names, label)))


def training_samples(recipe: Recipe, data: DataSource) -> list[Sample]:
    """List the samples of the splits that a recipe trains on.

    Raises:
        DataError: there is no such split, or a file is missing.
    """
    return [sample for split in recipe.train_on.split("+") for sample in data.samples(split)]
