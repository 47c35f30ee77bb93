"""`alignseg convert`: convert official PyTorch weights."""

import argparse

from alignseg_tf import official_weights
from alignseg_tf.system.files import atomic_path, check_file


def convert(arguments: argparse.Namespace) -> int:
    """Turn official PyTorch weights into a `.keras` file."""
    if arguments.output.suffix != ".keras":
        raise ValueError(f"the output must end in .keras. Received: {arguments.output}")
    check_file(arguments.output, "convert", official_weights.is_converted, arguments.overwrite)
    tensors = official_weights.read_state_dict(arguments.checkpoint)
    model = official_weights.model_from_official(tensors, arguments.sampling)
    with atomic_path(arguments.output) as temporary:
        model.save(temporary)
        official_weights.mark_as_converted(temporary)
    print(
        f"{arguments.output}: {len(tensors)} tensors, {model.num_classes} classes, "
        f"sampling {model.sampling!r}, {model.count_params() / 1e6:.2f} M parameters"
    )
    return 0
