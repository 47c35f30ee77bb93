"""Write what the backend in KERAS_BACKEND computes, for a test to compare."""

import sys

import keras
import numpy as np
from keras import ops

from alignseg_tf import AlignSeg, backbones, layers, losses, metrics
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
    fine, coarse = (
        ops.convert_to_tensor(rng.normal(size=(2, h, w, 8)).astype("float32"))
        for h, w in ((9, 13), (5, 7))
    )
    results = {}
    for sampling in layers.SAMPLING_CONVENTIONS:
        for name, layer, inputs in (
            ("aggregation", layers.AlignedFeatureAggregation(sampling=sampling), (fine, coarse)),
            ("context", layers.AlignedContextModeling(4, sampling=sampling), (fine,)),
        ):
            layer(*inputs)
            randomize(layer.variables, rng)
            results[f"{name}.{sampling}"] = layer(*inputs)
    layer = layers.ResidualRefinement(8)
    layer(fine)
    randomize(layer.variables, rng)
    results["refinement"] = layer(fine)
    results["refinement.training"] = layer(fine, training=True)

    model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), 5, channels=8)
    randomize(model.variables, rng)
    for size in ((64, 96), (45, 71)):
        images = rng.uniform(0, 255, (1, *size, 3)).astype("float32")
        for key, logits in model(ops.convert_to_tensor(images)).items():
            results[f"model.{key}.{size[0]}"] = logits
        fast = inference_model(model, "keras")(ops.convert_to_tensor(images))
        results[f"inference.{size[0]}"] = fast["segmentation"]

    logits = ops.convert_to_tensor(3 * rng.normal(size=(2, 12, 16, 5)).astype("float32"))
    labels = rng.integers(0, 6, (2, 24, 32))
    labels = ops.convert_to_tensor(np.where(labels == 5, 255, labels).astype("int32"))
    for loss in (
        losses.CrossEntropy(class_weights=[1.0, 2.0, 0.5, 1.0, 3.0]),
        losses.OhemCrossEntropy(threshold=0.3, min_kept=100),
        losses.LovaszSoftmax(),
    ):
        results[f"loss.{loss.name}"] = loss(labels, logits)
    metric = metrics.MeanIoU(5)
    metric.update_state(labels, logits)
    results["metric"] = metric.result()
    results["confusion"] = metric.confusion_matrix()
    np.savez(path, **{key: ops.convert_to_numpy(value) for key, value in results.items()})
    print(keras.backend.backend())


if __name__ == "__main__":
    main(sys.argv[1])
