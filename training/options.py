"""Recipes from the command line."""

import argparse
import dataclasses
import importlib
import pkgutil
from typing import Any

from training import recipes
from training.recipe import Recipe, RecipeError


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more. Received: {value}")
    return value


def recipe_names() -> list[str]:
    """Return the names of the recipe files."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def load_recipe(name: str) -> Recipe:
    """Return the `RECIPE` of a recipe file."""
    if name not in recipe_names():
        raise RecipeError(f"no recipe {name!r}; there are: {', '.join(recipe_names())}")
    return importlib.import_module(f"training.recipes.{name}").RECIPE


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe` and one option for each of its values."""
    parser.add_argument(
        "--recipe", default="own_data", help=f"one of {', '.join(recipe_names())} (%(default)s)"
    )
    group = parser.add_argument_group(
        "values of the recipe to override",
        "The value in brackets holds unless the recipe has another one.",
    )
    for option in dataclasses.fields(Recipe):
        values = option.default if isinstance(option.default, tuple) else (option.default,)
        kind = type(values[0])
        words: dict[str, Any] = {"type": kind, "metavar": kind.__name__.upper()}
        shown = " ".join(map(str, values)) or "none"
        if kind is bool:
            words = {"action": argparse.BooleanOptionalAction}
            shown = "yes" if option.default else "no"
        elif option.metadata["choices"]:
            words = {"choices": option.metadata["choices"]}
        elif len(values) > 1:
            words |= {"nargs": len(values), "metavar": (words["metavar"],) * len(values)}
        flag = "--" + option.name.replace("_", "-")
        group.add_argument(flag, help=f"{option.metadata['help']} [{shown}]", **words)


def recipe_from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Return the named recipe with the overrides of the command line."""
    given = {option.name: getattr(arguments, option.name) for option in dataclasses.fields(Recipe)}
    overrides: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    return dataclasses.replace(load_recipe(arguments.recipe), **overrides)
