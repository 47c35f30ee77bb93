"""Every test module can be collected where only the required packages are installed."""

import os
import subprocess
import sys
from contextlib import suppress
from importlib import metadata

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COLLECT = """
import sys
import pytest
sys.modules.update(dict.fromkeys({hidden}))  # None: neither found nor imported
sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "tests"]))
"""


def add_required(name: str, found: set[str]) -> None:
    """Add a distribution and those that it needs, without extras."""
    name = canonicalize_name(name)
    if name in found:
        return
    found.add(name)
    with suppress(metadata.PackageNotFoundError):
        for requirement in map(Requirement, metadata.requires(name) or ()):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                add_required(requirement.name, found)


def test_collection_without_optional_packages():
    kept: set[str] = set()
    add_required("alignseg_tf", kept)
    add_required("pytest", kept)
    hidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if kept.isdisjoint(map(canonicalize_name, owners))
    ]
    assert "httpx" in hidden and "tensorflow" not in hidden
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    result = subprocess.run(
        [sys.executable, "-c", COLLECT.format(hidden=hidden)],
        cwd=ROOT, env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
