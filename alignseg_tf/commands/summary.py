"""`alignseg summary`: print the blocks of a model."""

import argparse
import json
from pathlib import Path

from alignseg_tf.analysis.summary import summarize
from alignseg_tf.commands.options import add_overwrite_argument
from alignseg_tf.prediction.saved_networks import label_space_of, load_model
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.files import check_file, has_keys, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `summary`."""
    parser.add_argument("model", type=model_path, help="a .keras file")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"),
        help="size of the image in pixels (512 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=int, default=5, help="timed runs of each block, 0 for none (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the blocks of a model: shapes, parameters, multiply-adds, time."""
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
