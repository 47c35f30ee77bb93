import io
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import killed_after, leftover, random_images
from data_fixtures import contents, encoded, train_and_evaluate
from PIL import Image

from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.datasets import tfds as tfds_module
from alignseg_tf.data.datasets.catalog import LABEL_SPACES, label_space_from_file
from alignseg_tf.data.datasets.tfds import TfdsOptions, write_folder
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.sources import open_data

CLASSES = ("ground", "box")
SIZE = (40, 56)


def sample(index, number_of_classes=2):
    """The stored bytes of an image, JPEG or PNG, and of its label."""
    image = random_images(1, *SIZE, seed=index)[0]
    label = np.random.default_rng(index).integers(0, number_of_classes, SIZE).astype(np.uint8)
    return encoded(image, "JPEG" if index % 2 else "PNG"), encoded(label)


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


class DrawnBoxes(tfds.core.GeneratorBasedBuilder):
    """A real data set: 5 training and 3 test images in files of TFDS."""

    VERSION = tfds.core.Version("1.2.0")
    LABEL = tfds.features.LabeledImage(labels=list(CLASSES))

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "other": tfds.features.Image(),
            "depth": tfds.features.Image(shape=(None, None, 1)),
            "mask": self.LABEL,
            "name": tfds.features.Text(),
            "ids": tfds.features.Tensor(shape=SIZE, dtype=np.uint8),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 5), "test": self._generate_examples(5, 8)}

    def _generate_examples(self, start, stop):
        for index in range(start, stop):
            image, label = sample(index)
            example = {"image": io.BytesIO(image), "other": io.BytesIO(image), "name": str(index)}
            example["depth"] = np.zeros((*SIZE, 1), np.uint8)
            example |= {"mask": io.BytesIO(self.stored_label(label)), "ids": decoded(label)}
            yield index, example

    @staticmethod
    def stored_label(label):
        return label


class UnnamedBoxes(DrawnBoxes):
    """The same, but labels are colour images with the id in all channels, without names."""

    LABEL = tfds.features.Image(shape=(None, None, 1))

    @staticmethod
    def stored_label(label):
        return encoded(np.repeat(decoded(label)[..., None], 3, -1))


class LossyBoxes(DrawnBoxes):
    @staticmethod
    def stored_label(label):
        return encoded(decoded(label), "JPEG")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of TFDS in which the data sets are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (DrawnBoxes, UnnamedBoxes, LossyBoxes):
        builder(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def places(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared))
    monkeypatch.setenv("ALIGNSEG_TF_CACHE", str(tmp_path / "cache"))


def assert_labels(data, split):
    """The labels are those of the test split."""
    labels = sorted(np.asarray(Image.open(s.label)).tobytes() for s in data.samples(split))
    assert labels == sorted(decoded(sample(index)[1]).tobytes() for index in (5, 6, 7))


def test_the_stored_bytes_come_through_and_are_kept(tmp_path, monkeypatch):
    data = open_data("tfds:drawn_boxes")
    for split, indices in (("train", range(5)), ("val", range(5, 8))):
        pairs = [(s.image.read_bytes(), s.label.read_bytes()) for s in data.samples(split)]
        assert sorted(pairs) == sorted(sample(index) for index in indices)
        for pair in data.samples(split):
            assert pair.image.suffix == (".jpg" if pair.image.read_bytes()[0] == 0xFF else ".png")
    assert data.label_space == LabelSpace(CLASSES)
    assert data.root.is_relative_to(tmp_path / "cache" / "tfds")
    assert data.root.name.startswith("drawn_boxes-1.2.0-")
    before = {path: path.stat().st_mtime_ns for path in data.root.rglob("*")}
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_dataset", None)
    assert open_data("tfds:drawn_boxes:1.2.0").root == data.root
    assert {path: path.stat().st_mtime_ns for path in data.root.rglob("*")} == before
    again = open_data(data.root)
    assert again.label_space == data.label_space
    assert check_samples(again.samples("train"), again.label_space).all_counts[:, -1].sum() == 0


