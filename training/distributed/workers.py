"""Training on several machines: one process each, found by the environment variable `TF_CONFIG`.

`keras.Model.fit` cannot run under `tf.distribute.MultiWorkerMirroredStrategy` (Keras 3.15), so
`fit` here runs the model's own `train_step` and `test_step` under it, with the callbacks and the
logs of Keras' `fit`. docs/distribution.md tells how to use it.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.pipeline import View, evaluation_dataset
from alignseg_tf.data.readers import Sample
from training.recipe import RecipeError

# How long workers wait for each other at the start, which is also the time to restart a lost one.
WAIT_SECONDS = 3600.0
# How often a process starts itself again without a finished epoch in between.
MAX_RESTARTS = 5
RESTART_DELAY = 5.0
RESTARTS = "ALIGNSEG_RESTARTS"

# What TensorFlow raises where another worker is gone: its connection broke, or its heartbeat
# stopped for 10 seconds, or it was started again.
LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


@dataclass(frozen=True)
class Worker:
    """The place of this process among those that train together."""

    index: int = 0
    addresses: tuple[str, ...] = ("",)

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run's folder and the progress."""
        return self.index == 0


def this_worker() -> Worker:
    """Return what `TF_CONFIG` says of this process; without it, the only worker.

    Raises:
        RecipeError: `TF_CONFIG` cannot be understood.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Worker()
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        tasks = [
            (kind, index)
            for kind in ("chief", "worker")
            for index in range(len(cluster.get(kind, ())))
        ]
        index = tasks.index((task["type"], int(task["index"])))
        addresses = tuple(str(cluster[kind][number]) for kind, number in tasks)
        for address in addresses:
            _host_and_port(address)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            'TF_CONFIG must be JSON such as {"cluster": {"worker": ["host1:12345", '
            '"host2:12345"]}, "task": {"type": "worker", "index": 0}}, with the task of this '
            f"process. Received: {text!r} ({error!r})"
        ) from error
    return Worker(index, addresses)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def meet(worker: Worker, facts: Mapping[str, Any], wait_seconds: float = WAIT_SECONDS) -> None:
    """Wait until all workers are here, and see that they are about to do the same.

    TensorFlow waits too, but for an hour, deaf to Ctrl-C, and workers that do different things
    would hang or train nonsense. The workers meet at the chief's address, before TensorFlow
    listens there.

    Args:
        worker: this process.
        facts: name and value, as JSON has them, of what must be the same everywhere.
        wait_seconds: how long to wait.

    Raises:
        RecipeError: a worker did not come, or the workers differ; then all of them raise.
    """
    facts = {"the cluster in TF_CONFIG": ", ".join(worker.addresses), **facts}
    deadline = time.monotonic() + wait_seconds
    print(f"worker {worker.index} of {worker.count}: waiting for the others ...", flush=True)
    if worker.is_chief:
        problem = _receive_workers(worker, facts, deadline)
    else:
        problem = _report_to_chief(worker, facts, deadline)
    if problem:
        raise RecipeError(problem)


def checksum(path: Path) -> str:
    """Return a checksum of a file, to be compared by `meet`; "none" where there is no file."""
    if not path.is_file():
        return "none"
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _listen(address: str) -> socket.socket:
    host, port = _host_and_port(address)
    try:
        return socket.create_server((host, port))
    except OSError:
        # The host's name may belong to a gateway; TensorFlow listens on all interfaces anyway.
        return socket.create_server(("", port))


def _receive_workers(worker: Worker, facts: Mapping[str, Any], deadline: float) -> str:
    """Be the chief: collect the others, answer all of them at once, return the answer."""
    problem = ""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(worker.addresses[0]))
        server.settimeout(0.5)
        present: dict[int, socket.socket] = {}
        while len(present) < worker.count - 1 and not problem:
            missing = [i for i in range(1, worker.count) if i not in present]
            if time.monotonic() > deadline:
                names = ", ".join(f"{i} ({worker.addresses[i]})" for i in missing)
                problem = f"these workers did not come: {names}"
                break
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                stack.enter_context(connection)
                hello = _receive(connection)
                if hello is None:
                    continue  # not one of us
                index = hello["worker"]
                if index in present and not _is_closed(present[index]):
                    _send(connection, {"problem": f"worker {index} is here already"})
                    continue
                present[index] = connection
                problem = _difference(index, hello["facts"], facts)
            for index in [i for i, other in present.items() if _is_closed(other)]:
                del present[index]
        for connection in present.values():
            _send(connection, {"problem": problem})
        for connection in present.values():
            _is_closed(connection, wait_seconds=5.0)  # the port is free at once if they close first
    return problem


def _report_to_chief(worker: Worker, facts: Mapping[str, Any], deadline: float) -> str:
    """Be one of the others: tell the chief, again if need be, and return its answer."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            with socket.create_connection(_host_and_port(worker.addresses[0]), 5.0) as connection:
                _send(connection, {"worker": worker.index, "facts": dict(facts)})
                answer = _receive(connection, deadline - time.monotonic())
            # No answer: the chief has gone, or is still TensorFlow's server of a broken run.
            if answer is not None:
                return answer["problem"]
        time.sleep(0.5)
    return f"the chief did not come: worker 0 ({worker.addresses[0]})"


