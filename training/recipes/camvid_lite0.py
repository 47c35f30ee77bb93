"""CamVid (11 classes, 480x360) with EfficientNet-Lite0, on a laptop.

Command:
    python -m training.train --recipe camvid_lite0 --data FOLDER --output runs/camvid
FOLDER has any of the forms of docs/datasets/camvid.md.

Memory: 4.2 GiB (`--dry-run`). Time: 1.8 minutes an epoch on 2 cores of an AMD EPYC.
Measured: not measured here in full; 12 epochs of `own_data` reached 67.35 % mIoU on val.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    crop_size=(352, 480),
    batch_size=4,
    epochs=60,
    learning_rate=1e-3,
    warmup_epochs=1.0,
    decay_norms_and_biases=False,
    ema=0.998,
    class_weights="sqrt_inverse",
    validate_every=5,
)
