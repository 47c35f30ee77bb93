"""Open what `--data` names: images with labels, and the meaning of the label values.

PATH              a folder or a CSV list in one of the layouts of `datasets/layout.py`
tfds:NAME         a data set of TensorFlow Datasets, written once as a folder
street_scenes     the built-in data set, drawn once as a folder
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignseg_tf.data.datasets import street_painter, tfds
from alignseg_tf.data.datasets.catalog import (
    LABEL_SPACES,
    LAYOUTS,
    find_layout,
    label_space_from_file,
    read_label_space,
)
from alignseg_tf.data.datasets.layout import Layout
from alignseg_tf.data.datasets.tfds import TfdsOptions
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import (
    IMAGE_SUFFIXES,
    Sample,
    Skipped,
    add_by_suffix,
    expect,
    list_files,
)


@dataclass(frozen=True)
class DataSource:
    """Images with labels in a folder or CSV list; the file that states the classes, if any."""

    root: Path
    layout: Layout
    label_space: LabelSpace
    classes_file: Path | None = None

    def samples(self, split: str) -> list[Sample]:
        """List the samples of train, val or test; DataError if a file or the split is missing."""
        return self.layout.find(self.root, split)

    def skipped(self, split: str, samples: Sequence[Sample]) -> Skipped:
        """Return the files in the folder of the images that are no samples, by kind."""
        skipped: Skipped = {}
        folder = self.layout.images and self.layout.images(self.root, split)
        if folder and folder.is_dir():
            used = {sample.image for sample in samples}
            # In the layout `folder`, each image is a sample or a problem.
            named = IMAGE_SUFFIXES if self.layout.name == "folder" else ()
            files = list_files(folder, skipped)
            add_by_suffix(
                skipped, (p for p in files if p not in used and p.suffix.lower() not in named)
            )
        return skipped


def cache_folder() -> Path:
    """Return `ALIGNSEG_TF_CACHE`, else `alignseg_tf` under `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("ALIGNSEG_TF_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignseg_tf"


def open_data(
    data: str | Path,
    layout: str | None = None,
    label_space: str | Path | None = None,
    tfds_options: TfdsOptions | None = None,
) -> DataSource:
    """Open a data set.

    Args:
        data: a path, `tfds:NAME` or `street_scenes`.
        layout: one of `LAYOUTS`, or None to detect it.
        label_space: one of `LABEL_SPACES`, or a file; None for a file of the data set, else for
            what its layout or TFDS says.
        tfds_options: features and splits of `tfds:NAME`.

    Raises:
        DataError: there is no such data set, or its layout or classes are invalid.
    """
    given = None if label_space is None else _named_label_space(label_space)
    if str(data).startswith("tfds:"):
        fits = layout in (None, "folder")
        expect(fits, str(data), "no --layout, since it becomes a folder", layout)
        name = str(data).removeprefix("tfds:")
        root, found_space = tfds.write_folder(name, cache_folder() / "tfds", tfds_options, given)
        return DataSource(root, LAYOUTS["folder"], found_space)
    options = "--image-key, --label-key, --train-split and --val-split"
    expect(tfds_options in (None, TfdsOptions()), options, "data tfds:NAME", str(data))
    if str(data) == "street_scenes":
        data = street_painter.write_folder(cache_folder() / "street_scenes")
    expect(layout in (None, *LAYOUTS), "--layout", f"one of {', '.join(LAYOUTS)}", layout)
    path = Path(data)
    found = LAYOUTS[layout] if layout else find_layout(path)
    space, classes_file = (given, None) if given else read_label_space(found, path)
    return DataSource(path, found, space, classes_file)


def _named_label_space(name: str | Path) -> LabelSpace:
    if str(name) in LABEL_SPACES:
        return LABEL_SPACES[str(name)]
    what = f"one of {', '.join(LABEL_SPACES)}, or a file like classes.json"
    expect(Path(name).is_file(), "--label-space", what, str(name))
    return label_space_from_file(name)
