"""Native libraries without their greetings."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Read before this module sets it: who asks for TensorFlow's log gets all of it.
LOG_WANTED = "TF_CPP_MIN_LOG_LEVEL" in os.environ


@contextmanager
def silent_native_code() -> Iterator[None]:
    """Silence what native code writes to file descriptor 2 meanwhile, but not `sys.stderr`.

    Nothing is silenced when the user has set `TF_CPP_MIN_LOG_LEVEL`.
    """
    if LOG_WANTED:
        yield
        return
    sys.stderr.flush()
    descriptor, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    python_stderr = sys.stderr
    with os.fdopen(descriptor, "w", buffering=1, encoding="utf-8") as kept:
        if python_stderr is sys.__stderr__:
            sys.stderr = kept
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(descriptor, 2)
            os.close(nowhere)
            sys.stderr = python_stderr


def import_tensorflow_quietly() -> None:
    """Import TensorFlow, if it is Keras' backend, with the native log silenced meanwhile.

    TensorFlow writes about missing GPUs and instruction sets to file descriptor 2 before any of
    its settings apply.
    """
    if LOG_WANTED or "tensorflow" in sys.modules:
        return
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return
    if importlib.util.find_spec("tensorflow") is None:
        return
    with silent_native_code():
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow  # noqa: F401
