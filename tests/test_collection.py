"""Every test module can be collected where only the required packages are installed."""

import os
import subprocess
import sys
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


def required(*names: str) -> set[str]:
    """Return the distributions that the named ones need, themselves included; no extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        waiting += [
            r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})
        ]
    return found


def test_collection_without_optional_packages():
    kept = required("alignseg_tf", "pytest")
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
