"""Draw the predictions of a model for labelled images, many in one file.

    python -m training.release.gallery MODEL --data FOLDER --output gallery.png --choose worst

evaluates the model on every image, chooses some by their mean IoU, and draws each with its truth,
prediction and mistakes under its name and mean IoU.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from alignseg_tf import visualization
from alignseg_tf.commands import options
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.data.readers import load_sample
from alignseg_tf.evaluation.evaluator import evaluate_model
from alignseg_tf.evaluation.provenance import warn_if_trained_on
from alignseg_tf.evaluation.report import percent
from alignseg_tf.prediction.predictor import predictors_on_all_gpus
from alignseg_tf.pretrained import model_path
from alignseg_tf.system.console import command_output
from alignseg_tf.system.files import atomic_path, check_file
from training.options import positive

CHOICES = ("worst", "spread")
PANELS = ("image", "truth", "prediction", "mistakes")
SUFFIXES = (".png", ".jpg", ".jpeg")
# The comment of a gallery's file.
COMMENT = "alignseg_tf gallery"
GAP = 4
LANCZOS = Image.Resampling.LANCZOS


def chosen(scores: np.ndarray, count: int, how: str) -> list[int]:
    """Return the places of at most `count` images, the lowest score first.

    `how` is `worst`: the lowest scores at least n / (2 count) places apart, since neighbours may be
    frames of one video; or `spread`: even steps from the lowest score to the highest. `scores`,
    [n], are NaN where an image has no label.
    """
    ranked = [int(i) for i in np.argsort(scores, kind="stable") if not np.isnan(scores[i])]
    if how == "spread":
        ranks = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
        return [ranked[rank] for rank in ranks]
    taken: list[int] = []
    for index in ranked:
        if all(abs(index - other) >= len(scores) / (2 * count) for other in taken):
            taken.append(index)
    return taken[:count]


def draw_gallery(
    samples: Iterable[tuple[Sample, str]],
    class_map: Callable[[np.ndarray], np.ndarray],
    label_space: LabelSpace,
    panels: Sequence[str] = PANELS,
    columns: int = 1,
    width: int = 240,
) -> np.ndarray:
    """Draw a tile for each image: a line of text over a row of panels; below all, a legend.

    Panels are `width` pixels wide and have the shape of the first image; a row has `columns` tiles.
    `class_map` gives the class ids [H, W] of a uint8 image [H, W, 3]. The result is uint8.

    Raises:
        DataError: a file is unreadable.
    """
    tiles: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    for sample, text in samples:
        image, truth = load_sample(sample, label_space)
        size = size or (width, max(1, round(width * image.shape[0] / image.shape[1])))
        drawn = draw_panels(image, truth, class_map(image), label_space.palette)
        row = [
            ImageOps.pad(Image.fromarray(drawn[panel]), size, LANCZOS, color="white")
            for panel in panels
        ]
        joined = visualization.side_by_side(*map(np.asarray, row), gap=GAP)
        tiles.append(visualization.titled(joined, text))
    drawn_tiles = visualization.grid(tiles, columns, gap=3 * GAP)
    legend = visualization.legend(label_space, drawn_tiles.shape[1])
    return np.concatenate([drawn_tiles, legend])


def draw_panels(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, palette: visualization.Palette
) -> dict[str, np.ndarray]:
    """Return the `PANELS` of an image, uint8 [H, W, 3]."""
    return {
        "image": image,
        "truth": visualization.overlay(image, truth, palette),
        "prediction": visualization.overlay(image, predicted, palette),
        "mistakes": visualization.mistakes(image, truth, predicted),
    }


def write_gallery(drawn: np.ndarray, path: Path) -> None:
    """Write a gallery with a comment by which `is_gallery` knows it."""
    information = PngInfo()
    information.add_text("comment", COMMENT)
    with atomic_path(path) as temporary:
        Image.fromarray(drawn).save(temporary, quality=90, pnginfo=information, comment=COMMENT)


def is_gallery(path: Path) -> bool:
    """Return whether `write_gallery` wrote a file."""
    try:
        with Image.open(path) as image:
            return image.info.get("comment") in (COMMENT, COMMENT.encode())
    except (OSError, Image.DecompressionBombError):
        return False


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.release.gallery", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", type=model_path, help="as for training.evaluate")
    options.add_data_arguments(parser)
    parser.add_argument("--split", default="val", help="which part of the data (%(default)s)")
    parser.add_argument("--output", required=True, type=Path, help="a .png or .jpg file")
    options.add_overwrite_argument(parser)
    parser.add_argument(
        "--choose", choices=CHOICES, default="spread",
        help="the worst images, or some from the worst to the best (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--panels", nargs="+", choices=PANELS, default=list(PANELS), help="drawn for each image"
    )
    for name, default, help in (
        ("images", 6, "how many"),
        ("columns", 1, "images beside each other"),
        ("width", 240, "of a panel, in pixels"),
    ):
        parser.add_argument(
            f"--{name}", type=positive, default=default, help=f"{help} (%(default)s)"
        )
    options.add_protocol_arguments(parser)
    return parser


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    try:
        if parsed.output.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"--output must end in {', '.join(SUFFIXES)}. Received: {parsed.output}"
            )
        check_file(parsed.output, "training.release.gallery", is_gallery, parsed.overwrite)
        protocol = options.protocol_from_arguments(parsed)
        data = options.data_from_arguments(parsed)
        samples = data.samples(parsed.split)
        warn_if_trained_on(parsed.model, data, parsed.split)
        predictors = predictors_on_all_gpus(parsed.model, protocol)
        report = evaluate_model(parsed.model, predictors, samples, data.label_space)
        shown = [
            (samples[i], f"{samples[i].image.name}: {percent(report.image_iou[i])} %")
            for i in chosen(report.image_iou, parsed.images, parsed.choose)
        ]
        if not shown:
            raise ValueError(f"{data.root}: no image of the split {parsed.split!r} has a label")
        class_map, space = predictors[0].class_map, data.label_space
        drawn = draw_gallery(shown, class_map, space, parsed.panels, parsed.columns, parsed.width)
        write_gallery(drawn, parsed.output)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(shown)} of {len(samples)} images, with the mean IoU of each: {parsed.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
