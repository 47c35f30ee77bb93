"""ADE20K SceneParsing (150 classes) with ResNet-101, otherwise as `ade20k_r50`.

Command:
    python -m training.train --recipe ade20k_r101 --data ADEChallengeData2016 \
        --output runs/ade_r101 --backbone-weights resnet101-imagenet.pth

Estimated (docs/training.md): 33 GB and 20 h on one GPU; 5 GB each and 3 h on eight.
Not measured here; the paper reports 45.95 % mIoU, with a schedule that is not published.
"""

import dataclasses

from training.recipes import ade20k_r50

RECIPE = dataclasses.replace(ade20k_r50.RECIPE, backbone="resnet101")
