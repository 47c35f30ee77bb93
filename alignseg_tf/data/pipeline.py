"""tf.data pipelines: samples on disk -> batches of images and labels."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import DataError, Sample, expect
from alignseg_tf.data.readers import load_sample

DEFAULT_CACHE_BYTES = 2 << 30
# Bytes of batches that wait for the model, and limits of their number.
READ_AHEAD_BYTES = 256 << 20
MIN_READ_AHEAD, MAX_READ_AHEAD = 2, 8
# Maximum number of samples decoded and augmented at the same time, which bounds memory.
MAX_PARALLEL = 16
# Rare class sampling: an image holds a class that has this share of its labelled pixels.
HELD_SHARE = 1e-3

Arrays = tuple[np.ndarray, np.ndarray]


class SampleCache:
    """Keep decoded samples in memory up to `max_bytes`; datasets and threads can share one.

    Nothing is evicted: the first samples stay, so a cache that is too small for an epoch still
    saves its share of the decoding.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES):
        self.free_bytes = max_bytes
        self._arrays: dict[tuple[Sample, LabelSpace], Arrays] = {}
        # The last decoded sample, also beyond the budget: tiles of one image follow each other.
        self._latest: dict[tuple[Sample, LabelSpace], Arrays] = {}
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
        with decoding:  # other threads decode other samples meanwhile
            if arrays := self._arrays.get(key) or self._latest.get(key):
                return arrays
            arrays = load_sample(sample, label_space)
            self._latest = {key: arrays}
            size = sum(array.nbytes for array in arrays)
            with self._lock:
                if size <= self.free_bytes:
                    self.free_bytes -= size
                    self._arrays[key] = arrays
            return arrays


