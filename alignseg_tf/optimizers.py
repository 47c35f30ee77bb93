"""Optimizers with learning rate factors and decay groups, and a warm-up.

In addition to Keras' optimizers, they

- multiply the learning rate of a variable by a factor chosen by its path;
- can skip weight decay of norms and biases. Both are saved, unlike Keras'
  `exclude_from_weight_decay`;
- average the weights (`use_ema`) once an update. `fit` does not overwrite the weights with it.

One update may take several steps (`gradient_accumulation_steps`). A learning rate schedule counts
steps, not updates, and no step whose gradients overflow under float16.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any

NORMS_AND_BIASES = ("gamma", "beta", "bias")


class _VariableGroups:
    """Mixin for a Keras optimizer: learning rate factors, decay groups and averages."""

    def __init__(
        self,
        *args: Any,
        learning_rate_factors: Mapping[str, float] | None = None,
        decay_norms_and_biases: bool = True,
        **kwargs: Any,
    ):
        for path, factor in (learning_rate_factors or {}).items():
            if factor < 0:
                raise ValueError(
                    f"`learning_rate_factors` must not be negative. Received: {factor} for {path!r}"
                )
        super().__init__(*args, **kwargs)
        self.learning_rate_factors = dict(learning_rate_factors or {})
        self.decay_norms_and_biases = decay_norms_and_biases

    def build(self: Any, variables: list[Any]) -> None:
        """Create the state for these variables and find their groups."""
        if self.built:
            return
        super().build(variables)  # type: ignore[misc]
        prefixes = [_prefix_of(variable.path, self.learning_rate_factors) for variable in variables]
        if self.learning_rate_factors and not any(prefixes):
            raise ValueError(
                "The keys of `learning_rate_factors` must be the first parts of variables' "
                f"paths, such as {variables[0].path!r}. "
                f"Received: {sorted(self.learning_rate_factors)}"
            )
        self._factors = [self.learning_rate_factors.get(prefix, 1.0) for prefix in prefixes]
        self._decays = [
            self.decay_norms_and_biases
            or not (len(variable.shape) < 2 or variable.name in NORMS_AND_BIASES)
            for variable in variables
        ]
        if self.use_ema:  # a variable without gradient is never averaged: it is its own average
            for variable, average in zip(
                variables, self._model_variables_moving_average, strict=True
            ):
                average.assign(ops.copy(variable))  # JAX refuses one buffer in two variables

    def update_step(self: Any, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        """Update one variable and its average."""
        index = self._get_variable_index(variable)
        learning_rate = ops.cast(learning_rate, variable.dtype) * self._factors[index]
        if self.weight_decay and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * (learning_rate * self.weight_decay))
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
        if self.use_ema:
            average = self._model_variables_moving_average[index]
            keep = ops.where(ops.equal(self.iterations, 0), 0.0, self.ema_momentum)
            keep = ops.cast(keep, variable.dtype)
            self.assign(average, keep * average + (1.0 - keep) * variable)

    def _use_weight_decay(self: Any, variable: Any) -> bool:
        spared = not self._decays[self._get_variable_index(variable)]
        return not spared and super()._use_weight_decay(variable)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        """Leave it to `update_step`, which knows the variable's learning rate."""

    def _update_model_variables_moving_average(self, trainable_variables: list[Any]) -> None:
        """Leave it to `update_step`: Keras calls this at every step, not at every update."""

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Keep the weights, which Keras would overwrite with their average after each `fit`."""

    def get_config(self: Any) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "learning_rate_factors": dict(self.learning_rate_factors),
            "decay_norms_and_biases": self.decay_norms_and_biases,
        }


def _prefix_of(path: str, prefixes: Mapping[str, float]) -> str:
    """Return the longest of the prefixes that fits whole parts of a path; "" where none does."""
    fitting = [p for p in prefixes if path == p or path.startswith(f"{p}/")]
    return max(fitting, key=len, default="")


@keras.saving.register_keras_serializable(package="alignseg_tf")
class AdamW(_VariableGroups, keras.optimizers.AdamW):
    """AdamW with learning rate factors and decay groups.

    A variable w with gradient g becomes w - r * weight_decay * w - r * adam(g), where r is the
    learning rate times the variable's factor.

    Args:
        args: of `keras.optimizers.AdamW`: learning_rate, weight_decay, ...
        learning_rate_factors: factor of the learning rate by path prefix, for instance `head` or
            `head/classifier`. The longest matching prefix counts; the default is 1. See
            `layer_factors`.
        decay_norms_and_biases: apply weight decay to gamma, beta, bias and other vectors too.
        kwargs: of `keras.optimizers.AdamW`.

    Raises:
        ValueError: a factor is negative, or, when built, no key matches a variable.

    Example:
        >>> optimizer = AdamW(1e-3, weight_decay=0.01, decay_norms_and_biases=False,
        ...                   learning_rate_factors={"segmentation_head": 10.0})

    Reference:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """


@keras.saving.register_keras_serializable(package="alignseg_tf")
class SGDWithL2(_VariableGroups, keras.optimizers.SGD):
    """SGD with momentum and an L2 penalty within the momentum, as PyTorch's `weight_decay`.

    Keras' `weight_decay` bypasses the momentum, which at 0.9 decays ten times less.

    Args:
        learning_rate: a float or a schedule.
        momentum: in [0, 1).
        l2: the gradient grows by l2 times the variable, after any clipping.
        learning_rate_factors: as in `AdamW`.
        decay_norms_and_biases: apply the penalty to norms and biases too.
        kwargs: of `keras.optimizers.SGD`.

    Reference:
        The official code's optimizer: momentum 0.9, weight decay 5e-4 on every parameter.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        l2: float = 5e-4,
        name: str = "sgd_with_l2",
        **kwargs: Any,
    ):
        if l2 < 0:
            raise ValueError(f"`l2` must not be negative. Received: l2={l2}")
        super().__init__(learning_rate, momentum=momentum, name=name, **kwargs)
        self.l2 = l2

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        """Update one variable."""
        if self.l2 and self._use_weight_decay(variable):
            gradient = gradient + ops.cast(self.l2 * variable, gradient.dtype)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable(package="alignseg_tf")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that grows linearly, then follows another schedule.

    Step i < `steps` has (i + 1) / (steps + 1) of the other schedule's first value; step `steps`
    is that schedule's first.

    Args:
        schedule: the schedule that follows; it ends `steps` later.
        steps: number of growing steps; 0 for none.

    Example:
        >>> cosine = keras.optimizers.schedules.CosineDecay(0.8, decay_steps=100)
        >>> schedule = WarmUp(cosine, steps=3)
        >>> [round(float(schedule(i)), 3) for i in (0, 1, 2, 3, 103)]
        [0.2, 0.4, 0.6, 0.8, 0.0]
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int):
        super().__init__()
        if steps < 0:
            raise ValueError(f"`steps` must not be negative. Received: steps={steps}")
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step: Any) -> Tensor:
        """Return the learning rate of a step, a float32 scalar."""
        step = ops.cast(step, "float32")
        peak = ops.cast(self.schedule(0), "float32")
        growing = peak * (step + 1.0) / (self.steps + 1.0)
        later = ops.cast(self.schedule(ops.maximum(step - self.steps, 0.0)), "float32")
        return ops.where(step < self.steps, growing, later)

    def get_config(self) -> dict[str, Any]:
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmUp":
        """Return the schedule that `get_config` described."""
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


