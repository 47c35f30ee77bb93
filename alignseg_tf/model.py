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
# Arguments of the constructor that the config holds unchanged.
CONFIG_KEYS = (
    "num_classes", "channels", "aggregation", "context", "sampling", "auxiliary_head",
    "upsample_logits", "normalization", "pyramid", "label_space", "name", "trainable",
)  # fmt: skip


@keras.saving.register_keras_serializable(package="alignseg_tf")
class AlignSeg(keras.Model):
    """Feature-aligned semantic segmentation network.

    Args:
        backbone: a functional model with a feature pyramid of strides 4, 8, 16, 32, from
            `alignseg_tf.backbones`, keras-cv, keras-hub or elsewhere.
        num_classes: number of classes.
        channels: width of the decoder, a multiple of 4.
        aggregation: how two maps are fused: `align` (AlignFA), `align_coarse` or `align_fine`
            (one of its two offsets), `bilinear` (the baseline).
        context: how global context enters: `align` (AlignCM), `global` (pooled to 1x1 and
            broadcast) or `None`.
        sampling: unit of the offsets, see `layers.bilinear_sample`.
        auxiliary_head: add a second head on the map fused from strides 4, 8, 16.
        upsample_logits: return logits at image size, otherwise at stride 4. The losses and
            metrics of this library take both.
        normalization: a dict with `mean`, `std` (0..255) and `channel_order` (`rgb` or `bgr`, also
            that of mean and std), `None`, or `backbone` for `backbone.pixel_normalization`.
        pyramid: names of the backbone's layers, `{"P2": ..., "P3": ..., "P4": ..., "P5": ...}`,
            for a backbone that does not name them.
        label_space: names and colours of the classes, `{"classes": [...], "palette": [...]}`, from
            `LabelSpace.to_dict`. It is saved with the model and does not change its output.
        dtype: dtype policy of the decoder's layers, the global one by default. Logits and
            coordinates are float32 under any policy.

    Shape:
        [B, H, W, 3], RGB pixels 0..255, H and W dynamic and at least 32 -> a dict of float32
        logits, `segmentation` and, with the auxiliary head, `auxiliary`: [B, H, W, num_classes], or
        at stride 4.

    Raises:
        ValueError: an argument is out of range, the backbone has no pyramid, or it rescales
            pixels and `normalization` is a dict.

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
        _check_classes(num_classes, label_space)
        pyramid = backbones.pyramid_layers(backbone, pyramid)
        features = backbones.feature_pyramid(backbone, pyramid)
        normalization = _normalization(backbone, normalization)

        # Layers
        def refine(x: Tensor, name: str) -> Tensor:
            return ResidualRefinement(channels, dtype=dtype, name=f"refinement_{name}")(x)

        def aggregate(fine: Tensor, coarse: Tensor, name: str) -> Tensor:
            names = {"dtype": dtype, "name": f"aggregation_{name}"}
            return AlignedFeatureAggregation(aggregation, sampling, **names)(fine, coarse)

        def head(x: Tensor, name: str) -> Tensor:
            logits = SegmentationHead(num_classes, channels, dtype=dtype, name=f"{name}_head")(x)
            if upsample_logits:
                return ResizeLike(dtype="float32", name=name)(logits, images)
            return keras.layers.Activation("linear", dtype="float32", name=name)(logits)

        # Functional model
        images = keras.Input((None, None, 3), name="images")
        p2, p3, p4, p5 = features(_normalized(images, normalization))
        d1 = refine(p2, "p2")
        d2 = refine(aggregate(d1, refine(p3, "p3"), "p3"), "d2")
        d3 = refine(aggregate(d2, refine(p4, "p4"), "p4"), "d3")
        d4 = refine(aggregate(d3, refine(p5, "p5"), "p5"), "d4")
        context_modeling = AlignedContextModeling(
            channels, context, sampling, dtype=dtype, name="context_modeling"
        )
        d5 = refine(aggregate(d4, refine(context_modeling(p5), "context"), "context"), "d5")
        outputs = {"segmentation": head(d5, "segmentation")}
        if auxiliary_head:
            outputs["auxiliary"] = head(d3, "auxiliary")
        super().__init__(inputs=images, outputs=outputs, name=name, **kwargs)

        # Config
        if dtype is not None:
            self.dtype_policy = dtype  # `compile` scales the loss where it is mixed_float16
        self.backbone, self.pyramid, self.decoder_dtype = features, pyramid, dtype
        self.num_classes, self.channels = num_classes, channels
        self.aggregation, self.context, self.sampling = aggregation, context, sampling
        self.auxiliary_head, self.upsample_logits = auxiliary_head, upsample_logits
        self.normalization, self.label_space = normalization, label_space and dict(label_space)

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
        """Return the arguments of the constructor and the paths of the frozen layers."""
        dtype = self.decoder_dtype
        if dtype is not None and not isinstance(dtype, str):
            dtype = keras.saving.serialize_keras_object(dtype)
        layers = nested_layers(self)
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            **{key: _untracked(getattr(self, key)) for key in CONFIG_KEYS},
            "dtype": dtype,
            # The decoder's layers are made anew and would forget it.
            "frozen_layers": [x.path for x in layers if x.weights and not x.trainable],
        }

    @classmethod
    def from_pretrained(cls, name: str) -> "AlignSeg":
        """Return a trained model that comes with the package.

        `NAME.about.md` next to the file gives its training data, terms of use and quality.
        `transfer.transfer_weights`, or `--start-from NAME` in training, fine-tunes it on other
        classes.

        Args:
            name: one of `pretrained.pretrained_names()`, for instance `camvid_lite0`.

        Raises:
            ValueError: `name` is unknown.

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


