"""Segmentation losses on class ids and logits, in pure `keras.ops`.

Every loss takes class ids `y_true` [B, H, W] or [B, H, W, 1] (integers, or floats that hold them)
and logits `y_pred` [B, h, w, C] of any floating dtype, resized to [B, H, W, C] where they differ.
It computes in float32 and averages over the valid pixels of the batch: those whose id is in
0 .. C-1 and not ignored. Other pixels change neither the value nor the gradient. A batch without a
valid pixel gives 0. Under data parallel training each replica averages over its own valid pixels,
and Keras averages the replicas.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from alignseg_tf.logits_and_labels import (
    IgnoreClass,
    cross_entropy_sum,
    is_class,
    is_ignored,
    label_ids,
    logits_at_label_size,
)

Tensor = Any


def _pixel_weights(valid: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Return the sample weights of pixels, float32 [B, H, W]; 0 where not `valid`."""
    weights = ops.cast(valid, "float32")
    if sample_weight is None:
        return weights
    shape = tuple(sample_weight.shape)
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        sample_weight = ops.reshape(sample_weight, (-1, 1, 1))
    elif len(shape) == 4 and shape[-1] == 1:
        sample_weight = ops.squeeze(sample_weight, axis=-1)
    elif len(shape) not in (0, 3):
        raise ValueError(
            f"`sample_weight` must be a scalar, [B] or [B, H, W]. Received: shape {shape}"
        )
    return weights * sample_weight


