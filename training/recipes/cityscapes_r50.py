"""Cityscapes with ResNet-50, otherwise as `cityscapes_r101`.

Command:
    python -m training.train --recipe cityscapes_r50 --data FOLDER --output runs/r50 \
        --backbone-weights resnet50_deep_stem.pth

Memory: about 41 GB on one GPU, 6 GB on each of eight. Time: 19 h on one GPU, 3 h on eight
(both worked out, see docs/training.md).
Measured: not measured here; no published figure of AlignSeg with this backbone is known to us.
"""

import dataclasses

from training.recipes import cityscapes_r101

RECIPE = dataclasses.replace(cityscapes_r101.RECIPE, backbone="resnet50")
