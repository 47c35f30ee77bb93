import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from alignseg_tf.serving.batching import Batcher

SECONDS = 10


def picture(value: int, height: int = 2, width: int = 3) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


class Recorder:
    """Gives the first value of each picture, and remembers the batches; waits to be let go."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self, images):
        values = images[:, 0, 0, 0].tolist()
        self.batches.append(values)
        self.begun.set()
        assert self.go.wait(SECONDS)
        if 13 in values:
            raise ValueError("13")
        return values


@pytest.fixture
def run():
    return Recorder()


@pytest.fixture
def make(run):
    made = []

    def make(max_batch=3, max_pixels=100, max_wait=0.0, **kwargs):
        made.append(Batcher(run, max_batch, max_pixels, max_wait, **kwargs))
        return made[-1]

    yield make
    run.go.set()
    for batcher in made:
        assert batcher.stop(SECONDS)


def test_pictures_of_one_size_are_put_together(make, run):
    seen = []
    batcher = make(observe=lambda pictures, seconds: seen.append(pictures))
    futures = [batcher.segment(picture(0))]
    assert run.begun.wait(SECONDS)  # the thread is busy, and these have to wait
    futures += [batcher.segment(picture(value)) for value in (1, 2)]
    futures += [batcher.segment(picture(9, height=4))]
    futures += [batcher.segment(picture(value)) for value in (3, 4)]
    assert batcher.length == 5
    run.go.set()
    assert [future.result(SECONDS) for future in futures] == [0, 1, 2, 9, 3, 4]
    assert run.batches == [[0], [1, 2, 3], [9], [4]]
    assert seen == [1, 3, 1, 1]
    assert batcher.length == 0


def test_pixels_of_a_batch_are_limited(make, run):
    batcher = make(max_batch=8, max_pixels=13)
    futures = [batcher.segment(picture(0))]
    assert run.begun.wait(SECONDS)
    futures += [batcher.segment(picture(value)) for value in (1, 2, 3)]
    futures += [batcher.segment(picture(7, 20, 20))]  # alone it may be larger
    run.go.set()
    assert [future.result(SECONDS) for future in futures] == [0, 1, 2, 3, 7]
    assert run.batches == [[0], [1, 2], [3], [7]]


def test_the_first_waits_for_others_until_the_batch_is_full(make, run):
    run.go.set()
    batcher = make(max_batch=2, max_wait=SECONDS)
    started = time.monotonic()
    futures = [batcher.segment(picture(value)) for value in (1, 2)]
    assert [future.result(SECONDS) for future in futures] == [1, 2]
    assert run.batches == [[1, 2]]
    assert time.monotonic() - started < SECONDS / 2


def test_the_first_waits_no_longer_than_it_may(make, run):
    run.go.set()
    batcher = make(max_wait=0.2)
    started = time.monotonic()
    assert batcher.segment(picture(1)).result(SECONDS) == 1
    assert 0.2 <= time.monotonic() - started < SECONDS / 2


def test_only_the_guilty_fail(make, run):
    batcher = make(max_batch=8)
    futures = [batcher.segment(picture(0))]
    assert run.begun.wait(SECONDS)
    futures += [batcher.segment(picture(value)) for value in (1, 13, 2)]
    run.go.set()
    assert [futures[i].result(SECONDS) for i in (0, 1, 3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="13"):
        futures[2].result(SECONDS)
    assert run.batches == [[0], [1, 13, 2], [1], [13], [2]]
    assert batcher.segment(picture(5)).result(SECONDS) == 5  # the thread lives


def test_a_network_that_loses_pictures_is_found_out(make, run):
    run.go.set()
    batcher = Batcher(lambda images: [], 3, 100, 0.0)
    with pytest.raises(RuntimeError, match="0 results for 1 pictures"):
        batcher.segment(picture(1)).result(SECONDS)
    assert batcher.stop(SECONDS)


def test_who_does_not_wait_any_more_is_left_out(make, run):
    batcher = make(max_batch=2)
    futures = [batcher.segment(picture(0))]
    assert run.begun.wait(SECONDS)
    futures += [batcher.segment(picture(value)) for value in (1, 2, 3, 4)]
    gone = [futures.pop(3), futures.pop(1)]
    assert all(future.cancel() for future in gone)
    run.go.set()
    assert [future.result(SECONDS) for future in futures] == [0, 2, 4]
    assert run.batches == [[0], [2, 4]]  # nor do they take a place
    with pytest.raises(CancelledError):
        gone[0].result(SECONDS)


def test_other_work_goes_through_the_same_thread_alone(make, run):
    batcher = make()
    futures = [batcher.segment(picture(0))]
    assert run.begun.wait(SECONDS)
    names = [batcher.call(lambda: threading.current_thread().name) for _ in range(2)]
    failing = batcher.call(lambda: 1 / 0)
    futures += [batcher.segment(picture(1))]
    run.go.set()
    assert [name.result(SECONDS) for name in names] == ["tensorflow", "tensorflow"]
    with pytest.raises(ZeroDivisionError):
        failing.result(SECONDS)
    assert [future.result(SECONDS) for future in futures] == [0, 1]


def test_the_end_serves_what_waits_and_takes_nothing_more(make, run):
    batcher = make(max_wait=SECONDS)
    futures = [batcher.segment(picture(value)) for value in (1, 2)]
    assert not batcher.stop(0.05)  # the network is held up
    with pytest.raises(RuntimeError, match="closed"):
        batcher.segment(picture(3))
    run.go.set()
    assert batcher.stop(SECONDS)
    assert [future.result(0) for future in futures] == [1, 2]
