"""ADE20K SceneParsing (150 classes) with ResNet-50 and mmsegmentation's usual augmentation.

Command:
    python -m training.train --recipe ade20k_r50 --data ADEChallengeData2016 --output runs/ade_r50 \
        --backbone-weights resnet50-imagenet.pth
The official code has no recipe for ADE20K; this is the field's usual one: 160,000 steps of batch
16, crops of 512, on 20,210 images 127 epochs.

Estimated (docs/training.md): 30 GB and 17 h on one GPU; 5 GB each and 2.5 h on eight.
"""

from training.recipe import Recipe

RECIPE = Recipe(
    backbone="resnet50",
    backbone_weights="imagenet",
    channels=256,
    crop_size=(512, 512),
    scale=(0.5, 2.0),
    scale_distribution="uniform",
    placement="top_left",
    max_class_share=0.75,
    photometric=True,
    batch_size=16,
    epochs=127,
    optimizer="sgd",
    learning_rate=1e-2,
    poly_power=0.9,
    momentum=0.9,
    weight_decay=5e-4,
    auxiliary_weight=0.4,
    validate_every=8,
)
