"""A trained model in any saved form, as a function from images to logits or class ids."""

import importlib
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.data.label_space import MAX_CLASSES, LabelSpace
from alignseg_tf.layers.nested import non_finite_paths
from alignseg_tf.model import AlignSeg
from alignseg_tf.pretrained import model_path, pretrained_names
from alignseg_tf.system.environment import cores
from alignseg_tf.system.quiet import silent_stderr

# Label space of a SavedModel, where model servers look.
LABEL_SPACE_FILE = Path("assets.extra") / "classes.json"
# In the archive at the end of a TFLite file: the label space, or only names, a line each.
TFLITE_LABEL_SPACE_FILE, TFLITE_LABELS_FILE = "classes.json", "labels.txt"
# Key of the label space in the metadata of an ONNX file.
ONNX_LABEL_SPACE_KEY = "classes"


class NonFiniteLogitsError(ValueError):
    """Logits are NaN or infinite."""


class Network:
    """A trained model in any saved form.

    Attributes:
        source: the model's path, or its name in messages.
        label_space: names and colours of the classes.
        input_size: height and width of the images it takes, or None for any from 32 on.
        gives_logits: whether `logits` works; some files give only class maps.
        gives_class_maps: whether `class_map` works.
    """

    source = "the model"
    label_space: LabelSpace
    input_size: tuple[int, int] | None = None
    gives_logits = True
    gives_class_maps = False

    def logits(self, images: np.ndarray) -> Any:
        """Return float32 logits [B, l, l, C] of uint8 RGB images [B, H, W, 3].

        The outer cells of the logits lie on the outer pixels.

        Raises:
            ValueError: the network gives only class maps.
            NonFiniteLogitsError: logits are NaN or infinite.
        """
        check_gives_logits(self)
        logits = self._compute_logits(images)
        finite = tf.math.is_finite(logits)  # the argmax of NaN would be class 0
        if not tf.reduce_all(finite):
            count = int(tf.reduce_sum(tf.cast(~finite, tf.int32)))
            raise NonFiniteLogitsError(
                f"expected finite logits from {self.source}. Received: NaN or infinity in {count} "
                f"of {tf.size(logits)} values"
            )
        return logits

    def _compute_logits(self, images: np.ndarray) -> Any:
        raise NotImplementedError

    def class_map(self, image: np.ndarray) -> np.ndarray:
        """Return class ids, uint8 [H, W], of a uint8 RGB image of the input size."""
        raise NotImplementedError


def logits_model(model: keras.Model) -> keras.Model:
    """Return the part of an `AlignSeg`, or its `inference_model`, that gives stride-4 logits."""
    return keras.Model(model.inputs[0], model.get_layer("segmentation_head").output)


class KerasNetwork(Network):
    """A Keras model in memory. Results follow later changes of its variables.

    Args:
        model: an `AlignSeg`, or an `inference_model` of one; it is not changed.
        device: TensorFlow device, such as `GPU:1`; None leaves that to TensorFlow.
        source: the model's path, for messages.
    """

    def __init__(self, model: keras.Model, device: str | None = None, source: str = Network.source):
        self.source = source
        self.label_space = label_space_of(model, source)
        head = logits_model(model)

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
        def run(images: Any) -> Any:
            return tf.cast(head(tf.cast(images, tf.float32), training=False), tf.float32)

        self._run = run
        self._device = device

    def _compute_logits(self, images: np.ndarray) -> Any:
        with tf.device(self._device):
            return self._run(tf.convert_to_tensor(images))


def inference_network(
    model: AlignSeg, device: str | None = None, source: str = Network.source
) -> KerasNetwork:
    """Return a trained model as `inference_model` rewrites it, equal except for rounding.

    Results do not follow later training of the model.
    """
    from alignseg_tf.inference.graph import inference_model

    with tf.device(device):
        return KerasNetwork(inference_model(model), device, source)


