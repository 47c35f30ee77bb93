"""Metrics of a running server, for Prometheus."""

from collections.abc import Callable
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Bounds of the histograms, in seconds.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Monitoring:
    """The metrics of one server.

    Args:
        model: name of the model.
        version: returns the number of the active version.
        queue: returns the number of images that wait for TensorFlow.
    """

    def __init__(self, model: str, version: Callable[[], int], queue: Callable[[], int]):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        count = partial(Counter, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=SECONDS)
        gauge = partial(Gauge, registry=registry)
        self.requests = count(
            "alignseg_requests", "Answers by route and status", ["route", "status"]
        )
        self.seconds = seconds(
            "alignseg_request_seconds", "From the head of a request to the end of its answer",
            ["route"],
        )  # fmt: skip
        self.rejected = count("alignseg_rejected", "Refused requests by reason", ["reason"])
        self.images = count("alignseg_images", "Segmented images")
        self.inference_seconds = seconds(
            "alignseg_inference_seconds", "TensorFlow's time for an image"
        )
        self.broken = count("alignseg_broken_versions", "Versions that did not load")
        gauge("alignseg_queue_length", "Waiting for TensorFlow").set_function(queue)
        active = gauge("alignseg_model_version", "The active version", ["model"])
        active.labels(model).set_function(version)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
