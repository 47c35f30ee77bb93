import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import CLASSES, write_folder
from PIL import Image

from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import DataError, read_folder
from alignseg_tf.data.pipeline import (
    RareClassSampling,
    SampleCache,
    View,
    batch_samples,
    evaluation_dataset,
    read_ahead,
    training_dataset,
)
from alignseg_tf.data.readers import load_sample

SPACE = LabelSpace(CLASSES)
AUGMENTATION = Augmentation((64, 64), color=0.3)


def batches(folder, **kwargs):
    kwargs = {"batch_size": 2, "epochs": 3, **kwargs}
    dataset = training_dataset(read_folder(folder, "train"), SPACE, AUGMENTATION, **kwargs)
    return [(image.numpy(), label.numpy()) for image, label in dataset]


def test_batches_are_a_function_of_seed_epoch_and_place(folder):
    whole, again = batches(folder, seed=1), batches(folder, seed=1)
    later = batches(folder, seed=1, initial_epoch=2)
    other = batches(folder, seed=2)
    assert len(whole) == 9
    assert len(later) == 3
    for (image, label), (image2, label2) in [
        *zip(whole, again, strict=True),
        *zip(whole[6:], later, strict=True),
    ]:
        np.testing.assert_array_equal(image, image2)
        np.testing.assert_array_equal(label, label2)
    assert not np.array_equal(whole[0][0], other[0][0])


