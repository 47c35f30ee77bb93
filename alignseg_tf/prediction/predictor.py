"""Images in, class maps out at the images' own size, from any saved form of a model."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from alignseg_tf.data.readers import rgb_pixels
from alignseg_tf.model import MIN_IMAGE_SIZE
from alignseg_tf.prediction.outputs import Prediction
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.prediction.saved_networks import Network, check_gives_logits, load_network
from alignseg_tf.prediction.tiling import resized, segment_in_bands


class Predictor:
    """Segment images with a model in any saved form.

    Args:
        model_or_path: an `AlignSeg`, a path or a name, see `load_network`.
        protocol: how images go through the model; by default whole, very large ones in windows.
        device: TensorFlow device for a Keras model, such as `GPU:1`; None leaves that to
            TensorFlow.

    Raises:
        ValueError: there is no model at that path, or it does not fit the protocol.

    Example:
        >>> from alignseg_tf import AlignSeg, backbones
        >>> model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=4), num_classes=3, channels=8)
        >>> prediction = Predictor(model)(np.zeros((48, 64, 3), np.uint8))
        >>> prediction.class_map.shape, prediction.overlay().shape, prediction.probabilities.shape
        ((48, 64), (48, 64, 3), (48, 64, 3))
    """

    def __init__(
        self, model_or_path: Any, protocol: Protocol | None = None, device: str | None = None
    ):
        self.protocol = protocol or Protocol()
        self.network: Network = load_network(model_or_path, device)
        self.label_space = self.network.label_space
        if not self.protocol.is_plain:
            check_gives_logits(self.network)

    def __call__(self, image: Any) -> Prediction:
        """Segment an image.

        Args:
            image: uint8 RGB [H, W, 3], or a Pillow image of any mode, which is turned by its EXIF
                orientation. H and W are at least 32, unless the model has a fixed input size.

        Raises:
            ValueError: `image` is none of these.
        """
        file_name = Path(os.fsdecode(getattr(image, "filename", ""))).name or None
        image = image_array(image)
        class_map, confidence, protocol = self._segment(image, with_confidence=True)
        compute = self.probabilities if self.network.gives_logits else None
        in_windows = protocol != self.protocol
        return Prediction(
            image, class_map, self.label_space, confidence, in_windows, file_name, compute
        )

    def _segment(
        self, image: np.ndarray, with_confidence: bool
    ) -> tuple[np.ndarray, np.ndarray | None, Protocol]:
        """Return class ids, confidence, and how the image went through the network."""
        if not self.network.gives_logits:
            return self._class_map(image), None, self.protocol
        protocol, bands = self._bands(image, with_confidence=with_confidence)
        class_map = np.empty(image.shape[:2], np.uint8)
        confidence = np.empty(image.shape[:2], np.float32) if with_confidence else None
        for band in bands:
            rows = slice(band.first, band.first + len(band.class_map))
            class_map[rows] = band.class_map
            if confidence is not None:
                confidence[rows] = band.confidence
        return class_map, confidence, protocol

    def _bands(self, image: np.ndarray, **wanted: bool) -> tuple[Protocol, Any]:
        """Return how an image goes through the network, and its bands."""
        protocol, size = self.protocol, self.network.input_size
        if size is None:  # else large images are resized to it
            protocol = protocol.for_image(*image.shape[:2])
        classes = self.label_space.num_classes
        return protocol, segment_in_bands(
            self.network.logits, image, classes, protocol, size, **wanted
        )

    def _class_map(self, image: np.ndarray) -> np.ndarray:
        """Return the class ids of an image from a model that gives nothing else."""
        size = self.network.input_size
        if size is None:
            if min(image.shape[:2]) < MIN_IMAGE_SIZE:
                raise ValueError(
                    f"The image must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels. "
                    f"Received: {image.shape[1]} x {image.shape[0]}"
                )
            return self.network.class_map(image)
        class_map = Image.fromarray(self.network.class_map(resized(image, size)))
        return np.asarray(class_map.resize(image.shape[1::-1], Image.Resampling.NEAREST))

    def class_map(self, image: Any) -> np.ndarray:
        """Return the class ids of an image, uint8 [H, W]; see `__call__` for the rest."""
        return self._segment(image_array(image), with_confidence=False)[0]

    def probabilities(self, image: Any) -> np.ndarray:
        """Return the probabilities of the classes, float32 [H, W, classes].

        Raises:
            ValueError: `image` is no image, or the model gives only class maps.
        """
        image = image_array(image)
        check_gives_logits(self.network)
        _, bands = self._bands(image, with_probabilities=True)
        return np.concatenate([band.probabilities for band in bands])


def image_array(image: Any) -> np.ndarray:
    """Return an image as uint8 RGB [H, W, 3]; raise a `ValueError` for anything else."""
    if isinstance(image, Image.Image):
        return rgb_pixels(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ValueError(
            "Expected a uint8 RGB image [H, W, 3] or a Pillow image. "
            f"Received: {image.dtype} of shape {image.shape}"
        )
    return image


def predictors_on_all_gpus(
    model_or_path: str | Path, protocol: Protocol | None = None
) -> list[Predictor]:
    """Load a `.keras` file once for each GPU; load any other model once."""
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    if len(gpus) < 2 or Path(model_or_path).suffix != ".keras":
        return [Predictor(model_or_path, protocol)]
    return [Predictor(model_or_path, protocol, gpu) for gpu in gpus]
