"""`alignseg compare`: compare two models on the same images."""

import argparse

from alignseg_tf.commands.options import data_from_arguments, protocol_from_arguments
from alignseg_tf.evaluation.comparison import (
    COMPARISON,
    COMPARISON_FILES,
    Comparison,
    write_comparison,
)
from alignseg_tf.evaluation.evaluator import check_classes, evaluate_model
from alignseg_tf.evaluation.page import check_record
from alignseg_tf.evaluation.provenance import warn_if_trained_on
from alignseg_tf.prediction.predictor import predictors_on_all_gpus
from alignseg_tf.system.files import check_replaceable, remove_leftovers


def compare(arguments: argparse.Namespace) -> int:
    """Evaluate two models on the same images and say what differs."""
    pass

    print(compare_from_arguments(arguments))
    return 0


def compare_from_arguments(arguments: argparse.Namespace) -> str:
    """Evaluate two models as the command line says; an interrupted comparison goes on.

    Returns:
        The table, and where the page is.

    Raises:
        ValueError: a model or the data cannot be read, or their classes differ.
    """
    protocol = protocol_from_arguments(arguments)
    data = data_from_arguments(arguments)
    samples = data.samples(arguments.split)
    models = (arguments.first, arguments.second)
    output, overwrite = arguments.output, arguments.overwrite
    remove_leftovers(output)
    check_replaceable(output, COMPARISON, COMPARISON_FILES, overwrite)
    records = [output / f"{name}.jsonl" for name in "ab"]
    for record in records:
        check_record(record, overwrite)
    for model in models:
        warn_if_trained_on(model, data, arguments.split)
    predictors = [predictors_on_all_gpus(model, protocol) for model in models]
    for copies, model in zip(predictors, models, strict=True):
        check_classes(copies[0], data.label_space, model)
    reports = [
        evaluate_model(
            model, copies, samples, data.label_space, record,
            arguments.block,
        )
        for record, model, copies in zip(records, models, predictors, strict=True)
    ]  # fmt: skip
    comparison = Comparison(reports[0], reports[1], (str(models[0]), str(models[1])))
    class_maps = (predictors[0][0].class_map, predictors[1][0].class_map)
    *_, page = write_comparison(
        comparison, output, data.label_space, samples, class_maps, overwrite
    )
    return f"{comparison.table()}\n\nWith images: {page}"
