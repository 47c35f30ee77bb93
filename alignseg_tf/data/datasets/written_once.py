"""Data sets that are written once as a folder, and kept while they are complete."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignseg_tf.data.listing import DataError, expect
from alignseg_tf.system.files import has_keys, remove_leftovers, write_text
from alignseg_tf.system.fingerprints import FileFingerprints, listed


class FolderWrittenOnce:
    """A folder with a JSON file that records what its files depend on, and if it is complete.

    `fingerprints` lets only changed files be read again.
    """

    def __init__(
        self,
        root: Path,
        record_name: str,
        source: Mapping[str, Any],
        fingerprints: FileFingerprints,
    ):
        self.root, self.source, self.fingerprints = root, dict(source), fingerprints
        self.record = root / record_name

    def is_complete(self) -> bool:
        """Return whether all files are there, from the same source.

        Raises:
            DataError: files were changed since, or the folder is not one of `writing`.
        """
        if not has_keys(self.record, "complete"):
            names = ("images", "labels", "classes.json", self.record.name)
            others = [name for name in names if (self.root / name).exists()]
            what = f"a new folder, or one with a complete {self.record.name}"
            expect(not others, str(self.root), what, others)
            return False
        former = json.loads(self.record.read_text())
        files = former.pop("files", {})  # missing in folders of older versions
        there = [name for name in files if (self.root / name).exists()]
        now = self._fingerprints(there)
        if changed := [name for name in there if now[name] != files[name]]:
            raise DataError(
                f"{self.root}: {len(changed)} files were changed since they were written: "
                f"{listed(changed)}. Remove them to write them again, or move the folder to keep it"
            )
        return former == {**self.source, "complete": True} and 0 < len(there) == len(files)

    @contextmanager
    def writing(self) -> Iterator[list[str]]:
        """Yield a list for the names of files that are written; record them at the end."""
        remove_leftovers(self.root, below=True)
        write_text(self.record, json.dumps({**self.source, "complete": False}, indent=1))
        names: list[str] = []
        yield names
        record = {**self.source, "complete": True, "files": self._fingerprints(names)}
        write_text(self.record, json.dumps(record, indent=1))

    def _fingerprints(self, names: list[str]) -> dict[str, str]:
        before = dict(self.fingerprints.known)
        found = self.fingerprints.of(self.root / name for name in names)
        if self.fingerprints.known != before:
            self.fingerprints.save()
        return dict(zip(names, found, strict=True))
