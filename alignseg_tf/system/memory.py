"""The memory of this process."""

import resource
import sys


def peak_resident_bytes() -> int:
    """Return the largest memory that this process has had."""
    # The unit is KiB on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
