"""The research side of AlignSeg: recipes, and the scripts that train, evaluate and demonstrate."""

import alignseg_tf  # noqa: F401 - before anything imports TensorFlow, which it keeps quiet
