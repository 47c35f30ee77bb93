"""tf.data pipelines: samples on disk -> batches of images and labels.

What a training batch holds is a function of (seed, epoch, place in the epoch) alone, so a run
that was interrupted goes on with the batches that it would have seen, and each of several
machines can make its part of a batch by itself.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import DataError, Sample
from alignseg_tf.data.readers import load_sample

DEFAULT_CACHE_BYTES = 2 << 30
# Batches that wait for the model: as many as fit in here, between these two numbers.
READ_AHEAD_BYTES = 256 << 20
MIN_READ_AHEAD, MAX_READ_AHEAD = 2, 8
# Samples that are decoded and augmented at the same time: bounded, since each takes memory.
MAX_PARALLEL = 16
# Rare class sampling: an image holds a class that has this share of its labelled pixels.
HELD_SHARE = 1e-3

Arrays = tuple[np.ndarray, np.ndarray]


class SampleCache:
    """Decoded samples, kept in memory as far as a budget allows; datasets can share one.

    What was read first stays: nothing is thrown out, so a cache that is too small for an epoch
    still saves its share of the decoding. Threads may use it at the same time.

    Args:
        max_bytes: the budget; 0 keeps nothing.

    Example:
        >>> cache = SampleCache(64 << 20)
        >>> cache.free_bytes
        67108864
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES):
        self.free_bytes = max_bytes
        self._arrays: dict[tuple[Sample, LabelSpace], Arrays] = {}
        # Decoded last, also beyond the budget: tiles of one image follow one another.
        self._latest: tuple[tuple[Sample, LabelSpace], Arrays] | None = None
        self._lock = threading.Lock()
        self._decoding: dict[tuple[Sample, LabelSpace], threading.Lock] = {}

    def load(self, sample: Sample, label_space: LabelSpace) -> Arrays:
        """Return an image, uint8 [H, W, 3], and its label, uint8 [H, W]; do not write to them.

        Raises:
            DataError: as `load_sample`.
        """
        key = (sample, label_space)
        if key in self._arrays:
            return self._arrays[key]
        with self._lock:
            decoding = self._decoding.setdefault(key, threading.Lock())
        with decoding:  # of this sample alone: threads decode others beside it
            if key in self._arrays:  # by now
                return self._arrays[key]
            if (latest := self._latest) is not None and latest[0] == key:
                return latest[1]
            arrays = load_sample(sample, label_space)
            self._latest = key, arrays
            size = sum(array.nbytes for array in arrays)
            with self._lock:
                if size <= self.free_bytes:
                    self.free_bytes -= size
                    self._arrays[key] = arrays
            return arrays


@dataclass(frozen=True, eq=False)
class RareClassSampling:
    """Draw a class, the rarer the likelier, and then an image that holds it.

    A class c with the share f(c) of all labelled pixels is drawn with a probability proportional
    to exp((1 - f(c)) / temperature). An image holds a class that has 1/1000 of its labelled
    pixels, or any pixels where no image has so many.

    Attributes:
        counts: pixels of each class in each image, [images, classes], as in
            `DataSummary.counts`.
        temperature: 0.01 is the paper's; larger is nearer to drawing all classes alike.

    Reference:
        Hoyer, Dai, Van Gool: "DAFormer: Improving Network Architectures and Training Strategies
        for Domain-Adaptive Semantic Segmentation", CVPR 2022, section 3.3.

    Example:
        >>> sampling = RareClassSampling(np.array([[90, 0], [81, 9]]), temperature=1.0)
        >>> sampling.probabilities().round(2)
        array([0.29, 0.71])
    """

    counts: np.ndarray
    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.counts.ndim != 2 or not self.counts.any():
            raise ValueError(
                "`counts` must be [images, classes] with pixels in it. Received: shape "
                f"{self.counts.shape}, {self.counts.sum()} pixels"
            )
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be positive. Received: {self.temperature}")

    def probabilities(self) -> np.ndarray:
        """Return the probability of each class, float64 [classes]; 0 for one without pixels."""
        pixels = self.counts.sum(0)
        # Subtracting the rarest's keeps exp from overflowing and changes no ratio.
        exponents = (pixels[pixels > 0].min() - pixels) / pixels.sum() / self.temperature
        weights = np.where(pixels > 0, np.exp(np.minimum(exponents, 0.0)), 0.0)
        return weights / weights.sum()

    def images(self) -> list[np.ndarray]:
        """Return the indices of the images that hold each class."""
        held = self.counts >= HELD_SHARE * self.counts.sum(1, keepdims=True)
        held &= self.counts > 0
        held = np.where(held.any(0), held, self.counts > 0)
        return [np.flatnonzero(column) for column in held.T]

    def drawing(self) -> Callable[[Any], tuple[Any, Any]]:
        """Return a function: seed, int [2] -> index of an image, id of the class it is for."""
        images = self.images()
        upper = np.cumsum(self.probabilities())
        limits = tf.constant(upper / upper[-1], tf.float32)
        lengths = tf.constant([len(indices) for indices in images], tf.int64)
        starts = tf.cumsum(lengths, exclusive=True)
        flat = tf.constant(np.concatenate(images), tf.int64)

        def draw(seed: Any) -> tuple[Any, Any]:
            which, where = tf.unstack(tf.random.stateless_uniform([2], seed))
            wanted = tf.searchsorted(limits, which[None], side="right")[0]
            place = tf.cast(where * tf.cast(lengths[wanted], tf.float32), tf.int64)
            return flat[starts[wanted] + place], wanted

        return draw


