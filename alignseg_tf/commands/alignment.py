"""`alignseg alignment`: draw what the alignment layers of a model do."""

import argparse
import sys
from pathlib import Path

from alignseg_tf.analysis.alignment_figures import write_alignment_figures
from alignseg_tf.commands.options import add_overwrite_argument
from alignseg_tf.data.listing import find_named_images
from alignseg_tf.data.readers import load_image
from alignseg_tf.prediction.batch import result_names
from alignseg_tf.prediction.saved_networks import load_model
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.files import DiskFullError, remove_leftovers
from alignseg_tf.system.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `alignment`."""
    parser.add_argument("model", type=model_path, help="a .keras file")
    parser.add_argument("images", nargs="+", help="images, folders, or patterns in quotes")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw what the alignment layers of a model do in images."""
    output = arguments.output
    images = result_names(find_named_images(arguments.images, leave_out=output.resolve()))
    remove_leftovers(output, below=True)
    model = load_model(arguments.model)
    failed = 0
    for number, (path, name) in enumerate(images, start=1):
        try:
            image = load_image(path)
            folder = output / name.parent
            written = write_alignment_figures(model, image, folder, name.name, arguments.overwrite)
        except DiskFullError:
            raise
        except (ValueError, OSError) as error:  # such as a name that is too long
            failed += 1
            reason = str(error).removeprefix(f"{path}: ")
            line = f"skipped: {path}: {reason} (model: {arguments.model})"
            print(printable(line), file=sys.stderr)
            continue
        print(printable(f"[{number}/{len(images)}] {path} -> {', '.join(map(str, written))}"))
    return 1 if failed else 0
