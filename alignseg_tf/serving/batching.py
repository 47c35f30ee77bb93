"""The queue in front of TensorFlow: one thread runs it, on pictures of one size at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(eq=False)
class _Job:
    """A picture to segment, or something else to run, alone."""

    image: np.ndarray | None = None
    function: Callable[[], Any] | None = None
    future: Future = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    def goes_with(self, other: "_Job") -> bool:
        if self.image is None or other.image is None:
            return self is other
        return self.image.shape == other.image.shape


class Batcher:
    """Puts pictures of equal size into batches.

    The oldest waits for others until a batch is full or its time is over. The thread takes what
    has come meanwhile, so that nobody waits longer because others were served. How many may wait
    is not decided here, see `service.Budget`.

    Args:
        run: takes uint8 [B, H, W, 3], returns one result a picture.
        max_batch: most pictures.
        max_pixels: most pixels of a batch of several pictures.
        max_wait: seconds.
        observe: called with the number of pictures and the seconds of each run that went well.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Sequence[Any]],
        max_batch: int,
        max_pixels: int,
        max_wait: float,
        observe: Callable[[int, float], None] = lambda pictures, seconds: None,
    ):
        self._run = run
        self._max_batch = max_batch
        self._max_pixels = max_pixels
        self._max_wait = max_wait
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="tensorflow", daemon=True)
        self._thread.start()

    @property
    def length(self) -> int:
        """How many wait."""
        return len(self._jobs)

    def segment(self, image: np.ndarray) -> Future:
        """Queue a picture, uint8 [H, W, 3]; the future gives its result."""
        return self._add(_Job(image=image))

    def call(self, function: Callable[[], Any]) -> Future:
        """Queue something else that runs TensorFlow; the future gives what it returns."""
        return self._add(_Job(function=function))

    def _add(self, job: _Job) -> Future:
        with self._changed:
            if self._stopping:
                raise RuntimeError("the queue is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def stop(self, seconds: float) -> bool:
        """Take nothing more, run what waits, and say whether that was done in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._next():
            self._serve(batch)
            del batch  # or its pictures stay until there are others

    def _next(self) -> list[_Job]:
        """Wait for a batch; it is empty at the end."""
        with self._changed:
            while True:
                while self._jobs and self._jobs[0].future.cancelled():
                    self._jobs.popleft()
                if not self._jobs:
                    if self._stopping:
                        return []
                    self._changed.wait()
                    continue
                first = self._jobs[0]
                batch = self._together(first)
                left = first.arrived + self._max_wait - time.monotonic()
                if len(batch) < self._room(first) and left > 0 and not self._stopping:
                    self._changed.wait(left)
                    continue
                taken = set(map(id, batch))
                self._jobs = deque(job for job in self._jobs if id(job) not in taken)
                if running := [job for job in batch if job.future.set_running_or_notify_cancel()]:
                    return running

    def _together(self, first: _Job) -> list[_Job]:
        fitting = (job for job in self._jobs if job.goes_with(first) and not job.future.cancelled())
        return [job for job, _ in zip(fitting, range(self._room(first)), strict=False)]

    def _room(self, first: _Job) -> int:
        """Return how many pictures of a job's size make a full batch."""
        if first.image is None:
            return 1
        pixels = first.image.shape[0] * first.image.shape[1]
        return max(1, min(self._max_batch, self._max_pixels // pixels))

    def _serve(self, batch: list[_Job]) -> None:
        started = time.monotonic()
        try:
            results = self._results(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:  # only the guilty fail
                self._serve([job])
            return
        if batch[0].image is not None:
            self._observe(len(batch), time.monotonic() - started)
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)

    def _results(self, batch: list[_Job]) -> Sequence[Any]:
        if batch[0].function is not None:
            return [batch[0].function()]
        results = self._run(np.stack([job.image for job in batch if job.image is not None]))
        if len(results) != len(batch):
            raise RuntimeError(f"{len(results)} results for {len(batch)} pictures")
        return results
