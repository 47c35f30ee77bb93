"""Cityscapes with ResNet-101, the schedule of the official code.

Command:
    python -m training.train --recipe cityscapes_r101 --data FOLDER --output runs/r101 \
        --backbone-weights resnet101-imagenet.pth
FOLDER holds `leftImg8bit/` and `gtFine/` (docs/datasets/cityscapes.md). 120,000 steps of batch 8 on
2975 images are 323 epochs. docs/fidelity.md says what differs from the official recipe.

Estimated (docs/training.md): 46 GB and 22 h on one GPU; 7 GB each and 3 h on eight.
Not measured here; the authors report 80.3 % mIoU on val, one scale.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    backbone="resnet101",
    backbone_weights="imagenet",
    channels=256,
    crop_size=(872, 872),
    scale=(0.7, 2.1),
    scale_distribution="tenths",
    placement="top_left",
    color=0.0,
    batch_size=8,
    epochs=323,
    optimizer="sgd",
    learning_rate=1e-2,
    schedule="poly",
    poly_power=0.9,
    momentum=0.9,
    weight_decay=5e-4,
    loss="cross_entropy",
    auxiliary_weight=0.1,
    validate_every=10,
)
