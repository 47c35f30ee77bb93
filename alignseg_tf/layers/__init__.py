"""The layers of AlignSeg and the sampling functions under them, in pure `keras.ops`."""

from alignseg_tf.inference.layers import (
    ActivatedSum,
    AdaptivePooling,
    ContextSampling,
    MovedSum,
    Resizing,
    Sampling,
)
from alignseg_tf.layers.aligned_context_modeling import AlignedContextModeling
from alignseg_tf.layers.aligned_feature_aggregation import AlignedFeatureAggregation
from alignseg_tf.layers.batch_normalization import BatchNormalization
from alignseg_tf.layers.conv_blocks import ConvNormAct, ResidualRefinement, SegmentationHead
from alignseg_tf.layers.depthwise_conv2d import DepthwiseConv2D
from alignseg_tf.layers.flat_leaky_relu import FlatLeakyReLU
from alignseg_tf.layers.offset_prediction import OffsetPrediction
from alignseg_tf.layers.pixel_normalization import PixelNormalization
from alignseg_tf.layers.sampling import (
    SAMPLING_CONVENTIONS,
    ResizeLike,
    adaptive_average_pool,
    bilinear_sample,
    resize_align_corners,
)

__all__ = [
    "SAMPLING_CONVENTIONS",
    "ActivatedSum",
    "AdaptivePooling",
    "AlignedContextModeling",
    "AlignedFeatureAggregation",
    "BatchNormalization",
    "ContextSampling",
    "ConvNormAct",
    "DepthwiseConv2D",
    "FlatLeakyReLU",
    "MovedSum",
    "OffsetPrediction",
    "PixelNormalization",
    "ResidualRefinement",
    "ResizeLike",
    "Resizing",
    "Sampling",
    "SegmentationHead",
    "adaptive_average_pool",
    "bilinear_sample",
    "resize_align_corners",
]
