"""`alignseg inspect`: check a data set."""

import argparse


def inspect(arguments: argparse.Namespace) -> int:
    """Say what a data set holds and what is wrong with it."""
    from alignseg_tf.commands.options import data_from_arguments
    from alignseg_tf.preparation.inspection import inspect_data

    data = data_from_arguments(arguments)
    report = inspect_data(data, arguments.output, arguments.split, arguments.overwrite)
    print(f"{report.text()}\n")
    print(f"{arguments.output}: contact_sheet.png, inspection.json, images.csv")
    return 1 if report.problems else 0
