"""Backbones: Keras models that give a feature pyramid."""

from alignseg_tf.backbones.efficientnet_lite import efficientnet_lite0
from alignseg_tf.backbones.feature_pyramid import (
    PYRAMID_STRIDES,
    feature_pyramid,
    pixel_normalization,
    pyramid_layers,
    rescales_pixels,
)
from alignseg_tf.backbones.resnet import resnet, resnet50, resnet101

__all__ = [
    "PYRAMID_STRIDES",
    "efficientnet_lite0",
    "feature_pyramid",
    "pixel_normalization",
    "pyramid_layers",
    "rescales_pixels",
    "resnet",
    "resnet50",
    "resnet101",
]
