"""Labels, and logits brought to label size in bands of rows.

Shape legend
    B      batch
    H, W   height and width of the labels, in pixels
    h, w   height and width of the logits, in cells
    R      rows of a band, in pixels
    C      classes

Logits at label size are never in memory as a whole: they are interpolated along their height, then
band by band along their width. The interpolation aligns corners, as `resize_align_corners`. On
TensorFlow, XLA compiles the work on a band for each size, so sizes must be known.
"""

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from alignseg_tf.layers.sampling import AlignedAxis, resize_align_corners
from alignseg_tf.layers.tensorflow_kernels import compiled

Tensor = Any
# Logits of a band, of each image: 4 MiB of float32.
BAND_VALUES = 2**20
IgnoreClass = int | Sequence[int] | None


class _Bands:
    """The rows of resized logits in bands of one height; the last two may share rows.

    Args:
        logits: float32 [B, h, w, C] of known h, w and C.
        size: H and W.
        rows: R, at most H.
    """

    def __init__(self, logits: Tensor, size: tuple[int, int], rows: int):
        self.axes = AlignedAxis(size[0], logits.shape[1]), AlignedAxis(size[1], logits.shape[2])
        self.batch, self.height, self.rows = ops.shape(logits)[0], size[0], rows
        self.high = self.axes[0].resized(logits, 1)

    def each(self, step: Callable[[Any, Any], Any], results: Any) -> Any:
        """Carry results from band to band: results = step(first row, results)."""

        def of_band(number: Tensor, results: Any) -> Any:
            return step(ops.minimum(number * self.rows, self.height - self.rows), results)

        return ops.fori_loop(0, -(-self.height // self.rows), of_band, results)

    def of(self, x: Tensor, first: Tensor) -> Tensor:
        """Return the rows of a band of a map [B, H, ...]."""
        rest = tuple(x.shape[2:])
        return ops.slice(x, (0, first, *[0] * len(rest)), (self.batch, self.rows, *rest))

    @staticmethod
    def put(x: Tensor, first: Tensor, rows: Tensor) -> Tensor:
        """Return a map [B, H, ...] with the rows of a band."""
        return ops.slice_update(x, (0, first, *[0] * (len(x.shape) - 2)), rows)

    def resized(self, first: Tensor) -> Tensor:
        """Return the logits of a band's pixels, [B, R, W, C]."""
        return self.axes[1].resized(self.of(self.high, first), 2)


def can_go_in_bands(logits: Tensor, ids: Tensor) -> bool:
    """Say whether logits [B, h, w, C] and ids [B, H, W] are of sizes that are known and differ."""
    sizes = tuple(logits.shape[1:3]), tuple(ids.shape[1:])
    return len(logits.shape) == 4 and None not in sizes[0] + sizes[1] and sizes[0] != sizes[1]


def _rows_of_band(size: tuple[int, int], classes: int) -> int:
    height, width = size
    return max(1, min(height, BAND_VALUES // (width * classes)))


def classes_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the likeliest class of each pixel.

    Args:
        logits: floating [B, h, w, C] of known h, w and C. No gradient flows to them.
        size: H and W.

    Returns:
        int32 [B, H, W].
    """
    logits = ops.cast(ops.stop_gradient(logits), "float32")
    return _classes_in_bands(logits, size, _rows_of_band(size, logits.shape[-1]))


@compiled
def _classes_in_bands(logits: Tensor, size: tuple[int, int], rows: int) -> Tensor:
    bands = _Bands(logits, size, rows)

    def step(first: Tensor, ids: Tensor) -> Tensor:
        chosen = ops.argmax(bands.resized(first), axis=-1)
        return bands.put(ids, first, ops.cast(chosen, "int32"))

    return bands.each(step, ops.zeros((bands.batch, *size), "int32"))


def cross_entropy_sum(
    logits: Tensor,
    ids: Tensor,
    weights: Tensor,
    smoothing: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the weighted sum of the cross-entropies of all pixels.

    With p = softmax of a pixel's resized logits and y its id, it sums w * -log p[y], plus
    s * sum over c of v[c] * -log p[c] where labels are smoothed. Gradients flow only to the
    logits. In bands the same pass computes the gradient, so nothing of [B, H, W, C] is kept, and
    there is no second derivative.

    Args:
        logits: floating [B, h, w, C]. In bands they must be finite.
        ids: int32 [B, H, W]; ids that are no class need w and s of 0.
        weights: w, float32 [B, H, W].
        smoothing: s, float32 [B, H, W], and v, float32 [C].

    Returns:
        A float32 scalar.
    """
    in_bands = can_go_in_bands(logits, ids)
    ids = ops.clip(ids, 0, logits.shape[-1] - 1)
    return (_sum_in_bands if in_bands else _sum_at_once)(logits, ids, weights, smoothing)


def _sum_at_once(
    logits: Tensor, ids: Tensor, weights: Tensor, smoothing: tuple[Tensor, Tensor] | None
) -> Tensor:
    logits = logits_at_label_size(logits, ids)

    def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
        return ops.sum(ops.where(weights > 0, values, 0.0) * weights)  # also if a logit is -inf

    total = weighted_sum(
        ops.sparse_categorical_crossentropy(ids, logits, from_logits=True), weights
    )
    if smoothing is not None:
        # Logits against their log-sum-exp need no second map of [B, H, W, C].
        share, of_class = smoothing
        of_classes = ops.squeeze(ops.matmul(logits, ops.expand_dims(of_class, 1)), axis=-1)
        of_classes = ops.sum(of_class) * ops.logsumexp(logits, axis=-1) - of_classes
        total = total + weighted_sum(of_classes, share)
    return total


def _sum_in_bands(
    logits: Tensor, ids: Tensor, weights: Tensor, smoothing: tuple[Tensor, Tensor] | None
) -> Tensor:
    rows = _rows_of_band(tuple(ids.shape[1:]), logits.shape[-1])

    @ops.custom_gradient
    def total(logits: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        # Else TensorFlow would look for the gradient of the loop.
        fixed = ops.stop_gradient(logits), ids, ops.stop_gradient(weights)
        value, gradient = _sum_and_gradient(*fixed, smoothing, rows)

        def backward(*args: Tensor, upstream: Tensor | None = None) -> Tensor:
            return gradient * (args[-1] if upstream is None else upstream)

        return value, backward

    return total(ops.cast(logits, "float32"))


@compiled
def _sum_and_gradient(
    logits: Tensor,
    ids: Tensor,
    weights: Tensor,
    smoothing: tuple[Tensor, Tensor] | None,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Return the sum of `cross_entropy_sum` and its gradient [B, h, w, C]."""
    bands = _Bands(logits, tuple(ids.shape[1:]), rows)
    classes = ops.arange(logits.shape[-1], dtype="int32")

    def step(first: Tensor, results: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = bands.resized(first)
        truth = ops.expand_dims(bands.of(ids, first), -1) == classes
        weight = ops.expand_dims(bands.of(weights, first), -1)
        x = x - ops.max(x, axis=-1, keepdims=True)
        powers = ops.exp(x)
        partition = ops.sum(powers, axis=-1, keepdims=True)
        # Cross-entropies are times (log partition - x), whose gradient is times (p - truth).
        times, all_times = ops.where(truth, weight, 0.0), weight
        if smoothing is not None:
            share, of_class = ops.expand_dims(bands.of(smoothing[0], first), -1), smoothing[1]
            times, all_times = times + share * of_class, weight + share * ops.sum(of_class)
        terms = ops.sum(times * (ops.log(partition) - x), axis=-1)
        gradient = bands.axes[1].to_cells(powers * (all_times / partition) - times, 2)
        values, gradients = results
        return bands.put(values, first, terms), bands.put(gradients, first, gradient)

    start = ops.zeros_like(weights), ops.zeros_like(bands.high)
    values, gradients = bands.each(step, start)
    return ops.sum(values), bands.axes[0].to_cells(gradients, 1)


def ignored_ids(ignore_class: IgnoreClass) -> tuple[int, ...]:
    """Return the ignored ids as a tuple."""
    if ignore_class is None:
        return ()
    return tuple(ignore_class) if isinstance(ignore_class, Sequence) else (ignore_class,)


def label_ids(y_true: Tensor) -> Tensor:
    """Return labels [B, H, W] or [B, H, W, 1] as int32 ids [B, H, W].

    Raises:
        ValueError: the labels have another shape, as one-hot masks do.
    """
    shape = tuple(y_true.shape)
    if len(shape) == 4 and shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    elif len(shape) != 3:
        raise ValueError(
            "`y_true` must hold class ids, shape [B, H, W] or [B, H, W, 1] (take the argmax of a "
            f"one-hot mask). Received: shape {shape}"
        )
    return ops.cast(y_true, "int32")


def logits_at_label_size(y_pred: Tensor, ids: Tensor) -> Tensor:
    """Return logits [B, h, w, C] as float32 [B, H, W, C], resized to `ids` [B, H, W] if need be.

    The resize is bilinear and aligns corners: the centres of the outer cells meet the centres of
    the outer pixels.
    """
    if len(y_pred.shape) != 4:
        raise ValueError(
            "`y_pred` must be logits, shape [B, h, w, classes]. "
            f"Received: shape {tuple(y_pred.shape)}"
        )
    return resize_align_corners(ops.cast(y_pred, "float32"), tuple(ops.shape(ids)[1:3]))


def is_ignored(ids: Tensor, ignore_class: IgnoreClass) -> Tensor:
    """Return a boolean mask in the shape of `ids`: where the id is an ignored one."""
    mask = ops.zeros_like(ids, dtype="bool")
    for ignored in ignored_ids(ignore_class):
        mask = ops.logical_or(mask, ids == ignored)
    return mask


def is_class(ids: Tensor, num_classes: int) -> Tensor:
    """Return a boolean mask in the shape of `ids`: where the id is one of 0 .. num_classes-1."""
    return ops.logical_and(ids >= 0, ids < num_classes)
