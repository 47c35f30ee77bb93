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
        "values of the recipe to override",
        "The value in brackets holds unless the recipe has another one.",
    )
    for option in dataclasses.fields(Recipe):
        default: Any = option.default
        kind = type(default)
        flag = "--" + option.name.replace("_", "-")
        text = f"{option.metadata['help']} [{_shown(default)}]"
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            continue
        group.add_argument(
            flag,
            dest=option.name,
            type=type(default[0]) if kind is tuple else kind,
            nargs=len(default) if kind is tuple else None,
            choices=option.metadata["choices"],
            metavar=None if option.metadata["choices"] else _metavar(default),
            help=text,
        )


def _metavar(default: Any) -> str | tuple[str, ...]:
    if isinstance(default, tuple):
        return tuple(type(value).__name__.upper() for value in default)
    return type(default).__name__.upper()


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if default == "":
        return "none"
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
