"""Train, export and try AlignSeg in one go.

    python -m training.demo                  # on drawn street scenes
    python -m training.demo --data FOLDER    # on your own images

The demo segments a street with a trained model of the package. Then it trains, evaluates each class
on held-out images, exports a SavedModel, and loads it with `tf.saved_model.load` to segment new
images.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from alignseg_tf.data.datasets import street_painter
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.readers import load_image, read_image_sizes
from alignseg_tf.data.sources import DataSource, open_data
from alignseg_tf.export import export_saved_model
from alignseg_tf.export.agreement import Agreement
from alignseg_tf.prediction.outputs import Prediction
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import load_model
from alignseg_tf.system.console import command_output
from alignseg_tf.system.files import (
    DiskFullError,
    ForeignFileError,
    Output,
    atomic_result,
    check_replaceable,
)
from alignseg_tf.system.progress import duration
from training.callbacks.stopping import RunStoppedError
from training.options import load_recipe
from training.recipe import Recipe, RecipeError
from training.train import train

# A trained model, and a protocol that averages several heights: cleaner on unfamiliar streets.
TRAINED = "camvid_lite0"
TRAINED_PROTOCOL = Protocol(height=540, scales=(2 / 3, 5 / 6, 1), flip=True)
# Largest crop; a batch of 4 takes about 2 seconds on 2 cores.
LARGEST_CROP = (352, 480)
# Pixels in the crops of a run on own data: 20 to 30 minutes on 2 cores.
PIXEL_BUDGET = 480e6
IMAGES = 8
# Differs from the seed of the data set.
UNSEEN_SEED = 1
# Sizes of the drawn street for the trained model and of those for the demo's model.
STREET_SIZE, SCENE_SIZE = (360, 480), (288, 384)


def own_data_recipe(data: DataSource) -> Recipe:
    """Fit the recipe `own_data` to the size and number of the images."""
    samples = data.samples("train")
    median = np.median(read_image_sizes([sample.image for sample in samples]), 0)
    height, width = (
        max(64, min(most, int(side) // 32 * 32))
        for side, most in zip(median, LARGEST_CROP, strict=True)
    )
    epochs = round(PIXEL_BUDGET / (len(samples) * height * width) / 0.75)
    epochs = min(60, max(2, epochs))
    recipe = load_recipe("own_data")
    return dataclasses.replace(
        recipe,
        crop_size=(height, width),
        batch_size=min(recipe.batch_size, len(samples)),
        epochs=epochs,
        small_crop_epochs=epochs // 2,
        validate_every=max(1, epochs // 5),
    )


def unseen_images(data: DataSource | None) -> list[np.ndarray]:
    """Return validation images, or drawn scenes that are in neither split."""
    if data is None:
        return [street_painter.draw_scene(i, UNSEEN_SEED, SCENE_SIZE)[0] for i in range(IMAGES)]
    samples = data.samples("val")
    step = max(1, len(samples) // IMAGES)
    return [load_image(sample.image) for sample in samples[::step][:IMAGES]]


DEMO = Output(
    "training.demo",
    lambda folder: any((x / "run.json").is_file() for x in (folder, folder.parent)),
)


def write_predictions(folder: Path, predictions: dict[str, Prediction]) -> None:
    """Write images beside their overlays and legends."""
    check_replaceable(folder, DEMO, predictions)
    for name, prediction in predictions.items():
        with atomic_result(folder, DEMO, name) as temporary:
            Image.fromarray(prediction.side_by_side()).save(temporary)


def run_demo(parsed: argparse.Namespace) -> tuple[Path, Agreement]:
    """Train, evaluate and export; return the output folder and how the export agrees."""
    drawn = parsed.data == "street_scenes"
    name = Path(parsed.data.removeprefix("tfds:")).resolve().name.split(".")[0]
    output = parsed.output or Path("runs") / f"demo_{name}"
    if drawn or parsed.image is not None:
        street = street_painter.draw_scene(0, UNSEEN_SEED, STREET_SIZE)[0]
        if parsed.image is not None:
            street = load_image(parsed.image)
        write_predictions(output, {"trained.png": Predictor(TRAINED, TRAINED_PROTOCOL)(street)})
        print(f"A street as the trained model {TRAINED} sees it: {output / 'trained.png'}\n")
    data = open_data(parsed.data)
    report = train(load_recipe("street_scenes") if drawn else own_data_recipe(data), data, output)
    if report is None:
        raise RecipeError("the demo runs on one machine: unset TF_CONFIG")
    print(f"\nIoU on held-out images:\n\n{report.table()}\n")
    images = unseen_images(None if drawn else data)
    saved_model = output / "savedmodel" / "1"
    agreement = export_saved_model(load_model(output / "best.keras"), saved_model, images)
    segment = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    predictions = {}
    for number, image in enumerate(images):
        class_map = segment(images=tf.constant(image[None]))["class_map"].numpy()[0]
        predictions[f"{number}.png"] = Prediction(image, class_map, data.label_space)
    write_predictions(output / "overlays", predictions)
    return output, agreement


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demo", description="Train, export and try AlignSeg in one go."
    )
    parser.add_argument(
        "--data", default="street_scenes", help="your own folder or CSV (%(default)s)"
    )
    parser.add_argument(
        "--image", type=Path, help="a street to segment first (a drawn one, without --data)"
    )
    parser.add_argument("--output", type=Path, help="folder of the results (runs/demo_NAME)")
    return parser


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    started = time.monotonic()
    try:
        output, agreement = run_demo(build_parser().parse_args(arguments))
    except (DataError, RecipeError, ForeignFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunStoppedError, DiskFullError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "status", 1)
    print(
        f"\nDone in {duration(time.monotonic() - started)}. In {output}:\n"
        f"  best.keras        the model, for keras.saving.load_model after `import alignseg_tf`\n"
        f"  savedmodel/1      the same for tf.saved_model.load; agrees with it on "
        f"{100 * agreement.same_class:.2f} % of pixels\n"
        f"  overlays/         images that training has not seen\n"
        f"  evaluation.json   the table above, with the confusion matrix\n"
        f"  metrics.csv       loss and mean IoU an epoch; also in tensorboard/\n"
        f"\nTry it on an image:\n"
        f"  .venv/bin/python -m alignseg_tf predict {output / 'savedmodel' / '1'} IMAGE "
        "--output predictions"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
