"""What `--data` may be, and what stands behind it: pictures with labels, and what these mean.

PATH              a folder or a CSV list in one of the layouts of `layouts.py`
tfds:NAME         a data set of TensorFlow Datasets, turned once into a folder
street_scenes     the embedded data set, drawn once into a folder
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignseg_tf.data import street_scenes
from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.layouts import LAYOUTS, Layout, find_layout
from alignseg_tf.data.readers import DataError, Sample

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DataSource:
    """Pictures with labels on disk.

    Attributes:
        root: the folder, or the CSV list.
        layout: how the files lie.
        label_space: what the labels mean.
    """

    root: Path
    layout: Layout
    label_space: LabelSpace

    def samples(self, split: str) -> list[Sample]:
        """List the samples of a split: train, val, or test where there is one.

        Raises:
            DataError: there is no such split, or a file is missing.
        """
        return self.layout.find(self.root, split)


def cache_folder() -> Path:
    """Return where data sets that are made once are kept.

    `ALIGNSEG_TF_CACHE`, else `alignseg_tf` under `XDG_CACHE_HOME` or `~/.cache`.
    """
    if own := os.environ.get("ALIGNSEG_TF_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignseg_tf"


def open_data(
    data: str | Path, layout: str | None = None, progress: Progress | None = None
) -> DataSource:
    """Return what stands behind `--data`.

    Args:
        data: a path, `tfds:NAME` or `street_scenes`.
        layout: one of `LAYOUTS`, or None to tell it from the files.
        progress: called with (done, total) while a data set is drawn or unpacked.

    Raises:
        DataError: there is no such data, or its layout or classes are not as expected.
    """
    if str(data) == "street_scenes":
        data = street_scenes.write_folder(cache_folder() / "street_scenes", progress=progress)
    path = Path(data)
    if layout is None:
        found = find_layout(path)
    elif layout in LAYOUTS:
        found = LAYOUTS[layout]
    else:
        raise DataError(f"the layout must be one of {', '.join(LAYOUTS)}. Received: {layout!r}")
    return DataSource(path, found, found.label_space(path))


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--data` and what belongs to it."""
    parser.add_argument(
        "--data", required=True,
        help="a folder, a CSV list, tfds:NAME or street_scenes; docs/datasets has all forms",
    )  # fmt: skip
    parser.add_argument(
        "--layout", choices=tuple(LAYOUTS), help="how its files lie (told from the files)"
    )


def data_from_arguments(
    arguments: argparse.Namespace, progress: Progress | None = None
) -> DataSource:
    """Open what the command line names.

    Raises:
        DataError: as `open_data`.
    """
    return open_data(arguments.data, arguments.layout, progress)
