"""`alignseg import`: convert annotations of another tool."""

import argparse
from pathlib import Path

from alignseg_tf.preparation.annotation_files import Invalid, unpacked
from alignseg_tf.preparation.annotations import (
    Annotations,
    merge_annotations,
    read_coco,
    read_cvat,
    read_labelme,
)
from alignseg_tf.preparation.importing import (
    BACKGROUND,
    SPLITS,
    ImportOptions,
    ImportReport,
    write_import,
)
from alignseg_tf.system.files import add_overwrite_argument


def import_annotations(arguments: argparse.Namespace) -> int:
    """Write the annotations of another tool as a folder that trains."""
    report = import_from_arguments(arguments)
    print(report.text())
    return 1 if report.skipped else 0


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sources of an import and their arguments."""
    sources = parser.add_subparsers(required=True, metavar="SOURCE", dest="source")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        source = sources.add_parser(name, help=help, description=help)
        source.add_argument("--output", type=Path, required=True, help="the folder to write")
        splits = source.add_mutually_exclusive_group()
        splits.add_argument("--split", choices=SPLITS, help="what all these images are for")
        splits.add_argument(
            "--val-share", type=float, metavar="SHARE",
            help="share of the images to hold out, chosen by a hash of their names, as 0.2",
        )  # fmt: skip
        source.add_argument(
            "--unlabelled", choices=(BACKGROUND, "void"), default=ImportOptions.unlabelled,
            help="what pixels without annotation are (%(default)s, class 0)",
        )  # fmt: skip
        source.add_argument(
            "--void", nargs="+", default=(), metavar="CLASS", help="classes to ignore"
        )
        source.add_argument(
            "--annotated-on", choices=("upright", "stored"), default=ImportOptions.annotated_on,
            help="what was annotated where EXIF turns an image (%(default)s)",
        )  # fmt: skip
        source.add_argument(
            "--skip-invalid", action="store_true",
            help="import the rest where annotations or images are invalid; list them, status 1",
        )  # fmt: skip
        add_overwrite_argument(source)
        return source

    source = add("coco", "instances of a COCO file: polygons and RLE")
    source.add_argument(
        "--annotations", type=Path, required=True, nargs="+", metavar="JSON", help="the files"
    )
    source.add_argument("--images", type=Path, required=True, help="the folder of its images")

    source = add("cvat", "CVAT's export 'Segmentation mask 1.1'")
    source.add_argument("--export", type=Path, required=True, help="the .zip, or its folder")
    source.add_argument("--images", type=Path, help="folder of the images (JPEGImages within)")

    source = add("labelme", "the JSON files of LabelMe")
    source.add_argument("--annotations", type=Path, required=True, help="the folder with them")
    source.add_argument("--images", type=Path, help="folder of the images (that of the JSON files)")
    source.add_argument(
        "--classes", nargs="+", default=(), metavar="CLASS",
        help="names in the order of their ids (those found, sorted)",
    )  # fmt: skip
    source.add_argument(
        "--line-width", type=int, metavar="PIXELS",
        help="how wide lines and points are drawn (they are refused)",
    )  # fmt: skip


def import_from_arguments(arguments: argparse.Namespace) -> ImportReport:
    """Import what the command line names.

    Raises:
        DataError: as `write_import` and the readers of `annotations.py`.
    """
    options = ImportOptions(
        arguments.split, arguments.val_share, arguments.unlabelled, tuple(arguments.void),
        arguments.annotated_on,
    )  # fmt: skip
    invalid = Invalid(arguments.skip_invalid)

    def write(annotations: Annotations, path: Path) -> ImportReport:
        source = f"{arguments.source} {path.name}"
        return write_import(annotations, arguments.output, options, source, arguments.overwrite)

    if arguments.source == "cvat":
        with unpacked(arguments.export) as folder:
            annotations = read_cvat(folder, arguments.images, invalid)
            return write(annotations, arguments.export)
    if arguments.source == "coco":
        read = [read_coco(path, arguments.images, invalid) for path in arguments.annotations]
        return write(merge_annotations(read), arguments.annotations[0])
    annotations = read_labelme(
        arguments.annotations, arguments.classes, arguments.line_width, arguments.images, invalid
    )
    return write(annotations, arguments.annotations)
