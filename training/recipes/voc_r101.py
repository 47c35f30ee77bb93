"""PASCAL VOC 2012, trainaug, with ResNet-101 and mmsegmentation's usual augmentation.

Command:
    python -m training.train --recipe voc_r101 --data VOCdevkit/VOC2012 --output runs/voc \
        --backbone-weights resnet101-imagenet.pth
40,000 steps of batch 16 on the 10,582 images of trainaug (docs/datasets/pascal_voc.md) are 61
epochs.

Estimated (docs/training.md): 33 GB and 5 h on one GPU; 5 GB each and 45 minutes on eight.
"""

import dataclasses

from training.recipes import ade20k_r50

RECIPE = dataclasses.replace(ade20k_r50.RECIPE, backbone="resnet101", epochs=61, validate_every=5)
