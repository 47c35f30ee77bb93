"""What a user of an exported model should know of it, as a Markdown file beside it."""

import datetime
import html
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignseg_tf.data.readers import DataError
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.evaluator import samples_fingerprints
from alignseg_tf.export.agreement import Agreement
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg
from alignseg_tf.prediction.saved_networks import label_space_of
from alignseg_tf.system.environment import machine, versions
from alignseg_tf.system.fingerprints import names_hash

CARD_FILE = "MODEL_CARD.md"
# What files beside a model say of it: in a training run's folder by these names, elsewhere with the
# model's own name before them, as camvid_lite0.run.json.
QUALITY_FILE, RUN_FILE, ABOUT_FILE = "evaluation.json", "run.json", "about.md"


# The first words below a card's title.
_FIRST_WORDS = "AlignSeg (arXiv 2003.00872) with"


def is_card(path: Path) -> bool:
    """Whether a file is a model card, by its first words."""
    try:
        return f"\n{_FIRST_WORDS} " in path.read_text(encoding="utf-8")[:1000]
    except (OSError, UnicodeDecodeError):
        return False


def known_facts(model: Path) -> dict[str, Any]:
    """Return what files beside a model say of it: the arguments of `model_card` of that name.

    Args:
        model: a `.keras` file, or another form of it that lies beside it: `NAME.tflite`, or a
            SavedModel in a folder `NAME`.

    Returns:
        `quality`, `run` and `about`; None, or no text, where there is no such file.

    Raises:
        ValueError: a file is there and holds something else.
    """
    quality, run, about = (_beside(model, name) for name in (QUALITY_FILE, RUN_FILE, ABOUT_FILE))
    return {
        "quality": None if quality is None else read_quality(quality),
        "run": None if run is None else read_run(run),
        "about": "" if about is None else about.read_text(encoding="utf-8"),
    }


def _beside(model: Path, name: str) -> Path | None:
    model = model.absolute()
    in_folder = model.parent / f"{model.parent.name}.keras"
    for form in (model, model.with_suffix(".keras") if model.suffix else in_folder):
        form = form.resolve()  # what is released has links to the package
        for path in (form.with_name(f"{form.stem}.{name}"), form.with_name(name)):
            if path.is_file():
                return path
    return None


def read_quality(path: Path) -> dict[str, Any]:
    """Read the numbers that an evaluation wrote as JSON.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    try:
        quality = json.loads(path.read_text(encoding="utf-8"))
        quality["mean_iou"], quality["pictures"], quality["protocol"], quality["iou"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the JSON of an evaluation (python -m training.evaluate --json). "
            f"Received: {error!r}"
        ) from error
    return quality


def read_run(path: Path) -> dict[str, Any]:
    """Read the values of a training run.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise TypeError(type(run).__name__)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the values of a training run, as training writes them. "
            f"Received: {error!r}"
        ) from error
    return run


def trained_on_validation(run: Mapping[str, Any]) -> bool:
    """Whether a run, as `read_run` gives it, was trained on the validation pictures too."""
    return "val" in run.get("train_on", "").split("+")


def warn_if_trained_on(model: Path, data: DataSource, split: str) -> None:
    """Say on the standard error stream if a model is known to be trained on a split's pictures.

    They are known by the content of the files, in runs from before it was recorded by their names.

    Args:
        model: as in `known_facts`.
        data: pictures with labels.
        split: the part of them on which the model is to be judged.

    Raises:
        ValueError: what is known of the model's run is not readable.
    """
    path = _beside(model, RUN_FILE)
    run = {} if path is None else read_run(path)
    splits = run.get("train_on", "train").split("+")
    if split not in splits:
        return
    try:
        samples = [sample for part in splits for sample in data.samples(part)]
        if "training_images" in run:
            same = run["training_images"] == samples_fingerprints(samples)[0]
        else:
            names = names_hash(sample.image.name for sample in samples)
            same = run.get("training_picture_names") == names
    except DataError:  # without such a part they are other data
        return
    if same:
        print(
            f"Warning: {model} was trained on these pictures: what is measured on them says "
            "nothing of new ones",
            file=sys.stderr,
        )


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
        f"{model.count_params() / 1e6:.2f} M parameters, from RGB pictures to a class for each "
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
Pictures are RGB, 0..255, of any size from {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} on unless the
signature says otherwise; normalisation is in the model.

| signature | input | output |
|---|---|---|
| `serving_default` | `images`, uint8 [B, H, W, 3] | `class_map`, uint8 [B, H, W] |
| `serve_bytes` | `image_bytes`, JPEG or PNG files | `class_map_bytes`, PNG files of class ids |
| `probabilities` | `images`, uint8 [B, H, W, 3] | `probabilities`, float32 [B, H, W, classes] |
| `logits` | `images`, float32 [B, H, W, 3] | `logits`, float32 at stride 4 |
| `offsets` | `images`, uint8 [B, H, W, 3] | where each alignment layer reads, in pixels |

`serve_bytes` ignores EXIF rotation: a phone's picture comes out as its pixels are stored. The
readers, `Predictor` and the HTTP server of alignseg_tf turn pictures first."""


_KERAS_CONTRACT = f"""\
Pictures are float32 RGB, 0..255 [B, H, W, 3], of any size from {MIN_IMAGE_SIZE} x
{MIN_IMAGE_SIZE} on; normalisation is in the model. It returns a dict with the logits
`segmentation`, float32 [B, H, W, classes]. `keras.saving.load_model` reads the file after
`import alignseg_tf`. `Predictor` and `python -m alignseg_tf predict` go from picture files to
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
    if bounds.get("low") is not None:  # fewer than two pictures, or blocks, have none
        level, block = intervals["level"], intervals.get("block", 1)
        blocks = f", in blocks of {block} neighbours" if block > 1 else ""
        of_what = f" The interval is of the choice of pictures{blocks}."
        interval = f" ({100 * level:.0f} % interval {_percent(bounds['low'])} to " \
            f"{_percent(bounds['high'])})"  # fmt: skip
    rows = [f"| {_escaped(name)} | {_percent(value)} |" for name, value in quality["iou"].items()]
    warning = ""
    if trained_on_validation(run or {}):
        warning = " The model was trained on the validation pictures; a figure of them says " \
            "nothing of new pictures."  # fmt: skip
    return "\n".join(
        [
            f"Mean IoU {_percent(quality['mean_iou'])} %{interval} on {quality['pictures']} "
            f"pictures, {_escaped(quality['protocol'])}.{of_what}{warning}",
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
        f"A picture of {width} x {height} pixels takes {1e3 * agreement.latency:.0f} ms (median, "
        f"batch 1) on {processor}.\n\n"
        f"Written on {datetime.date.today().isoformat()} with {used}."
    )
