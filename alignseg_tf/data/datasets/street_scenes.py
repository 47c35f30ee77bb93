"""Labels of the drawn street scenes; `street_painter` draws them."""

from alignseg_tf.data.label_space import LabelSpace

CLASSES: tuple[str, ...] = (
    "sky", "building", "tree", "road", "sidewalk", "pole", "sign", "car", "pedestrian",
)  # fmt: skip
PALETTE: tuple[tuple[int, int, int], ...] = (
    (70, 130, 180), (86, 86, 92), (107, 142, 35), (128, 64, 128), (244, 35, 232),
    (255, 255, 255), (250, 215, 0), (0, 20, 190), (220, 20, 60),
)  # fmt: skip
VOID = 255
STREET_SCENES = LabelSpace(CLASSES, PALETTE, void=VOID)
