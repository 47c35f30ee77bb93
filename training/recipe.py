"""What a training run is made of, as plain values that the command line can override."""

import argparse
import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any

from training import recipes


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
    channels: int = _option(64, "width of the decoder")
    aggregation: str = _option(
        "align", "how maps are fused", ("align", "align_coarse", "align_fine", "bilinear")
    )
    context: str = _option("align", "how context enters", ("align", "global", "none"))
    crop_size: tuple[int, int] = _option((352, 480), "height and width of a crop, in pixels")
    scale: tuple[float, float] = _option((0.5, 2.0), "range of the random resizing")
    color: float = _option(0.3, "strength of the colour augmentation, 0 for none")
    batch_size: int = _option(4, "crops in a batch, over all devices")
    epochs: int = _option(24, "passes over the training pictures")
    small_crop_epochs: int = _option(
        0, "so many of the first epochs use crops of half the area, which is faster"
    )
    optimizer: str = _option("adamw", "optimizer", ("adamw", "sgd"))
    learning_rate: float = _option(1e-3, "at the start; decays to 0")
    poly_power: float = _option(0.9, "power of the decay (1 - step / steps) ** power")
    momentum: float = _option(0.9, "of sgd")
    weight_decay: float = _option(1e-4, "decoupled for adamw; an L2 penalty for sgd")
    loss: str = _option(
        "cross_entropy",
        "loss of the segmentation head",
        ("cross_entropy", "ohem", "cross_entropy+lovasz"),
    )
    class_weights: str = _option(
        "none", "weights of the classes in cross-entropy, from their frequency",
        ("none", "sqrt_inverse"),
    )  # fmt: skip
    auxiliary_weight: float = _option(0.4, "weight of the auxiliary loss; 0 leaves its head out")
    dtype_policy: str = _option(
        "float32", "precision of the layers", ("float32", "mixed_bfloat16", "mixed_float16")
    )
    validate_every: int = _option(1, "epochs between two validations")
    seed: int = _option(0, "of initial weights, order and augmentation")

    def __post_init__(self) -> None:
        positive = ("channels", "batch_size", "epochs", "learning_rate", "poly_power")
        for name in (*positive, "validate_every"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"{name} must be positive. Received: {getattr(self, name)}")
        for name in ("weight_decay", "auxiliary_weight", "small_crop_epochs"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must not be negative. Received: {getattr(self, name)}")
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value not in choices:
                raise RecipeError(f"{option.name} must be one of {choices}. Received: {value!r}")
        if self.channels % 4:
            raise RecipeError(f"channels must be a multiple of 4. Received: {self.channels}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise RecipeError(f"scale must be 0 < low <= high. Received: {self.scale}")
        for name in ("color", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} must be in [0, 1). Received: {getattr(self, name)}")
        if min(self.crop_size) < 64:
            raise RecipeError(f"crop_size must be at least 64 x 64. Received: {self.crop_size}")


def recipe_names() -> list[str]:
    """Return the names of the recipe files."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def load_recipe(name: str) -> Recipe:
    """Return the `RECIPE` of a recipe file.

    Raises:
        RecipeError: there is no such recipe.
    """
    if name not in recipe_names():
        raise RecipeError(f"no recipe {name!r}; there are: {', '.join(recipe_names())}")
    return importlib.import_module(f"training.recipes.{name}").RECIPE


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe` and one option for each of its values."""
    parser.add_argument(
        "--recipe", default="own_data", help=f"one of {', '.join(recipe_names())} (%(default)s)"
    )
    group = parser.add_argument_group(
        "values of the recipe that are to be overridden",
        "What stands in brackets holds unless the recipe says otherwise.",
    )
    for option in dataclasses.fields(Recipe):
        default: Any = option.default
        kind = type(default)
        group.add_argument(
            "--" + option.name.replace("_", "-"),
            dest=option.name,
            type=type(default[0]) if kind is tuple else kind,
            nargs=len(default) if kind is tuple else None,
            choices=option.metadata["choices"],
            metavar=None if option.metadata["choices"] else _metavar(default),
            help=f"{option.metadata['help']} [{_shown(default)}]",
        )


def _metavar(default: Any) -> str | tuple[str, ...]:
    if isinstance(default, tuple):
        return tuple(type(value).__name__.upper() for value in default)
    return type(default).__name__.upper()


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def recipe_from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Return the named recipe with the overrides of the command line."""
    recipe = load_recipe(arguments.recipe)
    overrides: dict[str, Any] = {}
    for option in dataclasses.fields(Recipe):
        value = getattr(arguments, option.name)
        if value is not None:
            overrides[option.name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(recipe, **overrides)
