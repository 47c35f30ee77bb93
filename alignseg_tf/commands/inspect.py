"""`alignseg inspect`: check a data set."""

import argparse
from pathlib import Path

from alignseg_tf.commands import options
from alignseg_tf.preparation.inspection import inspect_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    options.add_data_arguments(parser, positional=True)
    parser.add_argument(
        "--split", nargs="+", default=["train", "val"], help="parts to read (train val)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for a contact sheet and all numbers"
    )
    options.add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Report the content and the problems of a data set."""
    data = options.data_from_arguments(arguments)
    report = inspect_data(data, arguments.output, arguments.split, arguments.overwrite)
    print(f"{report.text()}\n")
    print(f"{arguments.output}: contact_sheet.png, inspection.json, images.csv")
    return 1 if report.problems else 0
