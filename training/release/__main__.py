"""Put a trained model into the package and into `savedmodels/`.

    python -m training.release runs/release/best.keras --name camvid_lite0 --data FOLDER \
        --scales 1.5 --block 10 --size 540 720 --about about.md

writes

    alignseg_tf/weights/NAME.keras              for `AlignSeg.from_pretrained`; weights of 9 bits
    alignseg_tf/weights/NAME.evaluation.json    of that file, on the validation images
    alignseg_tf/weights/NAME.run.json           from `run.json` beside the trained model
    alignseg_tf/weights/NAME.about.md           from --about
    savedmodels/NAME/NAME.keras                 a link to the first
    savedmodels/NAME/MODEL_CARD.md              made of the three after it
    savedmodels/NAME/1/                         with --size: a SavedModel with float16 weights
    savedmodels/NAME/NAME.tflite                with --size: int8, for images of that size

With --unpackaged the first four are in savedmodels/NAME/ too: for a model behind a figure that
people should not use. An older release is replaced at the end, when everything is there.
"""

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from alignseg_tf import AlignSeg, pretrained
from alignseg_tf.commands import options
from alignseg_tf.data.readers import load_image
from alignseg_tf.data.sources import DataSource
from alignseg_tf.evaluation.provenance import ABOUT_FILE, QUALITY_FILE, RUN_FILE, known_facts
from alignseg_tf.export import export_saved_model, export_tflite
from alignseg_tf.export.model_card import CARD_FILE, is_card, model_card
from alignseg_tf.export.saved_model import SAVED_MODEL
from alignseg_tf.export.tflite import CALIBRATION_IMAGES, spread
from alignseg_tf.precision import with_dtype_policy
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import load_model
from alignseg_tf.system import files
from alignseg_tf.system.console import command_output
from training.evaluate import evaluate_and_write
from training.report import ROOT

# Significant bits of a kernel's values. Half precision has 11. With 9 the mean IoU of
# camvid_lite0_train went from 79.02 to 79.03 % and at three scales from 79.19 to 79.14; a bit is
# half a megabyte.
BITS = 9
# Kernels with fewer values are not rounded.
LEAST_ROUNDED = 1024
# Validation images on which exports are compared with the model.
CHECKED = 16


def rounded(values: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Return float32 values rounded to `bits` significant bits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits).astype(np.float32)


def save_packed(model: AlignSeg, path: Path) -> None:
    """Round a model's kernels to 9 bits and write a `.keras` file compressed by LZMA.

    It has a third of the size and loads as any other.
    """
    for weight in model.weights:
        values = keras.ops.convert_to_numpy(weight)
        if values.ndim > 1 and values.size >= LEAST_ROUNDED:
            weight.assign(rounded(values))
    with files.atomic_path(path) as temporary, tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.keras"
        model.save(whole)
        with (
            zipfile.ZipFile(whole) as there,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as packed,
        ):
            for name in there.namelist():
                packed.writestr(name, there.read(name))


def release(
    source: Path,
    name: str,
    data: DataSource,
    about: str,
    size: tuple[int, int] | None = None,
    protocol: Protocol | None = None,
    block: int = 1,
    packaged: bool = True,
    root: Path = ROOT,
    overwrite: bool = False,
) -> list[Path]:
    """Write the files of a release into the clone at `root` and return their paths.

    `source` is the `.keras` file of a training run, with `run.json` beside it. Training images
    calibrate int8; validation images evaluate the model and check the exports. The other arguments
    are those of the command.

    Raises:
        ValueError: a file cannot be read, an export does not agree with the model, the package has
            a model of the name, or files exist that no release wrote. An older release stays.
    """
    weights, folder = root / "alignseg_tf" / pretrained.FOLDER.name, root / "savedmodels" / name
    if not packaged and (weights / f"{name}.keras").exists():
        raise ValueError(f"{name} is in the package: an unpackaged model must have another name")
    in_package, in_folder = _outputs(name)
    if packaged:
        files.check_replaceable(weights, in_package, in_package.files, overwrite)
    files.check_folder(folder, in_folder, overwrite)
    files.remove_leftovers(root)
    # On the disk of the clone, so that the last step only renames.
    with files.temporary_folder(root) as stage:
        exports = stage / name
        made = stage / "weights" if packaged else exports
        made.mkdir()
        packed = made / f"{name}.keras"
        _write_model(source, packed, about)
        evaluate_and_write(
            packed, data.samples("val"), data.label_space, made / f"{name}.{QUALITY_FILE}",
            protocol, block=block,
        )  # fmt: skip
        _write_exports(packed, exports, data, size)
        if packaged:
            link = Path("../../alignseg_tf") / weights.name / packed.name
            (exports / packed.name).symlink_to(link)
        with files.atomic_folder(folder, in_folder, overwrite) as temporary:
            for path in exports.iterdir():
                path.rename(temporary / path.name)
        if packaged:
            weights.mkdir(parents=True, exist_ok=True)
            (weights / f"{name}.{RUN_FILE}").unlink(missing_ok=True)  # of an older model
            for path in sorted(made.iterdir()):
                path.replace(weights / path.name)
    return [*(sorted(weights.glob(f"{name}.*")) if packaged else []), *sorted(folder.glob("[!.]*"))]


