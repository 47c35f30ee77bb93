"""The same numbers from TensorFlow, JAX and PyTorch."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

BACKENDS = ("tensorflow", "jax", "torch")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Outputs by backend, for those that are installed."""
    folder = tmp_path_factory.mktemp("backends")
    results = {}
    for backend in BACKENDS:
        if importlib.util.find_spec(backend) is None:
            continue
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
        path = folder / f"{backend}.npz"
        result = subprocess.run(
            [sys.executable, ROOT / "tests" / "backend_outputs.py", path],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == backend
        results[backend] = np.load(path)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_outputs_agree_with_tensorflow(outputs, backend):
    if backend not in outputs:
        pytest.skip(f"{backend} is not installed: pip install '.[parity]'")
    expected, got = outputs["tensorflow"], outputs[backend]
    assert set(got.files) == set(expected.files)
    assert len(got.files) == 7
    for name in expected.files:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize(
    "path", ["layers/test_sampling", "layers/test_blocks", "test_losses", "test_metrics"]
)
def test_the_tests_pass_on_other_backends(backend, path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: pip install '.[parity]'")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", f"tests/{path}.py"],
        cwd=ROOT, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def test_importing_needs_neither_tensorflow_nor_keras_cv():
    """On another backend nothing here asks for TensorFlow, keras-cv or PyTorch."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed: pip install '.[parity]'")
    code = """
import sys
for name in ("tensorflow", "keras_cv", "torch"):
    sys.modules[name] = None
import numpy as np, keras
from alignseg_tf import AlignSeg, backbones, losses
from alignseg_tf.export import inference_model
model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), 3, channels=8)
assert model(np.ones((1, 32, 32, 3), "float32"))["segmentation"].shape == (1, 32, 32, 3)
fast = inference_model(model)
assert fast(np.ones((1, 32, 32, 3), "float32"))["segmentation"].shape == (1, 32, 32, 3)
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
