"""Cityscapes with ResNet-101 and the official code's second loss, which adds 0.8 Lovasz-softmax.

Command:
    python -m training.train --recipe cityscapes_r101_lovasz --data FOLDER --output runs/lovasz \
        --backbone-weights resnet101-imagenet.pth
Data, memory and time as `cityscapes_r101`; the official code calls this loss `--ohem`.
Not measured here; the authors report 81.4 % mIoU on val, one scale.
"""

import dataclasses

from training.recipes import cityscapes_r101

RECIPE = dataclasses.replace(cityscapes_r101.RECIPE, loss="cross_entropy+lovasz")
