import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignseg_tf.system import quiet

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in quiet.SETTINGS and name != "KERAS_BACKEND"
}


def test_an_import_changes_nothing_in_the_process():
    code = (
        "import os, sys, keras, tensorflow; before = dict(os.environ); "
        "import alignseg_tf, training; "
        "assert dict(os.environ) == before; "
        "assert 'alignseg_tf.system.processor' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "script", "own"),
    [
        (["python", "-m", "alignseg_tf", "predict"], "x/alignseg_tf/__main__.py", True),
        (["python", "-X", "dev", "-m", "training.train"], "x/training/train.py", True),
        (["python", "/usr/bin/alignseg", "predict"], "/usr/bin/alignseg", True),
        (["python", "-m", "pytest", "tests"], "x/pytest/__main__.py", False),
        (["python", "-m", "alignseg_tf_tools"], "x/alignseg_tf_tools.py", False),
        (["python", "program.py", "-m"], "program.py", False),
        (["python"], "", False),
    ],
)
def test_own_commands_are_told_from_other_programs(arguments, script, own, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", arguments)
    monkeypatch.setattr(sys, "argv", [script])
    assert quiet.is_own_command() is own


def test_settings_hold_while_tensorflow_is_imported_only(monkeypatch, tmp_path):
    (tmp_path / "tensorflow.py").write_text("import os\nSEEN = dict(os.environ)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    quiet.import_tensorflow_quietly()
    seen = sys.modules["tensorflow"].SEEN
    assert seen["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert seen["TF_ENABLE_ONEDNN_OPTS"] == "0"  # as the user has it
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
