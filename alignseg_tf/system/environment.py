"""The environment of a measurement: versions, processor, GPUs."""

import importlib
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

PACKAGES = ("alignseg_tf", "tensorflow", "keras", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # used from a clone, not installed
            found[name] = str(importlib.import_module(name).__version__)
    return found


def machine() -> dict[str, Any]:
    """Return the processor, the number of its cores that this process may use, and the GPUs.

    `cpu` is its name, which generations may share. `cpu_model` is its family, model and stepping,
    or None where the system does not say.
    """
    info: dict[str, str] = {}
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            info.setdefault(name.strip(), value.strip())  # of the first core
    numbers = [info.get(name) for name in ("cpu family", "model", "stepping")]
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "system": platform.platform(),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_model": None if None in numbers else ".".join(map(str, numbers)),
        "cores": cores(),
        "gpus": gpus,
    }


def peak_resident_bytes() -> int:
    """Return the largest memory that this process has had."""
    # The unit is KiB on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
