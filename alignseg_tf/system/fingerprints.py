"""Hashes of files, and differences between two descriptions."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignseg_tf.system.files import write_text

# Seconds: a file that changed just before it is read may change again without a new time, since
# file systems keep times in steps of up to two seconds.
TIME_STEP = 2.0
# Maximum number of names or values of each kind that a difference lists.
LISTED = 5


class FileFingerprints:
    """SHA-256 of files, each read again only when it changes.

    A file has changed when its size, its inode, its modification time or its inode's change time
    differs, in nanoseconds. The last cannot be set: a file that `mv`, `cp -p` or `unzip` put in
    another's place is read again, whatever time it carries.

    Args:
        file: JSON file with the fingerprints of an earlier process, to which `save` writes; None
            for memory only. A damaged file is ignored.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self.known: dict[str, tuple[list[int], str]] = {}
        if file is not None and file.is_file():
            with suppress(ValueError, TypeError, AttributeError):
                entries = json.loads(file.read_text(encoding="utf-8")).items()
                self.known = {path: (list(state), str(sha)) for path, (state, sha) in entries}

    def __call__(self, path: str | Path) -> str:
        """Return the SHA-256 of a file, 64 hexadecimal digits.

        Raises:
            OSError: the file cannot be read.
        """
        path = Path(path).absolute()
        key = str(path)
        if (known := self.known.get(key)) is not None and known[0] == file_state(path.stat()):
            return known[1]
        started = time.time()
        with path.open("rb") as file:
            state = file_state(os.fstat(file.fileno()))
            sha = hashlib.file_digest(file, "sha256").hexdigest()
            after = file_state(os.fstat(file.fileno()))
        settled = max(state[1:3]) < (started - TIME_STEP) * 1e9
        if after == state and settled:
            self.known[key] = state, sha
        else:
            self.known.pop(key, None)
        return sha

    def of(self, paths: Iterable[str | Path]) -> list[str]:
        """Return the fingerprints of many files, in their order, read in threads."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(self, paths))

    def save(self) -> None:
        """Write the fingerprints to the file, for the next process."""
        if self.file is not None:
            write_text(self.file, json.dumps(self.known, separators=(",", ":")))


def file_state(there: os.stat_result) -> list[int]:
    """Return the size, the times and the inode, by which a changed file is recognised.

    The change time of an inode cannot be set by a copy.
    """
    return [there.st_size, there.st_mtime_ns, there.st_ctime_ns, there.st_ino]


# Fingerprints of this process.
file_fingerprint = FileFingerprints()


def fingerprint(path: str | Path) -> str:
    """Return a SHA-256 over a model: a file, or the names and files of a folder."""
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(bytes.fromhex(file_fingerprint(file)))
    return digest.hexdigest()


def named_fingerprints(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Return the fingerprints of files by their paths relative to a folder, sorted by these.

    Raises:
        OSError: a file cannot be read.
    """
    named = {Path(os.path.relpath(path, root)).as_posix(): path for path in paths}
    return dict(sorted(zip(named, file_fingerprint.of(named.values()), strict=True)))


def combined(fingerprints: Iterable[str]) -> str:
    """Return one short hash of many fingerprints, in their order, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()[:16]


def names_hash(names: Iterable[str]) -> str:
    """Return a short hash of the names of files, in their order, 8 hexadecimal digits."""
    return f"{zlib.crc32(chr(10).join(names).encode()):08x}"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say, a line each, in which values a description on disk differs from another; or nothing.

    Of mappings, such as those of `named_fingerprints`, it says which keys were added, removed or
    changed; of long lists, which items only one of them has.
    """
    return "".join(
        f"\n  {key}: {_difference(there.get(key), here.get(key))}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    )


def _difference(there: Any, here: Any) -> str:
    """Say in a line how two values differ; None is a value that is not set."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        return changed_names(there, here)
    if isinstance(there, list) and isinstance(here, list) and len(there) + len(here) > 8:
        parts = [f"{len(there)} there, {len(here)} here"]
        for where, values, others in (("there", there, here), ("here", here, there)):
            if only := [str(value) for value in values if value not in others]:
                parts.append(f"only {where}: {listed(only)}")
        return "; ".join(parts if parts[1:] else [*parts, "in another order"])
    there, here = ("not set" if value is None else repr(value) for value in (there, here))
    return f"{there} there, {here} here"


def changed_names(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say which keys of a mapping were changed, removed or added since the one on disk."""
    kinds = {
        "changed": [key for key in there if key in here and there[key] != here[key]],
        "removed": [key for key in there if key not in here],
        "added": [key for key in here if key not in there],
    }
    return "; ".join(f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in kinds.items() if keys)


def listed(names: list[str]) -> str:
    """Return names for a message, `LISTED` of them at most."""
    return ", ".join(names[:LISTED]) + (" ..." if names[LISTED:] else "")
