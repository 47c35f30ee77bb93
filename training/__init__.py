"""The research side of AlignSeg: recipes, and the scripts that train, evaluate and demonstrate."""

import sys

# A command keeps TensorFlow quiet, before anything imports it. What benchmarks time in processes
# of their own may have nothing to do with TensorFlow.
if sys.argv[:1] == ["-m"]:
    import alignseg_tf  # noqa: F401
