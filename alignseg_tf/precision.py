"""The dtype policy of new layers, and of an existing model."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from alignseg_tf.model import AlignSeg


@contextlib.contextmanager
def global_dtype_policy(policy: str) -> Iterator[None]:
    """Set Keras' global dtype policy of this thread, for instance `mixed_bfloat16`, in a context.

    Raises:
        ValueError: the policy is unknown.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def with_dtype_policy(model: AlignSeg, policy: str, **changes: Any) -> AlignSeg:
    """Return a copy of a model whose layers compute under another dtype policy.

    Coordinates and logits stay in float32. Frozen layers stay frozen.

    Args:
        model: the model to copy.
        policy: name of a dtype policy, for instance `mixed_bfloat16`.
        changes: other arguments of `AlignSeg` that differ; they must leave the weights' shapes.
    """
    with global_dtype_policy(policy):
        config = _with_policy(model.get_config(), keras.config.dtype_policy().name)
        copy = AlignSeg.from_config(config | {"dtype": None} | changes)
    copy.set_weights(model.get_weights())
    return copy


def _with_policy(config: Any, policy: str) -> Any:
    """Return a config, of a model or a part of it, with one dtype policy throughout."""
    if isinstance(config, list | tuple):
        return type(config)(_with_policy(value, policy) for value in config)
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return config | {"config": {"name": policy}}
    return {key: _with_policy(value, policy) for key, value in config.items()}
