"""TensorFlow, LiteRT and Ray without their greetings."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Read before this module sets it: who asks for TensorFlow's log gets all of it.
LOG_WANTED = "TF_CPP_MIN_LOG_LEVEL" in os.environ


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2, also by libraries that are not Python.

    Nothing is dropped when the user has set `TF_CPP_MIN_LOG_LEVEL`.
    """
    if LOG_WANTED:
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


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
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with silent_stderr():
        import tensorflow  # noqa: F401
