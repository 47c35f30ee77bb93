"""Backbones: Keras models that give a feature pyramid."""
