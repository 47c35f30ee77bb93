"""State dicts of the official structure."""

import numpy as np

from alignseg_tf import AlignSeg, backbones
from alignseg_tf import official_weights as checkpoints


def official_state_dict(channels=8, classes=3, width=8, seed=0):
    """A state dict of a narrow network of the official structure, made from its own slots."""
    model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=width), classes, channels=channels)
    slots = checkpoints._backbone_slots(model.backbone)
    for name, module in checkpoints.DECODER_MODULES.items():
        slots += checkpoints._layer_slots(model.get_layer(name), f"{module}.")
    rng = np.random.default_rng(seed)
    tensors = {}
    for slot in slots:
        shape = list(slot.variable.shape)
        if len(shape) == 4:
            inputs = shape[2] * (2 if slot.combine.__name__ in ("fine_half", "coarse_half") else 1)
            shape = [shape[3] // len(slot.names), inputs, *shape[:2]]
        else:
            shape = [shape[0] // len(slot.names)]
        for name in slot.names:
            tensors.setdefault(name, rng.normal(0, 0.3, shape).astype("float32"))
    for name in tensors:
        if name.endswith("running_var"):
            tensors[name] = np.abs(tensors[name]) + 0.5
    return tensors