class SavedModelNetwork(Network):
    """The folder of a SavedModel that `alignseg_tf.export` wrote.

    Attributes:
        signatures: all functions in the folder, by name.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, path: Path):
        self.source = str(path)
        try:
            self._loaded = tf.saved_model.load(str(path))  # signatures do not keep it alive
            self.signatures = signatures = self._loaded.signatures
            self._class_map = signatures["serving_default"]
            shape = self._class_map.structured_input_signature[1]["images"].shape
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: not a SavedModel with the signature 'serving_default' ({error})"
            ) from error
        self.gives_logits = "logits" in signatures  # not in folders of early versions
        self.gives_class_maps = True
        self.input_size = None if shape[1] is None else (shape[1], shape[2])
        file = path / LABEL_SPACE_FILE
        if not file.is_file():
            raise ValueError(f"{path}: {LABEL_SPACE_FILE} with the names of the classes is missing")
        self.label_space = parse_label_space(file.read_bytes(), str(file))

    def _compute_logits(self, images: np.ndarray) -> Any:
        floats = tf.convert_to_tensor(images.astype(np.float32))
        return self.signatures["logits"](images=floats)["logits"]

    def class_map(self, image: np.ndarray) -> np.ndarray:
        """Return the class ids of the signature `serving_default`."""
        return self.class_maps(image[None])[0]

    def class_maps(self, images: np.ndarray) -> np.ndarray:
        """Return the class ids, uint8 [B, H, W], of uint8 RGB images [B, H, W, 3]."""
        return self._class_map(images=tf.convert_to_tensor(images))["class_map"].numpy()


def check_gives_logits(network: Network) -> None:
    """Raise a `ValueError` if a network has class maps as its only output."""
    if not network.gives_logits:
        raise ValueError(
            f"expected a model with logits, such as the .keras file. Received: {network.source}, "
            "with only class maps of whole images"
        )


class TfliteNetwork(Network):
    """A `.tflite` file, run by LiteRT.

    The input is RGB 0..255 [1, h, w, 3], uint8 or float32, of one size or of any; the output is
    logits [1, l, l, C] or class ids [1, h, w]. Quantised tensors are converted by their scale and
    zero point. `classes.json` or `labels.txt`, in the archive at the end of the file, names the
    classes; else they are numbered.

    Raises:
        ImportError: LiteRT is not installed.
        ValueError: the file is unreadable, or has other inputs or outputs.
    """

    def __init__(self, path: Path):
        self.source = str(path)
        interpreter = import_litert(path).Interpreter
        try:
            with silent_stderr():
                self._interpreter = interpreter(model_path=str(path), num_threads=cores())
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: not readable as a TFLite model ({error})") from error
        inputs = self._interpreter.get_input_details()
        inputs_shapes, output_shapes = (
            [detail["shape_signature"].tolist() for detail in details]
            for details in (inputs, self._interpreter.get_output_details())
        )
        match inputs_shapes, output_shapes:
            case [[_, height, width, 3]], [[_, _, _, *num_classes]] if len(num_classes) < 2:
                self.input_size = None if -1 in (height, width) else (height, width)
            case _:
                raise ValueError(
                    f"{path}: expected one input [1, h, w, 3] and one output, logits [1, l, l, "
                    "classes] or class ids [1, h, w]. Received: inputs "
                    f"{inputs_shapes}, outputs {output_shapes}"
                )
        self._input = inputs[0]
        self._allocated: tuple[int, ...] | None = None
        self._lock = threading.Lock()  # an interpreter runs one image at a time
        self.gives_logits = bool(num_classes)
        self.gives_class_maps = not num_classes
        self.label_space = _tflite_label_space(path, num_classes[0] if num_classes else None)

    def _run(self, image: np.ndarray) -> np.ndarray:
        shape = (1, *image.shape)
        with self._lock:
            if shape != self._allocated:
                if self.input_size is None:
                    self._interpreter.resize_tensor_input(self._input["index"], shape)
                self._interpreter.allocate_tensors()
                self._allocated = shape
            self._interpreter.set_tensor(self._input["index"], _quantized(image[None], self._input))
            self._interpreter.invoke()
            output = self._interpreter.get_output_details()[0]
            return _dequantized(self._interpreter.get_tensor(output["index"]), output)

    def _compute_logits(self, images: np.ndarray) -> Any:
        return tf.convert_to_tensor(np.concatenate([self._run(image) for image in images]))

    def class_map(self, image: np.ndarray) -> np.ndarray:
        """Return the class ids of the file's output."""
        return self._run(image)[0].astype(np.uint8)


