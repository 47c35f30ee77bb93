"""Write what the backend in KERAS_BACKEND computes, for a test to compare."""

import sys

import keras
import numpy as np
from keras import ops

from alignseg_tf import AlignSeg, backbones, layers
from alignseg_tf.export import inference_model


def randomize(variables, rng):
    for variable in variables:
        if "seed" in variable.path:
            continue
        fan_in = np.prod(variable.shape[:-1]) if len(variable.shape) > 1 else 25
        # Offsets of a fraction of a cell: larger ones on noise enlarge any rounding.
        scale = 0.3 if "field_" in variable.path else 1.0
        value = rng.normal(0, scale * fan_in**-0.5, variable.shape)
        if "variance" in variable.path or "gamma" in variable.path:
            value = np.abs(value) + 0.8
        variable.assign(value.astype("float32"))


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    results = {}
    layer, x = layers.ResidualRefinement(8), rng.normal(size=(2, 9, 13, 8)).astype("float32")
    layer(x)
    randomize(layer.variables, rng)
    results["refinement.training"] = layer(x, training=True)

    model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), 5, channels=8)
    randomize(model.variables, rng)
    for size in ((64, 96), (45, 71)):
        images = rng.uniform(0, 255, (1, *size, 3)).astype("float32")
        for key, logits in model(ops.convert_to_tensor(images)).items():
            results[f"model.{key}.{size[0]}"] = logits
        fast = inference_model(model, "keras")(ops.convert_to_tensor(images))
        results[f"inference.{size[0]}"] = fast["segmentation"]

    np.savez(path, **{key: ops.convert_to_numpy(value) for key, value in results.items()})
    print(keras.backend.backend())


if __name__ == "__main__":
    main(sys.argv[1])
