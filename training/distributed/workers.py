"""Workers of a run on several machines: who they are, how they meet, how they restart.

The environment variable `TF_CONFIG` names them; docs/distribution.md explains it.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from training.recipe import RecipeError

# Seconds that workers wait for each other, at the start and after a worker was lost.
WAIT_SECONDS = 3600.0
# Restarts of a process without a finished epoch in between; seconds before each.
MAX_RESTARTS = 5
RESTART_DELAY = 5.0
# Environment variable: the number of restarts, and the state of `last.keras` at the last one.
RESTARTS = "ALIGNSEG_RESTARTS"
# Every message of workers to each other starts with it.
_GREETING = b"alignseg_tf "

# TensorFlow's errors when another worker's connection breaks, its heartbeat stops for 10 seconds,
# or it was restarted.
LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


@dataclass(frozen=True)
class Worker:
    """The place of this process among the workers of a run."""

    index: int = 0
    addresses: tuple[str, ...] = ("",)

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Return whether this worker writes the run folder and prints progress."""
        return self.index == 0


def this_worker() -> Worker:
    """Return this process as `TF_CONFIG` describes it, or the only worker without it."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Worker()
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        tasks = [
            (kind, i) for kind in ("chief", "worker") for i in range(len(cluster.get(kind, ())))
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
    """Wait for all workers and check that they are about to do the same.

    TensorFlow would wait for an hour, deaf to Ctrl-C, and workers that differ would hang or train
    nonsense. The workers meet at the chief's address before TensorFlow listens there. `facts` are
    names and JSON values that must be equal everywhere.

    Raises:
        RecipeError: a worker did not come, or workers differ; all of them raise it.
    """
    facts = {"the cluster in TF_CONFIG": ", ".join(worker.addresses), **facts}
    deadline = time.monotonic() + wait_seconds
    print(f"worker {worker.index} of {worker.count}: waiting for the others ...", flush=True)
    act = _receive_workers if worker.is_chief else _report_to_chief
    if problem := act(worker, facts, deadline):
        raise RecipeError(problem)


def _listen(address: str) -> socket.socket:
    host, port = _host_and_port(address)
    try:
        return socket.create_server((host, port))
    except OSError:
        # The name may belong to a gateway. TensorFlow listens on all interfaces too.
        return socket.create_server(("", port))


def _receive_workers(worker: Worker, facts: Mapping[str, Any], deadline: float) -> str:
    """Wait for all workers, check that they agree, and reply to each with the problem, if any."""
    problem = ""
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(worker.addresses[0]))
        server.settimeout(0.5)
        while not problem and (missing := set(range(1, worker.count)) - present.keys()):
            if time.monotonic() > deadline:
                names = ", ".join(f"{i} ({worker.addresses[i]})" for i in sorted(missing))
                problem = f"these workers did not come: {names}"
                break
            with contextlib.suppress(TimeoutError):
                connection = stack.enter_context(server.accept()[0])
                hello = _receive(connection, 5.0)
                if hello is None:
                    continue  # a stranger
                index = hello["worker"]
                if index in present and not _is_closed(present[index]):
                    _send(connection, {"problem": f"worker {index} is here already"})
                    continue
                present[index] = connection
                problem = _difference(index, hello["facts"], facts)
            present = {i: other for i, other in present.items() if not _is_closed(other)}
        for connection in present.values():
            _send(connection, {"problem": problem})
        for connection in present.values():
            _is_closed(connection, 5.0)  # if they close first, the port is free at once
    return problem


def _report_to_chief(worker: Worker, facts: Mapping[str, Any], deadline: float) -> str:
    """Report to the chief until it replies; return the problem, if any."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            with socket.create_connection(_host_and_port(worker.addresses[0]), 5.0) as connection:
                _send(connection, {"worker": worker.index, "facts": dict(facts)})
                answer = _receive(connection, deadline - time.monotonic())
            # Without a reply the chief has gone, or TensorFlow's server of a broken run answers.
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


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(_GREETING + json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, wait_seconds: float) -> dict[str, Any] | None:
    """Return the message of a connection, or None from a stranger."""
    connection.settimeout(max(wait_seconds, 0.1))
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as file:
        if file.read(len(_GREETING)) == _GREETING:
            return json.loads(file.readline())
    return None


def _is_closed(connection: socket.socket, wait_seconds: float = 0.0) -> bool:
    connection.settimeout(wait_seconds)
    try:
        return connection.recv(1) == b""
    except (TimeoutError, BlockingIOError):
        return False
    except OSError:
        return True


@contextlib.contextmanager
def restart_when_a_worker_is_lost(worker: Worker, progress: Path) -> Iterator[None]:
    """Restart this process with its own command if another worker is lost.

    TensorFlow cannot take a worker back into a running cluster. The new process waits for the lost
    worker in `meet` and resumes. Each finished epoch changes the file `progress`, `last.keras`.

    Raises:
        RecipeError: after `MAX_RESTARTS` restarts without a finished epoch.
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
            f"command; {name} restarts itself, waits up to {WAIT_SECONDS / 60:.0f} minutes for it, "
            f"and resumes from {progress}.",
            file=sys.stderr,
        )
        time.sleep(RESTART_DELAY)
        os.environ[RESTARTS] = f"{restarts} {stamp}"
        _restart()


def _restart() -> None:
    """Replace this process by a new one with the same command."""
    # `alignseg_tf.system.quiet` sets it again, where the user has not.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3":
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    sys.stdout.flush()
    sys.stderr.flush()
    # Release ports and devices, whatever the libraries asked for.
    for descriptor in Path("/proc/self/fd").glob("*"):
        if int(descriptor.name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(descriptor.name), False)
    os.execv(sys.executable, sys.orig_argv)
