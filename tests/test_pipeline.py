import numpy as np
import pytest
from conftest import CLASSES, write_folder

from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.catalog import IGNORE, LabelSpace
from alignseg_tf.data.pipeline import evaluation_dataset, training_dataset
from alignseg_tf.data.readers import DataError, load_sample, read_folder

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
    pictures = [load_sample(s, SPACE)[0].astype("float32") for s in samples]
    dataset = training_dataset(samples, SPACE, still, batch_size=1, epochs=4)
    order = []
    for image, _ in dataset:
        distances = [np.abs(image[0] - picture).mean() for picture in pictures]
        assert min(distances) < 0.01
        order.append(int(np.argmin(distances)))
    epochs = [tuple(order[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_the_augmentation_of_a_sample_differs_between_epochs(tmp_path):
    folder = write_folder(tmp_path / "data", train=1, val=1)
    images = [image for image, _ in batches(folder, batch_size=1)]
    assert not np.array_equal(images[0], images[1])


def test_no_cache_gives_the_same_batches(folder):
    for cached, read in zip(batches(folder), batches(folder, cache_bytes=0), strict=True):
        np.testing.assert_array_equal(cached[0], read[0])


def test_evaluation_reads_whole_pictures_in_order(tmp_path):
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
