"""The precision of layers: for all that are made, and of a model that there is."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from alignseg_tf.model import AlignSeg


@contextlib.contextmanager
def global_dtype_policy(policy: str) -> Iterator[None]:
    """Make a dtype policy Keras' global one for a while: that of layers which say none.

    Keras keeps it for each thread.

    Args:
        policy: the name of a dtype policy, as `float32` or `mixed_bfloat16`.

    Raises:
        ValueError: there is no such policy.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def with_dtype_policy(model: AlignSeg, policy: str, **changes: Any) -> AlignSeg:
    """Return a model with the same weights whose layers compute under another dtype policy.

    Coordinates and logits stay in float32 under any policy.

    Args:
        model: it is not changed; frozen layers stay frozen.
        policy: the name of a dtype policy, as `float32` or `mixed_bfloat16`.
        changes: other arguments of `AlignSeg` that are to differ; weights must stay what they are.
    """
    with global_dtype_policy(policy):
        config = _with_policy(model.get_config(), keras.config.dtype_policy().name)
        copy = AlignSeg.from_config(config | {"dtype": None} | changes)
    copy.set_weights(model.get_weights())
    return copy


def _with_policy(config: Any, policy: str) -> Any:
    """Return a config, of a model or of what is in it, with one dtype policy throughout."""
    if isinstance(config, list | tuple):
        return type(config)(_with_policy(value, policy) for value in config)
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return config | {"config": {"name": policy}}
    return {key: _with_policy(value, policy) for key, value in config.items()}
