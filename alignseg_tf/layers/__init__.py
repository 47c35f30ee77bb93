"""The layers of AlignSeg and the sampling functions under them, in pure `keras.ops`."""

from alignseg_tf.layers.aligned_context_modeling import AlignedContextModeling
from alignseg_tf.layers.aligned_feature_aggregation import AlignedFeatureAggregation
from alignseg_tf.layers.conv_blocks import ConvNormAct, ResidualRefinement, SegmentationHead
from alignseg_tf.layers.offset_prediction import OffsetPrediction
from alignseg_tf.layers.pixel_normalization import PixelNormalization
from alignseg_tf.layers.sampling import (
    SAMPLING_CONVENTIONS,
    ResizeLike,
    adaptive_average_pool,
    bilinear_sample,
    resize_align_corners,
)
from alignseg_tf.layers.tensorflow_kernels import BatchNormalization, DepthwiseConv2D

__all__ = [
    "SAMPLING_CONVENTIONS",
    "AlignedContextModeling",
    "AlignedFeatureAggregation",
    "BatchNormalization",
    "ConvNormAct",
    "DepthwiseConv2D",
    "OffsetPrediction",
    "PixelNormalization",
    "ResidualRefinement",
    "ResizeLike",
    "SegmentationHead",
    "adaptive_average_pool",
    "bilinear_sample",
    "resize_align_corners",
]
