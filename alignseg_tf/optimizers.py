"""The optimizer of the paper, which Keras does not have."""

from typing import Any

import keras

Tensor = Any


@keras.saving.register_keras_serializable(package="alignseg_tf")
class SGDWithL2(keras.optimizers.SGD):
    """SGD with momentum whose L2 penalty goes through the momentum, as PyTorch's `weight_decay`.

    Keras' own `weight_decay` shrinks the variables beside the momentum, which with momentum 0.9
    decays ten times less for the same number.

    Args:
        learning_rate: a float or a schedule.
        momentum: in [0, 1).
        l2: what each variable, times this, adds to its gradient.

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
        penalty = keras.ops.cast(self.l2 * variable, gradient.dtype)
        super().update_step(gradient + penalty, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "l2": self.l2}
