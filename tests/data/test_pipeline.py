import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import CLASSES, write_folder
from data_fixtures import save

from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.checking import check_samples
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import read_folder
from alignseg_tf.data.pipeline import (
    RareClassSampling,
    SampleCache,
    TrainingBatches,
    View,
    evaluation_dataset,
    read_ahead,
)
from alignseg_tf.data.readers import load_sample

SPACE = LabelSpace(CLASSES)
AUGMENTATION = Augmentation((64, 64), color=0.3)
STILL = Augmentation((64, 96), scale=(1.0, 1.0), flip=False)


def arrays(dataset):
    return [(image.numpy(), label.numpy()) for image, label in dataset]


def batches(folder, *epochs, batch_size=2, **kwargs):
    made = TrainingBatches(read_folder(folder, "train"), SPACE, batch_size, **kwargs)
    return arrays(made.dataset(AUGMENTATION, *(epochs or (0, 3))))


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.fixture
def reads(monkeypatch):
    """The samples that are decoded, in order."""
    read = []

    def counted(sample, label_space):
        read.append(sample)
        time.sleep(0.02 * (len(read) % 2))
        return load_sample(sample, label_space)

    monkeypatch.setattr("alignseg_tf.data.pipeline.load_sample", counted)
    return read


def test_an_epoch_has_every_sample_once_in_a_new_order(tmp_path):
    folder = write_folder(tmp_path / "data", train=5, val=1)
    samples = read_folder(folder, "train")
    images = [load_sample(s, SPACE)[0].astype("float32") for s in samples]
    order = []
    for image, _ in TrainingBatches(samples, SPACE, 1).dataset(STILL, 0, 4):
        distances = [np.abs(image[0] - pixels).mean() for pixels in images]
        assert min(distances) < 0.01
        order.append(int(np.argmin(distances)))
    epochs = [tuple(order[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_each_place_and_epoch_has_its_own_draw(tmp_path):
    """Six files that are one image give twelve crops in two epochs."""
    samples = read_folder(write_folder(tmp_path / "data", train=1, val=1), "train") * 6
    made = TrainingBatches(samples, SPACE, 6).dataset(AUGMENTATION, 0, 2)
    images = np.concatenate([image for image, _ in made])
    assert len(np.unique(images.reshape(12, -1), axis=0)) == 12


@pytest.mark.parametrize("rare", [False, True])
def test_one_batch_can_be_made_again(folder, rare):
    """From its step, on one of two machines, and from the samples it is said to hold."""
    samples = read_folder(folder, "train")
    kwargs = {"batch_size": 2, "seed": 3}
    if rare:
        kwargs["rare_classes"] = RareClassSampling(check_samples(samples, SPACE).counts, 0.5)
    made = TrainingBatches(samples, SPACE, **kwargs)
    whole = arrays(made.dataset(STILL, 0, 3))
    parts = [TrainingBatches(samples, SPACE, shard=(i, 2), **kwargs) for i in range(2)]
    for epoch, step in ((0, 0), (1, 2), (2, 1)):
        rest = arrays(made.dataset(STILL, epoch, epoch + 1, step))
        assert_same(rest, whole[3 * epoch + step : 3 * epoch + 3])
        shards = [arrays(part.dataset(STILL, epoch, epoch + 1, step))[0] for part in parts]
        assert_same([tuple(map(np.concatenate, zip(*shards, strict=True)))], rest[:1])
        for one, sample in zip(rest[0][0], made.samples_of(epoch, step), strict=True):
            np.testing.assert_allclose(one, load_sample(sample, SPACE)[0], atol=0.01)
        assert [x.samples_of(epoch, step)[0] for x in parts] == made.samples_of(epoch, step)


SHARD = "0 <= index < count, .* Received: .(2, 2|-1, 2|0, 4)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"shard": shard}, SHARD) for shard in ((2, 2), (-1, 2), (0, 4))),
        ({"batch_size": 7}, "a batch of 7 needs as many .* Received: 6"),
        (
            {"rare_classes": RareClassSampling(np.ones((1, 3), int))},
            "expected the counts of 6 samples. Received: 1",
        ),
    ],
)
def test_options_are_checked(folder, options, message):
    with pytest.raises(ValueError, match=message):
        batches(folder, **options)


def test_a_shared_cache_decodes_a_file_once(folder, reads):
    cache, samples = SampleCache(), read_folder(folder, "train")
    whole = batches(folder, cache=cache)
    batches(folder, cache=cache, seed=7)
    list(evaluation_dataset(samples, SPACE, cache=cache))
    assert sorted(s.image for s in reads) == [s.image for s in samples]
    assert len(whole) == 9
    # Nor do the times that decoding takes change the order.
    again = TrainingBatches(samples, SPACE, 2, cache=SampleCache(0))
    assert_same(whole[:3], arrays(again.dataset(AUGMENTATION)))
    other = TrainingBatches(samples, SPACE, 2, seed=2).dataset(AUGMENTATION)
    assert not np.array_equal(whole[0][0], arrays(other)[0][0])


def test_threads_that_want_one_sample_decode_it_once(folder, reads):
    cache = SampleCache()
    first, second = read_folder(folder, "train")[:2]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda sample: cache.load(sample, SPACE)[0], [first, second] * 3))
    assert sorted(s.image for s in reads) == [first.image, second.image]
    assert all(image is found[i % 2] for i, image in enumerate(found))


