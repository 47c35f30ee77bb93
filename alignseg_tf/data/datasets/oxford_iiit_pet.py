"""Oxford-IIIT Pet: pet, background, border."""

from alignseg_tf.data.label_space import LabelSpace

# The animal's trimap: 1 animal, 2 background, 3 its outline, which has no class.
OXFORD_IIIT_PET_CLASSES = ("pet", "background")
OXFORD_IIIT_PET_PALETTE = ((250, 170, 30), (70, 130, 180))
OXFORD_IIIT_PET = LabelSpace(OXFORD_IIIT_PET_CLASSES, OXFORD_IIIT_PET_PALETTE, void=3, ids=(1, 2))
