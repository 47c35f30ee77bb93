"""Versions of the model: which one serves, and the switch to a new one."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from alignseg_tf.data.catalog import LabelSpace
from alignseg_tf.networks import SavedModelNetwork

log = logging.getLogger("alignseg_tf.serving")
# Of the picture that a new version has to segment before it serves.
WARM_UP_SIZE = (64, 96)


class Version:
    """A version of a model, in memory.

    It is unloaded when nobody holds it any more: whoever works with it keeps it until then.

    Attributes:
        number: the name of its folder.
        label_space: names and colours of the classes.
        signatures: what TensorFlow runs, by name.
    """

    def __init__(self, number: int, label_space: LabelSpace, signatures: Mapping[str, Any]):
        self.number = number
        self.label_space = label_space
        self.signatures = dict(signatures)

    def call(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run a signature on arrays; return arrays."""
        tensors = {name: tf.convert_to_tensor(value) for name, value in inputs.items()}
        return {name: out.numpy() for name, out in self.signatures[signature](**tensors).items()}

    def class_maps(self, images: np.ndarray) -> np.ndarray:
        """Return the class ids, uint8 [B, H, W], of pictures, uint8 RGB [B, H, W, 3]."""
        return self.call("serving_default", {"images": images})["class_map"]


def load_version(path: Path) -> Version:
    """Load the folder of a version, and let it segment a picture.

    Raises:
        ValueError: it is no SavedModel of this library, or its class maps are none.
    """
    network = SavedModelNetwork(path)
    version = Version(int(path.name), network.label_space, network.signatures)
    class_maps = version.class_maps(np.zeros((1, *WARM_UP_SIZE, 3), np.uint8))
    if class_maps.dtype != np.uint8 or class_maps.shape != (1, *WARM_UP_SIZE):
        raise ValueError(
            f"{path}: expected class maps uint8 {[1, *WARM_UP_SIZE]}. Received: "
            f"{class_maps.dtype} {list(class_maps.shape)}"
        )
    return version


# A folder's number, and what tells it from another of that name.
_Key = tuple[int, int, int]


class Models:
    """The versions of one model on disk; the newest that loads serves.

    Args:
        folder: holds a folder a version, whose name is its number; others are not looked at. New
            ones must come by being renamed, as `export` does it.
        load: reads a version's folder.

    Attributes:
        name: of the folder, and of the model.
        on_switch: called with the number that serves from now on.
        on_broken: called with the number of a version that does not load.

    Raises:
        ValueError: there is no such folder, or no version in it.
    """

    def __init__(self, folder: Path, load: Callable[[Path], Version] = load_version):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; expected one with a folder a version")
        self.folder = folder
        self.name = folder.resolve().name
        self._load = load
        self.on_switch: Callable[[int], None] = lambda number: None
        self.on_broken: Callable[[int], None] = lambda number: None
        self._active: Version | None = None
        self._active_key: _Key | None = None
        self._missing = False
        self._broken: dict[_Key, str] = {}
        self._old: list[tuple[int, weakref.ref[Version]]] = []
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
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
            RuntimeError: none is loaded yet.
        """
        if self._active is None:
            raise RuntimeError("no version is loaded")
        return self._active

    @property
    def ready(self) -> bool:
        """Whether a version serves."""
        return self._active is not None

    def on_disk(self) -> dict[int, Path]:
        """Return the folders of all versions by number."""
        return {
            int(path.name): path
            for path in self.folder.iterdir()
            if path.name.isascii() and path.name.isdecimal() and path.is_dir()
        }

    def states(self) -> dict[int, str]:
        """Return `active`, `unloading`, `broken` or `idle` for each version that is known."""
        states = dict.fromkeys(self.on_disk(), "idle")
        states |= {number: "broken" for (number, *_) in self._broken if number in states}
        states |= {number: "unloading" for number, held in self._old if held() is not None}
        if self._active is not None:
            states[self._active.number] = "active"
        return dict(sorted(states.items()))

    def tflite_files(self) -> dict[str, Path]:
        """Return the `.tflite` files in the model's folder, by name; links are none."""
        return {
            path.name: path
            for path in sorted(self.folder.glob("[!.]*.tflite"))
            if path.is_file() and not path.is_symlink()
        }

    def update(self) -> None:
        """Load the newest version that is not known to be broken, and let it serve.

        A version that does not load is logged and left alone until its folder is another one. If
        the version that serves is gone from the disk, an older one that is there takes over.
        """
        self._forget_old()
        there = {self._key(number, path): path for number, path in self.on_disk().items()}
        self._broken = {key: why for key, why in self._broken.items() if key in there}
        if self._active_key not in there and self._active is not None and not self._missing:
            self._missing = True  # it may be just being replaced
            there = {key: path for key, path in there.items() if key[0] >= self._active.number}
        else:
            self._missing = False
        for key in sorted(there, reverse=True):
            if key == self._active_key:
                return
            if key not in self._broken and self._try(key, there[key]):
                return

    @staticmethod
    def _key(number: int, path: Path) -> _Key:
        status = path.stat()
        return number, status.st_dev, status.st_ino

    def _try(self, key: _Key, path: Path) -> bool:
        """Load a version and let it serve; return whether that went well."""
        number = key[0]
        try:
            version = self._load(path)
        except Exception as error:  # TensorFlow raises many kinds on broken folders
            self._broken[key] = str(error)
            serving = f"version {self._active.number} goes on" if self._active else "it is left out"
            log.error("version %d does not load, %s: %s", number, serving, error)
            self.on_broken(number)
            return False
        if self._active is not None:
            self._old.append((self._active.number, weakref.ref(self._active)))
            log.info("version %d serves instead of %d", number, self._active.number)
        self._active, self._active_key, self._missing = version, key, False
        self.on_switch(number)
        return True

    def _forget_old(self) -> None:
        """Free the memory of versions whose requests are done."""
        gone = [number for number, held in self._old if held() is None]
        if gone:
            self._old = [(number, held) for number, held in self._old if held() is not None]
            gc.collect()  # what TensorFlow makes of a SavedModel refers to itself
            for number in gone:
                log.info("version %d is unloaded", number)

    def watch(self, seconds: float) -> None:
        """Look for new versions every so many seconds, in a thread, until `close`."""

        def run() -> None:
            while not self._stop.wait(seconds):
                try:
                    self.update()
                except OSError as error:  # the folder itself may be away for a moment
                    log.error("no look for new versions: %s", error)

        self._watcher = threading.Thread(target=run, name="versions", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