def import_litert(path: Path) -> Any:
    """Return LiteRT's module `interpreter`, or raise an `ImportError` for the file at `path`."""
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise ImportError(
            f"{path}: a .tflite file needs LiteRT: pip install ai-edge-litert"
        ) from error


def _quantized(images: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Turn RGB 0..255 into the values of an input tensor."""
    scale, zero_point = tensor["quantization"]
    if not scale:
        return images.astype(tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    values = np.round(images / np.float32(scale)) + zero_point
    return np.clip(values, limits.min, limits.max).astype(tensor["dtype"])


def _dequantized(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    scale, zero_point = tensor["quantization"]
    floats = values.astype(np.float32)
    return (floats - zero_point) * np.float32(scale) if scale else floats


def _tflite_label_space(path: Path, num_classes: int | None) -> LabelSpace:
    """Read the names in the archive at the end of a file, or number the classes."""
    files: dict[str, bytes] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    if (content := files.get(TFLITE_LABEL_SPACE_FILE)) is not None:
        space = parse_label_space(content, f"{path}, {TFLITE_LABEL_SPACE_FILE}")
    elif (content := files.get(TFLITE_LABELS_FILE)) is not None:
        lines = filter(None, content.decode(errors="replace").splitlines())
        space = LabelSpace.from_dict({"classes": [*lines]}, f"{path}, {TFLITE_LABELS_FILE}")
    elif num_classes is None:
        raise ValueError(
            f"{path}: the names of the classes are missing; expected {TFLITE_LABEL_SPACE_FILE} or "
            f"{TFLITE_LABELS_FILE} in the archive at the end of a file that gives class maps"
        )
    else:
        space = numbered_classes(num_classes)
    if num_classes not in (None, space.num_classes):
        raise ValueError(
            f"{path}: {space.num_classes} classes are named and the output has {num_classes}"
        )
    return space


class OnnxNetwork(Network):
    """An `.onnx` file that `alignseg_tf.export` wrote, run by ONNX Runtime.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: the file is unreadable, or has other inputs, outputs or metadata.
    """

    def __init__(self, path: Path):
        self.source = str(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"{path}: an .onnx file needs ONNX Runtime: pip install onnxruntime"
            ) from error
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # its exceptions share no base class
            raise ValueError(f"{path}: not readable as an ONNX model ({error})") from error
        inputs = [(x.name, x.type, len(x.shape)) for x in self._session.get_inputs()]
        outputs = [x.name for x in self._session.get_outputs()]
        classes = self._session.get_modelmeta().custom_metadata_map.get(ONNX_LABEL_SPACE_KEY)
        if inputs != [("images", "tensor(uint8)", 4)] or outputs != ["logits"] or classes is None:
            raise ValueError(
                f"{path}: expected the input images, uint8 [B, H, W, 3], the output logits, and "
                f"{ONNX_LABEL_SPACE_KEY!r} in the metadata. Received: inputs {inputs}, outputs "
                f"{outputs}, {'no ' if classes is None else ''}classes"
            )
        height, width = self._session.get_inputs()[0].shape[1:3]
        self.input_size = (height, width) if isinstance(height, int) else None
        self.label_space = parse_label_space(classes, f"{path}, {ONNX_LABEL_SPACE_KEY}")

    def _compute_logits(self, images: np.ndarray) -> Any:
        return tf.convert_to_tensor(self._session.run(None, {"images": images})[0])


def parse_label_space(content: str | bytes, source: str) -> LabelSpace:
    """Read a label space stored as JSON; a `ValueError` names `source`."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{source}: not readable as JSON ({error})") from error
    return LabelSpace.from_dict(value, source)


