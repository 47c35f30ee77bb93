"""How the files of a data set lie: which picture has which label, and what the labels mean.

layout           pictures                               labels
folder           images/SPLIT/X.*                       labels/SPLIT/X.*, classes.json
csv              the column image of a file .csv        the column label, classes.json beside it
cityscapes       leftImg8bit/SPLIT/CITY                 gtFine/SPLIT/CITY
ade20k           images/training                        annotations/training
pascal_voc       JPEGImages, lists in ImageSets         SegmentationClass, SegmentationClassAug
pascal_context   JPEGImages, lists in ImageSets         SegmentationClassContext
camvid_color     701_StillsRaw_full/X.png               LabeledApproved_full/X_L.png, in colours
segnet_camvid    SPLIT/X.png                            SPLITannot/X.png
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignseg_tf.data.label_space import (
    ADE20K,
    CAMVID_COLOR,
    CITYSCAPES,
    CITYSCAPES_TRAIN_IDS,
    PASCAL_CONTEXT,
    PASCAL_VOC,
    SEGNET_CAMVID,
    LabelSpace,
)
from alignseg_tf.data.readers import (
    DataError,
    ListingError,
    Sample,
    find_spelled,
    is_derived_file,
    read_csv,
    read_folder,
    special_kind,
)


@dataclass(frozen=True)
class Layout:
    """How a data set is distributed.

    Attributes:
        name: what `--layout` calls it.
        known_by: the files or folders that tell it from the others, for messages.
        matches: whether a path has them.
        find: (root, split) -> samples; the splits are called train, val and, where there is
            one, test, whatever the data set calls them. Raises DataError.
        label_space: root -> what the label files mean, unless a file states it; None where a
            file must. Raises DataError.
        images: (root, split) -> the folder whose pictures are read, where all of one are.
    """

    name: str
    known_by: str
    matches: Callable[[Path], bool]
    find: Callable[[Path, str], list[Sample]]
    label_space: Callable[[Path], LabelSpace] | None
    images: Callable[[Path, str], Path] | None = None


CLASSES_FILES = ("classes.json", "labelmap.txt")


def read_label_space(layout: Layout, path: Path) -> tuple[LabelSpace, Path | None]:
    """Return what the labels of a data set mean, and the file that states it.

    A `classes.json`, or a `labelmap.txt` of CVAT, comes before what the layout says.

    Raises:
        DataError: such a file is damaged, contradicts another one or the layout, or is missing
            where the layout needs one.
    """
    folders = [path if path.is_dir() else path.parent]
    if layout.name in _PASCAL_YEARS:
        folders.append(_pascal_root(path, _PASCAL_YEARS[layout.name]))
    files = [folder / name for folder in dict.fromkeys(folders) for name in CLASSES_FILES]
    files = [file for file in files if file.exists()]
    if not files and layout.label_space is not None:
        return layout.label_space(path), None
    files = files or [folders[0] / CLASSES_FILES[0]]  # missing, which reading says
    try:
        stated = [LabelSpace.from_file(file) for file in files]
    except ValueError as error:
        raise DataError(str(error)) from error
    for file, other in zip(files[1:], stated[1:], strict=True):
        # The background need not be a class.
        if {*stated[0].classes, "background"} != {*other.classes, "background"}:
            raise DataError(
                f"{file}: contradicts {files[0]}: it has the classes {', '.join(other.classes)}, "
                f"not {', '.join(stated[0].classes)}; remove one, or give --label-space"
            )
    if layout.label_space is not None:
        _check_agreement(stated[0], layout.label_space(path), files[0], layout.name)
    return stated[0], files[0]


def _check_agreement(stated: LabelSpace, usual: LabelSpace, file: Path, layout: str) -> None:
    """Refuse a file with the classes of a public data set that gives them other values."""
    if stated.classes != usual.classes:
        return
    for what in ("ids", "void", "colors"):
        own, expected = getattr(stated, what), getattr(usual, what)
        if own != expected:
            raise DataError(
                f"{file}: contradicts the layout {layout}, which has the same classes: expected "
                f"{what} {expected}. Received: {own}; correct or remove it, or give --label-space"
            )


def _pictures(folder: Path, pattern: str) -> list[Path]:
    """List what a pattern finds in a folder, sorted; it must be there, and not be empty."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = sorted(
        path for path in folder.glob(pattern) if not is_derived_file(path.relative_to(folder))
    )
    if not found:
        raise DataError(f"{folder}: no pictures {pattern} in this folder")
    return found


def _with_labels(pictures: list[Path], label_of: Callable[[Path], Path]) -> list[Sample]:
    """Pair pictures with their labels; all of both must be there."""
    samples, problems = [], []
    for picture in pictures:
        sample = Sample(find_spelled(picture), find_spelled(label_of(picture)))
        if kind := special_kind(sample.image) or special_kind(sample.label):
            problems.append(f"{sample.image}, {sample.label}: expected files. Received: {kind}")
        elif not sample.image.is_file():
            problems.append(f"{sample.image}: no such picture")
        elif not sample.label.is_file():
            problems.append(f"{sample.label}: no such label")
        else:
            samples.append(sample)
    if problems:
        raise ListingError(str(pictures[0].parent), problems, samples)
    return samples


