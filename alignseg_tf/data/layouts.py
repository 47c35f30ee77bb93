"""How the files of a data set lie: which picture has which label, and what the labels mean.

layout      known by                                    pictures and labels
folder      images/ labels/ classes.json                images/{train,val}, labels/{train,val}
csv         a file NAME.csv, classes.json beside it     the columns image, label, split
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.data.readers import DataError, Sample, read_csv, read_folder


@dataclass(frozen=True)
class Layout:
    """How a data set is distributed.

    Attributes:
        name: what `--layout` calls it.
        known_by: the files or folders that tell it from the others, for messages.
        matches: whether a path has them.
        find: (root, split) -> samples; the splits are called train, val and, where there is
            one, test, whatever the data set calls them. Raises DataError.
        label_space: root -> what the label files mean. Raises DataError.
    """

    name: str
    known_by: str
    matches: Callable[[Path], bool]
    find: Callable[[Path, str], list[Sample]]
    label_space: Callable[[Path], LabelSpace]


def _classes_file(folder: Path) -> LabelSpace:
    try:
        return LabelSpace.from_file(folder / "classes.json")
    except ValueError as error:
        raise DataError(str(error)) from error


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="csv",
            known_by="a file that ends in .csv",
            matches=lambda path: path.suffix.lower() == ".csv",
            find=read_csv,
            label_space=lambda path: _classes_file(path.parent),
        ),
        Layout(
            name="folder",
            known_by="images/train, labels/train and classes.json",
            matches=lambda path: (path / "images").is_dir() and (path / "labels").is_dir(),
            find=read_folder,
            label_space=_classes_file,
        ),
    )
}


def find_layout(path: Path) -> Layout:
    """Return the layout that a path has.

    Raises:
        DataError: there is no such path, or it has no known layout, or several.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = [layout for layout in LAYOUTS.values() if layout.matches(path)]
    if len(found) > 1:
        names = ", ".join(layout.name for layout in found)
        raise DataError(f"{path}: has the layouts {names}; say which one with --layout")
    if not found:
        known = "".join(f"\n  {layout.name}: {layout.known_by}" for layout in LAYOUTS.values())
        raise DataError(f"{path}: no known layout of a data set; expected one of{known}")
    return found[0]