def training_dataset(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    augmentation: Augmentation,
    batch_size: int,
    epochs: int,
    initial_epoch: int = 0,
    seed: int = 0,
    cache: SampleCache | None = None,
    rare_classes: RareClassSampling | None = None,
    shard: tuple[int, int] = (0, 1),
    initial_step: int = 0,
) -> tf.data.Dataset:
    """Shuffled and augmented batches of all epochs from `initial_epoch` on, one after another.

    An epoch has `steps_per_epoch(len(samples), batch_size)` batches. It has each sample once, but
    for those that fill no batch; with `rare_classes`, samples are drawn with replacement, and the
    crop of each is to hold the class that it was drawn for.

    Args:
        samples: what to read.
        label_space: what the labels mean.
        augmentation: what is drawn for each sample.
        batch_size: samples in a batch, over all machines.
        epochs: the epoch to end before.
        initial_epoch: the epoch to start with.
        seed: of order and augmentation.
        cache: where decoded files are kept; None for one of its own with the default budget.
        rare_classes: how to draw samples, instead of each once an epoch.
        shard: (index, count) of one of several machines: the batches are then the part `index` of
            `count` equal, contiguous parts of each batch.
        initial_step: the batch of `initial_epoch` to start with.

    Returns:
        Batches (float32 [B, height, width, 3] in 0..255, int32 [B, height, width]), where B is
        batch_size / count.

    Raises:
        DataError: fewer samples than a batch needs; when read, an unreadable file.
        ValueError: the batch has no `count` equal parts, or `counts` are not those of `samples`.
    """
    steps = steps_per_epoch(len(samples), batch_size)
    draw = _drawing(len(samples), batch_size, seed, rare_classes, shard)
    load = _loading(samples, label_space, SampleCache() if cache is None else cache)

    def sample(number: Any) -> tuple[Any, Any]:
        index, stream, wanted = draw(number)
        return augmentation(*load(index), stream, wanted)

    local = batch_size // shard[1]
    first, last = (initial_epoch * steps + initial_step) * local, epochs * steps * local
    dataset = tf.data.Dataset.range(first, last)
    dataset = dataset.map(sample, num_parallel_calls=parallel_calls(), deterministic=True)
    dataset = dataset.batch(local, drop_remainder=True)
    return dataset.prefetch(read_ahead(local, augmentation.crop_size))