def _no_test_labels(root: Path, name: str) -> DataError:
    return DataError(
        f"{root}: the labels of {name}'s test pictures are not public; their classes can only be "
        "predicted. Received: split 'test'"
    )


# Cityscapes: leftImg8bit/SPLIT/CITY/X_leftImg8bit.png, gtFine/SPLIT/CITY/X_gtFine_labelIds.png


def _cityscapes_encoding(root: Path) -> str:
    """Return which label files there are; labelIds, as downloaded, before made trainIds."""
    for encoding in ("labelIds", "labelTrainIds"):
        for split in ("train", "val"):
            if any((root / "gtFine" / split).glob(f"*/*_gtFine_{encoding}.png")):
                return encoding
    raise DataError(
        f"{root / 'gtFine'}: no labels; expected "
        "{train,val}/CITY/*_gtFine_labelIds.png or *_gtFine_labelTrainIds.png"
    )


def _find_cityscapes(root: Path, split: str) -> list[Sample]:
    # gtFine/test has label files, but no pixel in them has a class.
    if split == "test":
        raise _no_test_labels(root, "Cityscapes")
    labels, ending = root / "gtFine" / split, f"_gtFine_{_cityscapes_encoding(root)}.png"
    return _with_labels(
        _pictures(root / "leftImg8bit" / split, "*/*_leftImg8bit.png"),
        lambda picture: (
            labels / picture.parent.name / picture.name.replace("_leftImg8bit.png", ending)
        ),
    )


def _cityscapes_space(root: Path) -> LabelSpace:
    return CITYSCAPES if _cityscapes_encoding(root) == "labelIds" else CITYSCAPES_TRAIN_IDS


# ADE20K, SceneParsing: images/training/X.jpg, annotations/training/X.png

_ADE20K_FOLDERS = {"train": "training", "val": "validation"}


def _find_ade20k(root: Path, split: str) -> list[Sample]:
    if split == "test":
        raise _no_test_labels(root, "ADE20K")
    folder = _ADE20K_FOLDERS.get(split, split)
    return _with_labels(
        _pictures(root / "images" / folder, "*.jpg"),
        lambda picture: root / "annotations" / folder / f"{picture.stem}.png",
    )


# PASCAL: JPEGImages/X.jpg, a folder of labels X.png, and lists of names in ImageSets


_PASCAL_YEARS = {"pascal_voc": "VOC2012", "pascal_context": "VOC2010"}


def _pascal_root(path: Path, year: str) -> Path:
    """Return the folder of a year, given itself, `VOCdevkit`, or what holds that."""
    inside = (path / year, path / "VOCdevkit" / year)
    return next((folder for folder in inside if (folder / "JPEGImages").is_dir()), path)


def _is_pascal_voc(path: Path) -> bool:
    root = _pascal_root(path, "VOC2012")
    return (
        (root / "ImageSets" / "Segmentation").is_dir()
        and any((root / f"SegmentationClass{end}").is_dir() for end in ("", "Aug"))
        and not (root / "SegmentationClassContext").is_dir()
    )


def _read_names(path: Path) -> list[str]:
    """Read a list of names; of lines with paths, the first one's name without its suffix."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it lists the names of the pictures")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: lists no pictures")
    return names


def _check_apart(training: Path, validation: Path) -> None:
    """Refuse training pictures that are validated on."""
    if not validation.is_file():
        return
    held_out = set(_read_names(validation))
    both = [name for name in _read_names(training) if name in held_out]
    if both:
        raise DataError(
            f"{training}: lists {len(both)} pictures that {validation.name} lists too, for "
            f"instance {both[0]}; remove them, or validation measures what was trained on"
        )


def _find_pascal_voc(path: Path, split: str) -> list[Sample]:
    if split == "test":
        raise _no_test_labels(path, "PASCAL VOC")
    root = _pascal_root(path, "VOC2012")
    lists, labels = root / "ImageSets" / "Segmentation", root / "SegmentationClass"
    more_labels = root / "SegmentationClassAug"
    names = lists / f"{split}.txt"
    if split == "train":
        if more_labels.is_dir():
            names = lists / "trainaug.txt"
        if more_labels.is_dir() and not names.is_file():
            raise DataError(
                f"{names}: no such file; {more_labels.name} is there, so expected the list of "
                "10582 names that belongs to it (some call it train_aug.txt)"
            )
        _check_apart(names, lists / "val.txt")

    def label_of(picture: Path) -> Path:
        """VOC's own label where there is one: it is finer, and leaves out the borders."""
        own = labels / f"{picture.stem}.png"
        more = more_labels / own.name
        return more if not own.is_file() and more.is_file() else own

    pictures = [root / "JPEGImages" / f"{name}.jpg" for name in _read_names(names)]
    return _with_labels(pictures, label_of)


def _is_pascal_context(path: Path) -> bool:
    return (_pascal_root(path, "VOC2010") / "SegmentationClassContext").is_dir()


