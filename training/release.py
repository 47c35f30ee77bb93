"""Put a trained model where users find it: in the package, and in `savedmodels/`.

    python -m training.release runs/camvid/best.keras --name camvid_lite0 --data FOLDER \
        --size 540 720 --about about.md --quality runs/camvid/val/evaluation.json

writes

    alignseg_tf/weights/NAME.keras      for `AlignSeg.from_pretrained`; weights of 9 bits, packed
    savedmodels/NAME/NAME.keras         a link to it
    savedmodels/NAME/1/                 a SavedModel of it with float16 weights
    savedmodels/NAME/NAME.tflite        int8, for pictures of --size
    savedmodels/NAME/MODEL_CARD.md      from --about, --quality and `run.json` beside the model

Everything but the first is made of the first, so one evaluation holds for all up to quantisation.
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from alignseg_tf import AlignSeg, pretrained
from alignseg_tf.data.readers import load_image
from alignseg_tf.data.sources import add_data_arguments, data_from_arguments
from alignseg_tf.export import export_saved_model, export_tflite
from alignseg_tf.export.model_card import RUN_FILE, read_quality
from alignseg_tf.files import atomic_path
from alignseg_tf.networks import load_model
from alignseg_tf.precision import with_dtype_policy
from alignseg_tf.progress import counter
from training.report import ROOT

# Significant bits of a kernel's values. Half precision has 11. With 9 the mean IoU of camvid_lite0
# went from 79.02 to 79.03 % and at three scales from 79.19 to 79.14; a bit is half a megabyte.
BITS = 9
# Kernels with fewer values, biases and statistics are left as they are.
LEAST_ROUNDED = 1024
# Exports are compared with the model on so many pictures of the validation split.
CHECKED = 16


def rounded(values: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Return float32 values with so many significant bits, rounded to the nearest."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits).astype(np.float32)


def save_packed(model: AlignSeg, path: Path) -> None:
    """Write a `.keras` file of a third of the size: kernels of 9 bits, compressed by LZMA.

    Args:
        model: its kernels are rounded.
        path: the file, which `keras.saving.load_model` reads as any other.
    """
    for weight in model.weights:
        values = keras.ops.convert_to_numpy(weight)
        if values.ndim > 1 and values.size >= LEAST_ROUNDED:
            weight.assign(rounded(values))
    with atomic_path(path) as temporary:
        whole = temporary.with_name(f"{temporary.stem}.whole.keras")
        try:
            model.save(whole)
            with (
                zipfile.ZipFile(whole) as there,
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as packed,
            ):
                for name in there.namelist():
                    packed.writestr(name, there.read(name))
        finally:
            whole.unlink(missing_ok=True)


def release(
    source: Path,
    name: str,
    pictures: Sequence[np.ndarray],
    check_images: Sequence[np.ndarray],
    size: tuple[int, int],
    about: str,
    quality: Path | None,
    root: Path = ROOT,
) -> list[Path]:
    """Write the files of a release.

    Args:
        source: the `.keras` file of a training run.
        name: of the model, from then on.
        pictures: uint8 RGB pictures like those that will come; they calibrate int8.
        check_images: uint8 RGB pictures on which exports are compared with the model.
        size: height and width of the pictures that the `.tflite` file takes.
        about: Markdown for the model card.
        quality: JSON of an evaluation for the model card, or None.
        root: the clone to write into.

    Returns:
        The paths.

    Raises:
        ValueError: the model or the evaluation cannot be read, or an export does not agree.
    """
    numbers = None if quality is None else read_quality(quality)
    run = source.with_name(RUN_FILE)
    # A file may say that it was trained in half precision.
    model = with_dtype_policy(load_model(source), "float32")
    packed = root / "alignseg_tf" / pretrained.FOLDER.name / f"{name}.keras"
    save_packed(model, packed)
    model = load_model(packed)

    folder = root / "savedmodels" / name
    saved_model, tflite, link = folder / "1", folder / f"{name}.tflite", folder / packed.name
    export_saved_model(
        model, saved_model, check_images, quantization="float16", quality=numbers,
        run=json.loads(run.read_text(encoding="utf-8")) if run.is_file() else None, about=about,
    )  # fmt: skip
    export_tflite(
        model, tflite, size, "int8", calibration_images=pictures, check_images=check_images,
        progress=counter("measuring ranges"),
    )  # fmt: skip
    link.unlink(missing_ok=True)
    link.symlink_to(Path("../../alignseg_tf") / packed.parent.name / packed.name)
    return [packed, saved_model, tflite, folder / "MODEL_CARD.md"]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.release",
        description="Put a trained model into the package and into savedmodels/.",
    )
    parser.add_argument("model", type=Path, help="best.keras of a run")
    parser.add_argument("--name", required=True, help="what it is called from then on")
    parser.add_argument(
        "--size", type=int, nargs=2, required=True, metavar=("HEIGHT", "WIDTH"),
        help="of the pictures that the .tflite file takes, in pixels",
    )  # fmt: skip
    parser.add_argument(
        "--about", type=Path, required=True, help="Markdown: data, terms, intended use, failures"
    )
    parser.add_argument("--quality", type=Path, help="JSON of training.evaluate for the card")
    add_data_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    try:
        about = parsed.about.read_text(encoding="utf-8")
        data = data_from_arguments(parsed, counter("making the data set"))
        pictures, check_images = (
            [load_image(sample.image) for sample in data.samples(split)]
            for split in ("train", "val")
        )
        written = release(
            parsed.model, parsed.name, pictures, check_images[:: len(check_images) // CHECKED or 1],
            tuple(parsed.size), about, parsed.quality,
        )  # fmt: skip
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
        print(f"{sum(f.stat().st_size for f in files) / 1e6:5.1f} MB  {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
