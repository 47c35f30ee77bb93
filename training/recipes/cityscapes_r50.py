"""Cityscapes with ResNet-50, otherwise as `cityscapes_r101`.

Command:
    python -m training.train --recipe cityscapes_r50 --data FOLDER --output runs/r50 \
        --backbone-weights resnet50-imagenet.pth

Estimated (docs/training.md): 41 GB and 19 h on one GPU; 6 GB each and 3 h on eight.
Not measured here; we know of no published figure of AlignSeg with this backbone.
"""

import dataclasses

from training.recipes import cityscapes_r101

RECIPE = dataclasses.replace(cityscapes_r101.RECIPE, backbone="resnet50")