def _difference(index: int, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    differences = [
        f"{name} ({ours[name]!r} on worker 0, {theirs.get(name)!r} on worker {index})"
        for name in ours
        if ours[name] != theirs.get(name)
    ]
    return f"the workers differ in {'; '.join(differences)}" if differences else ""


_GREETING = b"alignseg_tf "


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(_GREETING + json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, wait_seconds: float = 5.0) -> dict[str, Any] | None:
    """Return the one message of a connection; None if it has none of ours."""
    connection.settimeout(max(wait_seconds, 0.1))
    line = b""
    with contextlib.suppress(OSError):
        while not line.endswith(b"\n") and len(line) < 2**16:
            part = connection.recv(4096)
            if not part or not (line + part).startswith(_GREETING[: len(line + part)]):
                return None
            line += part
    if not line.endswith(b"\n"):
        return None
    return json.loads(line.removeprefix(_GREETING))


def _is_closed(connection: socket.socket, wait_seconds: float = 0.0) -> bool:
    connection.settimeout(wait_seconds)
    try:
        return connection.recv(1) == b""
    except (TimeoutError, BlockingIOError):
        return False
    except OSError:
        return True


def multi_worker_strategy() -> tf.distribute.Strategy:
    """Return the strategy over all workers, once they have met; before anything else of TensorFlow.

    Each worker brings all its GPUs, as many as the others, or its CPU as one device.
    """
    # TensorFlow takes SIGTERM for a notice to save soon, and nobody here would end.
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    signal.signal(signal.SIGTERM, handler)
    return strategy


@contextlib.contextmanager
def restart_when_a_worker_is_lost(worker: Worker, progress: Path) -> Iterator[None]:
    """Start this process again, with the command it was started with, if another worker is gone.

    TensorFlow cannot take a worker back into a running cluster. The new process waits for the
    lost worker (`meet`) and goes on with the run's last epoch.

    Args:
        worker: this process.
        progress: a file that changes when training has got on, `last.keras`. It is given up
            after `MAX_RESTARTS` restarts without that.

    Raises:
        RecipeError: given up.
    """
    try:
        yield
    except LOST_WORKER as error:
        if worker.count == 1:
            raise
        name = f"worker {worker.index}"
        stamp = str(progress.stat().st_mtime_ns) if progress.is_file() else "-"
        count, _, last_stamp = os.environ.get(RESTARTS, "0 -").partition(" ")
        restarts = int(count) + 1 if stamp == last_stamp else 1
        if restarts > MAX_RESTARTS:
            raise RecipeError(
                f"{name} lost another worker {restarts} times without finishing an epoch: "
                "see what the other workers say"
            ) from error
        print(
            f"{name}: another worker is gone ({type(error).__name__}). Start it again with its "
            f"command; {name} starts itself again, waits up to "
            f"{WAIT_SECONDS / 60:.0f} minutes for it, and goes on with {progress}.",
            file=sys.stderr,
        )
        time.sleep(RESTART_DELAY)
        os.environ[RESTARTS] = f"{restarts} {stamp}"
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3":
            del os.environ[
                "TF_CPP_MIN_LOG_LEVEL"
            ]  # `alignseg_tf.system.quiet` sets it, where it is not
        sys.stdout.flush()
        sys.stderr.flush()
        # Ports and devices must be free again, whatever the libraries asked for.
        for descriptor in Path("/proc/self/fd").glob("*"):
            if int(descriptor.name) > 2:
                with contextlib.suppress(OSError):
                    os.set_inheritable(int(descriptor.name), False)
        os.execv(sys.executable, sys.orig_argv)


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
        samples: the pictures of all workers.
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


def fit(
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
        # Nothing in it waits for other workers, so these may have more pictures or fewer.
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
