"""State dicts of the official structure."""

import functools

import numpy as np

from alignseg_tf import AlignSeg, backbones
from alignseg_tf.official_weights import _model_slots


@functools.cache
def _tensors(channels, classes, width, blocks):
    model = AlignSeg(backbones.resnet(blocks, width=width), classes, channels=channels)
    rng = np.random.default_rng(0)
    tensors = {}
    for slot in _model_slots(model):
        shape = list(slot.variable.shape)
        if len(shape) == 4:
            inputs = shape[2] * (2 if slot.combine.__name__.endswith("_half") else 1)
            shape = [shape[3] // len(slot.names), inputs, *shape[:2]]
        else:
            shape = [shape[0] // len(slot.names)]
        for name in slot.names:
            tensors.setdefault(name, rng.normal(0, 0.3, shape).astype("float32"))
    for name in tensors:
        if name.endswith("running_var"):
            tensors[name] = np.abs(tensors[name]) + 0.5
    return tensors


def official_state_dict(channels=8, classes=3, width=8, blocks=(1, 1, 1, 1)):
    """A state dict of a narrow network of the official structure, made from its own slots."""
    return dict(_tensors(channels, classes, width, blocks))