def batch_samples(
    samples: Sequence[Sample],
    batch_size: int,
    epoch: int,
    step: int,
    seed: int = 0,
    rare_classes: RareClassSampling | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[Sample]:
    """Return the samples that one batch of `training_dataset` is made of, in order.

    Raises:
        DataError: as `training_dataset`.
        ValueError: as `training_dataset`.
    """
    draw = _drawing(len(samples), batch_size, seed, rare_classes, shard)
    local = batch_size // shard[1]
    first = (epoch * steps_per_epoch(len(samples), batch_size) + step) * local
    numbers = tf.range(first, first + local, dtype=tf.int64)
    return [samples[int(draw(number)[0])] for number in numbers]


def _drawing(
    total: int,
    batch_size: int,
    seed: int,
    rare_classes: RareClassSampling | None,
    shard: tuple[int, int],
) -> Callable[[Any], tuple[Any, Any, Any]]:
    """Return what a number, counted over all epochs on this machine, stands for.

    That is the index of a sample, the seed of its augmentation, int64 [2], and the class that its
    crop is to hold, or None.
    """
    per_epoch = steps_per_epoch(total, batch_size) * batch_size
    part, parts = shard
    if not 0 <= part < parts or batch_size % parts:
        raise ValueError(
            "`shard` must be (index, count) with 0 <= index < count and a batch that count divides."
            f" Received: shard={shard}, batch_size={batch_size}"
        )
    if rare_classes is not None and len(rare_classes.counts) != total:
        raise ValueError(
            f"`rare_classes` must have the counts of the {total} samples. "
            f"Received: counts of {len(rare_classes.counts)}"
        )
    local = batch_size // parts
    draw_rare = None if rare_classes is None else rare_classes.drawing()

    def draw(number: Any) -> tuple[Any, Any, Any]:
        place = number // local * batch_size + part * local + number % local
        epoch, place = place // per_epoch, place % per_epoch
        # Not the index of the sample: the second draw of the same one must differ.
        stream = tf.stack([tf.constant(seed, tf.int64) * 1_000_003 + epoch, place])
        if draw_rare is not None:
            index, wanted = draw_rare(-1 - stream)  # another seed than that of the augmentation
            return index, stream, wanted
        order = tf.stack([tf.constant(seed, tf.int64), epoch])
        index = tf.random.experimental.index_shuffle(place, seed=order, max_index=total - 1)
        return index, stream, None

    return draw


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch.

    Raises:
        DataError: there is not one.
    """
    if num_samples < batch_size:
        raise DataError(
            f"a batch of {batch_size} needs as many training images. Received: {num_samples}"
        )
    return num_samples // batch_size


def read_ahead(batch_size: int, crop_size: tuple[int, int]) -> int:
    """Return how many batches may wait for the model."""
    # Four values a pixel, three colours and a label, of four bytes each.
    batch_bytes = batch_size * crop_size[0] * crop_size[1] * 16
    return min(max(READ_AHEAD_BYTES // batch_bytes, MIN_READ_AHEAD), MAX_READ_AHEAD)


def parallel_calls() -> int:
    """Return how many samples are made at the same time: one on each processor, up to 16."""
    return min(os.cpu_count() or 1, MAX_PARALLEL)


def _loading(
    samples: Sequence[Sample], label_space: LabelSpace, cache: SampleCache
) -> Callable[[Any], tuple[Any, Any]]:
    """Return a function in tf.data: int64 scalar -> uint8 [H, W, 3], uint8 [H, W]."""

    def read(index: np.ndarray) -> Arrays:
        return cache.load(samples[int(index)], label_space)

    def load(index: Any) -> tuple[Any, Any]:
        # Python runs one thread at a time, but Pillow lets the others run while it decodes.
        image, label = tf.numpy_function(read, [index], [tf.uint8, tf.uint8])
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None])

    return load


@dataclass(frozen=True)
class View:
    """An image, or a tile of one, that goes through the network by itself.

    Attributes:
        index: of the sample.
        tile: rows and columns of the tile; None for the whole image.
        counted: rows and columns of the image whose labels count in this tile; None for all.
    """

    index: int
    tile: tuple[slice, slice] | None = None
    counted: tuple[slice, slice] | None = None

    def cut(self, image: np.ndarray, label: np.ndarray) -> Arrays:
        """Return the view of a sample; labels that do not count are `IGNORE`."""
        if self.counted is not None:
            counted = np.full_like(label, IGNORE)
            counted[self.counted] = label[self.counted]
            label = counted
        if self.tile is None:
            return image, label
        return image[self.tile], label[self.tile]


def evaluation_dataset(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    replicas: int = 1,
    one_size: bool = False,
    cache: SampleCache | None = None,
    views: Sequence[View] | None = None,
) -> tf.data.Dataset:
    """Whole images in order, each at its own size, or given views of them.

    Args:
        samples: what to read.
        label_space: what the labels mean.
        replicas: samples in a batch, one for each device. A device without one fails, so a batch
            that lacks samples is filled up with copies whose labels are ignored everywhere.
        one_size: whether all views have the same size; otherwise a batch has one of them and
            is filled up.
        cache: where decoded files are kept; None for one of its own with the default budget.
        views: what to put into batches; None for every sample as a whole.

    Returns:
        Batches (float32 [B, H, W, 3] in 0..255, int32 [B, H, W]).
    """
    views = [View(i) for i in range(len(samples))] if views is None else views
    cache = SampleCache() if cache is None else cache
    together = replicas if one_size else 1
    index = np.arange(-(-len(views) // together) * together).reshape(-1, together)
    index = np.pad(index, ((0, 0), (0, replicas - together)), "edge")
    is_copy = (index >= len(views)) | (np.arange(replicas) >= together)
    index = np.minimum(index, len(views) - 1)

    def cut(index: np.ndarray) -> Arrays:
        view = views[int(index)]
        return view.cut(*cache.load(samples[view.index], label_space))

    def read(index: Any, is_copy: Any) -> tuple[Any, Any]:
        image, label = tf.numpy_function(cut, [index], [tf.uint8, tf.uint8])
        image, label = tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None])
        label = tf.cast(label, tf.int32)
        return tf.cast(image, tf.float32), tf.where(is_copy, IGNORE, label)

    dataset = tf.data.Dataset.from_tensor_slices((index.ravel(), is_copy.ravel()))
    calls = min(parallel_calls(), MAX_PARALLEL // 4)  # whole images are large
    dataset = dataset.map(read, num_parallel_calls=calls, deterministic=True)
    return dataset.batch(replicas).prefetch(2)
