"""The command line: `python -m alignseg_tf COMMAND`, or the script `alignseg`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from alignseg_tf.commands.alignment import alignment
from alignseg_tf.commands.compare import compare
from alignseg_tf.commands.convert import convert
from alignseg_tf.commands.export import add_export_arguments, export
from alignseg_tf.commands.import_annotations import add_import_arguments, import_annotations
from alignseg_tf.commands.inspect import inspect
from alignseg_tf.commands.options import (
    add_block_argument,
    add_data_arguments,
    add_protocol_arguments,
)
from alignseg_tf.commands.predict import add_predict_arguments, predict_from_arguments
from alignseg_tf.commands.predict_distributed import (
    add_distributed_arguments,
    distributed_from_arguments,
)
from alignseg_tf.commands.serve import add_serve_arguments, serve
from alignseg_tf.commands.summary import summary
from alignseg_tf.layers import SAMPLING_CONVENTIONS
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.console import command_output
from alignseg_tf.system.files import (
    add_overwrite_argument,
)
from alignseg_tf.system.processor import prepare_processor
from alignseg_tf.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="alignseg" if Path(sys.argv[0]).name == "alignseg" else "python -m alignseg_tf",
        description="AlignSeg: semantic segmentation with Keras.",
    )
    parser.add_argument("--version", action="version", version=f"alignseg_tf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    command = add("predict", predict_from_arguments, "segment images, videos or a camera")
    add_predict_arguments(command)

    command = add(
        "predict-distributed", distributed_from_arguments, "segment millions of images with Ray"
    )
    add_distributed_arguments(command)

    command = add("compare", compare, "two models on the same images: what differs")
    command.add_argument("first", type=model_path, metavar="A", help="a model, as for predict")
    command.add_argument("second", type=model_path, metavar="B", help="another one")
    add_data_arguments(command)
    command.add_argument("--split", default="val", help="which part of the data (%(default)s)")
    add_block_argument(command)
    command.add_argument(
        "--output", type=Path, required=True,
        help="folder for the comparison: a page with images, JSON, CSV",
    )  # fmt: skip
    add_overwrite_argument(command)
    add_protocol_arguments(command)

    command = add("alignment", alignment, "draw what the alignment layers of a model do")
    command.add_argument("model", type=model_path, help="a .keras file")
    command.add_argument("images", nargs="+", help="images, folders, or patterns in quotes")
    command.add_argument("--output", type=Path, required=True, help="folder for the figures")
    add_overwrite_argument(command)

    command = add("export", export, "write a SavedModel, TFLite or ONNX, and compare it")
    add_export_arguments(command)

    command = add("convert", convert, "turn official PyTorch weights into a .keras file")
    command.add_argument("checkpoint", type=Path, help=".pth (needs PyTorch) or .npz")
    command.add_argument("output", type=Path, help="the .keras file to write")
    command.add_argument(
        "--sampling", choices=SAMPLING_CONVENTIONS, default="released",
        help="convention that the weights were trained under (%(default)s: the published ones)",
    )  # fmt: skip
    add_overwrite_argument(command)

    command = add("summary", summary, "print the blocks of a model: shapes, sizes, work, time")
    command.add_argument("model", type=model_path, help="a .keras file")
    command.add_argument(
        "--size", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (512 1024)",
    )  # fmt: skip
    command.add_argument(
        "--runs", type=int, default=5, help="timed runs of each block, 0 for none (%(default)s)"
    )
    command.add_argument("--json", type=Path, help="file to write the numbers to")
    add_overwrite_argument(command)

    command = add("inspect", inspect, "say what a data set holds and what is wrong with it")
    add_data_arguments(command, positional=True)
    command.add_argument(
        "--split", nargs="+", default=["train", "val"], help="which parts (train val)"
    )
    command.add_argument(
        "--output", type=Path, required=True, help="folder for a contact sheet and all numbers"
    )
    add_overwrite_argument(command)

    command = add("import", import_annotations, "write the annotations of another tool as a folder")
    add_import_arguments(command)

    command = add("serve", serve, "serve a SavedModel over HTTP")
    add_serve_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 if files were skipped, 2 for bad input."""
    parsed = build_parser().parse_args(arguments)
    prepare_processor()
    # The server's log has colours of its own.
    with nullcontext() if parsed.run is serve else command_output():
        try:
            return parsed.run(parsed)
        except (ValueError, ImportError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
