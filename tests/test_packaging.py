"""What installs the package: `make`, the pinned versions, and the script."""

import configparser
import re
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MAKE = shutil.which("make")
needs_make = pytest.mark.skipif(MAKE is None, reason="needs make")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def make(path, *arguments) -> subprocess.CompletedProcess:
    """Run make where `path` has all programs; `make show` prints the chosen Python."""
    command = [MAKE, "--eval", "show: ; @: $(info $(PYTHON))", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": str(path)}, capture_output=True, text=True
    )


def write_programs(folder, **lines):
    for name, line in lines.items():
        program = folder / name.replace("_", ".")
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)


@needs_make
@pytest.mark.parametrize(
    ("statuses", "chosen"),
    [
        ({"python3_11": 0, "python3_12": 0, "python3": 0}, "python3.12"),
        ({"python3_11": 0, "python3_12": 127, "python3_13": 127}, "python3.11"),  # pyenv's shims
        ({"python3_13": 1, "python3": 0}, "python3"),
        ({"python3": 1, "python3_10": 0}, ""),
    ],
)
def test_make_takes_the_newest_python_that_fits(tmp_path, statuses, chosen):
    write_programs(tmp_path, **{name: f"exit {status}" for name, status in statuses.items()})
    assert make(tmp_path, "show").stdout.strip() == chosen
    assert make(tmp_path, "show", "PYTHON=mine").stdout.strip() == "mine"


@needs_make
@pytest.mark.parametrize(
    ("version", "fits"),
    [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 7), True), ((3, 14, 0), False)],
)
def test_make_asks_a_python_for_its_version(tmp_path, version, fits):
    """Run what make asks in this Python, which says that it is of another version."""
    ask = f'exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"'
    write_programs(tmp_path, python3=ask)
    assert make(tmp_path, "show").stdout.strip() == ("python3" if fits else "")


@needs_make
def test_make_says_in_a_line_that_there_is_no_python(tmp_path):
    result = make(tmp_path, "install", f"VENV={tmp_path}/venv")
    assert result.returncode == 2
    line, rest = result.stderr.split("\n", 1)
    assert line.startswith("error: found no Python 3.11, 3.12 or 3.13") and "PYTHON=" in line
    assert rest.count("\n") == 1 and rest.startswith("make: ***")
    assert not (tmp_path / "venv").exists()


def test_every_requirement_is_pinned_to_a_version_that_fits(setup):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for line in "\n".join(texts).split("\n"):
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier, line


def test_classifiers_have_the_pythons_that_make_takes(setup):
    classifiers = re.findall(r"Python :: (3\.\d+)$", setup["metadata"]["classifiers"], re.MULTILINE)
    assert classifiers == ["3.11", "3.12", "3.13"]
    assert setup["options"]["python_requires"] == f">={classifiers[0]}"


def test_the_script_is_the_command_line(setup, monkeypatch, capsys):
    name, reference = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        metadata.EntryPoint(name, reference, "console_scripts").load()()
    assert capsys.readouterr().out.startswith("usage: alignseg [-h]")
