"""Nuclei in microscopy (2 classes, images up to 360 px) with EfficientNet-Lite0, on a laptop.

Command:
    python -m training.train --recipe nuclei_lite0 --data FOLDER --output runs/nuclei
FOLDER is described in docs/datasets/nuclei.md.

Memory: 2.9 GiB (`--dry-run`). Time: 31 minutes on 2 cores of an Intel Xeon (AVX-512, AMX; beside
other work).
Measured: 92.05 % mIoU on val and 90.0 % boundary F-score within 2 pixels (91.42 and 88.5 with
`--aggregation bilinear --context none`), docs/models.md.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    crop_size=(256, 256),
    batch_size=4,
    epochs=40,
    learning_rate=1e-3,
    warmup_epochs=1.0,
    decay_norms_and_biases=False,
    ema=0.998,
    class_weights="sqrt_inverse",
    validate_every=5,
)
