"""A training run as plain values, which the command line can override."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class RecipeError(ValueError):
    """A value of a recipe is out of its range."""


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Values of a training run; the defaults train EfficientNet-Lite0 on a small machine."""

    backbone: str = _option(
        "efficientnet_lite0", "network under the decoder", ("efficientnet_lite0", "resnet50",
                                                            "resnet101")
    )  # fmt: skip
    backbone_weights: str = _option(
        "imagenet",
        "'imagenet' (efficientnet_lite0 only), 'none', or a file of official ResNet weights",
    )
    start_from: str = _option(
        "", "a .keras model to fine-tune, whatever its classes; replaces --backbone-weights"
    )
    channels: int = _option(64, "width of the decoder")
    aggregation: str = _option(
        "align", "fusion of feature maps", ("align", "align_coarse", "align_fine", "bilinear")
    )
    context: str = _option("align", "pooled context", ("align", "global", "none"))

    train_on: str = _option(
        "train", "splits to train on; 'train+val' for a model to be given out, whose validation "
        "figures then say nothing of new images", ("train", "train+val"),
    )  # fmt: skip
    crop_size: tuple[int, int] = _option((352, 480), "height and width of a crop, in pixels")
    scale: tuple[float, float] = _option((0.5, 2.0), "range of the random resizing")
    scale_distribution: str = _option(
        "log_uniform", "distribution of the factor in it", ("log_uniform", "uniform", "tenths")
    )
    placement: str = _option(
        "random", "position of an image smaller than the crop", ("random", "top_left")
    )
    max_class_share: float = _option(
        1.0, "share of a crop that one class may fill; others are drawn again, ten times at most"
    )
    color: float = _option(0.3, "strength of the colour augmentation, 0 for none")
    photometric: bool = _option(
        False, "photometric distortion as in mmsegmentation, in place of --color"
    )
    rare_classes: float = _option(
        0.0, "temperature of rare class sampling, 0 for none; 0.01 to 1, smaller is stronger"
    )
    batch_size: int = _option(4, "crops in a batch, over all devices")
    accumulate: int = _option(1, "batches whose gradients are averaged for one update")
    epochs: int = _option(24, "passes over the training images")
    small_crop_epochs: int = _option(
        0, "number of first epochs with crops of half the area, which are faster"
    )

    optimizer: str = _option("adamw", "optimizer", ("adamw", "sgd"))
    learning_rate: float = _option(1e-3, "the largest; decays to 0")
    schedule: str = _option("poly", "decay of the learning rate", ("poly", "cosine"))
    warmup_epochs: float = _option(0.0, "epochs in which it rises from 0")
    poly_power: float = _option(0.9, "power of the decay (1 - step / steps) ** power")
    backbone_rate: float = _option(1.0, "factor of the learning rate in the backbone")
    head_rate: float = _option(1.0, "factor of the learning rate in the heads")
    momentum: float = _option(0.9, "of sgd")
    weight_decay: float = _option(1e-4, "decoupled for adamw; an L2 penalty for sgd")
    decay_norms_and_biases: bool = _option(True, "weight decay on batch norms and biases too")
    clip_norm: float = _option(0.0, "longest gradient over all variables, 0 for no limit")
    ema: float = _option(
        0.0, "momentum of the averaged weights that are validated and kept; 0 for none"
    )
    freeze_batch_norm: bool = _option(False, "freeze the backbone's batch norms")

    loss: str = _option(
        "cross_entropy",
        "loss of the segmentation head",
        ("cross_entropy", "ohem", "boundary", "cross_entropy+lovasz", "cross_entropy+dice"),
    )
    class_weights: str = _option(
        "none", "weights of the classes in cross-entropy, from their frequency",
        ("none", "sqrt_inverse"),
    )  # fmt: skip
    label_smoothing: float = _option(0.0, "share of the target spread over all classes")
    auxiliary_weight: float = _option(0.4, "weight of the auxiliary loss; 0 leaves its head out")

    dtype_policy: str = _option(
        "float32", "precision of the layers", ("float32", "mixed_bfloat16", "mixed_float16")
    )
    xla: bool = _option(False, "compile the training step with XLA")
    validate_every: int = _option(1, "epochs between two validations")
    seed: int = _option(0, "of initial weights, order and augmentation")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value not in choices:
                raise RecipeError(f"{option.name} must be one of {choices}. Received: {value!r}")
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
                raise RecipeError(f"{option.name} must be finite. Received: {value}")
        for expected, (holds, names) in RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                if not holds(value):
                    raise RecipeError(f"{name} must be {expected}. Received: {value}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise RecipeError(
                f"warmup_epochs must be less than the {self.epochs} epochs. "
                f"Received: {self.warmup_epochs}"
            )


# Ranges of options: what to expect, the condition, the names.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "positive": (
        lambda x: x > 0,
        "channels batch_size accumulate epochs learning_rate poly_power validate_every head_rate",
    ),
    "at least 0": (
        lambda x: x >= 0,
        "weight_decay auxiliary_weight small_crop_epochs backbone_rate clip_norm rare_classes",
    ),
    "in [0, 1)": (lambda x: 0 <= x < 1, "color momentum ema label_smoothing"),
    "in (0, 1]": (lambda x: 0 < x <= 1, "max_class_share"),
    "a multiple of 4": (lambda x: x % 4 == 0, "channels"),
    "0 < low <= high": (lambda x: 0 < x[0] <= x[1], "scale"),
    "at least 64 x 64": (lambda x: min(x) >= 64, "crop_size"),
}


def with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recorded run with the defaults of options that it lacks.

    The default of an option must be what was done before the option existed.
    """
    defaults: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(Recipe())))
    return defaults | recorded