def test_a_folder_whose_files_were_changed_is_refused(tmp_path):
    root, _ = write_folder("drawn_boxes", tmp_path)
    label = next(root.glob("labels/val/000001.*"))
    before = label.read_bytes()
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(label)
    with pytest.raises(
        DataError, match=r"1 files were changed since they were written: labels/val/000001"
    ):
        write_folder("drawn_boxes", tmp_path)
    record = json.loads((root / "tfds.json").read_text())
    del record["files"]  # as an older version wrote it
    (root / "tfds.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"000001\.png: another file than tfds:drawn_boxes"):
        write_folder("drawn_boxes", tmp_path)
    label.unlink()
    write_folder("drawn_boxes", tmp_path)
    assert label.read_bytes() == before


def test_a_killed_call_is_taken_up(tmp_path):
    with killed_after(3, tfds_module), pytest.raises(KeyboardInterrupt):
        write_folder("drawn_boxes", tmp_path / "a")
    (root,) = (tmp_path / "a").iterdir()
    assert len(list(root.glob("images/*/*"))) == 3
    assert json.loads((root / "tfds.json").read_text())["complete"] is False
    first = next(root.glob("images/train/000000.*"))
    written = first.stat().st_mtime_ns
    leftover(root / "images/train/000003.png").write_bytes(b"half")
    whole, _ = write_folder("drawn_boxes", tmp_path / "b")
    resumed, _ = write_folder("drawn_boxes", tmp_path / "a")
    assert contents(resumed) == contents(whole)
    assert first.stat().st_mtime_ns == written
    next(root.glob("labels/val/000001.*")).unlink()
    assert contents(write_folder("drawn_boxes", tmp_path / "a")[0]) == contents(whole)


def test_splits_and_keys_can_be_given(tmp_path):
    options = TfdsOptions(train_split="test", val_split="train[:40%]", label_key="ids")
    space = LabelSpace(("x", "y"))
    root, found = write_folder("drawn_boxes", tmp_path, options, space)
    assert found == space == label_space_from_file(root / "classes.json")
    assert [len(list((root / "images" / split).iterdir())) for split in ("train", "val")] == [3, 2]
    data = open_data(root)
    assert_labels(data, "train")  # a tensor has no stored image: it becomes a PNG


def test_other_options_make_another_folder():
    roots = {
        open_data("tfds:drawn_boxes", tfds_options=TfdsOptions(**options)).root
        for options in ({}, {"val_split": "test[:2]"}, {"image_key": "other"})
    }
    assert len(roots) == 3
    assert open_data("tfds:drawn_boxes", tfds_options=TfdsOptions(val_split="test")).root in roots


def test_labels_in_colour_become_what_tfds_makes_of_them(tmp_path):
    with pytest.raises(DataError, match="TFDS does not name the classes of 'mask'; give --label-s"):
        open_data("tfds:unnamed_boxes")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    data = open_data("tfds:unnamed_boxes", label_space=tmp_path / "classes.json")
    assert_labels(data, "val")


def test_lossy_labels_are_refused():
    lossless = "feature 'mask': expected a lossless label. Received: 'JPEG'"
    with pytest.raises(DataError, match=lossless):
        open_data("tfds:lossy_boxes")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonesuch", {}, "tfds:nonesuch: TFDS has no such data set"),
        ("drawn_boxes:9.9.9", {}, "tfds:drawn_boxes:9.9.9: TFDS has no such data set"),
        ("drawn_boxes", {"label_key": "masks"}, "--label-key must be.*'masks'; its fea.*\n  mask"),
        ("drawn_boxes", {"image_key": "name"}, "--image-key must be one of the .* that are images"),
        ("drawn_boxes", {"train_split": "trian"}, "--train-split must be a.*'trian' .*: train, te"),
        ("drawn_boxes", {"val_split": "test[:"}, "--val-split must be a split of TFDS"),
        ("drawn_boxes", {"val_split": "test[3:]"}, r"images in --val-split. Rec.*: 'test\[3:\]'"),
    ],
)
def test_problems_are_named(name, options, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        open_data(f"tfds:{name}", tfds_options=TfdsOptions(**options))


def test_features_must_not_be_ambiguous():
    features = tfds.features.FeaturesDict({
        "left": tfds.features.Image(), "right": tfds.features.Image(),
        "label": tfds.features.Image(shape=(None, None, 1)),
    })  # fmt: skip
    with pytest.raises(DataError, match="several features may be meant; say which one with --im"):
        tfds_module._feature_keys("x", features, TfdsOptions(), tfds)
    assert tfds_module._feature_keys("x", features, TfdsOptions("left"), tfds) == ("left", "label")


def test_a_damaged_data_set_is_named(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "drawn_boxes", tmp_path / "broken/drawn_boxes")
    (path,) = tmp_path.glob("broken/drawn_boxes/1.2.0/*test.tfrecord*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "broken"))
    with pytest.raises(DataError, match="the split 'test' in .* cannot be read"):
        open_data("tfds:drawn_boxes")


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "cityscapes/semantic_segmentation"])
def test_what_is_not_prepared_says_what_to_do(name):
    with pytest.raises(DataError) as error:
        open_data(f"tfds:{name}")
    assert f"tfds.builder('{name}').download_and_prepare()" in str(error.value)
    assert "TFDS_DATA_DIR" in str(error.value)
    assert ("gtFine_trainvaltest.zip" in str(error.value)) == name.startswith("cityscapes")