class _SegmentationLoss(keras.losses.Loss):
    """The base of the losses: ids, logits at label size, sample weights within the mean."""

    # Under `tf.distribute` Keras divides a loss by the number of replicas if it is no scalar.
    shape: tuple[int, ...] = (1,)
    default_name: str | None = None
    config_keys: tuple[str, ...] = ("ignore_class",)

    def __init__(self, ignore_class: IgnoreClass = 255, name: str | None = None) -> None:
        # Ids pass through the loss dtype on their way in, and half floats would round them.
        super().__init__(
            name=name or self.default_name, reduction="sum_over_batch_size", dtype="float32"
        )
        self.ignore_class = ignore_class

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        # Keras would multiply the finished mean by the sample weights. They belong inside it,
        # so they travel with the labels.
        y_true = ops.convert_to_tensor(y_true)
        return super().__call__(
            y_true if sample_weight is None else (y_true, sample_weight), y_pred
        )

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, sample_weight = y_true if isinstance(y_true, tuple) else (y_true, None)
        return ops.reshape(self.loss_of_cells(label_ids(y_true), y_pred, sample_weight), self.shape)

    def loss_of_cells(self, ids: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the loss of ids [B, H, W] and logits [B, h, w, C]: one value."""
        return self.loss_of_pixels(ids, logits_at_label_size(logits, ids), sample_weight)

    def loss_of_pixels(self, ids: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the loss of ids [B, H, W] and float32 logits [B, H, W, C]: one value."""
        raise NotImplementedError

    def valid(self, ids: Tensor, classes: int) -> Tensor:
        """Return which ids are a class and not ignored, boolean [B, H, W]."""
        ignored = is_ignored(ids, self.ignore_class)
        return ops.logical_and(is_class(ids, classes), ops.logical_not(ignored))

    def get_config(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("name", *self.config_keys)}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class CrossEntropy(_SegmentationLoss):
    """Cross-entropy, averaged over the valid pixels of the batch.

    With weights w it is sum(w * cross-entropy) / sum(w), as
    `torch.nn.functional.cross_entropy(weight=..., ignore_index=..., label_smoothing=...)`. A
    pixel's w is its class weight times its sample weight, so equal sample weights change nothing.

    Label smoothing e replaces a pixel's term by (1 - e) times itself plus e times its sample
    weight times the mean over all classes c of class weight c times the cross-entropy for c. The
    divisor stays.

    Args:
        ignore_class: ignored id or ids, within or outside the classes; None for none.
        class_weights: one weight a class; None for 1.
        label_smoothing: share of the target spread evenly over all classes, 0 .. 1.

    Example:
        >>> import numpy as np
        >>> loss = CrossEntropy(ignore_class=255)
        >>> labels = np.array([[[0, 255]]])
        >>> logits = np.array([[[[0.0, 0.0], [9.0, 3.0]]]], "float32")
        >>> round(float(loss(labels, logits)), 4)
        0.6931
    """

    config_keys: tuple[str, ...] = ("ignore_class", "class_weights", "label_smoothing")

    def __init__(
        self,
        ignore_class: IgnoreClass = 255,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name: str | None = "cross_entropy",
    ) -> None:
        super().__init__(ignore_class, name)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"`label_smoothing` must be in 0 .. 1. Received: label_smoothing={label_smoothing}"
            )
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing

    def weights_of_pixels(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Return the weights of pixels before class and sample weights, float32 [B, H, W]."""
        return ops.cast(valid, "float32")

    def loss_of_cells(self, ids: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the weighted mean cross-entropy, a scalar."""
        classes = logits.shape[-1]
        valid = self.valid(ids, classes)
        weights = self.weights_of_pixels(ids, valid) * _pixel_weights(valid, sample_weight)
        class_weights = self._class_weights(classes)
        weighted = weights * ops.take(class_weights, ops.clip(ids, 0, classes - 1), axis=0)
        total = ops.sum(weighted)
        total = ops.where(total > 0, total, math.inf)  # the loss is 0 without weights
        smoothing = None
        if self.label_smoothing:
            smoothing = self.label_smoothing / classes * weights / total, class_weights
        weighted = (1.0 - self.label_smoothing) * weighted / total
        return cross_entropy_sum(logits, ids, weighted, smoothing)

    def _class_weights(self, classes: int) -> Tensor:
        weights = self.class_weights
        if weights is None:
            return ops.ones((classes,), "float32")
        if len(weights) != classes:
            raise ValueError(
                f"`class_weights` must hold one weight for each of the {classes} classes. "
                f"Received: {len(weights)} weights"
            )
        return ops.convert_to_tensor(weights, dtype="float32")


@keras.saving.register_keras_serializable(package="alignseg_tf")
class BoundaryCrossEntropy(CrossEntropy):
    """Cross-entropy that weighs pixels near a boundary between classes.

    A valid pixel is near a boundary if a valid pixel of another class lies in the square of side
    2 * radius + 1 around it. It weighs `boundary_weight`, other valid pixels 1, before class and
    sample weights. Ignored pixels make no boundary.

    Args:
        radius: largest distance to another class along both axes, in pixels of the labels, >= 1.
        boundary_weight: weight of a pixel near a boundary, >= 0.
        ignore_class: ignored id or ids; None for none.
        class_weights: one weight a class; None for 1.
        label_smoothing: as in `CrossEntropy`.

    Example:
        >>> import numpy as np
        >>> loss = BoundaryCrossEntropy(radius=1, boundary_weight=3.0)
        >>> labels = np.array([[[0, 0, 1]]])  # the first pixel is two away from the other class
        >>> logits = np.array([[[[9.0, 9.0], [99.0, 0.0], [0.0, 99.0]]]], "float32")
        >>> round(float(loss(labels, logits)), 4)  # log(2) / (1 + 3 + 3)
        0.099

    Reference:
        Weight maps that grow towards borders: Ronneberger et al., "U-Net", MICCAI 2015, equation
        2. Here the weight is a step, which needs two poolings and no distance transform.
    """

    config_keys = (*CrossEntropy.config_keys, "radius", "boundary_weight")

    def __init__(
        self,
        radius: int = 3,
        boundary_weight: float = 3.0,
        ignore_class: IgnoreClass = 255,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name: str | None = "boundary_cross_entropy",
    ) -> None:
        super().__init__(ignore_class, class_weights, label_smoothing, name=name)
        if radius < 1:
            raise ValueError(f"`radius` must be at least 1. Received: radius={radius}")
        if boundary_weight < 0:
            raise ValueError(
                "`boundary_weight` must not be negative. "
                f"Received: boundary_weight={boundary_weight}"
            )
        self.radius = radius
        self.boundary_weight = boundary_weight

    def weights_of_pixels(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Return the boundary weight of each pixel, float32 [B, H, W]; 0 where not valid."""
        near = near_boundary(ids, valid, self.radius)
        return ops.cast(valid, "float32") * ops.where(near, self.boundary_weight, 1.0)


def near_boundary(ids: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Return which pixels have a valid pixel of another class within `radius` along both axes.

    Args:
        ids: int32 [B, H, W].
        valid: boolean [B, H, W], the pixels whose ids count.
        radius: in pixels, at least 0.

    Returns:
        Boolean [B, H, W], undefined where not `valid`.
    """
    values = ops.cast(ids, "float32")
    # The largest valid id of the square, and the largest negated one.
    both = ops.where(
        ops.expand_dims(valid, -1), ops.stack([values, -values], axis=-1), -float("inf")
    )
    for pool in ((1, 2 * radius + 1), (2 * radius + 1, 1)):
        both = ops.max_pool(both, pool, 1, padding="same", data_format="channels_last")
    return ops.logical_or(both[..., 0] > values, both[..., 1] > -values)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class OhemCrossEntropy(_SegmentationLoss):
    """Cross-entropy averaged over the hard pixels (online hard example mining).

    A valid pixel is kept when the probability of its class is <= max(threshold, p), where p is
    the `min_kept`-th smallest such probability of the batch. With fewer valid pixels, all are
    kept. Sample weights weigh the kept pixels in the mean; a pixel of weight 0 is not valid.

    Args:
        threshold: probability up to which a pixel is always kept, 0 .. 1.
        min_kept: minimum number of kept pixels in a batch, at label size.
        ignore_class: ignored id or ids; None for none.

    Example:
        >>> import numpy as np
        >>> loss = OhemCrossEntropy(threshold=0.7, min_kept=1)
        >>> labels = np.array([[[0, 0]]])
        >>> logits = np.array([[[[0.0, 0.0], [9.0, 0.0]]]], "float32")  # probabilities 0.5, 0.9999
        >>> round(float(loss(labels, logits)), 4)
        0.6931

    Reference:
        Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example
        Mining", CVPR 2016.
    """

    config_keys = ("threshold", "min_kept", "ignore_class")

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        ignore_class: IgnoreClass = 255,
        name: str | None = "ohem_cross_entropy",
    ) -> None:
        super().__init__(ignore_class, name)
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be a probability. Received: threshold={threshold}")
        if min_kept < 1:
            raise ValueError(f"`min_kept` must be at least 1. Received: min_kept={min_kept}")
        self.threshold = threshold
        self.min_kept = min_kept

    def loss_of_pixels(self, ids: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the mean cross-entropy of the hard pixels, a scalar."""
        classes = logits.shape[-1]
        valid = self.valid(ids, classes)
        weights = ops.reshape(_pixel_weights(valid, sample_weight), (-1,))
        ids = ops.clip(ids, 0, classes - 1)
        loss = ops.sparse_categorical_crossentropy(ids, logits, from_logits=True)
        loss = ops.reshape(ops.where(valid, loss, 0.0), (-1,))  # also if a logit is -inf

        # Rank by cross-entropy, -log(probability). Invalid pixels come last; where one is the
        # k-th, every valid pixel is kept.
        hardness = ops.where(weights > 0, ops.stop_gradient(loss), -1.0)
        pixels = ops.shape(hardness)[0]
        minimum = min if isinstance(pixels, int) else ops.minimum
        k = minimum(self.min_kept, pixels)
        kth_hardest = ops.min(ops.top_k(hardness, k, sorted=False)[0])
        always_kept = -math.log(self.threshold) if self.threshold > 0 else math.inf
        kept = hardness >= ops.minimum(kth_hardest, always_kept)
        weights = weights * ops.cast(kept, "float32")
        total = ops.sum(weights)
        return ops.sum(loss * weights) / ops.where(total > 0, total, 1.0)


def _lovasz_weights(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the growth of one class's Jaccard loss as each pixel joins those of larger errors.

    Args:
        errors: float32 [N], |truth - probability|.
        truth: float32 [N], 1 for valid pixels of this class, else 0.
        valid: boolean [N].

    Returns:
        float32 [N]; 0 for invalid pixels, and for all pixels of an absent class.
    """
    # Largest error first. Invalid pixels come last, where no intersection is left to lose.
    order = ops.argsort(-ops.where(valid, errors, -1.0))
    truth = ops.take(truth, order, axis=0)
    missed = ops.cumsum(truth)
    total = ops.sum(truth)
    rank = ops.arange(1, ops.shape(errors)[0] + 1, dtype="float32")
    intersection = total - missed
    union = total + rank - missed
    # The difference of neighbours of 1 - intersection / union: a missed pixel takes one from the
    # intersection, a false alarm adds one to the union. Subtracting quotients that differ by 1e-6
    # would cancel most digits.
    growth = ops.where(
        truth > 0, 1.0 / ops.maximum(union, 1.0), intersection / union / ops.maximum(union - 1, 1.0)
    )
    return ops.scatter(ops.expand_dims(order, -1), growth, ops.shape(errors))


@keras.saving.register_keras_serializable(package="alignseg_tf")
class LovaszSoftmax(_SegmentationLoss):
    """Lovasz-softmax: a convex surrogate of 1 - IoU, averaged over the classes present.

    The batch counts as one image. Classes without a valid pixel in the labels are skipped.
    Sample weights are refused.

    Args:
        ignore_class: ignored id or ids; None for none.

    Example:
        >>> import numpy as np
        >>> loss = LovaszSoftmax(ignore_class=255)
        >>> labels = np.array([[[0, 0]]])
        >>> logits = np.array([[[[0.0, 0.0], [99.0, 0.0]]]], "float32")  # probabilities 0.5, 1
        >>> round(float(loss(labels, logits)), 4)
        0.25

    Reference:
        Berman et al., "The Lovasz-Softmax Loss", CVPR 2018.
    """

    default_name = "lovasz_softmax"

    def loss_of_pixels(self, ids: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the mean over present classes, a scalar."""
        if sample_weight is not None:
            raise ValueError(
                "The Lovasz loss ranks pixels and has no weighted form: it takes no "
                f"`sample_weight`. Received: sample_weight of shape {tuple(sample_weight.shape)}"
            )
        classes = logits.shape[-1]
        valid = ops.reshape(self.valid(ids, classes), (-1,))
        # Classes first, so that a class is one contiguous row.
        probabilities = ops.transpose(ops.reshape(ops.softmax(logits), (-1, classes)))
        class_ids = ops.expand_dims(ops.arange(classes, dtype="int32"), 1)
        truth = ops.logical_and(ops.reshape(ids, (1, -1)) == class_ids, valid)
        errors = ops.where(truth, 1.0 - probabilities, probabilities)
        # The weights depend only on the order of the errors, so they are the gradient. They are
        # computed class by class, because a sort needs several vectors of N.
        fixed_errors = ops.stop_gradient(errors)
        truth = ops.cast(truth, "float32")
        weights = ops.stack(
            [_lovasz_weights(fixed_errors[c], truth[c], valid) for c in range(classes)]
        )
        present = ops.sum(ops.cast(ops.any(truth > 0, axis=1), "float32"))
        return ops.sum(ops.stop_gradient(weights) * errors) / ops.maximum(present, 1.0)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class DiceLoss(_SegmentationLoss):
    """Soft Dice loss: 1 - Dice coefficient, averaged over the classes present.

    For one class, with probability p and truth t = 1 or 0 of each valid pixel of the batch, it is
    1 - 2 sum(p t) / (sum(p p) + sum(t t)). Classes without a valid pixel in the labels, or whose
    weights are all 0, are skipped. Sample weights weigh the terms of the three sums.

    Args:
        ignore_class: ignored id or ids; None for none.

    Example:
        >>> import numpy as np
        >>> loss = DiceLoss(ignore_class=255)
        >>> labels = np.array([[[0, 0]]])
        >>> logits = np.array([[[[0.0, 0.0], [99.0, 0.0]]]], "float32")  # probabilities 0.5, 1
        >>> round(float(loss(labels, logits)), 4)  # 1 - 2 * 1.5 / (1.25 + 2)
        0.0769

    Reference:
        Milletari et al., "V-Net", 3DV 2016, section 3, for each class instead of one foreground.
    """

    default_name = "dice_loss"

    def loss_of_pixels(self, ids: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the mean over present classes, a scalar."""
        classes = logits.shape[-1]
        weights = _pixel_weights(self.valid(ids, classes), sample_weight)
        weights = ops.reshape(weights, (1, -1))
        ids = ops.clip(ops.reshape(ids, (-1,)), 0, classes - 1)
        probabilities = ops.reshape(ops.softmax(logits), (-1, classes))
        truth = ops.expand_dims(ids, 1) == ops.arange(classes, dtype="int32")
        # Sums over the pixels as products with their weights.
        overlap = ops.matmul(weights, ops.where(truth, probabilities, 0.0))[0]
        squares = ops.matmul(weights, ops.square(probabilities))[0]
        size = ops.segment_sum(weights[0], ids, classes)
        present = size > 0
        dice = 2.0 * overlap / ops.where(present, squares + size, 1.0)
        count = ops.sum(ops.cast(present, "float32"))
        return ops.sum(ops.where(present, 1.0 - dice, 0.0)) / ops.maximum(count, 1.0)


@keras.saving.register_keras_serializable(package="alignseg_tf")
class CombinedLoss(_SegmentationLoss):
    """Weighted sum of losses on one output; the logits are resized once for all of them.

    Args:
        losses: losses of ids [B, H, W] and logits [B, H, W, C], from here or from Keras.
        weights: one factor a loss; None for 1.

    Example:
        >>> loss = CombinedLoss([CrossEntropy(), LovaszSoftmax()], weights=[1.0, 0.8])
    """

    shape = ()  # its losses are divided

    def __init__(
        self,
        losses: Sequence[keras.losses.Loss],
        weights: Sequence[float] | None = None,
        name: str | None = "combined_loss",
    ) -> None:
        super().__init__(None, name)
        if weights is not None and len(weights) != len(losses):
            raise ValueError(
                f"`weights` must hold one factor for each of the {len(losses)} losses. "
                f"Received: {len(weights)} weights"
            )
        self.losses = losses
        self.weights = weights

    def loss_of_pixels(self, ids: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the weighted sum of the losses, a scalar."""
        weights = [1.0] * len(self.losses) if self.weights is None else self.weights
        return sum(
            weight * loss(ids, logits, sample_weight)
            for weight, loss in zip(weights, self.losses, strict=True)
        )

    def get_config(self) -> dict[str, Any]:
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {"name": self.name, "losses": losses, "weights": self.weights}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the loss of a config."""
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})
