"""Evaluate a model: per-class IoU, mean IoU, pixel accuracy, as a table and as JSON.

python -m training.evaluate MODEL --data FOLDER --json report.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.readers import Sample
from alignseg_tf.data.sources import add_data_arguments, data_from_arguments
from alignseg_tf.evaluation import Report, evaluate
from alignseg_tf.files import write_text
from alignseg_tf.prediction import Predictor
from alignseg_tf.progress import counter


def evaluate_and_write(
    model: Path, samples: Sequence[Sample], label_space: LabelSpace, json_file: Path | None
) -> Report:
    """Evaluate a saved model and write the report as JSON.

    Raises:
        ValueError: the model cannot be read, or has other classes than the data.
    """
    predictor = Predictor(model)
    if predictor.label_space.classes != label_space.classes:
        raise ValueError(
            f"{model} and the data must have the same classes. Received: "
            f"{', '.join(predictor.label_space.classes)} in the model and "
            f"{', '.join(label_space.classes)} in the data"
        )

    report = evaluate(predictor.class_map, samples, label_space, counter("evaluating"))
    if json_file is not None:
        write_text(json_file, json.dumps(report.to_dict(), indent=1))
    return report


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", type=Path, help="a .keras file or the folder of a SavedModel")
    add_data_arguments(parser)
    parser.add_argument("--split", default="val", help="which part of the data (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the report to")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    try:
        data = data_from_arguments(parsed)
        samples = data.samples(parsed.split)
        report = evaluate_and_write(parsed.model, samples, data.label_space, parsed.json)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
