import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

from alignseg_tf.optimizers import SGDWithL2


def test_equals_torch():
    """Also under a learning rate that stays, Keras' own weight decay does not."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    value = np.array([1.0, -2.0, 3.0], "float32")
    gradients = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    expected = torch.nn.Parameter(torch.tensor(value))
    reference = torch.optim.SGD([expected], lr=0.1, momentum=0.9, weight_decay=0.05)
    variable = keras.Variable(value)
    optimizer = SGDWithL2(0.1, 0.9, 0.05)
    optimizer.build([variable])
    for gradient in gradients:
        expected.grad = torch.tensor(gradient)
        reference.step()
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
    result = keras.ops.convert_to_numpy(variable)
    np.testing.assert_allclose(result, expected.detach().numpy(), rtol=1e-5)


def test_importing_the_package_registers_it():
    """A saved run holds its optimizer and loads after `import alignseg_tf` alone."""
    code = (
        "import alignseg_tf, keras\n"
        "name = 'alignseg_tf>SGDWithL2'\n"
        "assert keras.saving.get_registered_object(name) is alignseg_tf.optimizers.SGDWithL2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_config_round_trip():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.01, 100, 0.0, 0.9)
    config = keras.saving.serialize_keras_object(SGDWithL2(schedule, 0.8, 1e-3))
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, SGDWithL2)
    assert (copy.momentum, copy.l2) == (0.8, 1e-3)


def test_a_negative_penalty_is_refused():
    with pytest.raises(ValueError, match="must not be negative. Received: l2=-1"):
        SGDWithL2(l2=-1)
