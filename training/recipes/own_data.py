"""A folder of one's own pictures, on a laptop.

Command:
    python -m training.train --data FOLDER --output runs/mine
Measured: see camvid_lite0 and nuclei in the README.
"""

from training.recipe import Recipe

RECIPE = Recipe(class_weights="sqrt_inverse")
