"""`alignseg compare`: compare two models on the same images."""

import argparse
from pathlib import Path

from alignseg_tf.commands import options
from alignseg_tf.evaluation import comparison
from alignseg_tf.evaluation.evaluator import check_classes, evaluate_model
from alignseg_tf.evaluation.page import check_record
from alignseg_tf.evaluation.provenance import warn_if_trained_on
from alignseg_tf.prediction.predictor import predictors_on_all_gpus
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.files import check_replaceable, remove_leftovers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    parser.add_argument("first", type=model_path, metavar="A", help="a model, as for predict")
    parser.add_argument("second", type=model_path, metavar="B", help="another one")
    options.add_data_arguments(parser)
    parser.add_argument("--split", default="val", help="part of the data (%(default)s)")
    options.add_block_argument(parser)
    parser.add_argument(
        "--output", type=Path, required=True,
        help="folder for the comparison: a page with images, JSON, CSV",
    )  # fmt: skip
    options.add_overwrite_argument(parser)
    options.add_protocol_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare two models on the same images; resume an interrupted comparison."""
    protocol = options.protocol_from_arguments(arguments)
    data = options.data_from_arguments(arguments)
    space, samples = data.label_space, data.samples(arguments.split)
    models = (arguments.first, arguments.second)
    output, overwrite = arguments.output, arguments.overwrite
    remove_leftovers(output)
    check_replaceable(output, comparison.COMPARISON, comparison.COMPARISON_FILES, overwrite)
    records = [output / f"{name}.jsonl" for name in "ab"]
    for record in records:
        check_record(record, overwrite)
    for model in models:
        warn_if_trained_on(model, data, arguments.split)
    predictors = [predictors_on_all_gpus(model, protocol) for model in models]
    for copies, model in zip(predictors, models, strict=True):
        check_classes(copies[0], space, model)
    first, second = (
        evaluate_model(model, copies, samples, space, record, arguments.block)
        for record, model, copies in zip(records, models, predictors, strict=True)
    )
    compared = comparison.Comparison(first, second, (str(models[0]), str(models[1])))
    class_maps = (predictors[0][0].class_map, predictors[1][0].class_map)
    *_, page = comparison.write_comparison(compared, output, space, samples, class_maps, overwrite)
    print(f"{compared.table()}\n\nWith images: {page}")
    return 0
