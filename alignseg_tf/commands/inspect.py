"""`alignseg inspect`: check a data set."""

import argparse
from pathlib import Path

from alignseg_tf.commands.options import (
    add_data_arguments,
    add_overwrite_argument,
    data_from_arguments,
)
from alignseg_tf.preparation.inspection import inspect_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    add_data_arguments(parser, positional=True)
    parser.add_argument(
        "--split", nargs="+", default=["train", "val"], help="parts to read (train val)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for a contact sheet and all numbers"
    )
    add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Say what a data set holds and what is wrong with it."""
    data = data_from_arguments(arguments)
    report = inspect_data(data, arguments.output, arguments.split, arguments.overwrite)
    print(f"{report.text()}\n")
    print(f"{arguments.output}: contact_sheet.png, inspection.json, images.csv")
    return 1 if report.problems else 0
