"""Evaluate a model: IoU, boundaries, calibration, as a table, JSON, CSV and a page with images.

python -m training.evaluate MODEL --data FOLDER --output runs/evaluation
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from alignseg_tf.commands import options
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.evaluation import page
from alignseg_tf.evaluation.evaluator import evaluate_model
from alignseg_tf.evaluation.provenance import warn_if_trained_on
from alignseg_tf.evaluation.report import Report
from alignseg_tf.prediction.predictor import predictors_on_all_gpus
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.console import command_output
from alignseg_tf.system.files import check_file, check_replaceable, write_text
from alignseg_tf.system.processor import prepare_processor

# In the folder of an evaluation: an interrupted one resumes from it.
RECORD_FILE = "images.jsonl"


def evaluate_and_write(
    model: Path,
    samples: Sequence[Sample],
    label_space: LabelSpace,
    json_file: Path | None,
    protocol: Protocol | None = None,
    output: Path | None = None,
    block: int = 1,
    overwrite: bool = False,
) -> Report:
    """Evaluate a saved model; write the numbers, and into `output` the page, JSON and CSV.

    The record in `output` lets an interrupted evaluation resume. Images go through the model whole
    by default. `block` is the number of neighbouring images that intervals draw together.

    Raises:
        ValueError: the model cannot be read, or has other classes than the data, or a file would
            be replaced that no evaluation wrote.
    """
    record = None
    if json_file is not None:
        check_file(json_file, "evaluate", page.is_evaluation, overwrite)
    if output is not None:
        record = output / RECORD_FILE
        page.check_record(record, overwrite)
        check_replaceable(output, page.EVALUATION, page.REPORT_FILES, overwrite)
    predictors = predictors_on_all_gpus(model, protocol)
    report = evaluate_model(model, predictors, samples, label_space, record, block)
    if json_file is not None:
        write_text(json_file, json.dumps(report.to_dict(), indent=1))
    if output is not None:
        page.write_report(
            report, output, label_space, samples, predictors[0].class_map, str(model), overwrite
        )
    return report


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "model", type=model_path,
        help="a .keras, .tflite or .onnx file, a SavedModel's folder, or a trained model's name",
    )  # fmt: skip
    options.add_data_arguments(parser)
    parser.add_argument("--split", default="val", help="which part of the data (%(default)s)")
    options.add_block_argument(parser)
    parser.add_argument(
        "--output", type=Path,
        help="folder for the report: a page with images, JSON, CSV; an interrupted evaluation "
        "resumes from it",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options.add_overwrite_argument(parser)
    options.add_protocol_arguments(parser)
    return parser


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    prepare_processor()
    try:
        protocol = options.protocol_from_arguments(parsed)
        data = options.data_from_arguments(parsed)
        samples = data.samples(parsed.split)
        warn_if_trained_on(parsed.model, data, parsed.split)
        report = evaluate_and_write(
            parsed.model, samples, data.label_space, parsed.json, protocol, parsed.output,
            parsed.block, parsed.overwrite,
        )  # fmt: skip
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; with --output the same command resumes", file=sys.stderr)
        return 130
    print(report.table())
    if parsed.output is not None:
        print(f"\nWith images: {parsed.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
