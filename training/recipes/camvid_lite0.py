"""CamVid (11 classes, 480x360) with EfficientNet-Lite0, on a laptop.

Command:
    python -m training.train --recipe camvid_lite0 --data FOLDER --output runs/camvid
FOLDER has any of the forms of docs/datasets/camvid.md.

Memory: 3.3 GiB (`--dry-run`). Time: 90 minutes on 2 cores of an AMD EPYC (AVX-512, bfloat16).
Measured: 79.02 % mIoU on val at `--scales 1.5`, 79.19 % at `--scales 1.25 1.5 1.75 --flip`, before
packing (docs/models.md). A step took 0.79 s, and 1.03 s with `--dtype-policy float32`, for
processors without AVX512_BF16.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    crop_size=(352, 480),
    # Above 1 on the whole: the model is to be used at 1.5 times the size of the images, where
    # poles and signs are wider than a cell of stride 4.
    scale=(0.75, 2.5),
    color=0.4,
    rare_classes=0.5,
    batch_size=4,
    epochs=70,
    learning_rate=1e-3,
    warmup_epochs=1.0,
    weight_decay=0.01,
    decay_norms_and_biases=False,
    ema=0.998,
    loss="cross_entropy+dice",
    class_weights="sqrt_inverse",
    dtype_policy="mixed_bfloat16",
    validate_every=5,
)