def mocked(name, version, folder, splits):
    """Write the metadata of a prepared data set; return the context that mocks its files."""
    builder = tfds.builder(name, data_dir=folder)
    target = folder / name / version
    target.mkdir(parents=True)
    place = {"data_dir": target, "dataset_name": builder.name, "filetype_suffix": "tfrecord"}
    builder.info.set_splits(tfds.core.splits.SplitDict([
        tfds.core.SplitInfo(
            name=split, shard_lengths=[count], num_bytes=1,
            filename_template=tfds.core.ShardedFileTemplate(split=split, **place),
        )
        for split, count in splits.items()
    ]))  # fmt: skip
    builder.info.write_to_directory(target)
    return tfds.testing.mock_data(num_examples=2, data_dir=str(folder))


@pytest.fixture
def pets(tmp_path):
    """Two images; the names of features and splits are those of TFDS, values are 1 to 3."""
    pairs = [sample(index, 3) for index in range(2)]
    labels = [decoded(label) + 1 for _, label in pairs]

    def as_dataset(self, split, decoders=None, read_config=None, **kwargs):
        kept = decoders.extract_features(self.info.features)
        assert set(kept) == {"image", "segmentation_mask"}
        return tf.data.Dataset.from_tensor_slices({
            "image": [image for image, _ in pairs],
            "segmentation_mask": [encoded(label) for label in labels],
        })  # fmt: skip

    context = mocked("oxford_iiit_pet", "4.0.0", tmp_path / "d", {"train": 2, "test": 2})
    with context, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.dataset_builder.FileReaderBuilder, "_as_dataset", as_dataset)
        yield labels


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oxford_iiit_pet", "drawn_boxes"])
def test_a_data_set_trains_and_evaluates(name, tmp_path, request):
    keys = ["--image-key", "image", "--label-key", "mask"]
    if name == "oxford_iiit_pet":
        request.getfixturevalue("pets")
        keys = []
    report = train_and_evaluate(["--data", f"tfds:{name}", *keys], tmp_path)
    assert list(report["iou"]) == (["pet", "background"] if not keys else list(CLASSES))


def test_oxford_iiit_pet(pets):
    data, labels = open_data("tfds:oxford_iiit_pet"), pets
    assert data.label_space == LABEL_SPACES["oxford_iiit_pet"]
    summary = check_samples(data.samples("val"), data.label_space)
    # In the files 1 is the pet, 2 the background, 3 the border between them, which is not judged.
    expected = [sum((label == value).sum() for label in labels) for value in (1, 2)]
    np.testing.assert_array_equal(summary.pixels, expected)
    assert data.label_space.classes[0] == "pet"
    assert summary.all_counts[:, -1].sum() == sum((label == 3).sum() for label in labels) > 0
    assert json.loads((data.root / "classes.json").read_text()) == {
        "label_space": "oxford_iiit_pet"
    }


@pytest.mark.slow
def test_cityscapes(tmp_path):
    name = "cityscapes/semantic_segmentation"
    with mocked(name, "1.0.0", tmp_path / "d", {"train": 2, "validation": 2, "test": 2}):
        data = open_data(f"tfds:{name}:1.0.0")
    assert data.label_space == LABEL_SPACES["cityscapes"]
    record = json.loads((data.root / "tfds.json").read_text())
    assert record["splits"] == {"train": "train", "val": "validation"}
    assert (record["image_key"], record["label_key"]) == ("image_left", "segmentation_label")
    summary = check_samples(data.samples("val"), data.label_space)
    np.testing.assert_array_equal(summary.sizes, [[1024, 2048]] * 2)
