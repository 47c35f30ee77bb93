"""Arguments that take one of several values."""

from collections.abc import Collection


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise a ValueError unless the value of an argument is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {tuple(choices)}. Received: {name}={value!r}")