def test_an_epoch_has_every_sample_once_in_a_new_order(tmp_path):
    folder = write_folder(tmp_path / "data", train=5, val=1)
    still = Augmentation((64, 96), scale=(1.0, 1.0), flip=False)
    samples = read_folder(folder, "train")
    images = [load_sample(s, SPACE)[0].astype("float32") for s in samples]
    dataset = training_dataset(samples, SPACE, still, batch_size=1, epochs=4)
    order = []
    for image, _ in dataset:
        distances = [np.abs(image[0] - pixels).mean() for pixels in images]
        assert min(distances) < 0.01
        order.append(int(np.argmin(distances)))
    epochs = [tuple(order[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_the_augmentation_of_a_sample_differs_between_epochs(tmp_path):
    folder = write_folder(tmp_path / "data", train=1, val=1)
    images = [image for image, _ in batches(folder, batch_size=1)]
    assert not np.array_equal(images[0], images[1])


def test_each_place_of_an_epoch_has_its_own_draw(tmp_path):
    """Six files that are one image give six crops."""
    folder = write_folder(tmp_path / "data", train=1, val=1)
    samples = read_folder(folder, "train") * 6
    dataset = training_dataset(samples, SPACE, AUGMENTATION, batch_size=6, epochs=1)
    (images,) = (image.numpy() for image, _ in dataset)
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_no_cache_gives_the_same_batches(folder):
    for cached, read in zip(batches(folder), batches(folder, cache=SampleCache(0)), strict=True):
        np.testing.assert_array_equal(cached[0], read[0])


def test_evaluation_reads_whole_images_in_order(tmp_path):
    folder = write_folder(tmp_path / "data", val=3, sizes=((64, 96), (48, 70)))
    samples = read_folder(folder, "val")
    for sample, (image, label) in zip(samples, evaluation_dataset(samples, SPACE), strict=True):
        expected = load_sample(sample, SPACE)
        np.testing.assert_array_equal(image[0], expected[0])
        np.testing.assert_array_equal(label[0], expected[1])


@pytest.mark.parametrize(("one_size", "batches"), [(True, 2), (False, 3)])
def test_evaluation_gives_every_replica_a_sample(tmp_path, one_size, batches):
    samples = read_folder(write_folder(tmp_path / "data", val=3), "val")
    dataset = evaluation_dataset(samples, SPACE, replicas=2, one_size=one_size)
    seen = []
    for image, label in dataset:
        assert image.shape == (2, 64, 96, 3)
        seen += [x for x in label.numpy() if (x != IGNORE).any()]
    assert len(list(dataset)) == batches
    for label, sample in zip(seen, samples, strict=True):
        np.testing.assert_array_equal(label, load_sample(sample, SPACE)[1])


def test_too_few_samples_are_refused(folder):
    with pytest.raises(DataError, match="a batch of 7 needs as many .* Received: 6"):
        batches(folder, batch_size=7)


def test_a_shared_cache_decodes_a_file_once(folder, monkeypatch):
    read = []

    def counted(sample, label_space):
        read.append(sample)
        return load_sample(sample, label_space)

    monkeypatch.setattr("alignseg_tf.data.pipeline.load_sample", counted)
    cache = SampleCache()
    samples = read_folder(folder, "train")
    whole = batches(folder, cache=cache)
    batches(folder, cache=cache, epochs=1, seed=7)
    list(evaluation_dataset(samples, SPACE, cache=cache))
    assert sorted(s.image for s in read) == [s.image for s in samples]
    for cached, fresh in zip(whole, batches(folder), strict=True):
        np.testing.assert_array_equal(cached[0], fresh[0])


def test_threads_that_want_one_sample_decode_it_once(folder, monkeypatch):
    read = []

    def slow(sample, label_space):
        read.append(sample)
        time.sleep(0.05)
        return load_sample(sample, label_space)

    monkeypatch.setattr("alignseg_tf.data.pipeline.load_sample", slow)
    cache = SampleCache()
    first, second = read_folder(folder, "train")[:2]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda sample: cache.load(sample, SPACE)[0], [first, second] * 3))
    assert sorted(s.image for s in read) == [first.image, second.image]
    assert all(image is found[i % 2] for i, image in enumerate(found))


def test_a_cache_keeps_to_its_budget_and_to_the_label_space(folder):
    samples = read_folder(folder, "train")
    size = 64 * 96 * 4
    cache = SampleCache(2 * size + 100)
    kept = [cache.load(sample, SPACE)[0] for sample in samples]
    assert cache.free_bytes == 100
    again = [cache.load(sample, SPACE)[0] for sample in samples]
    assert [a is b for a, b in zip(kept, again, strict=True)] == [True, True] + 4 * [False]
    other = LabelSpace(CLASSES, ids=(2, 1, 0))
    assert (cache.load(samples[0], SPACE)[1] == 0).any()
    assert (cache.load(samples[0], other)[1] == 2).any()
    assert not np.array_equal(*(cache.load(samples[0], space)[1] for space in (SPACE, other)))


def test_samples_that_take_long_keep_their_place(folder, monkeypatch):
    """Decoded at the same time, the first of a batch finishes last and still comes first."""
    expected = batches(folder, batch_size=3)
    order = itertools.count()
    lock = threading.Lock()

    def slow(sample, label_space):
        with lock:
            place = next(order)
        time.sleep(0.02 * (place % 2 == 0))
        return load_sample(sample, label_space)

    monkeypatch.setattr("alignseg_tf.data.pipeline.load_sample", slow)
    for (a, b), (c, d) in zip(expected, batches(folder, batch_size=3), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


@pytest.mark.parametrize("rare", [False, True])
def test_the_parts_of_all_machines_are_the_batch(folder, rare):
    kwargs = {"batch_size": 4, "epochs": 5, "initial_epoch": 1}
    if rare:
        counts = check_samples(read_folder(folder, "train"), SPACE).counts
        kwargs["rare_classes"] = RareClassSampling(counts, 0.5)
    whole = batches(folder, **kwargs)
    parts = [batches(folder, shard=(index, 2), **kwargs) for index in range(2)]
    assert len(whole) == 4
    for step, (image, label) in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step][0] for part in parts]), image)
        np.testing.assert_array_equal(np.concatenate([part[step][1] for part in parts]), label)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 3)])
def test_unequal_parts_are_refused(folder, shard):
    with pytest.raises(ValueError, match=r"0 <= index < count .* Received: shard="):
        batches(folder, batch_size=4, shard=shard)


def test_rare_classes_have_the_probabilities_of_the_paper():
    counts = np.array([[700, 0, 0, 0], [200, 60, 40, 0]])
    share = np.array([0.9, 0.06, 0.04])
    for temperature in (0.01, 0.2, 5.0):
        expected = np.exp((1 - share) / temperature)
        probabilities = RareClassSampling(counts, temperature).probabilities()
        np.testing.assert_allclose(probabilities[:3], expected / expected.sum(), rtol=1e-6)
        assert probabilities[3] == 0
    assert RareClassSampling(counts, 1e-6).probabilities()[2] == 1


