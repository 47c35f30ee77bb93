"""Read untrusted files of other tools: archives, names, text, JSON, numbers."""

import base64
import binascii
import json
import shutil
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from alignseg_tf.data.listing import DataError, expect, is_derived_file, special_kind

Size = tuple[int, int]  # height, width

# Maximum unpacked size of an archive: bytes, or a multiple of its size, whichever is more.
MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO = 1 << 30, 100


@dataclass(frozen=True)
class Invalid:
    """Collect invalid annotations, or raise on the first.

    Attributes:
        skip: whether to collect.
        problems: the collected messages.
    """

    skip: bool = False
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Collect a `DataError` of the body if `skip` is set."""
        try:
            yield
        except DataError as error:
            if not self.skip:
                raise
            self.problems.append(str(error))


def existing_folder(path: str | Path) -> Path:
    """Return a path; DataError unless it is a folder."""
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder")
    return Path(path)


@contextmanager
def unpacked(export: str | Path) -> Iterator[Path]:
    """Yield a folder, or a temporary one with the content of a .zip file.

    A folder at the top that holds everything is entered. Derived files in the archive are skipped.

    Raises:
        DataError: `export` is neither, the archive is damaged, unpacks to too many bytes, or holds
            links, special files or paths outside the folder.
    """
    export = Path(export)
    if export.is_dir():
        yield _content_folder(export)
        return
    what = f"{export}: expected a folder or a .zip file"
    if not export.is_file():
        raise DataError(f"{what}. Received: {special_kind(export) or 'no such file'}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, export.name)
        folder.mkdir()
        try:
            with zipfile.ZipFile(export) as archive:
                archive.extractall(folder, _checked_members(archive, export, folder))
        except DataError:
            raise
        except Exception as error:  # zipfile raises many kinds on broken and encrypted files
            raise DataError(f"{what} ({error})") from error
        yield _content_folder(folder)


def _checked_members(archive: zipfile.ZipFile, export: Path, folder: Path) -> list[zipfile.ZipInfo]:
    """Return the files of an archive after checking their paths, kinds and total size."""
    members = []
    for member in archive.infolist():
        member.filename = member.filename.replace("\\", "/")  # some Windows tools write backslashes
        path = PureWindowsPath(member.filename)
        if member.is_dir() or is_derived_file(path.relative_to(path.anchor)):
            continue
        inside = not path.anchor and ".." not in path.parts
        expect(inside, str(export), "paths below the archive's top", member.filename)
        is_file = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
        what = "files and folders, no links or special files"
        expect(is_file, str(export), what, member.filename)
        members.append(member)
    total = sum(member.file_size for member in members)
    limit = max(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * export.stat().st_size)
    limit = min(limit, shutil.disk_usage(folder).free)
    if total > limit:
        raise DataError(
            f"{export}: expected at most {limit / 1e6:.0f} MB of unpacked files. Received: "
            f"{total / 1e6:.0f} MB; unpack it yourself if you trust it, and give the folder"
        )
    return members


def _content_folder(folder: Path) -> Path:
    """Descend while a folder holds one folder and nothing else."""
    while True:
        inside = [path for path in folder.iterdir() if not is_derived_file(PurePath(path.name))]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        folder = inside[0]


def composed(name: str) -> str:
    """Return a name in the Unicode form NFC."""
    return unicodedata.normalize("NFC", name)


def image_name(path: PurePath) -> str:
    """Return the name of an image: its path without suffix."""
    return composed(path.with_suffix("").as_posix())


class FileFinder:
    """Find files by names of another system: other Unicode form, case or separators.

    A folder is listed once, when a name does not exist as written.
    """

    def __init__(self) -> None:
        self._listed = cache(_names_by_folded)
        self._subfolders = cache(lambda folder: sorted(p for p in folder.iterdir() if p.is_dir()))

    def find(self, folder: Path, name: str) -> Path | None:
        """Return the regular file of a name below a folder; None if there is none, or several."""
        if _is_file(folder / name):
            return folder / name
        path = folder
        for part in PurePosixPath(name.replace("\\", "/")).parts:
            match = part if part == ".." else self._match(path, part)
            if match is None:
                return None
            path /= match
        return path if _is_file(path) else None

    def find_tail(self, folder: Path, name: str) -> Path | None:
        r"""Find the longest end of a path below a folder: `data/a.jpg` of `C:\data\a.jpg` first."""
        path = PureWindowsPath(name)
        parts = [part for part in path.parts if part not in (path.anchor, "..")]
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((found for tail in tails if (found := self.find(folder, tail))), None)

    def nearby(self, folder: Path, name: str) -> str:
        """Return a hint for a message if a subfolder or sibling of a folder has the file."""
        base = PureWindowsPath(name).name
        for parent in (folder, folder.absolute().parent):
            for child in self._subfolders(parent):
                if base and _is_file(child / base):
                    return f"; there is {child / base}, so try --images {child}"
        return ""

    def _match(self, folder: Path, name: str) -> str | None:
        names = self._listed(folder).get(_folded(name), [])
        exact = [there for there in names if there == name]
        same = exact or [there for there in names if composed(there) == composed(name)] or names
        return same[0] if len(same) == 1 else None


def _names_by_folded(folder: Path) -> dict[str, list[str]]:
    listing: dict[str, list[str]] = {}
    with suppress(OSError, ValueError):
        for name in sorted(path.name for path in folder.iterdir()):
            listing.setdefault(_folded(name), []).append(name)
    return listing


def _folded(name: str) -> str:
    return composed(name).casefold()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or holds a zero byte
        return False


def path_below(folder: Path, name: Any, where: str) -> str:
    """Return a name; DataError unless it is a relative path that stays below a folder."""
    parts = PureWindowsPath(name).parts if isinstance(name, str) else ()
    expect(bool(parts) and ".." not in parts, where, f"a path below {folder}", name)
    return str(name)


def class_name(value: Any, where: str) -> str:
    """Return a class name in NFC, stripped; DataError if it is empty or no text."""
    name = composed(str(value)).strip() if isinstance(value, str | int) else ""
    expect(bool(name), where, "a name", value)
    return name


def whole_number(value: Any) -> int | None:
    """Return an int, or a float such as 64.0, as an int; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def declared_size(row: Mapping[str, Any], height: str, width: str, where: str) -> Size | None:
    """Return the size that a file states for an image, or None."""
    given = row.get(height), row.get(width)
    if given == (None, None):
        return None
    rows, columns = map(whole_number, given)
    if rows is None or columns is None:
        raise DataError(f"{where}: expected whole {height} and {width}. Received: {given!r:.80}")
    return rows, columns


def decode_base64(text: Any, where: str) -> bytes:
    """Return the bytes of base64 text, or raise DataError."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise DataError(f"{where} is no base64 text ({error})") from error


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a regular file, or raise DataError."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: expected a file. Received: {special_kind(path) or 'a folder'}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or raise DataError."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise DataError(f"{path}: not readable as JSON ({error})") from error