def _check_classes(num_classes: int, label_space: Mapping[str, Any] | None) -> None:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(
            f"`num_classes` must be a positive int. Received: num_classes={num_classes!r}"
        )
    if label_space is not None and len(label_space["classes"]) != num_classes:
        raise ValueError(
            f"`label_space` must name {num_classes} classes. "
            f"Received: {len(label_space['classes'])} names"
        )


def _normalization(
    backbone: keras.Model, normalization: str | Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the arguments of `PixelNormalization` for a backbone; None to leave it out."""
    if normalization == "backbone":
        normalization = backbones.pixel_normalization(backbone)
    elif normalization is not None and backbones.rescales_pixels(backbone):
        raise ValueError(
            f"The backbone {backbone.name!r} rescales pixels itself, so `normalization` must be "
            f"None or 'backbone'. Received: normalization={normalization!r}"
        )
    if normalization is None:
        return None
    keys = {"mean", "std", "channel_order"}
    if not isinstance(normalization, Mapping) or not {"mean"} <= set(normalization) <= keys:
        raise ValueError(
            "`normalization` must be None, 'backbone' or a dict with the key 'mean' and "
            f"optionally 'std' and 'channel_order'. Received: normalization={normalization!r}"
        )
    return PixelNormalization(**normalization).normalization()


def _normalized(images: Tensor, normalization: Mapping[str, Any] | None) -> Tensor:
    if normalization is None:
        return images
    return PixelNormalization(**normalization, dtype="float32", name="normalization")(images)


def _untracked(value: Any) -> Any:
    """Return plain dicts and lists. A deep copy of those that Keras tracks copies the model."""
    if isinstance(value, Mapping):
        return {key: _untracked(item) for key, item in value.items()}
    return [_untracked(item) for item in value] if isinstance(value, list | tuple) else value


def freeze_batch_norm(model: keras.Model) -> None:
    """Freeze the statistics, gamma and beta of every batch norm of a model.

    Call it before `compile`. A saved AlignSeg keeps its frozen layers.
    """
    for layer in nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
