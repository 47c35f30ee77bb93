"""Give each pixel the part of a pooled global context that belongs to it."""

from typing import Any

import keras

from alignseg_tf.layers.conv_blocks import ConvNormAct
from alignseg_tf.layers.offset_prediction import OffsetPrediction
from alignseg_tf.layers.sampling import SAMPLING_CONVENTIONS, adaptive_average_pool, bilinear_sample
from alignseg_tf.layers.tensorflow_kernels import bilinear_sample_in_training
from alignseg_tf.system.choices import check_choice

Tensor = Any
Shape = tuple[int | None, ...]

CONTEXTS = ("align", "global", None)
CONTEXT_BINS = 3


@keras.saving.register_keras_serializable(package="alignseg_tf")
class AlignedContextModeling(keras.layers.Layer):
    """Add a pooled context to local features; each pixel chooses its cell of the context.

    The input is averaged over 3x3 windows and transformed to the context map; a local branch of
    the same form keeps the size. Offsets predicted from both sample the 3x3 context map around
    the regular grid, and the local branch is added.

    Args:
        filters: channels of the result.
        context: `align` as above; `global` broadcasts a context pooled to 1x1; `None` is only the
            local branch. The last two are baselines of the same width.
        sampling: unit of the offsets, see `bilinear_sample`.

    Shape:
        [B, H, W, any] -> [B, H, W, filters].

    Raises:
        ValueError: an unknown `context` or `sampling`.

    Example:
        >>> layer = AlignedContextModeling(filters=8)
        >>> tuple(layer(keras.ops.ones((1, 14, 19, 32))).shape)
        (1, 14, 19, 8)

    Reference:
        AlignSeg, section 3.3 (AlignCM); "CAM" in the official code.
    """

    def __init__(
        self,
        filters: int,
        context: str | None = "align",
        sampling: str = "standard",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("context", context, CONTEXTS)
        check_choice("sampling", sampling, SAMPLING_CONVENTIONS)
        self.filters = filters
        self.context = context
        self.sampling = sampling

    def build(self, input_shape: Shape) -> None:
        """Create the branches; their first convolution keeps the input's number of channels."""
        dtype = self.dtype_policy
        output_shape = self.compute_output_shape(input_shape)
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"The number of channels must be known. Received: {input_shape}")
        branches = ["local"] if self.context is None else ["local", "context"]
        for branch in branches:
            reduce = ConvNormAct(channels, 1, dtype=dtype, name=f"{branch}_transform")
            project = ConvNormAct(self.filters, 3, dtype=dtype, name=f"{branch}_projection")
            reduce.build(input_shape)
            project.build(input_shape)
            setattr(self, reduce.name, reduce)
            setattr(self, project.name, project)
        if self.context == "align":
            self.offset_prediction = OffsetPrediction(1, dtype=dtype, name="offset_prediction")
            self.offset_prediction.build(output_shape, output_shape)

    def branches(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the local features [B, H, W, filters] and the context map, if there is one.

        The context map is [B, 3, 3, filters] (`align`) or [B, 1, 1, filters] (`global`).
        """
        local = self.local_transform(x, training=training)
        local = self.local_projection(local, training=training)
        if self.context is None:
            return local, None
        pooled = adaptive_average_pool(x, CONTEXT_BINS if self.context == "align" else 1)
        context = self.context_transform(pooled, training=training)
        return local, self.context_projection(context, training=training)

    def offsets(self, local: Tensor, context: Tensor, training: bool | None = None) -> Tensor:
        """Return the offset field [B, H, W, 2] with which `local` reads `context`."""
        return self.offset_prediction(local, context, training=training)[0]

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        """Return local features plus the context that each pixel chose."""
        local, context = self.branches(x, training=training)
        if context is None:
            return local
        if self.context == "align":
            offsets = self.offsets(local, context, training=training)
            sample = bilinear_sample_in_training if training else bilinear_sample
            context = sample(context, offsets, self.sampling)
        return local + context

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "context": self.context,
            "sampling": self.sampling,
        }
