"""`alignseg alignment`: draw what the alignment layers do."""

import argparse
import sys

from alignseg_tf.data.listing import find_named_images
from alignseg_tf.data.readers import load_image
from alignseg_tf.prediction.batch import result_names
from alignseg_tf.system.files import DiskFullError, remove_leftovers
from alignseg_tf.system.printable import printable


def alignment(arguments: argparse.Namespace) -> int:
    """Draw what the alignment layers of a model do in images."""
    from alignseg_tf.analysis.alignment_figures import write_alignment_figures
    from alignseg_tf.prediction.saved_networks import load_model

    found = find_named_images(arguments.images, leave_out=arguments.output.resolve())
    images = result_names(found)
    remove_leftovers(arguments.output, below=True)
    model = load_model(arguments.model)
    failed = 0
    for number, (path, name) in enumerate(images, start=1):
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
        print(f"[{number}/{len(images)}] {printable(path)} -> {shown}")
    return 1 if failed else 0
