"""AlignSeg: the whole graph on one screen."""

import copy
from collections.abc import Mapping
from typing import Any

import keras

from alignseg_tf import backbones, pretrained
from alignseg_tf.layers import (
    AlignedContextModeling,
    AlignedFeatureAggregation,
    PixelNormalization,
    ResidualRefinement,
    ResizeLike,
    SegmentationHead,
)
from alignseg_tf.layers.nested import nested_layers

Tensor = Any

# The coarsest map has stride 32: a smaller side would leave it empty.
MIN_IMAGE_SIZE = 32


@keras.saving.register_keras_serializable(package="alignseg_tf")
class AlignSeg(keras.Model):
    """Feature-aligned semantic segmentation network.

    Args:
        backbone: a Keras model with a feature pyramid of strides 4, 8, 16, 32, for instance from
            `alignseg_tf.backbones`, keras-cv or keras-hub.
        num_classes: channels of the logits.
        channels: width of the decoder, a multiple of 4.
        aggregation: how maps are fused: `align` (AlignFA), `align_coarse` or `align_fine` (one
            of its two offsets), `bilinear` (the baseline).
        context: how global context enters: `align` (AlignCM), `global` (pooled to 1x1 and
            broadcast), `None` (not at all).
        sampling: unit of the offsets, see `layers.bilinear_sample`; `standard` unless weights
            were trained under another one.
        auxiliary_head: whether there is a second head, on the map fused from strides 4, 8, 16.
        upsample_logits: logits at the size of the image; otherwise at stride 4, which the losses
            and metrics of this library resize by themselves.
        normalization: what happens to the pixels first: a dict with `mean`, `std` (in 0..255)
            and `channel_order` (`rgb`, `bgr`; mean and std are given in that order), `None` for
            nothing, or `backbone` for what the backbone's weights were trained with
            (`backbone.pixel_normalization`; nothing where it has none).
        pyramid: names of the backbone's layers, `{"P2": ..., "P3": ..., "P4": ..., "P5": ...}`,
            for a backbone that does not tell them.
        label_space: names and colours of the classes, `{"classes": [...], "palette": [...]}`,
            saved with the model for those who read its output; without influence on it.
            `LabelSpace.to_dict` makes one.
        name: the model's name.
        dtype: dtype policy of every layer of the decoder, the global one by default. Logits are
            float32 and coordinates are computed in float32 under any policy.

    Input shape:
        [B, H, W, 3], RGB pixels 0..255, H and W dynamic, at least 32.

    Output shape:
        A dict of float32 logits: `segmentation` and, with the auxiliary head, `auxiliary`, each
        [B, H, W, num_classes], or at stride 4 if `upsample_logits` is off.

    Raises:
        ValueError: an argument out of its range, a backbone without a pyramid, or a
            normalization for a backbone that rescales pixels by itself.

    Example:
        >>> from alignseg_tf import AlignSeg, backbones
        >>> model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=8), num_classes=7, channels=16)
        >>> tuple(model(keras.ops.ones((1, 64, 96, 3)))["segmentation"].shape)
        (1, 64, 96, 7)

    Reference:
        AlignSeg: Feature-Aligned Segmentation Networks, arXiv 2003.00872, figure 2.
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        channels: int = 256,
        aggregation: str = "align",
        context: str | None = "align",
        sampling: str = "standard",
        auxiliary_head: bool = True,
        upsample_logits: bool = True,
        normalization: str | Mapping[str, Any] | None = "backbone",
        pyramid: Mapping[str, str] | None = None,
        label_space: Mapping[str, Any] | None = None,
        name: str | None = "alignseg",
        dtype: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(
                f"`num_classes` must be a positive int. Received: num_classes={num_classes!r}"
            )
        if label_space is not None and len(label_space["classes"]) != num_classes:
            raise ValueError(
                f"`label_space` must name {num_classes} classes. "
                f"Received: {len(label_space['classes'])} names"
            )
        pyramid = backbones.pyramid_layers(backbone, pyramid)
        features = backbones.feature_pyramid(backbone, pyramid)
        if isinstance(normalization, str):
            if normalization != "backbone":
                raise ValueError(
                    "`normalization` must be 'backbone', None or a dict. "
                    f"Received: normalization={normalization!r}"
                )
            normalization = backbones.pixel_normalization(backbone)
        elif normalization is not None and backbones.rescales_pixels(backbone):
            raise ValueError(
                f"The backbone {backbone.name!r} rescales pixels by itself, so `normalization` "
                f"must be None or 'backbone'. Received: normalization={normalization!r}"
            )

        def refine(x: Tensor, name: str) -> Tensor:
            return ResidualRefinement(channels, dtype=dtype, name=name)(x)

        def aggregate(fine: Tensor, coarse: Tensor, name: str) -> Tensor:
            layer = AlignedFeatureAggregation(aggregation, sampling, dtype=dtype, name=name)
            return layer(fine, coarse)

        images = keras.Input((None, None, 3), name="images")
        pixels = images
        if normalization is not None:
            normalize = PixelNormalization.from_normalization(
                normalization, dtype="float32", name="normalization"
            )
            pixels, normalization = normalize(images), normalize.normalization()
        p2, p3, p4, p5 = features(pixels)
        d1 = refine(p2, "refinement_p2")
        d2 = refine(aggregate(d1, refine(p3, "refinement_p3"), "aggregation_p3"), "refinement_d2")
        d3 = refine(aggregate(d2, refine(p4, "refinement_p4"), "aggregation_p4"), "refinement_d3")
        d4 = refine(aggregate(d3, refine(p5, "refinement_p5"), "aggregation_p5"), "refinement_d4")
        pooled = AlignedContextModeling(
            channels, context, sampling, dtype=dtype, name="context_modeling"
        )(p5)
        pooled = refine(pooled, "refinement_context")
        d5 = refine(aggregate(d4, pooled, "aggregation_context"), "refinement_d5")

        outputs = {
            "segmentation": SegmentationHead(
                num_classes, channels, dtype=dtype, name="segmentation_head"
            )(d5)
        }
        if auxiliary_head:
            outputs["auxiliary"] = SegmentationHead(
                num_classes, channels, dtype=dtype, name="auxiliary_head"
            )(d3)
        for key, logits in outputs.items():
            if upsample_logits:
                outputs[key] = ResizeLike(dtype="float32", name=key)(logits, images)
            else:
                outputs[key] = keras.layers.Activation("linear", dtype="float32", name=key)(logits)

        super().__init__(inputs=images, outputs=outputs, name=name, **kwargs)
        if dtype is not None:
            self.dtype_policy = dtype  # `compile` scales the loss where it is mixed_float16
        self.backbone = features
        self.num_classes = num_classes
        self.channels = channels
        self.aggregation = aggregation
        self.context = context
        self.sampling = sampling
        self.auxiliary_head = auxiliary_head
        self.upsample_logits = upsample_logits
        self.normalization = normalization
        self.pyramid = dict(pyramid)
        self.label_space = None if label_space is None else dict(label_space)
        self.decoder_dtype = dtype

    def call(self, inputs: Tensor, training: bool | None = None, mask: Any = None) -> Any:
        """Return the dict of logits; refuse an image smaller than the coarsest stride."""
        for side in inputs.shape[1:3]:
            if isinstance(side, int) and side < MIN_IMAGE_SIZE:
                raise ValueError(
                    f"AlignSeg needs images of at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} "
                    f"pixels. Received: shape {tuple(inputs.shape)}"
                )
        return super().call(inputs, training=training, mask=mask)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, the backbone as a config of its own."""
        dtype = self.decoder_dtype
        if dtype is not None and not isinstance(dtype, str):
            dtype = keras.saving.serialize_keras_object(dtype)
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "aggregation": self.aggregation,
            "context": self.context,
            "sampling": self.sampling,
            "auxiliary_head": self.auxiliary_head,
            "upsample_logits": self.upsample_logits,
            "normalization": _untracked(self.normalization),
            "pyramid": _untracked(self.pyramid),
            "label_space": _untracked(self.label_space),
            "name": self.name,
            "dtype": dtype,
            "trainable": self.trainable,
            # The decoder's layers are made anew and would forget it.
            "frozen_layers": [
                layer.path for layer in nested_layers(self) if layer.weights and not layer.trainable
            ],
        }

    @classmethod
    def from_pretrained(cls, name: str) -> "AlignSeg":
        """Return a trained model that comes with the package.

        `NAME.about.md` beside the file, `pretrained.pretrained_file(NAME)`, says what it was
        trained on, under which terms it may be used, and how good it is.
        `transfer.transfer_weights`, or `--start-from NAME` in training, makes it the start of a
        model with other classes.

        Args:
            name: one of `pretrained.pretrained_names()`, for instance `camvid_lite0`.

        Raises:
            ValueError: there is no such model.

        Example:
            >>> from alignseg_tf import AlignSeg
            >>> AlignSeg.from_pretrained("camvid_lite0").num_classes
            11
        """
        model: AlignSeg = keras.saving.load_model(pretrained.pretrained_file(name), compile=False)
        return model

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "AlignSeg":
        """Rebuild a model from `get_config`."""
        config = copy.deepcopy(config)  # Keras empties the nested configs that it reads
        frozen_layers = config.pop("frozen_layers", ())
        for key in ("backbone", "dtype"):
            if isinstance(config[key], dict):
                config[key] = keras.saving.deserialize_keras_object(
                    config[key], custom_objects=custom_objects
                )
        model = cls(**config)
        for layer in nested_layers(model):
            if layer.path in frozen_layers:
                layer.trainable = False
        return model


def _untracked(value: Any) -> Any:
    """Return plain dicts and lists. A deep copy of those that Keras tracks copies the model."""
    if isinstance(value, Mapping):
        return {key: _untracked(item) for key, item in value.items()}
    return [_untracked(item) for item in value] if isinstance(value, list | tuple) else value


def freeze_batch_norm(model: keras.Model) -> None:
    """Make every batch norm of a model use its stored statistics in training too.

    Neither these nor gamma and beta change any more. To be called before `compile`; a saved
    AlignSeg remembers it. `layer.trainable = True` for each of them undoes it.
    """
    for layer in nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
