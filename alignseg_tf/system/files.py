"""Write files and folders atomically, and replace only what this program wrote.

A folder of results has `.alignseg.jsonl`, with a line for each file that a command wrote there:
`command`, `file` and `sha256`. A file that is not in it, or was changed since, is the user's.
"""

import ctypes
import errno
import fnmatch
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

RECORD_FILE = ".alignseg.jsonl"
# Names listed in an error message.
NAMES_SHOWN = 5

# Temporary names have the machine and the process that made them, to recognise leftovers. Processes
# of other machines, or of an earlier container, may have the same number.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_PROCESS = secrets.token_hex(4)
_COUNTER = itertools.count()
_HIDDEN = re.compile(
    r"\.(?P<stem>.+)\.(?P<machine>[0-9a-f]{8})(?P<process>[0-9a-f]{8})[0-9a-f]+"
    r"\.(?P<pid>\d+)\.(?P<what>tmp|old)(?P<suffix>\.[^.]*)?",
    re.DOTALL,
)
# Bytes; a longer name is cut in the temporary one, which file systems limit to 255 bytes.
_LONGEST_NAME = 190
# Seconds after which a leftover of another machine, which may be at work, is removed.
_OLD = 24 * 3600.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class DiskFullError(OSError):
    """There is no space for a file."""


class ForeignFileError(ValueError):
    """This program did not write a file or folder that would be replaced."""


