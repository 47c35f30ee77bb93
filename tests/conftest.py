import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NoReturn

import keras
import numpy as np
import pytest
from PIL import Image

from alignseg_tf import AlignSeg, backbones
from alignseg_tf.data.datasets import street_painter
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.system import files
from training.benchmark.forms import calibrate_batch_norms

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
CLASSES = ("ground", "box", "disc")


def absent(reason: str) -> NoReturn:
    """Skip a test that needs what is not here; in CI, where it must be, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


SKIPPED: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        SKIPPED.add(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        SKIPPED.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the names of skipped tests in pytest's cache, so that CI can run them elsewhere."""
    if not hasattr(session.config, "workerinput") and hasattr(session.config, "cache"):
        session.config.cache.set("cache/skipped", sorted(SKIPPED))


class Golden:
    """The golden arrays, and the weights and inputs that belong to them; NHWC."""

    def __init__(self, folder: Path):
        sys.path.insert(0, str(folder))
        try:
            import weights
        finally:
            sys.path.remove(str(folder))
        self.weights = weights
        self.arrays = np.load(folder / "official.npz")
        self.shapes = json.loads((folder / "state_dict_shapes.json").read_text())

    def __getitem__(self, name: str) -> np.ndarray:
        array = self.arrays[name]
        return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array

    def state_dict(self, part: str) -> dict[str, np.ndarray]:
        return self.weights.state_dict(self.shapes[part])

    def images(self, shape: tuple[int, ...], salt: int) -> np.ndarray:
        return self.weights.images(shape, salt).transpose(0, 2, 3, 1)


@pytest.fixture(scope="session")
def golden() -> Golden:
    folder = SHARED / "golden"
    if not folder.is_dir():
        absent("the golden outputs, ../shared/golden, are not here")
    return Golden(folder)


CALIBRATED: dict[tuple[str, str], list[np.ndarray]] = {}
_MODELS: dict[tuple[str, str], AlignSeg] = {}


def tiny_model(**kwargs) -> AlignSeg:
    """A new model with small random weights, in the offset branches too.

    Its batch norms hold the statistics of images. Otherwise activations of several hundred would
    move every sample outside the map and all logits would be zero. They are calibrated once per
    process for the same arguments.
    """
    keras.utils.set_random_seed(0)
    kwargs = {"num_classes": len(CLASSES), "channels": 8, **kwargs}
    model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=8), **kwargs)
    key = keras.config.dtype_policy().name, repr(sorted({**kwargs, "label_space": None}.items()))
    if key in CALIBRATED:
        model.set_weights(CALIBRATED[key])
        return model
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        if "field_" in weight.path:
            weight.assign(rng.normal(0, 0.3, weight.shape).astype("float32"))
    calibrate_batch_norms(model, random_images(2, 64, 96))
    CALIBRATED[key] = model.get_weights()
    return model


def shared_tiny_model(**kwargs) -> AlignSeg:
    """The `tiny_model` that all tests of the process share: do not compile or change it."""
    key = keras.config.dtype_policy().name, repr(sorted(kwargs.items()))
    if key not in _MODELS:
        _MODELS[key] = tiny_model(**kwargs)
    return _MODELS[key]


@pytest.fixture(scope="session")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `tiny_model` that names its classes. Do not change it."""
    path = tmp_path_factory.mktemp("tiny_model") / "m.keras"
    shared_tiny_model(label_space=LabelSpace(CLASSES).to_dict()).save(path)
    return path


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth images, uint8: noise at a quarter of the size, enlarged."""
    count, height, width = shape
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, height // 4 + 1, width // 4 + 1, 3)).astype(np.uint8)
    images = [Image.fromarray(x).resize((width, height), Image.BILINEAR) for x in small]
    return np.stack([np.asarray(image) for image in images])


@contextmanager
def killed_after(count, module):
    """Interrupt a module's loops over `progress_bar` after a number of items."""

    def bar(items, *args, **options):
        yield from islice(items, count)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "progress_bar", bar)
        yield


def write_folder(root: Path, train: int = 6, val: int = 2, sizes=((64, 96),)) -> Path:
    """A folder of images of boxes and discs, 64 x 96 pixels unless told."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for index in range(count):
            height, width = sizes[index % len(sizes)]
            y, x = np.mgrid[0:height, 0:width]
            label = np.zeros((height, width), np.uint8)
            top, left = rng.integers(4, height - 24), rng.integers(4, width - 24)
            label[top : top + 20, left : left + 20] = 1
            centre = rng.integers(10, height - 10), rng.integers(10, width - 10)
            label[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 90] = 2
            image = np.array([[90, 110, 90], [200, 60, 50], [60, 80, 220]])[label]
            image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
            label[0] = 255
            Image.fromarray(image).save(root / "images" / split / f"{index:03d}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{index:03d}.png")
    (root / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    return root


def leftover(path: Path) -> Path:
    """The hidden name that a killed process, of another number, left while it wrote `path`."""
    hidden = files._hidden(path, "tmp")
    return hidden.with_name(hidden.name.replace(f".{os.getpid()}.", ".999999999."))


@pytest.fixture(autouse=True)
def dtype_policy_stays() -> Iterator[None]:
    """Fail a test that leaves a dtype policy behind, which the layers of others would get."""
    yield
    left = keras.config.dtype_policy().name
    keras.config.set_dtype_policy("float32")
    assert left == "float32"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


@pytest.fixture(scope="session")
def scene() -> np.ndarray:
    return street_painter.draw_scene(0, size=(96, 128))[0]
