import threading

import numpy as np
import pytest
from serving_fixtures import encoded, noise_image

from alignseg_tf.serving import decoders
from alignseg_tf.serving.decoders import Decoders
from alignseg_tf.serving.images import decode_image
from alignseg_tf.serving.refusals import RefusedError


@pytest.fixture
def make():
    made = []

    def make(count=1, seconds=60.0, max_pixels=64 * 64):
        made.append(Decoders(count, seconds, max_pixels))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()


class Stuck:
    """A process that never answers, as one whose image library does not return."""

    def __init__(self, pool):
        self.decoder = pool._all[0]
        self.process = self.decoder._process
        self.pipe, self.theirs = decoders._CONTEXT.Pipe()
        self.decoder._pipe = self.pipe


def test_images_are_decoded_in_other_processes(make):
    pool = make(count=2)
    for kind in ("PNG", "JPEG"):
        data = encoded(noise_image(), kind)
        assert (pool.decode(data) == decode_image(data, 64 * 64)).all()


def test_refusals_come_through(make):
    pool = make()
    for data, status, message in (
        (b"", 422, "an empty body"),
        (b"GIF89a", 415, "Expected JPEG"),
        (encoded(noise_image(65, 64)), 413, "64 x 65"),
    ):
        with pytest.raises(RefusedError, match=message) as caught:
            pool.decode(data)
        assert caught.value.status == status
    assert pool.decode(encoded(noise_image())).shape == (40, 56, 3)


def test_an_image_that_takes_too_long_is_given_up_and_its_process_ended(make):
    pool = make(seconds=0.1)
    stuck = Stuck(pool)
    with pytest.raises(RefusedError, match=r"decodes within 0.1 s") as caught:
        pool.decode(encoded(noise_image()))
    assert caught.value.status == 422
    stuck.process.join(10)
    assert not stuck.process.is_alive()
    pool._seconds = 60.0
    assert (pool.decode(encoded(noise_image())) == noise_image()).all()  # by another process


def test_a_process_that_ends_is_replaced(make):
    pool = make()
    pool._all[0]._process.kill()
    pool._all[0]._process.join(10)
    assert (pool.decode(encoded(noise_image())) == noise_image()).all()


def test_the_end_does_not_wait_for_what_is_decoded(make):
    pool = make()
    stuck = Stuck(pool)
    refused = []

    def decode():
        try:
            pool.decode(encoded(noise_image()))
        except RefusedError as refusal:
            refused.append(refusal.status)

    waiting = threading.Thread(target=decode)
    waiting.start()
    pool.stop()
    stuck.theirs.close()  # as the system does when the process is gone
    waiting.join(10)
    assert refused == [503]
    stuck.process.join(10)
    assert not stuck.process.is_alive()
    with pytest.raises(RefusedError, match="about to stop"):
        pool.decode(encoded(np.zeros((40, 40, 3), np.uint8)))
