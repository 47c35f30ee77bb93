"""Every example in docstrings, README and docs runs; links and commands are what there is."""

import ast
import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
import shutil

import numpy as np
import pytest
from conftest import ROOT, tiny_model
from PIL import Image

import alignseg_tf
from alignseg_tf import __main__
from alignseg_tf import official_weights as checkpoints
from alignseg_tf.data import LABEL_SPACES
from alignseg_tf.data.datasets import street_painter
from alignseg_tf.export import export_saved_model
from training import demo, evaluate, train
from training.ablation import __main__ as ablation
from training.benchmark import __main__ as benchmark
from training.release import __main__ as release
from training.release import gallery

MODULES = [
    module.name
    for module in pkgutil.walk_packages(alignseg_tf.__path__, "alignseg_tf.")
    if not module.name.endswith("__main__")
]


def test_docstring_examples():
    """Run all; one in another form than doctest's would never run."""
    attempted = 0
    for name in MODULES:
        module = importlib.import_module(name)
        result = doctest.testmod(module)
        assert result.failed == 0, name
        attempted += result.attempted
        for test in doctest.DocTestFinder().find(module):
            assert "```" not in test.docstring, test.name
    assert attempted >= 10


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
PAGES = [ROOT / "README.md", *DOCS]


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """What examples find where they run: tiny models, one exported, and images."""
    folder = tmp_path_factory.mktemp("things")
    for run, name in (("demo_street_scenes", "street_scenes"), ("cityscapes_r101", "cityscapes")):
        space = LABEL_SPACES[name]
        model = tiny_model(num_classes=space.num_classes, label_space=space.to_dict())
        (folder / "runs" / run).mkdir(parents=True)
        model.save(folder / "runs" / run / "best.keras")
        if name == "street_scenes":
            export_saved_model(model, folder / "savedmodels/mine/1")
            shutil.copytree(folder / "savedmodels/mine/1", folder / "runs" / run / "savedmodel/1")
    shutil.copytree(folder / "runs/demo_street_scenes", folder / "runs/mine")
    scene = Image.fromarray(street_painter.draw_scene(0, size=(64, 96))[0])
    for name in ("images/street.jpg", "cityscapes/leftImg8bit/test/berlin/a_leftImg8bit.png"):
        (folder / name).parent.mkdir(parents=True)
        scene.save(folder / name)
    kept = {"epoch": 0, "step": 3, "logs/loss": np.nan, "labels": np.zeros((1, 4, 4), np.int32)}
    np.savez(folder / "runs/mine/nan_batch.npz", **kept)
    return folder


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


WITH_EXAMPLES = [path for path in PAGES if python_blocks(path)]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.name)
def test_examples(path, things, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(things, tmp_path / "work"))
    namespace: dict = {}
    for block in python_blocks(path):
        exec(compile(block, path.name, "exec"), namespace)


def test_examples_are_found():
    assert len(WITH_EXAMPLES) >= 7


def imports(path):
    """The (module, name) that the cells of a notebook import; the name is "" in `import module`."""
    cells = json.loads(path.read_text())["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    source = re.sub(r"(?m)^( *)[%!].*$", r"\1pass", source)  # commands to Jupyter
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_import_what_is_there(path):
    """Names of this project, and modules of packages that are installed."""
    found = set(imports(path))
    assert any(module.startswith("alignseg_tf") for module, _ in found)
    for module, name in found:
        package = module.split(".")[0]
        if package == "alignseg_tf":
            there = importlib.import_module(module)
            if name and not hasattr(there, name):
                importlib.import_module(f"{module}.{name}")
        elif importlib.util.find_spec(package):
            assert importlib.util.find_spec(module), module


def test_links_lead_somewhere():
    for path in PAGES:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert "://" in link or (path.parent / link).exists(), f"{path.name}: {link}"


def commands(text: str) -> list[list[str]]:
    """The commands in the indented lines of a text, as lists of words."""
    text = re.sub(r"(?m)^ {4,}alignseg (?=[a-z])", "    python -m alignseg_tf ", text)
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4,}python -m (.*)$", text, re.MULTILINE)
    return [shlex.split(line.replace("...", ""), comments=True) for line in lines]


PARSERS = {
    "alignseg_tf": __main__.build_parser,
    "training.train": train.build_parser,
    "training.evaluate": evaluate.build_parser,
    "training.ablation": ablation.build_parser,
    "training.demo": demo.build_parser,
    "training.release.gallery": gallery.build_parser,
    "training.release": release.build_parser,
    "training.benchmark": benchmark.build_parser,
}
TEXTS = [
    ROOT / "README.md", ROOT / "savedmodels" / "README.md",
    *DOCS, *sorted((ROOT / "training").rglob("*.py")),
]  # fmt: skip


def test_commands_are_what_their_parsers_take():
    parsers = {name: build() for name, build in PARSERS.items()}
    found = set()
    for path in TEXTS:
        for module, *arguments in commands(path.read_text()):
            if module != "pytest":
                parsers[module].parse_args(arguments)
                found.add(module)
    assert found == set(PARSERS)


def test_the_paper_page_has_every_layer_of_the_decoder():
    text = (ROOT / "docs" / "paper.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert dict(rows) == checkpoints.DECODER_MODULES
