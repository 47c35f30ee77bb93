"""Cityscapes with EfficientNet-Lite0: 5.4 M parameters, ImageNet weights come with the package.

Command:
    python -m training.train --recipe cityscapes_lite0 --data FOLDER --output runs/lite0

Estimated (docs/training.md): 15 GB and 5 h on one GPU; 3 GB each and 40 minutes on eight.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    channels=128,
    crop_size=(768, 768),
    scale=(0.5, 2.0),
    batch_size=8,
    epochs=160,
    learning_rate=1e-3,
    warmup_epochs=1.0,
    weight_decay=1e-4,
    decay_norms_and_biases=False,
    ema=0.999,
    class_weights="sqrt_inverse",
    validate_every=10,
)
