"""The rooms of the library: what each may import, and that no two import each other."""

import ast

from conftest import ROOT

# From the ground up: a room imports only itself and rooms before it.
ROOMS = (
    ("version",), ("system",), ("layers",), ("data",), ("backbones", "pretrained"), ("model",),
    ("logits_and_labels",), ("losses",), ("metrics", "optimizers"),
    ("precision", "transfer", "official_weights", "visualization"), ("inference",),
    ("prediction",), ("evaluation",), ("analysis", "preparation"), ("export",), ("serving",),
    ("commands",), ("__main__",),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports():
    """Every module with the modules of this project that it imports, also inside functions."""
    paths = [*(ROOT / "alignseg_tf").rglob("*.py"), *(ROOT / "training").rglob("*.py")]
    names = {module_name(path): path for path in paths}
    found = {}
    for name, path in names.items():
        targets = found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {full if full in names else node.module for full in inner}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        found[name] = {target for target in targets if target in names and target != name}
    return found


IMPORTS = imports()


def test_every_module_is_in_a_room():
    rooms = {name.split(".")[1] for name in IMPORTS if name.startswith("alignseg_tf.")}
    assert rooms == set(LEVEL)


def test_imports_point_down():
    up = [
        (name, target)
        for name, targets in IMPORTS.items()
        for target in targets
        if name.startswith("alignseg_tf.") and name != "alignseg_tf"
        if target.startswith("training")
        or (
            target.startswith("alignseg_tf.")
            and LEVEL[target.split(".")[1]] > LEVEL[name.split(".")[1]]
        )
    ]
    assert not up


def test_no_imports_go_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(IMPORTS[name]):
            visit(target)
        done.add(path.pop())

    for name in IMPORTS:
        visit(name)
