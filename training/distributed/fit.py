"""Train under a distribution strategy."""

import contextlib
import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.data.pipeline import View, evaluation_dataset
from training.distributed.workers import Worker


def distribution_strategy(cpu_replicas: int) -> tf.distribute.Strategy:
    """Mirror over all visible GPUs or over logical CPU devices; do nothing for one device."""
    if cpu_replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas
        )
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(cpu_replicas)])
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def multi_worker_strategy() -> tf.distribute.Strategy:
    """Return the strategy over all workers; call it after they met, before any other TensorFlow.

    Each worker brings all its GPUs, as many as the others, or its CPU as one device.
    """
    # TensorFlow takes SIGTERM for a notice to save soon, and the process would not end.
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGTERM, handler)
    return strategy


def validation_share(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    worker: Worker,
    replicas: int,
    one_size: bool,
    views: Sequence[View],
) -> tf.data.Dataset:
    """Return the views that this worker evaluates: every `worker.count`-th.

    Args:
        samples: the images of all workers.
        label_space: of their labels.
        worker: this process.
        replicas: devices of this worker; they are filled up as in `evaluation_dataset`.
        one_size: whether all views have the same size.
        views: of all workers.

    Returns:
        Batches of one view, (float32 [1, H, W, 3] in 0..255, int32 [1, H, W]), alternately for each
        of the worker's devices.
    """
    share = views[worker.index :: worker.count]
    steps = math.ceil(len(share) / (replicas if one_size else 1))
    batches = evaluation_dataset(samples, label_space, replicas, one_size, views=share).rebatch(1)
    return batches.apply(tf.data.experimental.assert_cardinality(steps * replicas))


class WorkerProgress(keras.callbacks.Callback):
    """Print a line an epoch on a worker other than the chief."""

    def __init__(self, worker: Worker):
        super().__init__()
        self.name = f"worker {worker.index} of {worker.count}"

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the line."""
        print(f"{self.name}: epoch {epoch + 1}/{self.params['epochs']} done", flush=True)


class DistributedSteps:
    """The train and test step of a model under a strategy, on this worker's batches."""

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        batches: tf.data.Dataset,
        validation: tf.data.Dataset,
    ):
        self.model, self.strategy = model, strategy
        self.training, self.validation = self._distributed(batches), self._distributed(validation)

    def _distributed(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        # Endless: before each batch of a finite dataset, workers would ask each other for its end.
        return iter(self.strategy.distribute_datasets_from_function(lambda _: dataset.repeat()))

    @tf.function(reduce_retracing=True)
    def _train(self, iterator: Any) -> dict[str, Any]:
        logs = self.strategy.run(self.model.train_step, args=(next(iterator),))
        return {name: self.strategy.reduce("MEAN", x, axis=None) for name, x in logs.items()}

    @tf.function(reduce_retracing=True)
    def _test(self, iterator: Any) -> None:
        # Waits for no other worker, so workers may have different numbers of images.
        self.strategy.run(self.model.test_step, args=(next(iterator),))

    def train(self) -> dict[str, Any]:
        """Train a step; return its logs, means over the devices."""
        return self._train(self.training)

    def test(self) -> None:
        """Evaluate a batch on each device."""
        self._test(self.validation)

    @contextlib.contextmanager
    def summed_metrics(self) -> Iterator[dict[str, float]]:
        """Give the metrics their sums over all workers, and yield the results.

        Otherwise each reading of a metric would wait until all workers read it. All workers must
        enter the block together.
        """
        variables = [variable for metric in self.model.metrics for variable in metric.variables]
        parts = [variable._value for variable in variables]
        for variable in variables:
            variable._value = tf.Variable(keras.ops.convert_to_numpy(variable))
        try:
            results = self.model.get_metrics_result()
            yield {name: float(np.array(result)) for name, result in results.items()}
        finally:
            for variable, part in zip(variables, parts, strict=True):
                variable._value = part


def fit_workers(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches: tf.data.Dataset,
    validation: tf.data.Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
    epochs: range,
    steps_per_epoch: int,
    validation_epochs: Sequence[int],
) -> None:
    """Do what `keras.Model.fit` does, which cannot run under several workers (Keras 3.15).

    Logs have the same names. Those of a step are means over the devices; those of an epoch are over
    all workers, and callbacks may read the metrics then on one worker only. A callback that raises
    or changes weights, or reads a metric after a step, must be on all workers.

    Args:
        model: built and compiled under the scope of `strategy`.
        strategy: what to run under.
        batches: (inputs, labels) alternately for each of this worker's devices, enough for all
            epochs.
        validation: this worker's share, as `batches`, with a known number, which may differ from
            that of others. Its steps have no logs.
        callbacks: this worker's.
        epochs: the epochs to train, counted from 0.
        steps_per_epoch: steps of all devices together.
        validation_epochs: epochs, counted from 1, after which to validate.
    """
    validation_steps = int(validation.cardinality()) // len(strategy.extended.worker_devices)
    with strategy.scope():
        model._symbolic_build(data_batch=batches.element_spec)
    steps = DistributedSteps(model, strategy, batches, validation)
    call = keras.callbacks.CallbackList(
        list(callbacks), model=model, epochs=epochs.stop, steps=steps_per_epoch, verbose=0
    )
    call.on_train_begin()
    for epoch in epochs:
        validate = epoch + 1 in validation_epochs
        model.reset_metrics()
        call.on_epoch_begin(epoch)
        for step in range(steps_per_epoch):
            call.on_train_batch_begin(step)
            call.on_train_batch_end(step, steps.train())
        with steps.summed_metrics() as logs:
            if validate:
                call.on_test_begin()
            else:
                call.on_epoch_end(epoch, logs)
        if validate:
            model.reset_metrics()
            for step in range(validation_steps):
                call.on_test_batch_begin(step)
                steps.test()
                call.on_test_batch_end(step)
            with steps.summed_metrics() as val_logs:
                call.on_test_end(val_logs)
                logs |= {f"val_{name}": value for name, value in val_logs.items()}
                call.on_epoch_end(epoch, logs)
    call.on_train_end()
