"""What makes a CPU faster and is for the whole process to decide."""

import ctypes
import os

# Names of glibc's `mallopt`, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def prepare_processor() -> None:
    """Let TensorFlow use oneDNN's kernels, and let memory that was freed be used again.

    Both are for programs, not for libraries, and `python -m` has them for every command of this
    package. What the environment says stays as it is.

    oneDNN is TensorFlow's default on processors with AVX-512 only. On others too it multiplies
    faster where weights are constants, as in exported SavedModels. TensorFlow
    reads that as it is imported, which importing this package does: in a program of your own, set
    `TF_ENABLE_ONEDNN_OPTS=1` in the environment.

    glibc gives large blocks back to the system as they are freed, and the next layer waits until
    the system has cleared new ones.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
