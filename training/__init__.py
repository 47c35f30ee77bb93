"""The research side of AlignSeg: recipes, and the scripts that train, evaluate and demonstrate."""

import sys

# A command keeps TensorFlow quiet, before anything imports it.
if sys.argv[:1] == ["-m"]:
    import alignseg_tf  # noqa: F401
