"""The research side of AlignSeg: recipes, and the scripts that train, evaluate and demonstrate."""
