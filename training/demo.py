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
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.readers import load_image, read_image_sizes
from alignseg_tf.data.sources import DataSource, open_data
from alignseg_tf.export import export_saved_model
from alignseg_tf.prediction.outputs import Prediction
from alignseg_tf.prediction.predictor import Predictor
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import load_model
from alignseg_tf.system.console import command_output
from alignseg_tf.system.files import ForeignFileError, Output, atomic_result, check_replaceable
from alignseg_tf.system.progress import duration
from training.options import load_recipe
from training.recipe import Recipe, RecipeError
from training.train import train

# A trained model, and a protocol that averages several heights: cleaner on unfamiliar streets.
TRAINED, TRAINED_PROTOCOL = (
    "camvid_lite0",
    Protocol(height=540, scales=(2 / 3, 5 / 6, 1), flip=True),
)
# Largest crop; a batch of 4 takes about 2 seconds on 2 cores.
LARGEST_CROP = (352, 480)
# Pixels in the crops of a run on own data: 20 to 30 minutes on 2 cores.
PIXEL_BUDGET = 480e6
IMAGES = 8
# Differs from the seed of the data set.
UNSEEN_SEED = 1
# Number and size of the drawn street for the trained model.
STREET, STREET_SIZE = 0, (360, 480)


def own_data_recipe(data: DataSource) -> Recipe:
    """Fit the recipe `own_data` to the size and number of the images."""
    samples = data.samples("train")
    height, width = np.median(read_image_sizes([sample.image for sample in samples]), 0)

    def crop_side(side: float, largest: int) -> int:
        return max(64, min(largest, int(side) // 32 * 32))

    crop = crop_side(height, LARGEST_CROP[0]), crop_side(width, LARGEST_CROP[1])
    epochs = round(PIXEL_BUDGET / (len(samples) * crop[0] * crop[1]) / 0.75)
    epochs = min(60, max(2, epochs))
    recipe = load_recipe("own_data")
    return dataclasses.replace(
        recipe,
        crop_size=crop,
        batch_size=min(recipe.batch_size, len(samples)),
        epochs=epochs,
        small_crop_epochs=epochs // 2,
        validate_every=max(1, epochs // 5),
    )


def unseen_scenes() -> list[np.ndarray]:
    """Draw street scenes that are in neither split."""
    size = (288, 384)
    return [street_painter.draw_scene(i, UNSEEN_SEED, size)[0] for i in range(IMAGES)]


def validation_images(data: DataSource) -> list[np.ndarray]:
    """Return images that training has not seen."""
    samples = data.samples("val")
    step = max(1, len(samples) // IMAGES)
    return [load_image(sample.image) for sample in samples[::step][:IMAGES]]


DEMO = Output(
    "training.demo",
    lambda folder: any((x / "run.json").is_file() for x in (folder, folder.parent)),
)


def show_trained(image: np.ndarray, path: Path) -> None:
    """Write the overlay of a street by the trained model of the package."""
    check_replaceable(path.parent, DEMO, [path.name])
    write_image(path, Predictor(TRAINED, TRAINED_PROTOCOL)(image))


def write_image(path: Path, prediction: Prediction) -> None:
    """Write an image beside its overlay and legend."""
    with atomic_result(path.parent, DEMO, path.name) as temporary:
        Image.fromarray(prediction.side_by_side()).save(temporary)


def write_overlays(
    saved_model: Path, images: Sequence[np.ndarray], label_space: LabelSpace, folder: Path
) -> None:
    """Write the overlays of images by a SavedModel, loaded with `tf.saved_model.load`."""
    names = [f"{number}.png" for number in range(len(images))]
    check_replaceable(folder, DEMO, names)
    segment = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    for number, image in enumerate(images):
        class_map = segment(images=tf.constant(image[None]))["class_map"].numpy()[0]
        prediction = Prediction(image, class_map, label_space)
        write_image(folder / f"{number}.png", prediction)


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
    parsed = build_parser().parse_args(arguments)
    drawn = parsed.data == "street_scenes"
    name = Path(parsed.data.removeprefix("tfds:")).resolve().name.split(".")[0]
    output = parsed.output or Path("runs") / f"demo_{name}"
    started = time.monotonic()
    try:
        street = None
        if parsed.image is not None:
            street = load_image(parsed.image)
        elif drawn:
            street = street_painter.draw_scene(STREET, UNSEEN_SEED, STREET_SIZE)[0]
        if street is not None:
            show_trained(street, output / "trained.png")
            print(f"A street as the trained model {TRAINED} sees it: {output / 'trained.png'}\n")
        data = open_data(parsed.data)
        recipe = load_recipe("street_scenes") if drawn else own_data_recipe(data)
        report = train(recipe, data, output)
        if report is None:
            raise RecipeError("the demo runs on one machine: unset TF_CONFIG")
        print(f"\nIoU on held-out images:\n\n{report.table()}\n")
        images = unseen_scenes() if drawn else validation_images(data)
        saved_model = output / "savedmodel" / "1"
        agreement = export_saved_model(load_model(output / "best.keras"), saved_model, images)
        write_overlays(saved_model, images, data.label_space, output / "overlays")
    except (DataError, RecipeError, ForeignFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"\nDone in {duration(time.monotonic() - started)}. In {output}:\n"
        f"  best.keras        the model, for keras.saving.load_model after `import alignseg_tf`\n"
        f"  savedmodel/1      the same for tf.saved_model.load; agrees with it on "
        f"{100 * agreement.same_class:.2f} % of pixels\n"
        f"  overlays/         {len(images)} images that training has not seen\n"
        f"  evaluation.json   the table above, with the confusion matrix\n"
        f"  metrics.csv       loss and mean IoU an epoch; also in tensorboard/\n"
        f"\nTry it on an image:\n"
        f"  .venv/bin/python -m alignseg_tf predict {saved_model} IMAGE --output predictions"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
