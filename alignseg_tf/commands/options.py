"""Options that several commands share."""

import argparse
from dataclasses import fields
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
        "--layout", choices=tuple(LAYOUTS), help="how its files lie (told from the files)"
    )
    parser.add_argument(
        "--label-space", metavar="NAME|FILE",
        help="what the labels mean: a name, as cityscapes, or a classes.json (told from the data)",
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


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how images go through the network."""
    group = parser.add_argument_group("how images go through the network (whole and once)")
    group.add_argument(
        "--tile", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="sliding windows of this size, in pixels",
    )  # fmt: skip
    group.add_argument(
        "--overlap", type=float, default=Protocol.overlap,
        help="share of a window that the next one covers again (%(default).2f)",
    )  # fmt: skip
    group.add_argument(
        "--blending", choices=BLENDINGS, default=Protocol.blending,
        help="weights where windows overlap (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--scales", type=float, nargs="+", default=list(Protocol.scales), metavar="SCALE",
        help="average over the image resized by these factors, as 0.75 1 1.25 (1)",
    )  # fmt: skip
    group.add_argument(
        "--height", type=int,
        help="resize images to this number of rows first, for a model that sees best at one size",
    )  # fmt: skip
    group.add_argument("--flip", action="store_true", help="average with the mirrored image too")
    group.add_argument(
        "--average", choices=AVERAGES, default=Protocol.average,
        help="what is averaged; the official code averages logits (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--batch-size", type=int, default=Protocol.batch_size,
        help="windows that go through at a time (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--largest-whole", type=int, default=Protocol.largest_whole, metavar="PIXELS",
        help="an image with more pixels goes through in windows of "
        f"{LARGE_IMAGE_TILE[0]} x {LARGE_IMAGE_TILE[1]} (%(default)s)",
    )  # fmt: skip


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
    values: dict[str, Any] = {}
    for option in fields(Protocol):
        value = getattr(arguments, option.name)
        values[option.name] = tuple(value) if isinstance(value, list) else value
    return Protocol(**values)
