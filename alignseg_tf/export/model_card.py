"""What a user of an exported model should know of it, as a Markdown file beside it."""

import datetime
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignseg_tf.evaluation.provenance import trained_on_validation
from alignseg_tf.export.agreement import Agreement
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg
from alignseg_tf.prediction.saved_networks import label_space_of
from alignseg_tf.system.environment import machine, versions

CARD_FILE = "MODEL_CARD.md"


# The first words below a card's title.
_FIRST_WORDS = "AlignSeg (arXiv 2003.00872) with"


def is_card(path: Path) -> bool:
    """Whether a file is a model card, by its first words."""
    try:
        return f"\n{_FIRST_WORDS} " in path.read_text(encoding="utf-8")[:1000]
    except (OSError, UnicodeDecodeError):
        return False


def model_card(
    model: AlignSeg,
    name: str,
    agreement: Agreement | None,
    quality: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    about: str = "",
    form: str = "",
) -> str:
    """Return the text of a model card.

    Args:
        model: what was exported.
        name: what it is called.
        agreement: how far the export is from the model, with its latency; None for a card of the
            `.keras` file itself.
        quality: `Report.to_dict` of an evaluation; None where there was none.
        run: values of the training run; None where they are not known.
        about: Markdown on what no file can tell: data and their terms, intended use, failures.
        form: what is special about the export, in sentences: precision, size.
    """
    sections = [
        f"# {_escaped(name)}",
        f"{_FIRST_WORDS} {model.num_classes} classes and "
        f"{model.count_params() / 1e6:.2f} M parameters, from RGB images to a class for each "
        "pixel.",
        "## About\n\n" + (about.strip() or _NOT_STATED),
        "## Input and output\n\n" + (_KERAS_CONTRACT if agreement is None else _CONTRACT),
        "## Classes\n\n" + _classes(model),
        "## Quality\n\n" + _quality(quality, run),
        "## Training\n\n" + _training(model, run),
        "## Export\n\n" + (_EXPORTS if agreement is None else _export(agreement, form)),
    ]
    return "\n\n".join(sections) + "\n"


_NOT_STATED = (
    "Data, their terms and intended use were not stated when this was exported "
    "(`--about FILE.md` does)."
)

_CONTRACT = f"""\
Images are RGB, 0..255, of any size from {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} on unless the
signature says otherwise; normalisation is in the model.

| signature | input | output |
|---|---|---|
| `serving_default` | `images`, uint8 [B, H, W, 3] | `class_map`, uint8 [B, H, W] |
| `serve_bytes` | `image_bytes`, JPEG or PNG files | `class_map_bytes`, PNG files of class ids |
| `probabilities` | `images`, uint8 [B, H, W, 3] | `probabilities`, float32 [B, H, W, classes] |
| `logits` | `images`, float32 [B, H, W, 3] | `logits`, float32 at stride 4 |
| `offsets` | `images`, uint8 [B, H, W, 3] | where each alignment layer reads, in pixels |

`serve_bytes` ignores EXIF rotation: a phone's image comes out as its pixels are stored. The
readers, `Predictor` and the HTTP server of alignseg_tf turn images first."""


_KERAS_CONTRACT = f"""\
Images are float32 RGB, 0..255 [B, H, W, 3], of any size from {MIN_IMAGE_SIZE} x
{MIN_IMAGE_SIZE} on; normalisation is in the model. It returns a dict with the logits
`segmentation`, float32 [B, H, W, classes]. `keras.saving.load_model` reads the file after
`import alignseg_tf`. `Predictor` and `python -m alignseg_tf predict` go from image files to
classes."""

_EXPORTS = (
    "`python -m alignseg_tf export` makes a SavedModel, TFLite or ONNX of it, and compares them."
)


def _classes(model: AlignSeg) -> str:
    space = label_space_of(model)
    rows = [
        f"| {number} | {_escaped(name)} | {', '.join(map(str, color))} |"
        for number, (name, color) in enumerate(zip(space.classes, space.palette, strict=True))
    ]
    return "\n".join(["| id | class | RGB |", "|---|---|---|", *rows])


def _quality(quality: Mapping[str, Any] | None, run: Mapping[str, Any] | None) -> str:
    if quality is None:
        return "Not measured, or not known when this was exported (`--quality FILE.json`)."
    intervals = quality.get("intervals") or {}
    bounds = intervals.get("mean_iou") or {}
    interval, of_what = "", ""
    if bounds.get("low") is not None:  # fewer than two images, or blocks, have none
        level, block = intervals["level"], intervals.get("block", 1)
        blocks = f", in blocks of {block} neighbours" if block > 1 else ""
        of_what = f" The interval is of the choice of images{blocks}."
        interval = f" ({100 * level:.0f} % interval {_percent(bounds['low'])} to " \
            f"{_percent(bounds['high'])})"  # fmt: skip
    rows = [f"| {_escaped(name)} | {_percent(value)} |" for name, value in quality["iou"].items()]
    warning = ""
    if trained_on_validation(run or {}):
        warning = " The model was trained on the validation images; a figure of them says " \
            "nothing of new images."  # fmt: skip
    return "\n".join(
        [
            f"Mean IoU {_percent(quality['mean_iou'])} %{interval} on {quality['images']} "
            f"images, {_escaped(quality['protocol'])}.{of_what}{warning}",
            "",
            "| class | IoU, % |",
            "|---|---|",
            *rows,
        ]
    )


def _escaped(text: object) -> str:
    """Return a name or value as Markdown and HTML show it, on one line, in a table's cell too."""
    printable = "".join(x if x.isprintable() else " " for x in str(text))
    entities = html.escape(printable, quote=False)
    return re.sub(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", entities)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _training(model: AlignSeg, run: Mapping[str, Any] | None) -> str:
    decoder = (
        f"{model.channels} channels, aggregation `{model.aggregation}`, context `{model.context}`, "
        f"sampling `{model.sampling}`."
    )
    if run is None:
        return f"{decoder} The run is not known."
    values = "\n".join(
        f"| {_escaped(key)} | {_escaped(value)} |"
        for key, value in run.items()
        if key not in ("classes", "palette")
    )
    return f"{decoder}\n\n| value of the run | |\n|---|---|\n{values}"


def _export(agreement: Agreement, form: str) -> str:
    here = machine()
    height, width = agreement.size
    processor = ", ".join(here["gpus"]) or f"{here['cores']} cores of {here['cpu']}"
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        (f"{form}\n\n" if form else "") + f"Against the Keras model: {agreement}.\n\n"
        f"An image of {width} x {height} pixels takes {1e3 * agreement.latency:.0f} ms (median, "
        f"batch 1) on {processor}.\n\n"
        f"Written on {datetime.date.today().isoformat()} with {used}."
    )
