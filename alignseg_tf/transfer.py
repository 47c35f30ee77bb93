"""Start from a trained model of another task: weights that fit are kept, the rest is new."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignseg_tf.model import AlignSeg


@dataclass(frozen=True)
class Transfer:
    """The blocks of the models after `transfer_weights`, by name.

    Attributes:
        kept: blocks with all values from the source.
        new: blocks with values that did not change, and the number of these values.
        unused: blocks of the source without a place in the target.
    """

    kept: tuple[str, ...]
    new: Mapping[str, int]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        new = ", ".join(f"{name} ({count} values)" for name, count in self.new.items())
        text = f"kept: {', '.join(self.kept) or 'nothing'}; new: {new or 'nothing'}"
        return text + (f"; left out: {', '.join(self.unused)}" if self.unused else "")


def transfer_weights(source: AlignSeg, target: AlignSeg) -> Transfer:
    """Copy the weights of a model into another one, to fine-tune it on other classes.

    A weight is copied if the target has one of the same name and shape. The classifiers, the last
    layers of the heads, are copied only if both models have the same classes.

    Raises:
        ValueError: the backbone does not fit, or the pixels are normalised differently. The target
            is then unchanged.
    """
    if source.normalization != target.normalization:
        raise ValueError(
            "Both models must normalise pixels alike. "
            f"Received: {source.normalization} and {target.normalization}"
        )
    values = {weight.path: weight for weight in source.weights}
    names = [model.label_space and model.label_space["classes"] for model in (source, target)]
    same_classes = source.num_classes == target.num_classes and (
        None in names or names[0] == names[1]
    )
    in_backbone = {weight.path for weight in target.backbone.weights}

    def block(path: str) -> str:
        return "backbone" if path in in_backbone else path.partition("/")[0]

    copies: list[tuple[Any, Any]] = []
    new: dict[str, int] = {}
    for weight in target.weights:
        value = values.get(weight.path)
        fits = value is not None and value.shape == weight.shape
        if fits and (same_classes or "/classifier/" not in weight.path):
            copies.append((weight, value))
        else:
            new[block(weight.path)] = new.get(block(weight.path), 0) + math.prod(weight.shape)
    if "backbone" in new or len(source.backbone.weights) != len(in_backbone):
        raise ValueError(
            "Both models must have the same backbone. Received: one of "
            f"{source.backbone.count_params()} and one of {target.backbone.count_params()} "
            f"parameters; {new.get('backbone', 0)} of the latter have no counterpart"
        )
    for weight, value in copies:
        weight.assign(value)
    used = {weight.path for weight, _ in copies}
    blocks = {block(path) for path in used}
    left = {path.partition("/")[0] for path in values if path not in used}
    return Transfer(
        kept=tuple(sorted(blocks - set(new))),
        new=dict(sorted(new.items())),
        unused=tuple(sorted(left - blocks - set(new))),
    )