def test_a_cache_keeps_to_its_budget_and_to_the_label_space(folder):
    samples = read_folder(folder, "train")
    cache = SampleCache(2 * 64 * 96 * 4 + 100)
    kept = [cache.load(sample, SPACE)[0] for sample in samples]
    assert cache.free_bytes == 100
    again = [cache.load(sample, SPACE)[0] for sample in samples]
    assert [a is b for a, b in zip(kept, again, strict=True)] == [True, True] + 4 * [False]
    other = LabelSpace(CLASSES, ids=(2, 1, 0))
    assert not np.array_equal(*(cache.load(samples[0], space)[1] for space in (SPACE, other)))


def test_rare_classes_have_the_probabilities_of_the_paper():
    counts = np.array([[700, 0, 0, 0], [200, 60, 40, 0]])
    share = np.array([0.9, 0.06, 0.04])
    for temperature in (0.01, 0.2, 5.0):
        expected = np.exp((1 - share) / temperature)
        probabilities = RareClassSampling(counts, temperature).probabilities()
        np.testing.assert_allclose(probabilities[:3], expected / expected.sum(), rtol=1e-6)
        assert probabilities[3] == 0
    assert RareClassSampling(counts, 1e-6).probabilities()[2] == 1
    with pytest.raises(ValueError, match="`temperature`: expected a positive number. Received: 0"):
        RareClassSampling(counts, 0.0)
    with pytest.raises(ValueError, match=r"pixels in it. Received: array\(\[\[0, 0, 0"):
        RareClassSampling(np.zeros((2, 3), int))


def test_images_hold_a_class_that_has_a_share_of_them():
    counts = np.array([[9990, 10, 0, 0], [9999, 1, 0, 0], [9992, 0, 8, 0]])
    assert [list(x) for x in RareClassSampling(counts).images()] == [[0, 1, 2], [0], [2], []]


def test_rare_classes_are_drawn_as_often_as_they_should(tmp_path):
    """Class 2 is in one image of eight and in a corner of it, class 1 in two others."""
    for index in range(8):
        label = np.zeros((64, 96), np.uint8)
        if index == 3:
            label[4:16, 4:16] = 2
        elif index in (5, 6):
            label[30:60, 40:80] = 1
        image = np.full((64, 96, 3), 10 + 20 * index, np.uint8)
        save(image, tmp_path / f"images/train/{index}.png")
        save(label, tmp_path / f"labels/train/{index}.png")
    samples = read_folder(tmp_path, "train")
    rare = RareClassSampling(check_samples(samples, SPACE).counts, temperature=1.0)

    def drawn(rare_classes):
        made = TrainingBatches(samples, SPACE, 4, seed=3, rare_classes=rare_classes)
        dataset = made.dataset(Augmentation((32, 32), (1.0, 1.0)), 0, 100)
        images, labels = (np.concatenate(x) for x in zip(*dataset.as_numpy_iterator(), strict=True))
        return (images[:, 16, 16, 0].round().astype(int) - 10) // 20, labels

    inputs, labels = drawn(rare)
    expected = rare.probabilities()
    np.testing.assert_allclose(np.mean(inputs == 3), expected[2] + expected[0] / 8, atol=0.06)
    counts = np.bincount(inputs, minlength=8)
    assert counts[5:7].sum() / 800 == pytest.approx(expected[1] + expected[0] / 4, abs=0.06)
    assert counts.min() > 5
    # A crop has room for a sixth of the image; that of class 2 has to lie in its corner.
    held = (labels == 2).any((1, 2))
    assert held[inputs == 3].mean() > 0.75
    plain_images, plain_labels = drawn(None)
    assert (np.bincount(plain_images, minlength=8) == 100).all()
    assert (plain_labels == 2).any((1, 2))[plain_images == 3].mean() < 0.5


def test_read_ahead_is_bounded_in_memory():
    sizes = ((4, (64, 64)), (8, (872, 872)), (8, (512, 1024)))
    assert list(itertools.starmap(read_ahead, sizes)) == [8, 2, 4]


def test_evaluation_reads_whole_images_in_order(tmp_path):
    folder = write_folder(tmp_path / "data", val=3, sizes=((64, 96), (48, 70)))
    samples = read_folder(folder, "val")
    for sample, (image, label) in zip(samples, evaluation_dataset(samples, SPACE), strict=True):
        assert_same([(image[0], label[0])], [load_sample(sample, SPACE)])


@pytest.mark.parametrize(("one_size", "batches"), [(True, 2), (False, 3)])
def test_evaluation_gives_every_replica_a_sample(tmp_path, one_size, batches):
    samples = read_folder(write_folder(tmp_path / "data", val=3), "val")
    dataset = arrays(evaluation_dataset(samples, SPACE, replicas=2, one_size=one_size))
    assert [image.shape for image, _ in dataset] == [(2, 64, 96, 3)] * batches
    seen = [x for _, label in dataset for x in label if (x != IGNORE).any()]
    for label, sample in zip(seen, samples, strict=True):
        np.testing.assert_array_equal(label, load_sample(sample, SPACE)[1])


def test_views_are_cut_and_each_label_counts_once(tmp_path):
    folder = write_folder(tmp_path / "data", val=2, sizes=((64, 96), (48, 70)))
    samples = read_folder(folder, "val")
    rows = slice(0, 64)
    views = [
        View(0, (rows, slice(0, 60)), (rows, slice(0, 50))),
        View(0, (rows, slice(36, 96)), (rows, slice(50, 96))),
        View(1),
    ]
    image, label = load_sample(samples[0], SPACE)
    left, right = label.copy(), label.copy()
    left[:, 50:] = right[:, :50] = IGNORE
    expected = [
        (image[:, :60], left[:, :60]),
        (image[:, 36:], right[:, 36:]),
        load_sample(samples[1], SPACE),
    ]
    found = arrays(evaluation_dataset(samples, SPACE, views=views))
    assert_same([(image[0], label[0]) for image, label in found], expected)
