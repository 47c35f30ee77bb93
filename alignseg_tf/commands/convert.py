"""`alignseg convert`: turn official PyTorch weights into a .keras file."""

import argparse
from pathlib import Path

from alignseg_tf import official_weights
from alignseg_tf.commands.options import add_overwrite_argument
from alignseg_tf.layers import SAMPLING_CONVENTIONS
from alignseg_tf.system.files import atomic_path, check_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`."""
    parser.add_argument("checkpoint", type=Path, help=".pth (needs PyTorch) or .npz")
    parser.add_argument("output", type=Path, help="the .keras file to write")
    parser.add_argument(
        "--sampling", choices=SAMPLING_CONVENTIONS, default="released",
        help="convention that the weights were trained under (%(default)s: the published ones)",
    )  # fmt: skip
    add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Turn official PyTorch weights into a .keras file."""
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
