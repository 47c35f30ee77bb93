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


def multi_worker_strategy() -> tf.distribute.Strategy:
    """Return the strategy over all workers, once they have met; before anything else of TensorFlow.

    Each worker brings all its GPUs, as many as the others, or its CPU as one device.
    """
    # TensorFlow takes SIGTERM for a notice to save soon, and nobody here would end.
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGTERM, handler)
    return strategy


def validation_share(
    samples: Sequence[Sample],
    label_space: LabelSpace,
    worker: Worker,
    replicas: int = 1,
    one_size: bool = False,
    views: Sequence[View] | None = None,
) -> tf.data.Dataset:
    """Return the views that this worker evaluates: every `worker.count`-th.

    Args:
        samples: the images of all workers.
        label_space: what the labels mean.
        worker: this process.
        replicas: devices of this worker; they are filled up as in `evaluation_dataset`.
        one_size: whether all views have the same size.
        views: of all workers, as in `evaluation_dataset`; None for every sample as a whole.

    Returns:
        Batches of one view, (float32 [1, H, W, 3] in 0..255, int32 [1, H, W]); those of the
        worker's devices follow one another.
    """
    views = [View(i) for i in range(len(samples))] if views is None else views
    share = views[worker.index :: worker.count]
    steps = math.ceil(len(share) / (replicas if one_size else 1))
    batches = evaluation_dataset(samples, label_space, replicas, one_size, views=share).rebatch(1)
    return batches.apply(tf.data.experimental.assert_cardinality(steps * replicas))


class WorkerProgress(keras.callbacks.Callback):
    """Says now and then that a worker other than the chief is alive."""

    def __init__(self, worker: Worker):
        super().__init__()
        self.name = f"worker {worker.index} of {worker.count}"

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print a line."""
        print(f"{self.name}: epoch {epoch + 1}/{self.params['epochs']} done", flush=True)


@contextlib.contextmanager
def summed_metrics(model: keras.Model) -> Iterator[None]:
    """Let the metrics hold the sums over all workers, for each worker to read when it likes.

    Else every reading of a metric is a sum over the workers, which waits for all of them to read
    the same. All workers must enter the block together.
    """
    variables = [variable for metric in model.metrics for variable in metric.variables]
    parts = [variable._value for variable in variables]
    for variable in variables:
        variable._value = tf.Variable(keras.ops.convert_to_numpy(variable))
    try:
        yield
    finally:
        for variable, part in zip(variables, parts, strict=True):
            variable._value = part


def fit_workers(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches: tf.data.Dataset,
    validation: tf.data.Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
    initial_epoch: int,
    epochs: int,
    steps_per_epoch: int,
    validation_epochs: Sequence[int],
) -> None:
    """Do what `keras.Model.fit` does, under any strategy, with this worker's own data.

    Logs have the names of Keras'. Those of a step are means over the devices; those of an epoch
    are of the metrics over all workers, which callbacks may read at the end of an epoch or of a
    validation, also on one worker alone. All workers must do the same steps: a callback that
    stops training or changes weights, or that reads a metric after a step, belongs to all of
    them; one that writes or prints, to the chief.

    Args:
        model: built and compiled under the scope of `strategy`.
        strategy: what to run under.
        batches: (inputs, labels) for one device each; those of this worker's devices follow one
            another. As many as all the epochs need.
        validation: this worker's share, as `batches`, of a known number, which may differ from
            that of the others. Its steps have no logs.
        callbacks: this worker's.
        initial_epoch: the epoch to start with.
        epochs: the epoch to end before.
        steps_per_epoch: steps of all devices together in an epoch.
        validation_epochs: epochs, counted from 1, after which to validate.
    """
    validation_steps = int(validation.cardinality()) // len(strategy.extended.worker_devices)
    with strategy.scope():
        model._symbolic_build(data_batch=batches.element_spec)

    def distributed(dataset: tf.data.Dataset) -> Iterator[Any]:
        # Endless: before each batch of a dataset with an end, the workers would ask each other
        # whether it has come.
        return iter(strategy.distribute_datasets_from_function(lambda _: dataset.repeat()))

    @tf.function(reduce_retracing=True)
    def train_step(iterator: Any) -> dict[str, Any]:
        logs = strategy.run(model.train_step, args=(next(iterator),))
        return {name: strategy.reduce("MEAN", log, axis=None) for name, log in logs.items()}

    @tf.function(reduce_retracing=True)
    def test_step(iterator: Any) -> None:
        # Nothing in it waits for other workers, so these may have more images or fewer.
        strategy.run(model.test_step, args=(next(iterator),))

    def results() -> dict[str, float]:
        return {name: float(np.array(log)) for name, log in model.get_metrics_result().items()}

    training, evaluation = distributed(batches), distributed(validation)
    all_callbacks = keras.callbacks.CallbackList(
        list(callbacks), model=model, epochs=epochs, steps=steps_per_epoch, verbose=0
    )
    logs: dict[str, float] = {}
    model.stop_training = False
    all_callbacks.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        validate = epoch + 1 in validation_epochs
        model.reset_metrics()
        all_callbacks.on_epoch_begin(epoch)
        for step in range(steps_per_epoch):
            all_callbacks.on_train_batch_begin(step)
            all_callbacks.on_train_batch_end(step, train_step(training))
            if model.stop_training:
                break
        with summed_metrics(model):
            logs = results()
            if validate:
                all_callbacks.on_test_begin()
            else:
                all_callbacks.on_epoch_end(epoch, logs)
        if validate:
            model.reset_metrics()
            for step in range(validation_steps):
                all_callbacks.on_test_batch_begin(step)
                test_step(evaluation)
                all_callbacks.on_test_batch_end(step)
            with summed_metrics(model):
                val_logs = results()
                all_callbacks.on_test_end(val_logs)
                logs |= {f"val_{name}": value for name, value in val_logs.items()}
                all_callbacks.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    all_callbacks.on_train_end(logs)


def distribution_strategy(cpu_replicas: int) -> tf.distribute.Strategy:
    """Mirror over all visible GPUs, or over logical CPU devices; nothing where there is one."""
    if cpu_replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas
        )
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(cpu_replicas)])
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
