"""TensorFlow, LiteRT and Ray without their greetings."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# The user asks for TensorFlow's log.
LOG_WANTED = "TF_CPP_MIN_LOG_LEVEL" in os.environ
# What TensorFlow reads once, as it is imported: no greetings, and oneDNN's kernels, which are its
# default only on processors with AVX-512 and are faster on others too.
SETTINGS = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
# The commands of this project, as the interpreter was started: `-m PACKAGE`, or a script.
PACKAGES, SCRIPTS = ("alignseg_tf", "training"), ("alignseg",)


@contextmanager
def silent_stderr() -> Iterator[TextIO]:
    """Drop what is written to file descriptor 2, also by libraries; yield a stream to the old one.

    Nothing is dropped when the user has set `TF_CPP_MIN_LOG_LEVEL`.
    """
    if LOG_WANTED:
        yield sys.stderr
        return
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as stderr, Path(os.devnull).open("w") as nowhere:
        try:
            os.dup2(nowhere.fileno(), 2)
            yield stderr
        finally:
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)


def is_own_command() -> bool:
    """Return whether this process was started as a command of this project."""
    arguments = sys.orig_argv[1:]
    if "-m" in arguments[:-1]:
        return arguments[arguments.index("-m") + 1].split(".")[0] in PACKAGES
    return Path(sys.argv[0]).name in SCRIPTS


def import_tensorflow_quietly() -> None:
    """Import TensorFlow, if it is Keras' backend, without its greetings and with oneDNN.

    TensorFlow writes about missing GPUs and instruction sets to file descriptor 2 before any of
    its settings apply. The environment does not change, and its own settings win.
    """
    if "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow") is None:
        return
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return
    added = [name for name in SETTINGS if name not in os.environ]
    os.environ.update((name, SETTINGS[name]) for name in added)
    try:
        with silent_stderr():
            import tensorflow  # noqa: F401
    finally:
        for name in added:
            os.environ.pop(name, None)
