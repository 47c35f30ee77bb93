"""Versions of the model: which one serves, and the switch to a new one."""

import contextlib
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.saved_networks import SavedModelNetwork
from alignseg_tf.serving.images import RefusedError
from alignseg_tf.system.fingerprints import file_state

log = logging.getLogger("alignseg_tf.serving")
# Size (H, W) of the image that a new version segments before it serves, if it takes any size.
WARM_UP_SIZE = (64, 96)
# Words of TensorFlow's message when an exported graph found its logits not finite.
NON_FINITE_WORDS = ("had NaN", "had Inf", "had -Inf", "had +Inf", "not finite", "non-finite")

State = Literal["active", "unloading", "broken", "idle"]
# Relative path, size, times and inode of each file in a version's folder.
_FolderState = tuple[tuple[str, list[int]], ...]


@dataclass(eq=False)
class Version:
    """A version of a model, in memory until nobody refers to it any more.

    Attributes:
        number: the name of its folder.
        label_space: names and colours of the classes.
        signatures: TensorFlow functions by name.
        size: (height, width) of the images, None where any size is taken.
    """

    number: int
    label_space: LabelSpace
    signatures: dict[str, Any]
    size: tuple[int, int] | None = None

    def call(self, signature: str, image: np.ndarray) -> dict[str, np.ndarray]:
        """Run a signature on an image, uint8 RGB [H, W, 3]; return its outputs without the batch.

        Raises:
            RefusedError: the version takes images of one other size; or outputs are not finite, or
                the exported graph found its logits so.
        """
        height, width = image.shape[:2]
        if self.size is not None and self.size != (height, width):
            message = (
                f"Expected an image of {self.size[1]} x {self.size[0]} pixels, the only size of "
                f"version {self.number}. Received: {width} x {height}"
            )
            raise RefusedError(422, "size", message)
        message = (
            f"version {self.number}: expected finite outputs. Received: NaN or infinite ones for "
            f"an image of {width} x {height} pixels"
        )
        non_finite = RefusedError(500, "nonfinite", message)
        dtype = tf.float32 if signature == "logits" else tf.uint8
        try:
            outputs = self.signatures[signature](images=tf.cast(image[None], dtype))
        except tf.errors.InvalidArgumentError as error:
            if any(word in error.message for word in NON_FINITE_WORDS):
                raise non_finite from error
            raise
        arrays = {name: output.numpy()[0] for name, output in outputs.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise non_finite
        return arrays

    def class_map(self, image: np.ndarray) -> np.ndarray:
        """Return the class ids, uint8 [H, W], of an image, uint8 RGB [H, W, 3].

        Raises:
            RefusedError: as `call`.
            RuntimeError: an id has no class.
        """
        class_map = self.call("serving_default", image)["class_map"]
        names = self.label_space.num_classes
        if class_map.max() >= names:
            raise RuntimeError(
                f"version {self.number}: expected ids of {names} classes. Received: "
                f"{class_map.max()}"
            )
        # Older exports do not check their logits. Where one is NaN, nearly all are, and argmax
        # gives one class everywhere.
        may_be_nan = names > 1 and class_map.min() == class_map.max()
        if may_be_nan and "logits" in self.signatures:
            self.call("logits", image)
        return class_map


def load_version(path: Path) -> Version:
    """Load the folder of a version, and let it segment an image.

    Raises:
        ValueError: it is no SavedModel of this library, its class maps have another type or size,
            or the number of its classes differs from that of their names.
        RefusedError: its logits are not finite.
    """
    network = SavedModelNetwork(path)
    names = network.label_space.num_classes
    if "logits" in network.signatures:
        count = network.signatures["logits"].structured_outputs["logits"].shape[-1]
        if count not in (None, names):
            raise ValueError(
                f"{path}: expected the names of {count} classes. Received: {names} names"
            )
    signatures = dict(network.signatures)
    version = Version(int(path.name), network.label_space, signatures, network.input_size)
    size = network.input_size or WARM_UP_SIZE
    class_map = version.class_map(np.zeros((*size, 3), np.uint8))
    if class_map.dtype != np.uint8 or class_map.shape != size:
        raise ValueError(
            f"{path}: expected class maps uint8 {list(size)}. Received: {class_map.dtype} "
            f"{list(class_map.shape)}"
        )
    return version


def folder_state(path: Path) -> _FolderState:
    """Describe the files of a folder so that other content has another description.

    It is empty if a file goes away meanwhile.
    """
    try:
        return tuple(
            (str(file.relative_to(path)), file_state(file.stat()))
            for file in sorted(path.rglob("*"))
            if not file.is_dir()
        )
    except OSError:
        return ()


class Models:
    """The versions of one model on disk; the newest that loads serves.

    Args:
        folder: has a folder for each version, named by a number; others are ignored. A new one
            must come by being renamed, as `export` does it. One that changes in place is read when
            it was the same in two consecutive updates.

    Attributes:
        name: of the folder, and of the model.
        on_broken: called when a version does not load.

    Raises:
        ValueError: there is no such folder, or no version in it.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of numbered versions. Received: nothing")
        self.folder = folder
        self.name = folder.resolve().name
        self.on_broken: Callable[[], None] = lambda: None
        self._active: Version | None = None
        self._active_state: _FolderState | None = None
        self._seen: dict[int, _FolderState] = {}
        self._broken: dict[int, _FolderState] = {}
        self._old: list[tuple[int, weakref.ref[Version]]] = []
        self._stop = threading.Event()
        if not self.on_disk():
            there = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise ValueError(
                f"{folder}: no version; expected folders named by numbers, such as 1. Received: "
                f"{', '.join(there[:5]) or 'no folders'}"
            )

    @property
    def active(self) -> Version:
        """The version that serves.

        Raises:
            ValueError: none was loaded.
        """
        if self._active is None:
            raise ValueError(f"{self.folder}: none of its versions loads")
        return self._active

    def on_disk(self) -> dict[int, Path]:
        """Return the folders of all versions by number; none while the folder is away."""
        try:
            return {
                int(path.name): path
                for path in self.folder.iterdir()
                if path.name.isascii() and path.name.isdecimal() and path.is_dir()
            }
        except OSError:
            return {}

    def states(self) -> dict[int, State]:
        """Return the state of each known version."""
        states: dict[int, State] = dict.fromkeys(self.on_disk(), "idle")
        states |= {number: "broken" for number in self._broken if number in states}
        states |= {number: "unloading" for number, held in self._old if held() is not None}
        if self._active is not None:
            states[self._active.number] = "active"
        return dict(sorted(states.items()))

    def tflite_sizes(self) -> dict[str, int]:
        """Return the `.tflite` files in the model's folder, without links, and their bytes."""
        sizes = {}
        for path in sorted(self.folder.glob("[!.]*.tflite")):
            with contextlib.suppress(OSError):  # removed a moment ago
                if path.is_file() and not path.is_symlink():
                    sizes[path.name] = path.stat().st_size
        return sizes

    def update(self) -> None:
        """Load the newest version that is not known to be broken, and let it serve.

        A version that does not load is logged, and skipped until its content changes. If the active
        version is gone in two consecutive updates, the newest that is there takes over.
        """
        self._forget_old()
        folders = self.on_disk()
        found = {number: folder_state(path) for number, path in folders.items()}
        # A folder that has changed since the last update may be being written or removed.
        changed = {number for number, seen in self._seen.items() if found.get(number) != seen}
        self._seen = found
        self._broken = {n: seen for n, seen in self._broken.items() if found.get(n) == seen}
        serving = None if self._active is None else self._active.number
        for number in sorted(found, reverse=True):
            if serving in changed and number < serving:
                return
            if number == serving and found[number] == self._active_state:
                return
            is_due = number not in changed and number not in self._broken
            if is_due and self._load(number, folders[number], found[number]):
                return
            if number == serving:
                return

    def _load(self, number: int, path: Path, state: _FolderState) -> bool:
        """Load a version and let it serve; return whether that succeeded."""
        old = self._active
        try:
            version = load_version(path)
        except Exception as error:  # TensorFlow raises many kinds on broken folders
            self._broken[number] = state
            serving = f"version {old.number} continues" if old else "it is left out"
            # Not the error itself: whoever keeps it keeps this frame, and so the old version.
            log.error("version %d does not load, %s: %s", number, serving, str(error))
            self.on_broken()
            return False
        if old is not None:
            self._old.append((old.number, weakref.ref(old)))
            log.info("version %d serves instead of %d", number, old.number)
        self._active, self._active_state = version, state
        return True

    def _forget_old(self) -> None:
        """Free the memory of versions whose requests are done."""
        gone = [number for number, held in self._old if held() is None]
        if gone:
            self._old = [(number, held) for number, held in self._old if held() is not None]
            gc.collect()  # TensorFlow's functions of a SavedModel refer to themselves
            log.info("version %s is unloaded", ", ".join(map(str, gone)))

    def watch(self, seconds: float) -> None:
        """Update at this interval, in a thread, until `close`."""

        def run() -> None:
            while not self._stop.wait(seconds):
                self.update()

        threading.Thread(target=run, name="versions", daemon=True).start()

    def close(self) -> None:
        """Stop watching the folder."""
        self._stop.set()