@dataclass(frozen=True)
class Output:
    """The files that a command writes into a folder.

    Attributes:
        command: name of the command in the record and in messages.
        from_before: whether a folder without a record has its output, of an earlier version.
        files: patterns of the names in such a folder.
    """

    command: str
    from_before: Callable[[Path], bool] = lambda folder: False
    files: Sequence[str] = ("*",)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file or folder written there replaces `path`.

    If the body raises, `path` is unchanged and the temporary path is removed. The temporary name
    keeps the suffix. A link is followed.

    Raises:
        DiskFullError: the disk, or the user's quota on it, has no space.
    """
    path = _followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(path, "tmp")
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            _sync(temporary)  # the name must not be on the disk before the content
            temporary.replace(path)
        _sync(path.parent)  # before anything that is renamed later
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(_disk_full(path, temporary)) from error
        raise
    finally:
        _remove(temporary)


def check_folder(
    path: str | Path, output: Output, overwrite: bool = False, kept: Sequence[str] = ()
) -> None:
    """Refuse to replace a folder that holds what `output` did not write; clean leftovers beside it.

    Args:
        path: the folder; it may be missing.
        output: what writes it.
        overwrite: whether to replace whatever is there.
        kept: files and folders in it, such as `images/val`, that are carried over unchecked.

    Raises:
        ForeignFileError: `path` is a file, or has files of others, or that were changed since.
    """
    path = _followed(path)
    remove_leftovers(path.parent)
    if path.exists() and not path.is_dir():
        raise ForeignFileError(f"{path}: expected a folder to write. Received: a file")
    check_replaceable(path, output, _files_below(path, kept), overwrite)


@contextmanager
def atomic_folder(
    path: str | Path, output: Output, overwrite: bool = False, kept: Sequence[str] = ()
) -> Iterator[Path]:
    """Yield a new folder, which replaces `path` as a whole at the end; record its files.

    The arguments are those of `check_folder`, which is called first and last. The body carries the
    `kept` files over.
    """
    path = _followed(path)
    check_folder(path, output, overwrite, kept)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        yield temporary
        check_folder(path, output, overwrite, kept)  # the work may have taken an hour
        known = _recorded(path, output.command)
        made = _files_below(temporary, kept if known else ())
        digests = {name: known.get(name, set()) for name in _files_below(temporary)}
        digests |= {name: {_digest(temporary / name)} for name in made}
        _record(temporary, output.command, digests)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder, which is removed at the end; after a kill, by the next command."""
    folder = _hidden(parent / "stage", "tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)


def write_files(
    folder: str | Path, output: Output, contents: Mapping[str, bytes | str]
) -> list[Path]:
    """Write files into a folder of results, each atomically; record them and return their paths.

    Call `check_replaceable` first, as for `atomic_result`.
    """
    for name, content in contents.items():
        with atomic_result(folder, output, name) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return [Path(folder) / name for name in contents]


@contextmanager
def atomic_result(folder: str | Path, output: Output, name: str) -> Iterator[Path]:
    """Yield a temporary path for a file in a folder of results, as `atomic_path`; record the file.

    Call `check_replaceable` first, with all names together: with a record of one of them, the
    folder is no longer taken for one of an earlier version.
    """
    folder = Path(folder)
    with atomic_path(folder / name) as temporary:
        yield temporary
        # Before the rename: after a kill in between, the file is still known.
        _record(folder, output.command, {name: {_digest(temporary)}})


def check_replaceable(
    folder: str | Path, output: Output, names: Iterable[str], overwrite: bool = False
) -> None:
    """Refuse to replace files in a folder, named by their paths in it, that `output` did not write.

    Raises:
        ForeignFileError: there are such files, and `overwrite` is not set.
    """
    folder = Path(folder)
    there = [name for name in names if os.path.lexists(folder / name)]
    if overwrite or not there:
        return
    known = _recorded(folder, output.command)
    if known or not output.from_before(folder):
        changed = {n for n in there if n in known and _digest(folder / n) not in known[n]}
        foreign = [
            f"{name} (changed since)" if name in changed else name
            for name in there
            if name in changed or name not in known
        ]
    else:
        foreign = [n for n in there if not any(fnmatch.fnmatch(n, p) for p in output.files)]
    if foreign:
        more = f" and {len(foreign) - NAMES_SHOWN} more" if len(foreign) > NAMES_SHOWN else ""
        raise ForeignFileError(
            f"{folder}: expected a new folder, or only files that {output.command} wrote, since "
            f"they would be replaced. Received: {', '.join(foreign[:NAMES_SHOWN])}{more}; give "
            "another name, or --overwrite"
        )


def check_file(
    path: str | Path, command: str, is_own: Callable[[Path], bool], overwrite: bool = False
) -> None:
    """Refuse to replace a file that a command did not write; clean leftovers beside it.

    `is_own` says by its content whether the command wrote the file that is there.

    Raises:
        ForeignFileError: there is a folder, or another file and `overwrite` is not set.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise ForeignFileError(f"{path}: expected a file to write. Received: a folder")
    if not (overwrite or (path.is_file() and is_own(path))):
        raise ForeignFileError(
            f"{path}: expected a new file, or one that {command} wrote, since it would be "
            f"replaced. Received: another file of {path.lstat().st_size:,} bytes; give another "
            "name, or --overwrite"
        )


def has_keys(path: Path, *keys: str) -> bool:
    """Return whether a file is JSON with these keys."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= set(keys)


def remove_leftovers(folder: str | Path, below: bool = False) -> None:
    """Remove the leftovers of killed processes in a folder, or also in all folders `below` it.

    Restore folders that they had renamed away. The folder may be missing.
    """
    for parent, folders, files in itertools.islice(os.walk(folder), None if below else 1):
        matches = filter(None, map(_HIDDEN.fullmatch, (*folders, *files)))
        # "old" is before "tmp": a folder is restored before its replacement goes.
        for match in sorted(matches, key=lambda match: match["what"]):
            path = Path(parent, match.string)
            if _is_left_over(path, match):
                _settle(path, match)


def _settle(path: Path, match: re.Match[str]) -> None:
    """Remove a leftover, or restore it where it is the only copy."""
    is_old = match["what"] == "old"
    target = path.with_name(match["stem"] + (match["suffix"] or ""))
    if is_old and not os.path.lexists(target):
        path.rename(target)
        print(f"{target}: restored; replacing it was interrupted", file=sys.stderr)
    # With both halves there, somebody made the target anew in between: keep both.
    elif not os.path.lexists(_renamed(path, "tmp" if is_old else "old")):
        with suppress(OSError):  # another process cleans too, or it belongs to another user
            _remove(path)


def _is_left_over(path: Path, match: re.Match[str]) -> bool:
    """Return whether the process that made a temporary path is gone."""
    with suppress(PermissionError):  # the process of another user
        try:
            if match["machine"] != _MACHINE:
                return path.lstat().st_ctime < time.time() - _OLD
            if int(match["pid"]) == os.getpid():
                return match["process"] != _PROCESS
            if os.name == "posix":
                os.kill(int(match["pid"]), 0)
        except FileNotFoundError:
            return False
        except (ProcessLookupError, OverflowError):
            return True
    return False


def _followed(path: str | Path) -> Path:
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def _hidden(path: Path, what: str) -> Path:
    """Return a new name beside `path`, which `remove_leftovers` recognises."""
    stem = path.stem if len(os.fsencode(path.name)) <= _LONGEST_NAME else path.stem[:20]
    token = f"{_MACHINE}{_PROCESS}{next(_COUNTER):x}"
    return path.with_name(f".{stem}.{token}.{os.getpid()}.{what}{path.suffix}")


def _renamed(hidden: Path, what: str) -> Path:
    """Return a hidden name with `tmp` or `old` in it instead of the other."""
    return hidden.with_name(re.sub(r"\.(tmp|old)(\.[^.]*)?$", rf".{what}\2", hidden.name))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file, or the names of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(path: Path, temporary: Path) -> str:
    """Say how much was written and is free, while the half that was written is there."""
    half = temporary.stat().st_size if temporary.is_file() else 0
    free = shutil.disk_usage(path.parent).free + half
    state = "What was there is unchanged" if path.exists() else "Nothing was written"
    return (
        f"the disk is full, or your quota: {path} needs more than {half / 1e6:.1f} MB and there "
        f"are {free / 1e6:.1f} MB free. {state}"
    )


def _replace_folder(new: Path, path: Path) -> None:
    """Put a folder in the place of another, whose content is at `new` or gone afterwards."""
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        old = _renamed(new, "old")
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; return False where the system or the disk cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


def _files_below(folder: Path, without: Sequence[str] = ()) -> list[str]:
    """Return the files and links below a folder, but the record and paths `without`."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in (*files, *links)]
    left_out = tuple(f"{path}/" for path in (RECORD_FILE, *without))
    return sorted(name for name in found if not f"{name}/".startswith(left_out))


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of where a link leads; nothing for anything else."""
    if path.is_symlink():
        return hashlib.sha256(b"link to " + os.fsencode(path.readlink())).hexdigest()
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded(folder: Path, command: str) -> dict[str, set[str]]:
    """Return the files that a command wrote into a folder, each with its contents' digests."""
    found: dict[str, set[str]] = {}
    record = folder / RECORD_FILE
    for line in record.read_bytes().splitlines() if record.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):  # a kill cut the line short
            entry = json.loads(line)
            if entry["command"] == command:
                found.setdefault(entry["file"], set()).add(entry["sha256"])
    return found


def _record(folder: Path, command: str, digests: Mapping[str, set[str]]) -> None:
    known = _recorded(folder, command)
    lines = [
        json.dumps({"command": command, "file": name, "sha256": digest})
        for name, of_file in digests.items()
        for digest in sorted(of_file - known.get(name, set()))
    ]
    if lines:
        with (folder / RECORD_FILE).open("a", encoding="utf-8") as file:
            start = "\n" if file.tell() else ""  # the last line there may be cut short
            file.write(start + "\n".join(lines) + "\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace the content of a file, or create it, in one step."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of a text file, or create it, in one step."""
    write_bytes(path, text.encode())
