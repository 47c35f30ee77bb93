"""All known data sets; detect the layout of a folder and the meaning of its labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignseg_tf.data.datasets.ade20k import ADE20K, ADE20K_LAYOUT
from alignseg_tf.data.datasets.camvid import (
    CAMVID,
    CAMVID_COLOR,
    CAMVID_COLOR_LAYOUT,
    SEGNET_CAMVID,
    SEGNET_CAMVID_LAYOUT,
)
from alignseg_tf.data.datasets.cityscapes import (
    CITYSCAPES,
    CITYSCAPES_LAYOUT,
    CITYSCAPES_TRAIN_IDS,
)
from alignseg_tf.data.datasets.layout import Layout
from alignseg_tf.data.datasets.oxford_iiit_pet import OXFORD_IIIT_PET
from alignseg_tf.data.datasets.pascal_context import PASCAL_CONTEXT, PASCAL_CONTEXT_LAYOUT
from alignseg_tf.data.datasets.pascal_voc import PASCAL_VOC, PASCAL_VOC_LAYOUT
from alignseg_tf.data.datasets.street_scenes import STREET_SCENES
from alignseg_tf.data.label_space import ABOUT, LabelSpace, label_space_of_labelmap
from alignseg_tf.data.listing import DataError, expect, read_csv, read_folder, special_kind

CLASSES_FILES = ("classes.json", "labelmap.txt")
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="csv",
            known_by="a file that ends in .csv",
            matches=lambda path: path.suffix.lower() == ".csv",
            find=read_csv,
            label_space=None,
        ),
        Layout(
            name="folder",
            known_by="images/train, labels/train and classes.json",
            matches=lambda path: (path / "images").is_dir() and (path / "labels").is_dir(),
            find=read_folder,
            label_space=None,
            images=lambda path, split: path / "images" / split,
        ),
        CITYSCAPES_LAYOUT,
        ADE20K_LAYOUT,
        PASCAL_VOC_LAYOUT,
        PASCAL_CONTEXT_LAYOUT,
        CAMVID_COLOR_LAYOUT,
        SEGNET_CAMVID_LAYOUT,
    )
}
LABEL_SPACES = {
    "street_scenes": STREET_SCENES,
    "camvid": CAMVID,
    "camvid_color": CAMVID_COLOR,
    "segnet_camvid": SEGNET_CAMVID,
    "cityscapes": CITYSCAPES,
    "cityscapes_train_ids": CITYSCAPES_TRAIN_IDS,
    "ade20k": ADE20K,
    "pascal_voc": PASCAL_VOC,
    "pascal_context": PASCAL_CONTEXT,
    "oxford_iiit_pet": OXFORD_IIIT_PET,
}


def read_label_space(layout: Layout, path: Path) -> tuple[LabelSpace, Path | None]:
    """Return the label space of a data set, and the file that states it.

    A `classes.json`, or a `labelmap.txt` of CVAT, takes precedence over the layout.

    Raises:
        DataError: such a file is damaged, contradicts another one or the layout, or is missing
            though the layout needs one.
    """
    folders = [path if path.is_dir() else path.parent]
    folders += [layout.inner(folders[0])]
    files = [folder / name for folder in dict.fromkeys(folders) for name in CLASSES_FILES]
    files = [file for file in files if file.exists()]
    usual = layout.label_space and layout.label_space(path)
    if not files and usual:
        return usual, None
    files = files or [folders[0] / CLASSES_FILES[0]]  # reading reports that it is missing
    stated, *others = map(label_space_from_file, files)
    for file, other in zip(files[1:], others, strict=True):
        # The background need not be a class.
        if {*stated.classes, "background"} != {*other.classes, "background"}:
            raise DataError(
                f"{file}: contradicts {files[0]}: it has the classes {', '.join(other.classes)}, "
                f"not {', '.join(stated.classes)}; remove one, or give --label-space"
            )
    for what in ("ids", "void", "colors") if usual and stated.classes == usual.classes else ():
        own, expected = getattr(stated, what), getattr(usual, what)
        if own != expected:
            raise DataError(
                f"{files[0]}: contradicts the layout {layout.name}, which has the same classes: "
                f"expected {what} {expected}. Received: {own}; correct or remove it, or give "
                "--label-space"
            )
    return stated, files[0]


def _layouts_of(path: Path) -> list[str]:
    return [layout.name for layout in LAYOUTS.values() if layout.matches(path)]


def find_layout(path: Path) -> Layout:
    """Return the layout of a path.

    Raises:
        DataError: there is no such path, or it has no known layout, or several.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = _layouts_of(path)
    if len(found) > 1:
        raise DataError(f"{path}: has the layouts {', '.join(found)}; say which one with --layout")
    if not found:
        known = "".join(f"\n  {layout.name}: {layout.known_by}" for layout in LAYOUTS.values())
        raise DataError(
            f"{path}: no known layout of a data set; expected one of{known}{_nearby(path)}"
        )
    return LAYOUTS[found[0]]


def _nearby(path: Path) -> str:
    """Name a data set one level up or down, for a message."""
    below = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    for folder in (*below, path.resolve().parent):
        if found := _layouts_of(folder):
            return f"\nbut {folder} has the layout {found[0]}"
    return ""


def label_space_from_dict(content: Mapping[str, Any], source: str) -> LabelSpace:
    """Build as `LabelSpace.from_dict`; the key `label_space` names one of `LABEL_SPACES`."""
    if not isinstance(content, Mapping) or "label_space" not in content:
        return LabelSpace.from_dict(content, source)
    name = content["label_space"]
    is_known = isinstance(name, str) and name in LABEL_SPACES
    expect(is_known, source, f"a 'label_space' of {list(LABEL_SPACES)}", name)
    others = sorted(set(content) - {"label_space", *ABOUT})
    expect(not others, source, "no other key with 'label_space'", others)
    return LABEL_SPACES[name]


def label_space_from_file(path: str | Path) -> LabelSpace:
    """Read a `classes.json`, or a `labelmap.txt` of CVAT.

    Raises:
        DataError: the file is missing or invalid.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: expected a file. Received: {special_kind(path) or 'a folder'}")
    form = "text" if path.suffix == ".txt" else "JSON"
    content: Any = None
    try:
        text = path.read_text(encoding="utf-8-sig")
        if form == "JSON":
            content = json.loads(text)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; it lists the names of the classes") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as {form} ({error})") from error
    if form == "text":
        return label_space_of_labelmap(text, path)
    return label_space_from_dict(content, str(path))