@dataclass(frozen=True, eq=False)
class RareClassSampling:
    """Draw a class, a rare one more often, and then an image that holds it.

    A class with the share f of all labelled pixels is drawn with a probability proportional to
    exp((1 - f) / temperature). An image holds a class that has 1/1000 of its labelled pixels; where
    no image has that many, any pixel suffices.

    Attributes:
        counts: pixels of each class in each image, [images, classes], as `check_samples` counts.
        temperature: the paper's is 0.01; a larger one draws classes more evenly.

    Reference:
        Hoyer et al.: "DAFormer", CVPR 2022, section 3.3.

    Example:
        >>> sampling = RareClassSampling(np.array([[90, 0], [81, 9]]), temperature=1.0)
        >>> sampling.probabilities().round(2)
        array([0.29, 0.71])
    """

    counts: np.ndarray
    temperature: float = 0.01

    def __post_init__(self) -> None:
        fits = self.counts.ndim == 2 and bool(self.counts.any())
        expect(fits, "`counts`", "[images, classes] with pixels in it", self.counts)
        expect(self.temperature > 0, "`temperature`", "a positive number", self.temperature)

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


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """Shuffled and augmented batches of every epoch of a training run.

    A batch depends only on the fields, the epoch and the step: an interrupted run continues with
    the batches it would have seen, and each of several machines makes its part. An epoch has each
    sample once, except those that fill no batch.

    Attributes:
        batch_size: samples in a batch, over all machines.
        seed: seed of order and augmentation.
        rare_classes: draw samples with replacement, and crops that hold the class drawn.
        shard: (index, count) of this machine, which gets part `index` of `count` equal,
            contiguous parts of each batch.

    Raises:
        DataError: fewer samples than a batch needs.
        ValueError: `count` does not divide the batch, or `rare_classes` is of other samples.
    """

    samples: Sequence[Sample]
    label_space: LabelSpace
    batch_size: int
    seed: int = 0
    rare_classes: RareClassSampling | None = None
    shard: tuple[int, int] = (0, 1)
    cache: SampleCache = field(default_factory=SampleCache)

    def __post_init__(self) -> None:
        steps_per_epoch(len(self.samples), self.batch_size)
        part, parts = self.shard
        fits = 0 <= part < parts and self.batch_size % parts == 0
        what = f"(index, count), 0 <= index < count, where count divides {self.batch_size}"
        expect(fits, "`shard`", what, self.shard)
        total = len(self.samples)
        count = total if self.rare_classes is None else len(self.rare_classes.counts)
        expect(count == total, "`rare_classes`", f"the counts of {total} samples", count)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return steps_per_epoch(len(self.samples), self.batch_size)

    def dataset(
        self, augmentation: Augmentation, first: int = 0, end: int = 1, step: int = 0
    ) -> tf.data.Dataset:
        """Return the batches from `step` of epoch `first` until epoch `end` begins.

        Returns:
            Batches (float32 [B, height, width, 3] in 0..255, int32 [B, height, width]), where B is
            batch_size / count. Reading raises DataError for an unreadable file.
        """
        local = self.batch_size // self.shard[1]
        draw, cache, samples = self._drawing(), self.cache, self.samples
        load = _in_graph(lambda index: cache.load(samples[index], self.label_space))

        def sample(number: Any) -> tuple[Any, Any]:
            index, stream, wanted = draw(number)
            return augmentation(*load(index), stream, wanted)

        numbers = tf.data.Dataset.range(
            (first * self.steps + step) * local, end * self.steps * local
        )
        dataset = numbers.map(sample, num_parallel_calls=parallel_calls(), deterministic=True)
        dataset = dataset.batch(local, drop_remainder=True)
        return dataset.prefetch(read_ahead(local, augmentation.crop_size))

    def samples_of(self, epoch: int, step: int) -> list[Sample]:
        """Return the samples of one batch, in order."""
        draw, local = self._drawing(), self.batch_size // self.shard[1]
        start = (epoch * self.steps + step) * local
        numbers = tf.range(start, start + local, dtype=tf.int64)
        return [self.samples[int(draw(number)[0])] for number in numbers]

    def _drawing(self) -> Callable[[Any], tuple[Any, Any, Any]]:
        """Return a function: number of a sample over all epochs -> index, seed, wanted class."""
        total, batch_size, (part, parts) = len(self.samples), self.batch_size, self.shard
        local, per_epoch = batch_size // parts, self.steps * batch_size
        seed = tf.constant(self.seed, tf.int64)
        draw_rare = self.rare_classes and self.rare_classes.drawing()

        def draw(number: Any) -> tuple[Any, Any, Any]:
            place = number // local * batch_size + part * local + number % local
            epoch, place = place // per_epoch, place % per_epoch
            # The place, not the sample's index: two draws of one sample in an epoch must differ.
            stream = tf.stack([seed * 1_000_003 + epoch, place])
            if draw_rare:
                index, wanted = draw_rare(-1 - stream)  # another seed than the augmentation's
                return index, stream, wanted
            order = tf.stack([seed, epoch])
            index = tf.random.experimental.index_shuffle(place, seed=order, max_index=total - 1)
            return index, stream, None

        return draw


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch; DataError if there is none."""
    if num_samples < batch_size:
        raise DataError(
            f"a batch of {batch_size} needs as many training images. Received: {num_samples}"
        )
    return num_samples // batch_size


def read_ahead(batch_size: int, crop_size: tuple[int, int]) -> int:
    """Return the number of batches that wait for the model."""
    # A pixel has three colours and a label, of four bytes each.
    batch_bytes = batch_size * crop_size[0] * crop_size[1] * 16
    return min(max(READ_AHEAD_BYTES // batch_bytes, MIN_READ_AHEAD), MAX_READ_AHEAD)


def parallel_calls() -> int:
    """Return the number of samples to make at the same time: one per processor, at most 16."""
    return min(os.cpu_count() or 1, MAX_PARALLEL)


def _in_graph(read: Callable[[int], Arrays]) -> Callable[[Any], tuple[Any, Any]]:
    """Return a tf.data function: index -> uint8 [H, W, 3], uint8 [H, W]."""

    def load(index: Any) -> tuple[Any, Any]:
        # Python runs one thread at a time, but Pillow releases its lock while it decodes.
        pair = tf.numpy_function(lambda i: read(int(i)), [index], [tf.uint8, tf.uint8])
        return tf.ensure_shape(pair[0], [None, None, 3]), tf.ensure_shape(pair[1], [None, None])

    return load


@dataclass(frozen=True)
class View:
    """A sample, or the rows and columns of a tile of it, to run through the network.

    Labels count only in the rows and columns `counted` of the image.
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
        return (image, label) if self.tile is None else (image[self.tile], label[self.tile])


def evaluation_dataset(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    replicas: int = 1,
    one_size: bool = False,
    cache: SampleCache | None = None,
    views: Sequence[View] | None = None,
) -> tf.data.Dataset:
    """Return whole images in order, each at its own size, or given views of them.

    A batch has `replicas` samples, one for each device, if all views have `one_size`, else one.
    Copies whose labels are all ignored fill it up, since a device without a sample fails.

    Returns:
        Batches (float32 [B, H, W, 3] in 0..255, int32 [B, H, W]).
    """
    views = [View(i) for i in range(len(samples))] if views is None else views
    cache = cache or SampleCache()
    load = _in_graph(lambda i: views[i].cut(*cache.load(samples[views[i].index], label_space)))
    together = replicas if one_size else 1
    index = np.arange(-(-len(views) // together) * together).reshape(-1, together)
    index = np.pad(index, ((0, 0), (0, replicas - together)), "edge")
    is_copy = (index >= len(views)) | (np.arange(replicas) >= together)
    index = np.minimum(index, len(views) - 1)

    def read(index: Any, is_copy: Any) -> tuple[Any, Any]:
        image, label = load(index)
        return tf.cast(image, tf.float32), tf.where(is_copy, IGNORE, tf.cast(label, tf.int32))

    dataset = tf.data.Dataset.from_tensor_slices((index.ravel(), is_copy.ravel()))
    calls = min(parallel_calls(), MAX_PARALLEL // 4)  # whole images are large
    dataset = dataset.map(read, num_parallel_calls=calls, deterministic=True)
    return dataset.batch(replicas).prefetch(2)