def _find_pascal_context(path: Path, split: str) -> list[Sample]:
    root = _pascal_root(path, "VOC2010")
    lists = root / "ImageSets" / "SegmentationContext"
    names = lists / f"{split}.txt"
    if split == "train":
        _check_apart(names, lists / "val.txt")
    pictures = [root / "JPEGImages" / f"{name}.jpg" for name in _read_names(names)]
    return _with_labels(
        pictures, lambda picture: root / "SegmentationClassContext" / f"{picture.stem}.png"
    )


# CamVid: all pictures in one folder, split by their names, or in a folder a split

_CAMVID_FOLDERS = (
    ("701_StillsRaw_full", "LabeledApproved_full"),
    ("CamVid_RGB", "CamVid_Label"),
)


def _camvid_split(picture: Path) -> str:
    """Return the split that SegNet has a picture in: 367 train, 101 val and 233 test.

    Raises:
        DataError: it is none of CamVid's pictures.
    """
    found = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d{5,6})", picture.stem)
    if found is None:
        raise DataError(f"{picture}: not a name that CamVid has, such as 0001TP_006690")
    sequence, number = found[1], int(found[2])
    if sequence == "Seq05VD":
        return "test"
    if sequence == "0001TP":
        return "train" if number <= 8520 else "test"
    # The part that was labelled 15 times a second.
    return "val" if sequence == "0016E5" and 7959 <= number <= 8159 else "train"


def _camvid_folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return the folders of pictures and labels; None where there are none."""
    for images, labels in _CAMVID_FOLDERS:
        if (root / images).is_dir() and (root / labels).is_dir():
            return root / images, root / labels
    # Other data sets come in this form too.
    classes = root / "class_dict.csv"
    if classes.is_file() and "LaneMkgsDriv" in classes.read_text(encoding="utf-8"):
        return root / split, root / f"{split}_labels"
    return None


def _find_camvid_color(root: Path, split: str) -> list[Sample]:
    folders = _camvid_folders(root, split)
    if folders is None:
        raise DataError(f"{root}: expected {LAYOUTS['camvid_color'].known_by}")
    images, labels = folders
    pictures = _pictures(images, "*.png")
    if images.name != split:
        pictures = [picture for picture in pictures if _camvid_split(picture) == split]
        if not pictures:
            raise DataError(f"{images}: no pictures of the split {split!r}")
    return _with_labels(pictures, lambda picture: labels / f"{picture.stem}_L.png")


def _find_segnet_camvid(root: Path, split: str) -> list[Sample]:
    return _with_labels(
        _pictures(root / split, "*.png"),
        lambda picture: root / f"{split}annot" / picture.name,
    )


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
        Layout(
            name="cityscapes",
            known_by="leftImg8bit and gtFine",
            matches=lambda path: (path / "leftImg8bit").is_dir() and (path / "gtFine").is_dir(),
            find=_find_cityscapes,
            label_space=_cityscapes_space,
            images=lambda path, split: path / "leftImg8bit" / split,
        ),
        Layout(
            name="ade20k",
            known_by="images/training and annotations/training",
            matches=lambda path: (
                (path / "images").is_dir()
                and any((path / "annotations" / x).is_dir() for x in _ADE20K_FOLDERS.values())
            ),
            find=_find_ade20k,
            label_space=lambda path: ADE20K,
            images=lambda path, split: path / "images" / _ADE20K_FOLDERS.get(split, split),
        ),
        Layout(
            name="pascal_voc",
            known_by="[VOCdevkit/][VOC2012/] JPEGImages, SegmentationClass or "
            "SegmentationClassAug, ImageSets/Segmentation",
            matches=_is_pascal_voc,
            find=_find_pascal_voc,
            label_space=lambda path: PASCAL_VOC,
        ),
        Layout(
            name="pascal_context",
            known_by="[VOCdevkit/][VOC2010/] JPEGImages, SegmentationClassContext, "
            "ImageSets/SegmentationContext",
            matches=_is_pascal_context,
            find=_find_pascal_context,
            label_space=lambda path: PASCAL_CONTEXT,
        ),
        Layout(
            name="camvid_color",
            known_by="701_StillsRaw_full and LabeledApproved_full; CamVid_RGB and CamVid_Label; "
            "or train, train_labels and CamVid's class_dict.csv",
            matches=lambda path: _camvid_folders(path, "train") is not None,
            find=_find_camvid_color,
            label_space=lambda path: CAMVID_COLOR,
        ),
        Layout(
            name="segnet_camvid",
            known_by="train and trainannot",
            matches=lambda path: (path / "train").is_dir() and (path / "trainannot").is_dir(),
            find=_find_segnet_camvid,
            label_space=lambda path: SEGNET_CAMVID,
            images=lambda path, split: path / split,
        ),
    )
}


def _layouts_of(path: Path) -> list[str]:
    return [layout.name for layout in LAYOUTS.values() if layout.matches(path)]


def find_layout(path: Path) -> Layout:
    """Return the layout that a path has.

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