def test_images_hold_a_class_that_has_a_share_of_them():
    counts = np.array([[9990, 10, 0, 0], [9999, 1, 0, 0], [9992, 0, 8, 0]])
    images = RareClassSampling(counts).images()
    assert [list(indices) for indices in images] == [[0, 1, 2], [0], [2], []]


def test_rare_classes_are_drawn_as_often_as_they_should(tmp_path):
    """Class 2 is in one image of eight and in a corner of it, class 1 in two others."""
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for index in range(8):
        label = np.zeros((64, 96), np.uint8)
        if index == 3:
            label[4:16, 4:16] = 2
        elif index in (5, 6):
            label[30:60, 40:80] = 1
        image = np.full((64, 96, 3), 10 + 20 * index, np.uint8)
        Image.fromarray(image).save(root / "images" / "train" / f"{index}.png")
        Image.fromarray(label).save(root / "labels" / "train" / f"{index}.png")
    samples = read_folder(root, "train")
    rare = RareClassSampling(check_samples(samples, SPACE).counts, temperature=1.0)
    augmentation = Augmentation((32, 32), (1.0, 1.0))

    def drawn(**kwargs):
        dataset = training_dataset(samples, SPACE, augmentation, 4, 100, seed=3, **kwargs)
        images, labels = (np.concatenate(x) for x in zip(*dataset.as_numpy_iterator(), strict=True))
        return (images[:, 16, 16, 0].round().astype(int) - 10) // 20, labels

    inputs, labels = drawn(rare_classes=rare)
    expected = rare.probabilities()
    np.testing.assert_allclose(np.mean(inputs == 3), expected[2] + expected[0] / 8, atol=0.06)
    counts = np.bincount(inputs, minlength=8)
    assert counts[5:7].sum() / 800 == pytest.approx(expected[1] + expected[0] / 4, abs=0.06)
    assert counts.min() > 5
    # A crop has room for a sixth of the image; that of class 2 has to lie in its corner.
    held = (labels == 2).any((1, 2))
    assert held[inputs == 3].mean() > 0.75
    plain_images, plain_labels = drawn()
    assert (np.bincount(plain_images, minlength=8) == 100).all()
    assert (plain_labels == 2).any((1, 2))[plain_images == 3].mean() < 0.5
    again, _ = drawn(rare_classes=rare)
    np.testing.assert_array_equal(inputs, again)


def test_counts_of_other_samples_are_refused(folder):
    with pytest.raises(ValueError, match="the counts of the 6 samples. Received: counts of 1"):
        batches(folder, rare_classes=RareClassSampling(np.ones((1, 3), int)))
    with pytest.raises(ValueError, match="`temperature` must be positive. Received: 0"):
        RareClassSampling(np.ones((1, 3), int), 0.0)
    with pytest.raises(ValueError, match=r"pixels in it. Received: shape \(2, 3\), 0 pixels"):
        RareClassSampling(np.zeros((2, 3), int))


def test_read_ahead_is_bounded_in_memory():
    assert read_ahead(4, (64, 64)) == 8
    assert read_ahead(8, (872, 872)) == 2
    assert read_ahead(4, (352, 480)) == 8
    assert read_ahead(8, (512, 1024)) == 4


def quarters(turned=False):
    """An image of four colours, which are its classes, and its label."""
    label = np.kron(np.array([[0, 1], [2, 255]]), np.ones((40, 64))).astype(np.uint8)
    colors = np.zeros((256, 3), np.uint8)
    colors[[0, 1, 2, 255]] = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 250)
    return colors[label], label


