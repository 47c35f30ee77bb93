"""Options that several commands share."""

import argparse
from typing import Any

from alignseg_tf.data.datasets.catalog import LAYOUTS
from alignseg_tf.data.datasets.tfds import TfdsOptions
from alignseg_tf.data.sources import DataSource, open_data
from alignseg_tf.prediction.protocol import AVERAGES, BLENDINGS, LARGE_IMAGE_TILE, Protocol


def add_data_arguments(
    parser: argparse.ArgumentParser, positional: bool = False, required: bool = True
) -> None:
    """Add `--data`, or `data` where it is positional, and the options that describe the data."""
    help = "a folder, a CSV list, tfds:NAME or street_scenes; docs/datasets has all forms"
    if positional:
        parser.add_argument("data", help=help)
    else:
        parser.add_argument("--data", required=required, help=help)
    parser.add_argument(
        "--layout", choices=tuple(LAYOUTS), help="layout of its files (told from the files)"
    )
    parser.add_argument(
        "--label-space", metavar="NAME|FILE",
        help="meaning of the labels: a name, as cityscapes, or a classes.json (told from the data)",
    )  # fmt: skip
    tfds = parser.add_argument_group("for --data tfds:NAME[/CONFIG][:VERSION]")
    tfds.add_argument("--image-key", help="feature with the images (told from the features)")
    tfds.add_argument("--label-key", help="feature with the labels (told from the features)")
    tfds.add_argument(
        "--train-split", help="TFDS split of the training images, as train[:80%%] (train)"
    )
    tfds.add_argument(
        "--val-split", help="of the validation images (the first of validation, val, test)"
    )


def data_from_arguments(arguments: argparse.Namespace) -> DataSource:
    """Open the data set of a command line.

    Raises:
        DataError: as `open_data`.
    """
    options = TfdsOptions(
        arguments.image_key, arguments.label_key, arguments.train_split, arguments.val_split
    )
    return open_data(arguments.data, arguments.layout, arguments.label_space, options)


# Help and argparse's options for the attributes of `Protocol`.
PROTOCOL_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "tile": (
        "sliding windows of this size, in pixels",
        {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")},
    ),
    "overlap": (
        "share of a window that the next one covers again (%(default).2f)", {"type": float}
    ),
    "blending": ("weights where windows overlap (%(default)s)", {"choices": BLENDINGS}),
    "scales": (
        "average over the image resized by these factors, as 0.75 1 1.25 (1)",
        {"type": float, "nargs": "+", "metavar": "SCALE"},
    ),
    "height": (
        "resize images to this height first, for a model that works best at one size", {"type": int}
    ),
    "flip": ("average with the mirrored image too", {"action": "store_true"}),
    "average": (
        "average these; the official code averages logits (%(default)s)", {"choices": AVERAGES}
    ),
    "batch_size": ("windows that go through at a time (%(default)s)", {"type": int}),
    "largest_whole": (
        "an image with more pixels goes through in windows of "
        f"{LARGE_IMAGE_TILE[0]} x {LARGE_IMAGE_TILE[1]} (%(default)s)",
        {"type": int, "metavar": "PIXELS"},
    ),
}  # fmt: skip


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Protocol`."""
    group = parser.add_argument_group("passes of an image through the network (whole and once)")
    for name, (help, options) in PROTOCOL_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, default=getattr(Protocol, name), help=help, **options)


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite`."""
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace files that are there, also those that this command did not write",
    )  # fmt: skip


def add_block_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--block`, for confidence intervals over images that are not independent."""
    parser.add_argument(
        "--block", type=int, default=1,
        help="number of neighbouring images that confidence intervals draw together: frames of a "
        "video are alike, and drawn one by one they make intervals too narrow (%(default)s)",
    )  # fmt: skip


def protocol_from_arguments(arguments: argparse.Namespace) -> Protocol:
    """Return the protocol of a command line.

    Raises:
        ValueError: as `Protocol`.
    """
    values = {name: getattr(arguments, name) for name in PROTOCOL_OPTIONS}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Protocol(**values | lists)
