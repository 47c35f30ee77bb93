"""Settings of the whole process that make a CPU faster."""

import ctypes
import os

# Names of glibc's `mallopt`, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def prepare_processor() -> None:
    """Let memory that was freed be used again. Commands of this package call it as they start.

    glibc returns large blocks to the system as they are freed, and the next layer waits until the
    system has cleared new ones. Where the environment sets `MALLOC_...`, nothing changes.

    In your own program, also set `TF_ENABLE_ONEDNN_OPTS=1` in the environment before
    TensorFlow is imported: oneDNN is its default only on processors with AVX-512, and multiplies
    faster on others too.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
