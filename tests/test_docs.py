"""Every example in a docstring and in the README runs."""

import doctest
import importlib
import pkgutil
import re
import shlex

import pytest
from conftest import ROOT

import alignseg_tf
from alignseg_tf import __main__
from training import benchmark, demo, evaluate, train

MODULES = [
    module.name
    for module in pkgutil.walk_packages(alignseg_tf.__path__, "alignseg_tf.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_modules_with_examples_are_found():
    """An example that is not in doctest's form would never run."""
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(len(test.examples) for m in modules for test in finder.find(m)) >= 10
    for module in modules:
        for test in finder.find(module):
            assert "```" not in test.docstring, test.name


# Examples that need a trained model or data that cannot be had here are only compiled.
NEEDS_FILES = {"cityscapes.md", "watching.md"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        code = compile(block, path.name, "exec")
        if path.name not in NEEDS_FILES:
            exec(code, namespace)


def test_examples_are_found():
    assert sum("```python" in path.read_text() for path in PAGES) >= 3


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link


def commands(text: str) -> list[list[str]]:
    """The `python -m` commands in the indented lines of a text, as lists of words."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4,}python -m (.*)$", text, re.MULTILINE)
    return [shlex.split(line.replace("...", ""), comments=True) for line in lines]


PARSERS = {
    "alignseg_tf": __main__.build_parser,
    "training.train": train.build_parser,
    "training.evaluate": evaluate.build_parser,
    "training.demo": demo.build_parser,
    "training.benchmark": benchmark.build_parser,
}
TEXTS = [
    ROOT / "README.md", ROOT / "savedmodels" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "training").glob("*.py")), *sorted((ROOT / "training").glob("recipes/*.py")),
]  # fmt: skip


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_are_what_their_parsers_take(path):
    for module, *arguments in commands(path.read_text()):
        if module not in ("pytest", "training.port_efficientnet_lite0"):
            PARSERS[module]().parse_args(arguments)


def test_commands_are_found():
    found = [command for path in TEXTS for command in commands(path.read_text())]
    assert len(found) >= 10
    assert {command[0] for command in found} >= set(PARSERS)
