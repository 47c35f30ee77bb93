"""The command line: `python -m alignseg_tf COMMAND`, or the script `alignseg`."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from alignseg_tf import official_weights
from alignseg_tf.commands.export import add_export_arguments
from alignseg_tf.data.readers import find_named_pictures, load_image
from alignseg_tf.data.sources import add_data_arguments
from alignseg_tf.layers import SAMPLING_CONVENTIONS
from alignseg_tf.prediction.batch import add_predict_arguments, predict_from_arguments, result_names
from alignseg_tf.prediction.distributed import add_distributed_arguments, distributed_from_arguments
from alignseg_tf.prediction.protocol import add_block_argument, add_protocol_arguments
from alignseg_tf.preparation.importing import add_import_arguments
from alignseg_tf.pretrained import model_path
from alignseg_tf.serving.settings import add_serve_arguments
from alignseg_tf.system.files import (
    DiskFullError,
    add_overwrite_argument,
    atomic_path,
    check_file,
    has_keys,
    remove_leftovers,
    write_text,
)
from alignseg_tf.system.printable import printable, printable_output
from alignseg_tf.system.processor import prepare_processor
from alignseg_tf.version import __version__


def compare(arguments: argparse.Namespace) -> int:
    """Evaluate two models on the same pictures and say what differs."""
    from alignseg_tf.evaluation.comparison import compare_from_arguments

    print(compare_from_arguments(arguments))
    return 0


def alignment(arguments: argparse.Namespace) -> int:
    """Draw what the alignment layers of a model do in pictures."""
    from alignseg_tf.analysis.alignment_figures import write_alignment_figures
    from alignseg_tf.prediction.saved_networks import load_model

    found = find_named_pictures(arguments.pictures, leave_out=arguments.output.resolve())
    pictures = result_names(found)
    remove_leftovers(arguments.output, below=True)
    model = load_model(arguments.model)
    failed = 0
    for number, (path, name) in enumerate(pictures, start=1):
        try:
            folder = arguments.output / name.parent
            written = write_alignment_figures(
                model, load_image(path), folder, name.name, arguments.overwrite
            )
        except DiskFullError:
            raise
        except (ValueError, OSError) as error:  # a name that is too long, for instance
            failed += 1
            reason = printable(str(error).removeprefix(f"{path}: "))
            print(
                f"skipped: {printable(path)}: {reason} (model: {arguments.model})", file=sys.stderr
            )
            continue
        shown = ", ".join(map(printable, written))
        print(f"[{number}/{len(pictures)}] {printable(path)} -> {shown}")
    return 1 if failed else 0


def export(arguments: argparse.Namespace) -> int:
    """Write a model in other forms and say how well they agree with it."""
    from alignseg_tf.commands.export import export_from_arguments

    print(export_from_arguments(arguments))
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Turn official PyTorch weights into a `.keras` file."""
    if arguments.output.suffix != ".keras":
        raise ValueError(f"the output must end in .keras. Received: {arguments.output}")
    check_file(arguments.output, "convert", official_weights.is_converted, arguments.overwrite)
    tensors = official_weights.read_state_dict(arguments.checkpoint)
    model = official_weights.model_from_official(tensors, arguments.sampling)
    with atomic_path(arguments.output) as temporary:
        model.save(temporary)
        official_weights.mark_as_converted(temporary)
    print(
        f"{arguments.output}: {len(tensors)} tensors, {model.num_classes} classes, "
        f"sampling {model.sampling!r}, {model.count_params() / 1e6:.2f} M parameters"
    )
    return 0


def summary(arguments: argparse.Namespace) -> int:
    """Print the blocks of a model: shapes, parameters, multiply-adds, time."""
    from alignseg_tf.analysis.summary import summarize
    from alignseg_tf.prediction.saved_networks import label_space_of, load_model
    from alignseg_tf.system.progress import counter

    if arguments.json is not None:
        check_file(arguments.json, "summary", _is_summary, arguments.overwrite)
    model = load_model(arguments.model)
    blocks = summarize(model, tuple(arguments.size), arguments.runs, counter("timing"))
    print(blocks.table())
    print(f"classes: {', '.join(label_space_of(model).classes)}")
    print(f"normalization: {model.normalization}\nsampling: {model.sampling}")
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(blocks.to_dict(), indent=1))
    return 0


def _is_summary(path: Path) -> bool:
    return has_keys(path, "blocks", "inference", "tensorflow")


def inspect(arguments: argparse.Namespace) -> int:
    """Say what a data set holds and what is wrong with it."""
    from alignseg_tf.data.sources import data_from_arguments
    from alignseg_tf.preparation.inspection import inspect_data
    from alignseg_tf.system.progress import counter

    data = data_from_arguments(arguments, counter("making the data set"))
    report = inspect_data(data, arguments.output, arguments.split, counter, arguments.overwrite)
    print(f"{report.text()}\n")
    print(f"{arguments.output}: contact_sheet.png, inspection.json, pictures.csv")
    return 1 if report.problems else 0


def import_annotations(arguments: argparse.Namespace) -> int:
    """Write the annotations of another tool as a folder that trains."""
    from alignseg_tf.preparation.importing import import_from_arguments
    from alignseg_tf.system.progress import counter

    report = import_from_arguments(arguments, counter("importing"))
    print(report.text())
    return 1 if report.skipped else 0


def serve(arguments: argparse.Namespace) -> int:
    """Serve a SavedModel over HTTP until a signal ends it."""
    try:
        from alignseg_tf.serving.server import serve_from_arguments
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the server needs {error.name}: pip install 'alignseg_tf[serve]'"
        ) from error
    return serve_from_arguments(arguments)


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

    command = add("predict", predict_from_arguments, "segment pictures, videos or a camera")
    add_predict_arguments(command)

    command = add(
        "predict-distributed", distributed_from_arguments, "segment millions of pictures with Ray"
    )
    add_distributed_arguments(command)

    command = add("compare", compare, "two models on the same pictures: what differs")
    command.add_argument("first", type=model_path, metavar="A", help="a model, as for predict")
    command.add_argument("second", type=model_path, metavar="B", help="another one")
    add_data_arguments(command)
    command.add_argument("--split", default="val", help="which part of the data (%(default)s)")
    add_block_argument(command)
    command.add_argument(
        "--output", type=Path, required=True,
        help="folder for the comparison: a page with pictures, JSON, CSV",
    )  # fmt: skip
    add_overwrite_argument(command)
    add_protocol_arguments(command)

    command = add("alignment", alignment, "draw what the alignment layers of a model do")
    command.add_argument("model", type=model_path, help="a .keras file")
    command.add_argument("pictures", nargs="+", help="pictures, folders, or patterns in quotes")
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
        help="of the picture, in pixels (512 1024)",
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
    with nullcontext() if parsed.run is serve else printable_output():
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
