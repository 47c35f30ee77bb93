"""The command `export`: one model in other forms, and a table of what they are worth."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.commands.options import add_data_arguments
from alignseg_tf.data.listing import find_images
from alignseg_tf.data.readers import load_image
from alignseg_tf.data.sources import DataSource
from alignseg_tf.export.quantization import OUTPUTS, QUANTIZATIONS, SAVED_MODEL_QUANTIZATIONS
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.files import add_overwrite_argument

# The quantizations of each form.
ALLOWED = {
    "saved_model": SAVED_MODEL_QUANTIZATIONS,
    "tflite": QUANTIZATIONS,
    "onnx": ("float32",),
}


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("model", type=model_path, help="a .keras file")
    parser.add_argument(
        "--output", type=Path, required=True,
        help="what to write: a folder, e.g. savedmodels/NAME/1, for a SavedModel; NAME.tflite; "
        "NAME.onnx",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="of all images, in pixels (any size)",
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
        help="for a SavedModel with --size: XLA compiles parts of it as it is first run, see "
        "docs/export.md",
    )  # fmt: skip
    add_overwrite_argument(parser)
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
        help="JSON of training.evaluate (evaluation.json beside the model, if there is one)",
    )  # fmt: skip
    quality = parser.add_argument_group("mean IoU of the model and of what is written")
    quality.add_argument("--split", default="val", help="which part of the data (%(default)s)")
    add_data_arguments(parser, required=False)


def export_from_arguments(arguments: argparse.Namespace) -> str:
    """Run `export`; return a table of the model and of what was written.

    Raises:
        ImportError: a package is missing that the form needs.
        ValueError: bad input.
    """
    from alignseg_tf.commands.options import data_from_arguments
    from alignseg_tf.prediction.saved_networks import NonFiniteLogitsError, load_model

    form = _form(arguments.output)
    _check_arguments(arguments, form)
    images = [load_image(path) for path in find_images(arguments.check)] or None
    data = None
    if arguments.data is not None:
        data = data_from_arguments(arguments)
    model = load_model(arguments.model)
    size = None if arguments.size is None else tuple(arguments.size)
    common: dict[str, Any] = {
        "image_size": size, "check_images": images, "overwrite": arguments.overwrite
    }  # fmt: skip
    try:
        written = _written(arguments, model, form, common)
    except NonFiniteLogitsError as error:
        raise ValueError(f"{arguments.model}: {error}") from error
    return _table(arguments.model, model, written, images, data, arguments.split)


def _written(
    arguments: argparse.Namespace, model: Any, form: str, common: dict[str, Any]
) -> dict[Path, Any]:
    """Write the files that are asked for; return how far each is from the model."""
    written = {}
    if form == "tflite":
        from alignseg_tf.export.tflite import check_tflite_path, export_tflite

        calibration = [load_image(path) for path in find_images(arguments.calibration)]
        paths = {
            quantization: _quantized_path(arguments.output, quantization, arguments.quantization)
            for quantization in arguments.quantization
        }
        for path in paths.values():  # before the first is written
            check_tflite_path(path, arguments.overwrite)
        for quantization, path in paths.items():
            written[path] = export_tflite(
                model, path, quantization=quantization, output=arguments.returns,
                calibration_images=calibration, **common,
            )  # fmt: skip
    elif form == "onnx":
        from alignseg_tf.export.onnx import export_onnx

        written[arguments.output] = export_onnx(model, arguments.output, **common)
    else:
        from alignseg_tf.export.saved_model import export_saved_model

        written[arguments.output] = export_saved_model(
            model, arguments.output, quantization=arguments.quantization[0],
            operations="fused" if arguments.fused else "tensorflow",
            **_card_values(arguments), **common,
        )  # fmt: skip
    return written


def _form(output: Path) -> str:
    form = output.suffix.removeprefix(".")
    if form in ("tflite", "onnx"):
        return form
    if form in ("keras", "h5", "pb", "pt", "pth"):
        raise ValueError(
            f"--output must be a folder, or end in .tflite or .onnx. Received: {output}"
        )
    return "saved_model"


def _check_arguments(arguments: argparse.Namespace, form: str) -> None:
    """Refuse options that would be without effect, and say what is missing, before work starts."""
    if form != "tflite":
        for name, unset in (("returns", "class_map"), ("calibration", [])):
            if getattr(arguments, name) != unset:
                raise ValueError(f"--{name} is for .tflite. Received: --output {arguments.output}")
    allowed = ALLOWED[form]
    several = form != "tflite" and len(arguments.quantization) > 1
    if several or not set(arguments.quantization) <= set(allowed):
        raise ValueError(
            f"--quantization for {arguments.output} must be {' or '.join(allowed)}. "
            f"Received: {' '.join(arguments.quantization)}"
        )
    if arguments.fused and (form != "saved_model" or arguments.size is None):
        raise ValueError(
            f"--fused is for a SavedModel with --size. Received: --output {arguments.output}, "
            f"--size {arguments.size}"
        )
    if form != "saved_model" and (arguments.about or arguments.quality):
        raise ValueError(
            f"--about and --quality are for a SavedModel. Received: --output {arguments.output}"
        )
    if "int8" in arguments.quantization and not (arguments.size and arguments.calibration):
        raise ValueError(
            "--quantization int8 needs --size HEIGHT WIDTH and --calibration IMAGES, which are "
            "like those that will come"
        )


def _quantized_path(path: Path, quantization: str, quantizations: Sequence[str]) -> Path:
    """Return the name of a file, which tells the quantization where there are several."""
    return path if len(quantizations) == 1 else path.with_stem(f"{path.stem}_{quantization}")


def _card_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the model card can say of a model, from files."""
    from alignseg_tf.evaluation.provenance import known_facts, read_quality

    facts = known_facts(arguments.model)
    if arguments.quality is not None:
        facts["quality"] = read_quality(arguments.quality)
    if arguments.about is not None:
        facts["about"] = arguments.about.read_text(encoding="utf-8")
    return facts


