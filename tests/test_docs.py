"""Every example in a docstring and in the README runs."""

import doctest
import importlib
import pkgutil
import re

import pytest
from conftest import ROOT

import alignseg_tf

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


def test_readme_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_readme_commands_name_options_that_exist():
    """Each option of a command in the README and the recipes is one of its parser's."""
    from alignseg_tf.__main__ import build_parser

    commands = set(build_parser()._subparsers._group_actions[0].choices)
    named = set(re.findall(r"-m alignseg_tf (\w+)", (ROOT / "README.md").read_text()))
    assert named
    assert named <= commands
