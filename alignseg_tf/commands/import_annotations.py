"""`alignseg import`: convert annotations of another tool."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from alignseg_tf.commands.options import add_overwrite_argument
from alignseg_tf.preparation.annotation_files import Invalid, unpacked
from alignseg_tf.preparation.annotations import (
    merge_annotations,
    read_coco,
    read_cvat,
    read_labelme,
)
from alignseg_tf.preparation.importing import BACKGROUND, SPLITS, ImportOptions, write_import


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sources of an import and their arguments."""
    sources = parser.add_subparsers(required=True, metavar="SOURCE", dest="source")
    helps = {
        "coco": "instances of a COCO file: polygons and RLE",
        "cvat": "CVAT's export 'Segmentation mask 1.1'",
        "labelme": "the JSON files of LabelMe",
    }
    coco, cvat, labelme = (
        sources.add_parser(name, help=help, description=help) for name, help in helps.items()
    )
    coco.add_argument(
        "--annotations", type=Path, required=True, nargs="+", metavar="JSON", help="the files"
    )
    coco.add_argument("--images", type=Path, required=True, help="the folder of its images")
    cvat.add_argument(
        "--export", dest="annotations", type=Path, required=True, metavar="EXPORT",
        help="the .zip, or its folder",
    )  # fmt: skip
    cvat.add_argument("--images", type=Path, help="folder of the images (JPEGImages within)")
    labelme.add_argument("--annotations", type=Path, required=True, help="the folder with them")
    labelme.add_argument(
        "--images", type=Path, help="folder of the images (that of the JSON files)"
    )
    labelme.add_argument(
        "--classes", nargs="+", default=(), metavar="CLASS",
        help="names in the order of their ids (those found, sorted)",
    )  # fmt: skip
    labelme.add_argument(
        "--line-width", type=int, metavar="PIXELS",
        help="width of lines and points (they are refused)",
    )  # fmt: skip
    for source in (coco, cvat, labelme):
        _add_output_arguments(source)


def _add_output_arguments(source: argparse.ArgumentParser) -> None:
    source.add_argument("--output", type=Path, required=True, help="the folder to write")
    splits = source.add_mutually_exclusive_group()
    splits.add_argument("--split", choices=SPLITS, help="split of all these images")
    splits.add_argument(
        "--val-share", type=float, metavar="SHARE",
        help="share of the images to hold out, chosen by a hash of their names, as 0.2",
    )  # fmt: skip
    source.add_argument(
        "--unlabelled", choices=(BACKGROUND, "void"), default=ImportOptions.unlabelled,
        help="class of pixels without annotation (%(default)s, class 0)",
    )  # fmt: skip
    source.add_argument("--void", nargs="+", default=(), metavar="CLASS", help="classes to ignore")
    source.add_argument(
        "--annotated-on", choices=("upright", "stored"), default=ImportOptions.annotated_on,
        help="orientation of the annotations where EXIF turns an image (%(default)s)",
    )  # fmt: skip
    source.add_argument(
        "--skip-invalid", action="store_true",
        help="import the rest where annotations or images are invalid; list them, status 1",
    )  # fmt: skip
    add_overwrite_argument(source)


def run(arguments: argparse.Namespace) -> int:
    """Write the annotations of another tool as a folder that trains."""
    options = ImportOptions(
        arguments.split, arguments.val_share, arguments.unlabelled, tuple(arguments.void),
        arguments.annotated_on,
    )  # fmt: skip
    kind, given, images = arguments.source, arguments.annotations, arguments.images
    invalid = Invalid(arguments.skip_invalid)
    with ExitStack() as stack:
        if kind == "coco":
            annotations = merge_annotations([read_coco(path, images, invalid) for path in given])
        elif kind == "cvat":
            annotations = read_cvat(stack.enter_context(unpacked(given)), images, invalid)
        else:
            annotations = read_labelme(
                given, arguments.classes, arguments.line_width, images, invalid
            )
        source = f"{kind} {(given[0] if kind == 'coco' else given).name}"
        report = write_import(annotations, arguments.output, options, source, arguments.overwrite)
    print(report.text())
    return 1 if report.skipped else 0
