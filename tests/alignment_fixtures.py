"""Traces and models of the alignment tests."""

import functools

import numpy as np
from conftest import random_images, tiny_model

from alignseg_tf.analysis.alignment import AggregationTrace, AlignmentTrace, ContextTrace

MODES = {
    "align": ["coarse", "fine"],
    "align_coarse": ["coarse"],
    "align_fine": ["fine"],
    "bilinear": [],
}
STEPS = [f"aggregation_{place}" for place in ("p3", "p4", "p5", "context")]


@functools.cache
def model_of(aggregation="align", context="align", **kwargs):
    """A tiny model, made once, whose context offsets, too, lead to places inside of the map."""
    model = tiny_model(aggregation=aggregation, context=context, **kwargs)
    for weight in model.trainable_weights:
        if "context_modeling" in weight.path and "field_" in weight.path:
            weight.assign(0.1 * weight)
    return model


def hand_made(size=(40, 60), maps=(11, 16), moved=("coarse", "fine"), channels=4) -> AlignmentTrace:
    """A trace of nothing that was run: fields that point to the right, down, ..."""
    rng = np.random.default_rng(0)
    steps = []
    for number, name in enumerate(STEPS):
        angle = number * np.pi / 2
        field = np.full((*maps, 2), (np.cos(angle), np.sin(angle)), np.float32)
        before = {m: rng.normal(size=(*maps, channels)).astype("float32") for m in MODES["align"]}
        after = {m: np.roll(x, 1, 1) if m in moved else x for m, x in before.items()}
        fields = {m: (number + 1) * field.copy() for m in moved}
        mode = next(mode for mode, names in MODES.items() if names == list(moved))
        steps.append(AggregationTrace(name, mode, fields, before, after))
    y, x = np.meshgrid(np.linspace(0, 2, 4), np.linspace(0, 2, 5), indexing="ij")
    regular = np.stack([x, y], -1).astype("float32")
    context = ContextTrace("context_modeling", 0 * regular, regular[:, ::-1].copy(), regular)
    image = random_images(1, *size)[0]
    return AlignmentTrace(image, tuple(steps), context)
