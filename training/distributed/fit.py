"""Train under a distribution strategy."""

import contextlib
import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.data.pipeline import evaluation_dataset
from training.build import build_variables
from training.data import Checked, validation_views
from training.distributed.workers import Worker


def strategy(worker: Worker, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Return the strategy of a run.

    Several workers bring all their GPUs, the same number each, or their CPUs as one device each;
    call it after they met, before any other TensorFlow. One worker mirrors over all visible GPUs or
    over logical CPU devices, if there are several.
    """
    if worker.count > 1:
        # TensorFlow takes SIGTERM for a notice to save soon, and the process would not end.
        handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        several = tf.distribute.MultiWorkerMirroredStrategy()
        signal.signal(signal.SIGTERM, handler)
        return several
    if cpu_replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas
        )
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(cpu_replicas)])
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def validation_batches(data: Checked, worker: Worker, replicas: int) -> tf.data.Dataset:
    """Return the batches to validate on the `replicas` of this worker, see `evaluation_dataset`.

    Of several workers, each has every `worker.count`-th view, in batches of one view, (float32
    [1, H, W, 3] in 0..255, int32 [1, H, W]), alternately for each of its devices.
    """
    share = validation_views(data.validation_report.sizes)[worker.index :: worker.count]
    batches = evaluation_dataset(
        data.validation, data.label_space, replicas, data.one_size, views=share
    )
    if worker.count == 1:
        return batches
    steps = math.ceil(len(share) / (replicas if data.one_size else 1))
    return batches.rebatch(1).apply(tf.data.experimental.assert_cardinality(steps * replicas))


def worker_progress(worker: Worker, epochs: int) -> keras.callbacks.Callback:
    """Return a callback that prints a line an epoch, for a worker other than the chief."""
    name = f"worker {worker.index} of {worker.count}"
    return keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: print(f"{name}: epoch {epoch + 1}/{epochs} done", flush=True)
    )


class DistributedSteps:
    """The train and test step of a model under a strategy, on this worker."""

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy):
        self.model, self.strategy = model, strategy

    def distributed(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        """Return the batches of a dataset again and again, one for each device at a time."""
        # Endless: before each batch of a finite dataset, workers would ask each other for its end.
        return iter(self.strategy.distribute_datasets_from_function(lambda _: dataset.repeat()))

    @tf.function(reduce_retracing=True)
    def train(self, iterator: Any) -> dict[str, Any]:
        """Train a step; return its logs, means over the devices."""
        logs = self.strategy.run(self.model.train_step, args=(next(iterator),))
        return {name: self.strategy.reduce("MEAN", x, axis=None) for name, x in logs.items()}

    @tf.function(reduce_retracing=True)
    def test(self, iterator: Any) -> None:
        """Evaluate a batch on each device."""
        # Waits for no other worker, so workers may have different numbers of images.
        self.strategy.run(self.model.test_step, args=(next(iterator),))

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
        strategy: of all workers.
        batches: (inputs, labels) alternately for each of this worker's devices, for all epochs.
        validation: this worker's share, as `batches`, with a known number, which may differ from
            that of others. Its steps have no logs.
        callbacks: this worker's.
        epochs: the epochs to train, counted from 0.
        steps_per_epoch: steps of all devices together.
        validation_epochs: epochs, counted from 1, after which to validate.
    """
    validation_steps = int(validation.cardinality()) // len(strategy.extended.worker_devices)
    with strategy.scope():
        build_variables(model, batches.element_spec)
    steps = DistributedSteps(model, strategy)
    training, testing = steps.distributed(batches), steps.distributed(validation)
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
            call.on_train_batch_end(step, steps.train(training))
        with steps.summed_metrics() as logs:
            if validate:
                call.on_test_begin()
            else:
                call.on_epoch_end(epoch, logs)
        if validate:
            model.reset_metrics()
            for step in range(validation_steps):
                call.on_test_batch_begin(step)
                steps.test(testing)
                call.on_test_batch_end(step)
            with steps.summed_metrics() as val_logs:
                call.on_test_end(val_logs)
                logs |= {f"val_{name}": value for name, value in val_logs.items()}
                call.on_epoch_end(epoch, logs)
    call.on_train_end()
