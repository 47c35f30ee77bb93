"""Fuse a coarse map into a fine one, both sampled where they belong."""

from typing import Any

import keras
from keras import ops

from alignseg_tf.layers.offset_prediction import OffsetPrediction
from alignseg_tf.layers.sampling import SAMPLING_CONVENTIONS, bilinear_sample, resize_align_corners
from alignseg_tf.layers.tensorflow_kernels import bilinear_sample_in_training
from alignseg_tf.system.choices import check_choice

Tensor = Any
Shape = tuple[int | None, ...]

# The maps that each mode moves, in the order of the offset fields.
MOVED_MAPS = {
    "align": ("coarse", "fine"),
    "align_coarse": ("coarse",),
    "align_fine": ("fine",),
    "bilinear": (),
}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class AlignedFeatureAggregation(keras.layers.Layer):
    """Add a coarse map to a fine one after moving each cell of both to where it belongs.

    The coarse map is resized to the fine one's size (aligned corners); an offset field per map
    is predicted from both; both maps are sampled at their offsets and added.

    Args:
        mode: `align` moves both maps; `align_coarse` and `align_fine` one of the two;
            `bilinear` none: plain resizing and adding, the baseline.
        sampling: unit of the offsets, see `bilinear_sample`.

    Shape:
        `fine`: [B, H, W, C]; `coarse`: [B, h, w, C] -> [B, H, W, C].

    Raises:
        ValueError: an unknown `mode` or `sampling`, or maps of different channels.

    Example:
        >>> layer = AlignedFeatureAggregation()
        >>> tuple(layer(ops.ones((1, 16, 24, 8)), ops.ones((1, 8, 12, 8))).shape)
        (1, 16, 24, 8)

    Reference:
        AlignSeg, section 3.2 (AlignFA); "CAB" in the official code.
    """

    def __init__(self, mode: str = "align", sampling: str = "standard", **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("mode", mode, MOVED_MAPS)
        check_choice("sampling", sampling, SAMPLING_CONVENTIONS)
        self.mode = mode
        self.sampling = sampling
        self.offset_prediction = None
        if MOVED_MAPS[mode]:
            self.offset_prediction = OffsetPrediction(
                len(MOVED_MAPS[mode]), dtype=self.dtype_policy, name="offset_prediction"
            )

    def build(self, fine_shape: Shape, coarse_shape: Shape) -> None:
        """Create the offset branches; their width is the inputs' number of channels."""
        if fine_shape[-1] != coarse_shape[-1]:
            raise ValueError(
                "The fine and the coarse map must have the same number of channels. "
                f"Received: fine shape {tuple(fine_shape)}, coarse shape {tuple(coarse_shape)}"
            )
        if self.offset_prediction is not None:
            self.offset_prediction.build(fine_shape, coarse_shape)

    def offsets(
        self, fine: Tensor, coarse: Tensor, training: bool | None = None
    ) -> dict[str, Tensor]:
        """Return the offset fields [B, H, W, 2] of the maps that are moved: coarse, fine."""
        if self.offset_prediction is None:
            return {}
        fields = self.offset_prediction(fine, coarse, training=training)
        return dict(zip(MOVED_MAPS[self.mode], fields, strict=True))

    def call(self, fine: Tensor, coarse: Tensor, training: bool | None = None) -> Tensor:
        """Return the sum of both maps, aligned."""
        offsets = self.offsets(fine, coarse, training=training)
        sample = bilinear_sample_in_training if training else bilinear_sample
        coarse = resize_align_corners(coarse, ops.shape(fine)[1:3])
        if "coarse" in offsets:
            coarse = sample(coarse, offsets["coarse"], self.sampling)
        if "fine" in offsets:
            fine = sample(fine, offsets["fine"], self.sampling)
        return fine + coarse

    def compute_output_shape(self, fine_shape: Shape, coarse_shape: Shape) -> Shape:
        return tuple(fine_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mode": self.mode, "sampling": self.sampling}
