"""tf.data pipelines: samples on disk -> batches of pictures and labels.

What a training batch holds is a function of (seed, epoch, place in the epoch) alone, so a run
that was interrupted goes on with the batches that it would have seen.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.catalog import IGNORE, LabelSpace
from alignseg_tf.data.readers import DataError, Sample, load_sample

DEFAULT_CACHE_BYTES = 2 << 30


class _Loader:
    """Decodes samples and keeps them in memory as far as a budget allows."""

    def __init__(self, samples: Sequence[Sample], label_space: LabelSpace, cache_bytes: int):
        self.samples = samples
        self.label_space = label_space
        self.free_bytes = cache_bytes
        self.cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.lock = threading.Lock()

    def __call__(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = int(index)
        if key in self.cache:
            return self.cache[key]
        arrays = load_sample(self.samples[key], self.label_space)
        size = sum(array.nbytes for array in arrays)
        with self.lock:
            if size <= self.free_bytes and key not in self.cache:
                self.free_bytes -= size
                self.cache[key] = arrays
        return arrays

    def load(self, index: Any) -> tuple[Any, Any]:
        """Decode inside tf.data: int64 scalar -> uint8 [H, W, 3], uint8 [H, W]."""
        image, label = tf.numpy_function(self, [index], [tf.uint8, tf.uint8])
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None])


def training_dataset(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    augmentation: Augmentation,
    batch_size: int,
    epochs: int,
    initial_epoch: int = 0,
    seed: int = 0,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> tf.data.Dataset:
    """Shuffled and augmented batches of all epochs from `initial_epoch` on, one after another.

    An epoch has `steps_per_epoch(len(samples), batch_size)` batches.

    Args:
        samples: what to read.
        label_space: what the labels mean.
        augmentation: what is drawn for each sample.
        batch_size: samples in a batch.
        epochs: the epoch to end before.
        initial_epoch: the epoch to start with.
        seed: of order and augmentation.
        cache_bytes: memory for decoded files.

    Returns:
        Batches (float32 [B, height, width, 3] in 0..255, int32 [B, height, width]).

    Raises:
        DataError: fewer samples than a batch needs; when read, an unreadable file.
    """
    count = len(samples)
    steps = steps_per_epoch(count, batch_size)
    loader = _Loader(samples, label_space, cache_bytes)

    def draw(step: Any) -> tuple[Any, Any]:
        per_epoch = steps * batch_size
        epoch, place = step // per_epoch, step % per_epoch
        index = tf.random.experimental.index_shuffle(
            place, seed=tf.stack([tf.constant(seed, tf.int64), epoch]), max_index=count - 1
        )
        image, label = loader.load(index)
        # The second draw of the same sample must differ, in this epoch and the next.
        stream = tf.stack([tf.constant(seed, tf.int64) * 1_000_003 + epoch, index])
        return augmentation(image, label, stream)

    first, last = (epoch * steps * batch_size for epoch in (initial_epoch, epochs))
    dataset = tf.data.Dataset.range(first, last)
    dataset = dataset.map(draw, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch.

    Raises:
        DataError: there is not one.
    """
    if num_samples < batch_size:
        raise DataError(
            f"a batch of {batch_size} needs as many training pictures. Received: {num_samples}"
        )
    return num_samples // batch_size


def evaluation_dataset(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    replicas: int = 1,
    one_size: bool = False,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> tf.data.Dataset:
    """Whole pictures in order, each at its own size.

    Args:
        samples: what to read.
        label_space: what the labels mean.
        replicas: samples in a batch, one for each device. A device without one fails, so a batch
            that lacks samples is filled up with copies whose labels are ignored everywhere.
        one_size: whether all pictures have the same size; otherwise a batch has one of them and
            is filled up.
        cache_bytes: memory for decoded files.

    Returns:
        Batches (float32 [B, H, W, 3] in 0..255, int32 [B, H, W]).
    """
    loader = _Loader(samples, label_space, cache_bytes)
    together = replicas if one_size else 1
    index = np.arange(-(-len(samples) // together) * together).reshape(-1, together)
    index = np.pad(index, ((0, 0), (0, replicas - together)), "edge")
    is_copy = (index >= len(samples)) | (np.arange(replicas) >= together)
    index = np.minimum(index, len(samples) - 1)

    def read(index: Any, is_copy: Any) -> tuple[Any, Any]:
        image, label = loader.load(index)
        label = tf.cast(label, tf.int32)
        return tf.cast(image, tf.float32), tf.where(is_copy, IGNORE, label)

    dataset = tf.data.Dataset.from_tensor_slices((index.ravel(), is_copy.ravel()))
    dataset = dataset.map(read, num_parallel_calls=2, deterministic=True)
    return dataset.batch(replicas).prefetch(2)