def _table(
    source: Path, model: Any, written: dict[Path, Any], images: Sequence[np.ndarray] | None,
    data: DataSource | None, split: str,
) -> str:  # fmt: skip
    """Return a line for the model and one for each export."""
    from alignseg_tf.export.agreement import median_latency, noise_image
    from alignseg_tf.prediction.predictor import Predictor
    from alignseg_tf.prediction.saved_networks import inference_network
    from alignseg_tf.prediction.tiling import resized

    first = next(iter(written.values()))
    image = noise_image(first.size) if images is None else resized(images[0], first.size)
    latency = median_latency(Predictor(inference_network(model)).class_map, image)
    width = max(len(str(path)) for path in (source, *written))
    header = f"{'':{width}}  {'size':>8}  {'latency':>8}  {'same class':>10}  {'logits':>8}"
    lines = [
        header + ("" if data is None else f"  {'mean IoU':>8}"),
        _line(source, width, latency) + _miou(source, data, split),
    ]
    for path, agreement in written.items():
        values = agreement.latency, agreement.same_class, agreement.difference
        lines.append(_line(path, width, *values) + _miou(path, data, split))
    on = "noise" if images is None else f"{first.images} images"
    rows, columns = first.size
    lines.append(
        f"\nlatency: median for one image of {columns} x {rows}; same class, logits: pixels of "
        f"equal class and largest difference of logits from the model, on {on} (largest logit "
        f"{first.largest_logit:.1f})"
    )
    return "\n".join(lines)


def _line(
    path: Path,
    width: int,
    latency: float,
    same_class: float | None = None,
    difference: float | None = None,
) -> str:
    files = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    same = "" if same_class is None else f"{100 * same_class:.3f} %"
    logits = "" if difference is None else f"{difference:.1e}"
    return (
        f"{path!s:{width}}  {size / 1e6:5.1f} MB  {1e3 * latency:5.0f} ms  {same:>10}  {logits:>8}"
    )


def _miou(path: Path, data: DataSource | None, split: str) -> str:
    """Return the mean IoU of a file on data, or nothing without data."""
    if data is None:
        return ""
    from alignseg_tf.evaluation.evaluator import evaluate_model
    from alignseg_tf.prediction.predictor import Predictor

    report = evaluate_model(path, [Predictor(path)], data.samples(split), data.label_space)
    return f"  {100 * report.mean_iou:6.2f} %"


def export(arguments: argparse.Namespace) -> int:
    """Write a model in other forms and say how well they agree with it."""
    from alignseg_tf.commands.export import export_from_arguments

    print(export_from_arguments(arguments))
    return 0
