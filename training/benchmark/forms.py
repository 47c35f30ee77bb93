"""This library's forms of a task, for `contest.py`.

eager             the Keras model, layer by layer
function          the model within `tf.function`
xla               the same, compiled
mixed_bfloat16    the same as `function`, under that dtype policy
inference_graph   `inference_model` within `tf.function`, with variables: what prediction of a
                  `.keras` file runs
frozen            the same with constants: a SavedModel
fused             `frozen` for one size, with parts compiled by XLA: a SavedModel of `--fused`
bfloat16          `frozen` in bfloat16: a SavedModel of that quantization
fused_bfloat16    both
saved_model       `serving_default` of an exported SavedModel, which gives class maps
tflite            an exported float32 `.tflite` file, run by LiteRT; it gives class maps
tflite_int8       the same in 8 bits, with ranges of the task's own images
bilinear          `frozen`, with plain resizing and a global context in place of alignment
bilinear_fused    the same of `fused`
default_kernels   `frozen`, with TensorFlow's own settings: as in a program that only imports us

For training there are `function`, `xla`, `mixed_bfloat16`, `bilinear` and `default_kernels`: a step
of `fit`, whose losses are cross-entropy of both heads, and `upsampled`, the same as `function` with
logits that are resized before they reach the losses. For sampling there are `gather`, `crop` (the
inference graph's), `compiled` (that of training) and `xla`.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.benchmark.contest import Task

Run = Callable[[], Any]


def build(task: Task, dtype_policy: str = "float32", **kwargs: Any) -> Any:
    """Return the model, with offsets that are not zero and norms that are not plain.

    Args:
        task: what it is for.
        dtype_policy: of its layers.
        kwargs: other arguments of `AlignSeg`.
    """
    import keras
    import numpy as np

    from alignseg_tf import AlignSeg, backbones
    from alignseg_tf.layers.nested import nested_layers
    from alignseg_tf.precision import global_dtype_policy

    keras.utils.set_random_seed(task.seed)
    ways = ("align", "align") if task.align else ("bilinear", "global")
    with global_dtype_policy(dtype_policy):
        backbone = getattr(backbones, task.backbone)()
        model = AlignSeg(backbone, task.classes, task.channels, *ways, **kwargs)
    rng = np.random.default_rng(task.seed)
    for variable in model.trainable_variables:
        if "field_" in variable.path:
            variable.assign(0.01 * rng.standard_normal(variable.shape))
    for layer in nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):  # zeros would be optimised away
            layer.beta.assign(0.1 * rng.standard_normal(layer.beta.shape))
    # Else rounding would be amplified layer by layer.
    calibrate_batch_norms(model, task.images()[:, :256, :256])
    return model


def calibrate_batch_norms(model: Any, images: Any) -> None:
    """Set the statistics of a model's batch norms to those of images [B, H, W, 3]."""
    import keras

    from alignseg_tf.layers.nested import nested_layers

    norms = [
        layer
        for layer in nested_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(keras.ops.convert_to_tensor(images, "float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def inference(task: Task, form: str) -> Run:
    """Return a function that segments the task's images."""
    import tensorflow as tf

    model = build(task, form if form == "mixed_bfloat16" else "float32")
    inputs = tf.constant(task.images())
    if form in ("saved_model", "tflite", "tflite_int8"):
        return exported(model, task, form)
    if form in ("inference_graph", "frozen", "bfloat16", "fused", "fused_bfloat16"):
        from alignseg_tf.export import inference_model
        from alignseg_tf.inference.freezing import freeze
        from alignseg_tf.precision import with_dtype_policy

        if form.endswith("bfloat16"):
            model = with_dtype_policy(model, "mixed_bfloat16")
        fused = form.startswith("fused")
        model = inference_model(model, "fused" if fused else None)
        if form != "inference_graph":
            constant = freeze(model, (task.height, task.width) if fused else (None, None))
            return lambda: constant(inputs)["segmentation"].numpy()
    if form == "eager":
        return lambda: model(inputs, training=False)["segmentation"].numpy()

    @tf.function(jit_compile=form == "xla")
    def segment(images: Any) -> Any:
        return model(images, training=False)["segmentation"]

    return lambda: segment(inputs).numpy()


def exported(model: Any, task: Task, form: str) -> Run:
    """Return a function that runs an export of a model."""
    import numpy as np

    from alignseg_tf.export import export_saved_model, export_tflite
    from alignseg_tf.prediction.saved_networks import SavedModelNetwork, TfliteNetwork

    images = task.images().astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        if form == "saved_model":
            path = Path(folder) / "1"
            export_saved_model(model, path, [images[0, :64, :64]])
            network = SavedModelNetwork(path)
            return lambda: network.class_maps(images)
        path = Path(folder) / "model.tflite"
        quantization = "int8" if form == "tflite_int8" else "float32"
        export_tflite(
            model, path, (task.height, task.width), quantization, "class_map",
            list(images), list(images),
        )  # fmt: skip
        lite = TfliteNetwork(path)
        return lambda: [lite.class_map(image) for image in images]


def training(task: Task, form: str) -> Run:
    """Return a function that takes one training step."""
    import tensorflow as tf

    from alignseg_tf import losses, optimizers

    policy = form if form == "mixed_bfloat16" else "float32"
    model = build(task, policy, upsample_logits=form == "upsampled")  # off in `training.build`
    loss = {name: losses.CrossEntropy(255) for name in ("segmentation", "auxiliary")}
    model.compile(
        optimizers.SGDWithL2(1e-3, 0.9, 5e-4),
        loss,
        {"segmentation": 1.0, "auxiliary": 0.1},
        jit_compile=form == "xla",
    )
    labels = task.labels().astype("uint8")
    targets = {"segmentation": labels, "auxiliary": labels}
    batches = tf.data.Dataset.from_tensors((task.images(), targets)).repeat()
    model.fit(batches, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)  # traces
    batch = iter(batches)
    return lambda: float(model.train_function(batch)["loss"])


def sampling(task: Task, form: str) -> Run:
    """Return a function that samples a map, and goes back through it for `sampling_training`."""
    import tensorflow as tf

    from alignseg_tf.inference.layers import sample_by_cropping
    from alignseg_tf.layers import bilinear_sample
    from alignseg_tf.layers.tensorflow_kernels import bilinear_sample_in_training

    features, offsets = (tf.constant(array) for array in task.map_and_offsets())
    sample = {
        "crop": sample_by_cropping, "compiled": bilinear_sample_in_training,
    }.get(form, bilinear_sample)  # fmt: skip

    @tf.function(jit_compile=form == "xla")
    def forward(features: Any, offsets: Any) -> Any:
        return sample(features, offsets)

    @tf.function(jit_compile=form == "xla")
    def backward(features: Any, offsets: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([features, offsets])
            sampled = sample(features, offsets)
        return sampled, tape.gradient(sampled, [features, offsets])

    run = forward if task.work == "sampling" else backward
    return lambda: run(features, offsets)


def form(name: str) -> Callable[[Task], Run]:
    """Return the `prepare` of a form."""

    def prepare(task: Task) -> Run:
        # Before anything imports TensorFlow, as in a command of this package.
        if name == "default_kernels":
            os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
        else:
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
            from alignseg_tf.system.processor import prepare_processor

            prepare_processor()
        work = {"inference": inference, "training": training}.get(task.work, sampling)
        plain = "frozen" if task.work == "inference" else "function"
        replaced = {"bilinear": plain, "default_kernels": plain, "bilinear_fused": "fused"}
        inner = replaced.get(name, name)
        if name.startswith("bilinear"):
            task = dataclasses.replace(task, align=False)
        return work(task, inner)

    return prepare


FORMS = {
    name: form(name)
    for name in (
        "eager", "function", "xla", "mixed_bfloat16", "inference_graph", "frozen", "fused",
        "bfloat16", "fused_bfloat16", "saved_model", "tflite", "tflite_int8", "bilinear",
        "bilinear_fused", "default_kernels", "upsampled", "gather", "crop", "compiled",
    )
}  # fmt: skip
