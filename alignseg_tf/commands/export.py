"""`alignseg export`: write a model in other forms, and compare them with it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.commands import options
from alignseg_tf.data.listing import find_images
from alignseg_tf.data.readers import load_image
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.evaluator import evaluate_model
from alignseg_tf.evaluation.provenance import known_facts, read_quality
from alignseg_tf.export.agreement import Agreement, median_latency, noise_image
from alignseg_tf.export.onnx import export_onnx
from alignseg_tf.export.quantization import OUTPUTS, QUANTIZATIONS, SAVED_MODEL_QUANTIZATIONS
from alignseg_tf.export.saved_model import export_saved_model
from alignseg_tf.export.tflite import check_tflite_path, export_tflite
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.saved_networks import (
    NonFiniteLogitsError,
    inference_network,
    load_model,
)
from alignseg_tf.prediction.tiling import resized
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.tables import text_table

# The quantizations of each form.
ALLOWED = {"saved_model": SAVED_MODEL_QUANTIZATIONS, "tflite": QUANTIZATIONS, "onnx": ("float32",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("model", type=model_path, help="a .keras file")
    parser.add_argument(
        "--output", type=Path, required=True,
        help="output: a folder, e.g. savedmodels/NAME/1, for a SavedModel; NAME.tflite; "
        "NAME.onnx",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="size of all images, in pixels (any size)",
    )  # fmt: skip
    parser.add_argument(
        "--check", nargs="*", type=Path, default=[], metavar="IMAGE",
        help="files or folders of images on which to compare with the model (noise)",
    )  # fmt: skip
    parser.add_argument(
        "--quantization", nargs="+", choices=list(dict.fromkeys(sum(ALLOWED.values(), ()))),
        default=["float32"],
        help="for .tflite one or several, each of which then gets a file NAME_QUANTIZATION.tflite; "
        "for a SavedModel float32, float16 or bfloat16, see docs/export.md (float32)",
    )  # fmt: skip
    parser.add_argument(
        "--fused", action="store_true",
        help="for a SavedModel with --size: XLA compiles parts of it in the first run, see "
        "docs/export.md",
    )  # fmt: skip
    options.add_overwrite_argument(parser)
    tflite = parser.add_argument_group("for .tflite")
    tflite.add_argument(
        "--returns", choices=OUTPUTS, default="class_map",
        help="class ids at the image's size, or logits at a quarter of it (%(default)s)",
    )  # fmt: skip
    tflite.add_argument(
        "--calibration", nargs="*", type=Path, default=[], metavar="IMAGE",
        help="files or folders of images like those that will come; for int8",
    )  # fmt: skip
    card = parser.add_argument_group("for the model card of a SavedModel")
    card.add_argument("--about", type=Path, help="Markdown: data, terms, intended use, failures")
    card.add_argument(
        "--quality", type=Path,
        help="JSON of training.evaluate (evaluation.json next to the model, if there is one)",
    )  # fmt: skip
    quality = parser.add_argument_group("mean IoU of the model and its exports")
    quality.add_argument("--split", default="val", help="part of the data (%(default)s)")
    options.add_data_arguments(parser, required=False)


def run(arguments: argparse.Namespace) -> int:
    """Write a SavedModel, TFLite or ONNX, and compare it with the model."""
    suffix = arguments.output.suffix.removeprefix(".")
    if suffix in ("keras", "h5", "pb", "pt", "pth"):
        raise ValueError(
            f"--output must be a folder, or end in .tflite or .onnx. Received: {arguments.output}"
        )
    form = suffix if suffix in ("tflite", "onnx") else "saved_model"
    _check_arguments(arguments, form)
    images = [load_image(path) for path in find_images(arguments.check)] or None
    data = None if arguments.data is None else options.data_from_arguments(arguments)
    model = load_model(arguments.model)
    common = {
        "image_size": arguments.size and tuple(arguments.size),
        "check_images": images,
        "overwrite": arguments.overwrite,
    }
    try:
        written = WRITERS[form](arguments, model, common)
    except NonFiniteLogitsError as error:
        raise ValueError(f"{arguments.model}: {error}") from error
    print(_table(arguments.model, model, written, images, data, arguments.split))
    return 0


def _check_arguments(arguments: argparse.Namespace, form: str) -> None:
    """Refuse options without effect, and name missing ones, before work starts."""
    output = f"Received: --output {arguments.output}"
    if form != "tflite":
        for name, unset in (("returns", "class_map"), ("calibration", [])):
            if getattr(arguments, name) != unset:
                raise ValueError(f"--{name} is for .tflite. {output}")
    allowed = ALLOWED[form]
    several = form != "tflite" and len(arguments.quantization) > 1
    if several or not set(arguments.quantization) <= set(allowed):
        raise ValueError(
            f"--quantization for {arguments.output} must be {' or '.join(allowed)}. "
            f"Received: {' '.join(arguments.quantization)}"
        )
    if arguments.fused and (form != "saved_model" or arguments.size is None):
        raise ValueError(
            f"--fused is for a SavedModel with --size. {output}, --size {arguments.size}"
        )
    if form != "saved_model" and (arguments.about or arguments.quality):
        raise ValueError(f"--about and --quality are for a SavedModel. {output}")
    if "int8" in arguments.quantization and not (arguments.size and arguments.calibration):
        raise ValueError(
            "--quantization int8 needs --size HEIGHT WIDTH and --calibration IMAGES like those "
            "that will come"
        )


Written = dict[Path, Agreement]


def _write_tflite(arguments: argparse.Namespace, model: Any, common: dict[str, Any]) -> Written:
    """Write a file for each quantization, named by it if there are several."""
    images = [load_image(path) for path in find_images(arguments.calibration)]
    output, kinds = arguments.output, arguments.quantization
    paths = {kind: output.with_stem(f"{output.stem}_{kind}") for kind in kinds}
    if len(kinds) == 1:
        paths[kinds[0]] = output
    for path in paths.values():  # before the first is written
        check_tflite_path(path, arguments.overwrite)
    return {
        path: export_tflite(
            model, path, quantization=kind, output=arguments.returns, calibration_images=images,
            **common,
        )
        for kind, path in paths.items()
    }  # fmt: skip


def _write_onnx(arguments: argparse.Namespace, model: Any, common: dict[str, Any]) -> Written:
    return {arguments.output: export_onnx(model, arguments.output, **common)}


def _write_saved_model(
    arguments: argparse.Namespace, model: Any, common: dict[str, Any]
) -> Written:
    """Write a SavedModel; its card quotes the files next to the model."""
    facts = known_facts(arguments.model)
    if arguments.quality is not None:
        facts["quality"] = read_quality(arguments.quality)
    if arguments.about is not None:
        facts["about"] = arguments.about.read_text(encoding="utf-8")
    agreement = export_saved_model(
        model, arguments.output, quantization=arguments.quantization[0],
        operations="fused" if arguments.fused else "tensorflow", **facts, **common,
    )  # fmt: skip
    return {arguments.output: agreement}


WRITERS: dict[str, Callable[[argparse.Namespace, Any, dict[str, Any]], Written]] = {
    "tflite": _write_tflite, "onnx": _write_onnx, "saved_model": _write_saved_model,
}  # fmt: skip


def _table(
    source: Path, model: Any, written: Written, images: Sequence[np.ndarray] | None,
    data: DataSource | None, split: str,
) -> str:  # fmt: skip
    """Return a line for the model and one for each export."""
    first = next(iter(written.values()))
    image = noise_image(first.size) if images is None else resized(images[0], first.size)
    latency = median_latency(Predictor(inference_network(model)).class_map, image)
    samples = [] if data is None else data.samples(split)
    rows = [["", "size", "latency", "same class", "logits", *(["mean IoU"] if data else [])]]
    agreements: dict[Path, Agreement | None] = {source: None, **written}
    for path, found in agreements.items():
        parts = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in parts) / 1e6
        row = [str(path), f"{size:.1f} MB"]
        if found is None:
            row += [f"{1e3 * latency:.0f} ms", "", ""]
        else:
            row += [f"{1e3 * found.latency:.0f} ms", f"{100 * found.same_class:.3f} %"]
            row.append("" if found.difference is None else f"{found.difference:.1e}")
        if data is not None:
            report = evaluate_model(path, [Predictor(path)], samples, data.label_space)
            row.append(f"{100 * report.mean_iou:.2f} %")
        rows.append(row)
    on = "noise" if images is None else f"{first.images} images"
    height, width = first.size
    return (
        f"{text_table(rows)}\n\nlatency: median for one image of {width} x {height}; same class, "
        "logits: pixels of equal class and largest difference of logits from the model, on "
        f"{on} (largest logit {first.largest_logit:.1f})"
    )