def layer_factors(
    model: keras.Model, backbone: float = 1.0, heads: float = 1.0
) -> dict[str, float]:
    """Return `learning_rate_factors` for an AlignSeg: its backbone, its two heads.

    Args:
        model: an AlignSeg.
        backbone: factor of all that comes before the decoder.
        heads: factor of the layers that end in logits.

    Returns:
        Factors by layer, without those of 1.

    Raises:
        ValueError: the backbone and the decoder share the name of a layer.
    """
    of_backbone = {id(variable) for variable in model.backbone.variables}
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for variable in model.variables:
        names[id(variable) in of_backbone].add(variable.path.split("/")[0])
    if names[True] & names[False]:
        raise ValueError(
            "The layers of the backbone must have other names than those of the decoder. "
            f"Received: {sorted(names[True] & names[False])} in both"
        )
    factors = dict.fromkeys(sorted(names[True]), backbone)
    factors |= {name: heads for name in sorted(names[False]) if name.endswith("_head")}
    return {name: factor for name, factor in factors.items() if factor != 1}


def averaged_weights(model: keras.Model) -> list[np.ndarray] | None:
    """Return a model's weights as averaged by its optimizer.

    Returns:
        Arrays in the order of `model.weights`, for `set_weights`. Weights that the optimizer does
        not train are unchanged. None unless an optimizer of this module with `use_ema` is built.
    """
    optimizer: Any = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    mine = isinstance(optimizer, _VariableGroups)
    if not mine or not optimizer.use_ema or not optimizer.built:
        return None
    variables, averages = optimizer._trainable_variables, optimizer._model_variables_moving_average
    average_of = {id(v): average for v, average in zip(variables, averages, strict=True)}
    return [ops.convert_to_numpy(average_of.get(id(w), w)) for w in model.weights]
