"""The command line: `python -m alignseg_tf COMMAND`, or the script `alignseg`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from alignseg_tf.commands import (
    alignment,
    compare,
    convert,
    export,
    import_annotations,
    inspect,
    predict,
    predict_distributed,
    serve,
    summary,
)
from alignseg_tf.system.console import command_output
from alignseg_tf.system.processor import prepare_processor
from alignseg_tf.version import __version__

# The module and the help of each command.
COMMANDS = {
    "predict": (predict, "segment images, videos or a camera"),
    "predict-distributed": (predict_distributed, "segment millions of images with Ray"),
    "compare": (compare, "compare two models on the same images"),
    "alignment": (alignment, "draw what the alignment layers of a model do"),
    "export": (export, "write a SavedModel, TFLite or ONNX, and compare it with the model"),
    "convert": (convert, "turn official PyTorch weights into a .keras file"),
    "summary": (summary, "print the blocks of a model: shapes, sizes, work, time"),
    "inspect": (inspect, "say what a data set holds and what is wrong with it"),
    "import": (import_annotations, "write the annotations of another tool as a folder"),
    "serve": (serve, "serve a SavedModel over HTTP"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="alignseg" if Path(sys.argv[0]).name == "alignseg" else "python -m alignseg_tf",
        description="AlignSeg: semantic segmentation with Keras.",
    )
    parser.add_argument("--version", action="version", version=f"alignseg_tf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 if files were skipped, 2 for bad input."""
    parsed = build_parser().parse_args(arguments)
    prepare_processor()
    # The server's log has its own colours.
    with nullcontext() if parsed.run is serve.run else command_output():
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