def check_class_count(num_classes: int) -> None:
    """Raise a `ValueError` if there are more classes than a uint8 class map can hold."""
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"Class maps are uint8: at most {MAX_CLASSES} classes. Received: {num_classes}"
        )


def load_model(path: str | Path) -> AlignSeg:
    """Read a `.keras` file, or a trained model of the package by its name, in safe mode.

    Raises:
        ValueError: the file is missing, unreadable, no AlignSeg, or weights are not finite.
    """
    path = model_path(path)
    if not path.exists():
        raise ValueError(
            f"{path}: no such file; expected a .keras model, or the name of one that comes with "
            f"the package: {', '.join(pretrained_names()) or 'none does'}"
        )
    # Keras calls these "File not found".
    if path.is_dir() or path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: not readable as a Keras model: expected a zip archive whose name "
            f"ends in .keras. Received: {'a folder' if path.is_dir() else _start_of(path)}"
        )
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"{path}: not readable as a Keras model ({error})") from error
    if not isinstance(model, AlignSeg):
        raise ValueError(f"{path}: expected an AlignSeg. Received: a {type(model).__name__}")
    if spoilt := non_finite_paths(model.weights):
        raise ValueError(
            f"{path}: expected finite weights. Received: NaN or infinity in {spoilt[0]}"
        )
    return model


def _start_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.stat().st_size} bytes that start with {file.read(40)!r}"


def load_network(model_or_path: Any, device: str | None = None) -> Network:
    """Return a model in any saved form as a `Network`.

    Args:
        model_or_path: an `AlignSeg`, the path of a `.keras`, `.tflite` or `.onnx` file, the folder
            of a SavedModel, the name of a trained model of the package, or a `Network`.
        device: TensorFlow device that holds and runs a Keras model.

    Raises:
        ValueError: there is no model at that path, or it cannot run on a chosen device.
    """
    if isinstance(model_or_path, Network):
        return model_or_path
    if isinstance(model_or_path, str | Path):
        path = model_path(model_or_path)
        formats = {".tflite": TfliteNetwork, ".onnx": OnnxNetwork}
        if (path.is_dir() or path.suffix in formats) and device is not None:
            raise ValueError(f"{path}: only .keras models run on a chosen device, not {device}")
        if path.is_dir():
            return SavedModelNetwork(path)
        if path.suffix in formats:
            if not path.is_file():
                raise ValueError(f"{path}: no such file; expected a {path.suffix} model")
            return formats[path.suffix](path)
        return inference_network(load_model(path), device, str(path))
    if not hasattr(model_or_path, "label_space"):  # an `AlignSeg`, or its `inference_model`
        raise ValueError(
            "Expected an AlignSeg, a path, or the name of a trained model. Received: a "
            f"{type(model_or_path).__name__}; keras.models.clone_model returns a plain Functional "
            "model, AlignSeg.from_config(model.get_config()) an AlignSeg"
        )
    return KerasNetwork(model_or_path, device)


def numbered_classes(count: int) -> LabelSpace:
    """Return a label space of classes named by their ids: `class 0`, `class 1`, ..."""
    return LabelSpace(tuple(f"class {i}" for i in range(count)))


def label_space_of(model: Any, source: str = Network.source) -> LabelSpace:
    """Return the label space that a model was saved with, or numbered classes without one."""
    if model.label_space:
        return LabelSpace.from_dict(model.label_space, f"the label space of {source}")
    return numbered_classes(model.num_classes)