def _outputs(name: str) -> tuple[files.Output, files.Output]:
    """Return how a release is told from other files, in the package and in `savedmodels/NAME`."""
    facts = about, quality, _ = [f"{name}.{x}" for x in (ABOUT_FILE, QUALITY_FILE, RUN_FILE)]
    forms = [f"{name}.keras", f"{name}.tflite", *(f"1/{file}" for file in SAVED_MODEL.files)]

    def is_in_package(folder: Path) -> bool:
        return (folder / about).is_file() and files.has_keys(
            folder / quality, "mean_iou", "protocol"
        )

    def is_in_folder(folder: Path) -> bool:
        return is_card(folder / CARD_FILE)

    return (
        files.Output("training.release", is_in_package, [forms[0], *facts]),
        files.Output("training.release", is_in_folder, [*forms, *facts, CARD_FILE]),
    )


def _write_model(source: Path, packed: Path, about: str) -> None:
    """Write the packed model, and its run and `about` beside it."""
    run = known_facts(source)["run"]
    # It may have been trained in half precision.
    save_packed(with_dtype_policy(load_model(source), "float32"), packed)
    if run is not None:
        files.write_text(packed.with_suffix(f".{RUN_FILE}"), json.dumps(run, indent=1))
    files.write_text(packed.with_suffix(f".{ABOUT_FILE}"), about)


def _write_exports(
    packed: Path, folder: Path, data: DataSource, size: tuple[int, int] | None
) -> None:
    """Write the card of a model into a folder and, for images of a size, its other forms."""
    model, facts = load_model(packed), known_facts(packed)
    if size is None:
        files.write_text(folder / CARD_FILE, model_card(model, folder.name, None, **facts))
        return
    calibration, check = (
        [load_image(sample.image) for sample in spread(data.samples(split), most)]
        for split, most in (("train", CALIBRATION_IMAGES), ("val", CHECKED))
    )
    export_saved_model(model, folder / "1", check, quantization="float16", **facts)
    export_tflite(
        model, folder / f"{folder.name}.tflite", size, "int8", calibration_images=calibration,
        check_images=check,
    )  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.release",
        description="Put a trained model into the package and into savedmodels/.",
    )
    parser.add_argument("model", type=Path, help="best.keras of a run")
    parser.add_argument("--name", required=True, help="of the released model")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="of the images that a .tflite file takes, in pixels (no SavedModel and no .tflite)",
    )  # fmt: skip
    parser.add_argument(
        "--about", type=Path, required=True, help="Markdown: data, terms, intended use, failures"
    )
    parser.add_argument("--unpackaged", action="store_true", help="put it only into savedmodels/")
    options.add_overwrite_argument(parser)
    options.add_data_arguments(parser)
    options.add_block_argument(parser)
    options.add_protocol_arguments(parser)
    return parser


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    try:
        about = parsed.about.read_text(encoding="utf-8")
        data, size = options.data_from_arguments(parsed), parsed.size and tuple(parsed.size)
        written = release(
            parsed.model, parsed.name, data, about, size, options.protocol_from_arguments(parsed),
            parsed.block, packaged=not parsed.unpackaged, overwrite=parsed.overwrite,
        )  # fmt: skip
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        size = sum(x.stat().st_size for x in (path, *path.rglob("*")) if x.is_file())
        print(f"{size / 1e6:5.1f} MB  {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
