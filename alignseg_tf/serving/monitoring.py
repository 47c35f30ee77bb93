"""Numbers of a running server, for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Monitoring:
    """The counters of one server.

    Args:
        model: name of the model.
    """

    def __init__(self, model: str):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "alignseg_requests", "Answers by route and status", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "alignseg_request_seconds", "From the head of a request to the end of its answer",
            ["route"], registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.rejected = Counter(
            "alignseg_rejected", "Refused requests by reason", ["reason"], registry=registry
        )
        self._images = Counter("alignseg_images", "Segmented images", registry=registry)
        self._inference_seconds = Histogram(
            "alignseg_inference_seconds", "TensorFlow's time for an image", registry=registry,
            buckets=SECONDS,
        )  # fmt: skip
        self._queue = Gauge("alignseg_queue_length", "Waiting for TensorFlow", registry=registry)
        self._version = Gauge(
            "alignseg_model_version", "The version that serves", ["model"], registry=registry
        )
        self._model = model
        self.broken = Counter(
            "alignseg_broken_versions", "Versions that did not load", registry=registry
        )

    def show_queue(self, length: Callable[[], int]) -> None:
        """Ask for the length of the queue whenever the numbers are read."""
        self._queue.set_function(length)

    def switched(self, number: int) -> None:
        """Note which version serves."""
        self._version.labels(self._model).set(number)

    def segmented(self, seconds: float) -> None:
        """Note a segmented image."""
        self._images.inc()
        self._inference_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all numbers in the text format of Prometheus."""
        return generate_latest(self._registry)
