"""Pascal Context: 59 classes."""

from functools import partial
from pathlib import Path

from alignseg_tf.data.datasets.layout import Layout, pair_with_labels
from alignseg_tf.data.datasets.pascal_voc import check_apart, pascal_root, read_names
from alignseg_tf.data.label_space import LabelSpace, voc_palette
from alignseg_tf.data.listing import Sample

# File values 1..59; 0 is "background", everything else, which the benchmark of 59 leaves out.
PASCAL_CONTEXT_CLASSES = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow",
    "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground", "horse",
    "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform",
    "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa",
    "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood",
)  # fmt: skip
# The data set names no colours.
PASCAL_CONTEXT = LabelSpace(
    PASCAL_CONTEXT_CLASSES, voc_palette(60)[1:], void=0, ids=tuple(range(1, 60))
)


_context_root = partial(pascal_root, year="VOC2010")


def _find_pascal_context(path: Path, split: str) -> list[Sample]:
    root = _context_root(path)
    lists = root / "ImageSets" / "SegmentationContext"
    names = lists / f"{split}.txt"
    if split == "train":
        check_apart(names, lists / "val.txt")
    images = [root / "JPEGImages" / f"{name}.jpg" for name in read_names(names)]
    return pair_with_labels(
        images, lambda image: root / "SegmentationClassContext" / f"{image.stem}.png"
    )


PASCAL_CONTEXT_LAYOUT = Layout(
    name="pascal_context",
    known_by="[VOCdevkit/][VOC2010/] JPEGImages, SegmentationClassContext, "
    "ImageSets/SegmentationContext",
    matches=lambda path: (_context_root(path) / "SegmentationClassContext").is_dir(),
    find=_find_pascal_context,
    label_space=lambda path: PASCAL_CONTEXT,
    inner=_context_root,
)
