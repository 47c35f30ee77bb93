import keras
import numpy as np
from conftest import random_images, tiny_model

from alignseg_tf.losses import CrossEntropy
from training.build import build_variables


def test_a_step_is_traced_once(monkeypatch):
    model = tiny_model()
    losses = {"segmentation": CrossEntropy(), "auxiliary": CrossEntropy()}
    model.compile(keras.optimizers.Adam(), losses)
    labels = dict.fromkeys(losses, np.ones((2, 32, 32), "int32"))
    batch = random_images(2, 32, 32), labels
    build_variables(model, batch)
    traces, step = [], model.train_step
    monkeypatch.setattr(model, "train_step", lambda data: traces.append(1) or step(data))
    model.fit(*batch, batch_size=2, epochs=2, verbose=0)
    assert len(traces) == 1
