"""`alignseg summary`: print the blocks of a model."""

import argparse
import json
from pathlib import Path

from alignseg_tf.system.files import check_file, has_keys, write_text


def summary(arguments: argparse.Namespace) -> int:
    """Print the blocks of a model: shapes, parameters, multiply-adds, time."""
    from alignseg_tf.analysis.summary import summarize
    from alignseg_tf.prediction.saved_networks import label_space_of, load_model

    if arguments.json is not None:
        check_file(arguments.json, "summary", _is_summary, arguments.overwrite)
    model = load_model(arguments.model)
    blocks = summarize(model, tuple(arguments.size), arguments.runs)
    print(blocks.table())
    print(f"classes: {', '.join(label_space_of(model).classes)}")
    print(f"normalization: {model.normalization}\nsampling: {model.sampling}")
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(blocks.to_dict(), indent=1))
    return 0


def _is_summary(path: Path) -> bool:
    return has_keys(path, "blocks", "inference", "tensorflow")
