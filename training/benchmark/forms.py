"""This library's forms of a task, for `timing.py`.

Inference:
eager             the Keras model, layer by layer
function          the model within `tf.function`
xla               `function`, compiled by XLA
mixed_bfloat16    `function` under that dtype policy
inference_graph   `inference_model` within `tf.function`: how `.keras` files are predicted with
frozen            `inference_graph` with constants: a SavedModel
fused             `frozen` for one size, partly compiled by XLA: a SavedModel of `--fused`
bfloat16          `frozen` in bfloat16: a SavedModel of that quantization
fused_bfloat16    both
saved_model       `serving_default` of an exported SavedModel, which returns class maps
tflite            an exported float32 `.tflite` file, which returns class maps
tflite_int8       the same in 8 bits, calibrated on the task's own images
bilinear          `frozen` with plain resizing and a global context instead of alignment
bilinear_fused    the same of `fused`

Training, a step of `fit` with cross-entropy of both heads: `function`, `xla`, `mixed_bfloat16`,
`bilinear`, and `upsampled`, whose logits are resized before they reach the losses. Sampling:
`gather`, `crop` (of the inference graph), `compiled` (of training) and `xla`.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf import AlignSeg, backbones, export, losses, optimizers
from alignseg_tf.inference.freezing import freeze
from alignseg_tf.inference.layers import sample_by_cropping
from alignseg_tf.layers import bilinear_sample
from alignseg_tf.layers.nested import nested_layers
from alignseg_tf.layers.tensorflow_kernels import bilinear_sample_in_training
from alignseg_tf.precision import global_dtype_policy, with_dtype_policy
from alignseg_tf.prediction.saved_networks import SavedModelNetwork, TfliteNetwork
from alignseg_tf.system.processor import prepare_processor
from training.benchmark.timing import Task

Run = Callable[[], Any]

NAMES = (
    "eager", "function", "xla", "mixed_bfloat16", "inference_graph", "frozen", "fused", "bfloat16",
    "fused_bfloat16", "saved_model", "tflite", "tflite_int8", "bilinear", "bilinear_fused",
    "upsampled", "gather", "crop", "compiled",
)  # fmt: skip


def prepare(name: str, task: Task) -> Run:
    """Return the function that does a task in a form."""
    prepare_processor()
    work = {"inference": inference, "training": training}.get(task.work, sampling)
    if name.startswith("bilinear"):
        task = dataclasses.replace(task, align=False)
        default = "frozen" if task.work == "inference" else "function"
        name = name.removeprefix("bilinear").removeprefix("_") or default
    return work(task, name)


FORMS = {name: partial(prepare, name) for name in NAMES}


def build(task: Task, form: str, **kwargs: Any) -> Any:
    """Return a model whose offsets and batch norms are not trivial."""
    keras.utils.set_random_seed(task.seed)
    ways = ("align", "align") if task.align else ("bilinear", "global")
    with global_dtype_policy(form if form == "mixed_bfloat16" else "float32"):
        backbone = getattr(backbones, task.backbone)()
        model = AlignSeg(backbone, task.classes, task.channels, *ways, **kwargs)
    rng = np.random.default_rng(task.seed)
    for variable in model.trainable_variables:
        if "field_" in variable.path:
            variable.assign(0.01 * rng.standard_normal(variable.shape))
    for layer in nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):  # zeros would be optimised away
            layer.beta.assign(0.1 * rng.standard_normal(layer.beta.shape))
    # Otherwise rounding errors would grow layer by layer.
    calibrate_batch_norms(model, task.images()[:, :256, :256])
    return model


def calibrate_batch_norms(model: Any, images: np.ndarray) -> None:
    """Set the statistics of a model's batch norms to those of images [B, H, W, 3]."""
    norms = [x for x in nested_layers(model) if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(keras.ops.convert_to_tensor(images, "float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def inference(task: Task, form: str) -> Run:
    """Return a function that segments the task's images."""
    model = build(task, form)
    inputs = tf.constant(task.images())
    if form in ("saved_model", "tflite", "tflite_int8"):
        return exported(model, task, form)
    if form in ("inference_graph", "frozen", "bfloat16", "fused", "fused_bfloat16"):
        if form.endswith("bfloat16"):
            model = with_dtype_policy(model, "mixed_bfloat16")
        fused = form.startswith("fused")
        model = export.inference_model(model, "fused" if fused else None)
        if form != "inference_graph":
            constant = freeze(model, (task.height, task.width) if fused else (None, None))
            return lambda: constant(inputs)["segmentation"].numpy()
    if form == "eager":
        return lambda: model(inputs, training=False)["segmentation"].numpy()
    segment = tf.function(partial(model, training=False), jit_compile=form == "xla")
    return lambda: segment(inputs)["segmentation"].numpy()


def exported(model: AlignSeg, task: Task, form: str) -> Run:
    """Return a function that runs an export of a model."""
    images = task.images().astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        if form == "saved_model":
            path = Path(folder) / "1"
            export.export_saved_model(model, path, [images[0, :64, :64]])
            return partial(SavedModelNetwork(path).class_maps, images)
        path = Path(folder) / "model.tflite"
        quantization = "int8" if form == "tflite_int8" else "float32"
        export.export_tflite(
            model, path, (task.height, task.width), quantization, "class_map",
            list(images), list(images),
        )  # fmt: skip
        lite = TfliteNetwork(path)
        return lambda: [lite.class_map(image) for image in images]


def training(task: Task, form: str) -> Run:
    """Return a function that takes one training step."""
    model = build(task, form, upsample_logits=form == "upsampled")
    model.compile(
        optimizers.SGDWithL2(1e-3, 0.9, 5e-4),
        {name: losses.CrossEntropy(255) for name in ("segmentation", "auxiliary")},
        {"segmentation": 1.0, "auxiliary": 0.1},
        jit_compile=form == "xla",
    )
    targets = dict.fromkeys(("segmentation", "auxiliary"), task.labels().astype("uint8"))
    batches = tf.data.Dataset.from_tensors((task.images(), targets)).repeat()
    model.fit(batches, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)  # traces
    batch = iter(batches)
    return lambda: float(model.train_function(batch)["loss"])


def sampling(task: Task, form: str) -> Run:
    """Return a function that samples a map, for `sampling_training` with gradients."""
    features, offsets = (tf.constant(array) for array in task.map_and_offsets())
    functions = {"crop": sample_by_cropping, "compiled": bilinear_sample_in_training}
    sample = functions.get(form, bilinear_sample)

    @tf.function(jit_compile=form == "xla")
    def run(features: Any, offsets: Any) -> Any:
        if task.work == "sampling":
            return sample(features, offsets)
        with tf.GradientTape() as tape:
            tape.watch([features, offsets])
            sampled = sample(features, offsets)
        return sampled, tape.gradient(sampled, [features, offsets])

    return lambda: run(features, offsets)