def save_turned_jpeg(image, path):
    """As a camera held on its side writes it: the pixels turned, and a note to turn them back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(image)).save(path, exif=exif, quality=95, subsampling=0)


def save_palette(label, path):
    image = Image.fromarray(label).convert("P")
    image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    image.save(path)


@pytest.mark.parametrize(
    ("image_name", "save_image", "save_label"),
    [
        ("a.jpg", save_turned_jpeg, lambda x, path: Image.fromarray(x).save(path)),
        ("a.png", lambda x, path: Image.fromarray(x).save(path), save_palette),
        (
            "a.png",
            lambda x, path: Image.fromarray(x).save(path),
            lambda x, path: Image.fromarray(x.astype(np.uint16)).save(path),
        ),
    ],
    ids=["EXIF", "palette", "16-bit label"],
)
def test_images_and_labels_of_all_kinds_arrive_together(
    tmp_path, image_name, save_image, save_label
):
    image, label = quarters()
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    save_image(image, tmp_path / "images" / "train" / image_name)
    save_label(label, tmp_path / "labels" / "train" / "a.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    samples = read_folder(tmp_path, "train")
    augmentation = Augmentation((80, 128), (1.0, 1.0), fill=(250.0, 250.0, 250.0))
    for new_image, new_label in training_dataset(samples, SPACE, augmentation, 1, 8):
        colors = new_image[0].numpy().round(-1) // 10 * 10
        np.testing.assert_array_equal((colors > 125).sum(-1) == 3, new_label[0] == IGNORE)
        for index in range(3):
            np.testing.assert_array_equal(
                (colors.argmax(-1) == index) & (new_label[0] != IGNORE), new_label[0] == index
            )
        assert (new_label[0].numpy() == label).all() or (
            new_label[0].numpy() == label[:, ::-1]
        ).all()


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_one_batch_can_be_made_again(folder, rare, shard):
    """By itself, and from the samples that it is said to be made of."""
    samples = read_folder(folder, "train")
    kwargs = {"batch_size": 2, "seed": 3, "shard": shard}
    if rare:
        kwargs["rare_classes"] = RareClassSampling(check_samples(samples, SPACE).counts, 0.5)
    still = Augmentation((64, 96), scale=(1.0, 1.0), flip=False)
    whole = list(training_dataset(samples, SPACE, still, epochs=3, **kwargs))
    for epoch, step in ((0, 0), (1, 2), (2, 1)):
        rest = training_dataset(
            samples, SPACE, still, epochs=epoch + 1, initial_epoch=epoch, initial_step=step,
            **kwargs,
        )  # fmt: skip
        assert len(list(rest)) == 3 - step
        image, label = next(iter(rest))
        np.testing.assert_array_equal(image, whole[3 * epoch + step][0])
        np.testing.assert_array_equal(label, whole[3 * epoch + step][1])
        drawn = batch_samples(samples, epoch=epoch, step=step, **kwargs)
        for one, sample in zip(image.numpy(), drawn, strict=True):
            np.testing.assert_allclose(one, load_sample(sample, SPACE)[0], atol=0.01)


def test_views_are_cut_and_each_label_counts_once(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", val=2, sizes=((64, 96), (48, 70)))
    samples = read_folder(folder, "val")
    read = []

    def counted(sample, label_space):
        read.append(sample)
        return load_sample(sample, label_space)

    monkeypatch.setattr("alignseg_tf.data.pipeline.load_sample", counted)
    rows = slice(0, 64)
    views = [
        View(0, (rows, slice(0, 60)), (rows, slice(0, 50))),
        View(0, (rows, slice(36, 96)), (rows, slice(50, 96))),
        View(1),
    ]
    left, right, whole = evaluation_dataset(samples, SPACE, cache=SampleCache(0), views=views)
    image, label = load_sample(samples[0], SPACE)
    np.testing.assert_array_equal(left[0][0], image[:, :60])
    np.testing.assert_array_equal(right[0][0], image[:, 36:])
    np.testing.assert_array_equal(left[1][0][:, :50], label[:, :50])
    np.testing.assert_array_equal(right[1][0][:, 14:], label[:, 50:])
    assert (left[1][0][:, 50:].numpy() == IGNORE).all()
    assert (right[1][0][:, :14].numpy() == IGNORE).all()
    np.testing.assert_array_equal(whole[0][0], load_sample(samples[1], SPACE)[0])
