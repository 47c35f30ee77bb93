"""Cityscapes with ResNet-101, the schedule of the official code.

Command:
    python -m training.train --recipe cityscapes_r101 --data FOLDER --output runs/r101 \
        --backbone-weights resnet101_deep_stem.pth
where FOLDER has the folder form with the 19 classes as ids 0..18 and 255. 120,000 steps of batch 8
on 2975 pictures are 323 epochs.
Expected time: not worked out. Measured: not measured here; the authors report 80.3 % mIoU on val.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    backbone="resnet101",
    backbone_weights="imagenet",
    channels=256,
    crop_size=(872, 872),
    scale=(0.7, 2.1),
    color=0.0,
    batch_size=8,
    epochs=323,
    optimizer="sgd",
    learning_rate=1e-2,
    poly_power=0.9,
    momentum=0.9,
    weight_decay=5e-4,
    loss="cross_entropy",
    auxiliary_weight=0.1,
    validate_every=10,
)
