"""Write files and folders whole, and replace only what this program wrote.

A folder of results holds `.alignseg.jsonl`, a line for each file that a command wrote there:
`command`, `file` and `sha256`. A file that is not in it, or was changed since, is the user's.
"""

import argparse
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

# Temporary names tell which process of which machine made them, so that leftovers are recognised:
# processes of other machines, or of an earlier container, may have the same number.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_PROCESS = secrets.token_hex(4)
_COUNTER = itertools.count()
_HIDDEN = re.compile(
    r"\.(?P<stem>.+)\.(?P<machine>[0-9a-f]{8})(?P<process>[0-9a-f]{8})[0-9a-f]+"
    r"\.(?P<pid>\d+)\.(?P<what>tmp|old)(?P<suffix>\.[^.]*)?",
    re.DOTALL,
)
# A longer name is cut in the temporary one, which file systems limit to 255 bytes.
_LONGEST_NAME = 190
# A leftover of another machine, which may be at work, is old after this many seconds.
_OLD = 24 * 3600.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class DiskFullError(OSError):
    """There is no space for a file; the message says which one, and how much there is."""


class ForeignFileError(ValueError):
    """A file or folder would be replaced that this program did not write."""


@dataclass(frozen=True)
class Output:
    """How the output of a command is told from other files.

    Attributes:
        command: its name, as the record and messages say it.
        from_before: whether a folder without a record holds its output, of earlier versions.
        files: patterns of the names in such a folder.
    """

    command: str
    from_before: Callable[[Path], bool] = lambda folder: False
    files: Sequence[str] = ("*",)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there replaces `path` at the end.

    If the body raises, `path` stays as it was and the temporary file or folder is removed. The
    temporary name keeps the suffix, since writers go by it. A link is followed. A folder is
    replaced as a whole; `atomic_folder` checks first whose it is.

    Raises:
        DiskFullError: the disk, or the user's quota on it, has no space for the file.
    """
    path = _followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(path, "tmp")
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # the name must not be on the disk before the content
            temporary.replace(path)
        _sync_folder(path.parent)
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
        kept: files and folders in it, as `images/val`, that are carried over: they are not
            checked.

    Raises:
        ForeignFileError: `path` is a file, or holds files that `output` did not write, or that
            were changed since.
    """
    path = _followed(path)
    remove_leftovers(path.parent)
    if path.exists() and not path.is_dir():
        raise ForeignFileError(f"{path}: expected a folder to write. Received: a file")
    names = [name for name in _files_below(path) if not _is_in(name, kept)]
    check_replaceable(path, output, names, overwrite)


@contextmanager
def atomic_folder(
    path: str | Path, output: Output, overwrite: bool = False, kept: Sequence[str] = ()
) -> Iterator[Path]:
    """Yield a new folder, which replaces `path` as a whole at the end.

    Args:
        path: the folder. `check_folder` is called first and last.
        output: what writes it; the files are recorded.
        overwrite: whether to replace whatever is there.
        kept: files and folders in it that the body carries over.

    Raises:
        ForeignFileError: as `check_folder`.
    """
    path = _followed(path)
    check_folder(path, output, overwrite, kept)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        yield temporary
        check_folder(path, output, overwrite, kept)  # the work may have taken an hour
        known = _recorded(path, output.command)
        entries = [
            (name, digest)
            for name in _files_below(temporary)
            for digest in (
                known.get(name, ()) if known and _is_in(name, kept)
                else [_digest(temporary / name)]
            )
        ]  # fmt: skip
        _record(temporary, output.command, entries)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder, which is removed at the end, also after a kill."""
    folder = _hidden(parent / "stage", "tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)


def write_files(
    folder: str | Path, output: Output, contents: Mapping[str, bytes | str], overwrite: bool = False
) -> list[Path]:
    """Write files into a folder of results, each at once, and record them.

    Returns:
        Their paths.

    Raises:
        ForeignFileError: one is there that `output` did not write, or that was changed since.
    """
    check_replaceable(folder, output, contents, overwrite)
    for name, content in contents.items():
        with atomic_result(folder, output, name) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return [Path(folder) / name for name in contents]


@contextmanager
def atomic_result(folder: str | Path, output: Output, name: str) -> Iterator[Path]:
    """Yield a temporary path for a file of a folder of results, as `atomic_path`; record the file.

    Call `check_replaceable` first, with all names together: a record of one of them hides that a
    folder is from before there was a record.
    """
    folder = Path(folder)
    with atomic_path(folder / name) as temporary:
        yield temporary
        # Before the file has its name: a process that is killed in between knows it again.
        _record(folder, output.command, [(name, _digest(temporary))])


def check_replaceable(
    folder: str | Path, output: Output, names: Iterable[str], overwrite: bool = False
) -> None:
    """Refuse to replace files in a folder that `output` did not write.

    Args:
        folder: where they go.
        output: what writes them.
        names: their names below the folder, with `/`.
        overwrite: whether to replace them whatever they are.

    Raises:
        ForeignFileError: it names those that are there.
    """
    folder = Path(folder)
    there = [name for name in names if os.path.lexists(folder / name)]
    if overwrite or not there:
        return
    known = _recorded(folder, output.command)
    foreign = []
    if known or not output.from_before(folder):
        for name in there:
            if name not in known:
                foreign.append(name)
            elif _digest(folder / name) not in known[name]:
                foreign.append(f"{name} (changed since)")
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

    Args:
        path: the file to be written.
        command: what writes it.
        is_own: whether the command wrote a file that is there, told by its content.
        overwrite: whether to replace the file whatever it is.

    Raises:
        ForeignFileError: the file is there and is something else.
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
    """Whether a file is JSON with these keys."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= set(keys)


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite`."""
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace files that are there, also those that this command did not write",
    )  # fmt: skip


def remove_leftovers(folder: str | Path, below: bool = False) -> None:
    """Clean a folder of what killed processes left, and restore what they had renamed away.

    Args:
        folder: it may be missing.
        below: whether to look in all folders below it too.
    """
    for parent, folders, files in itertools.islice(os.walk(folder), None if below else 1):
        for what in ("old", "tmp"):  # a folder is restored before its replacement goes
            for name in (*folders, *files):
                match = _HIDDEN.fullmatch(name)
                if match and match["what"] == what and _is_left_over(Path(parent, name), match):
                    _settle(Path(parent, name), match)


def _settle(path: Path, match: re.Match[str]) -> None:
    """Remove a leftover, or restore it where it is the only copy."""
    target = path.with_name(match["stem"] + (match["suffix"] or ""))
    other = path.with_name(
        path.name[: match.start("what")]
        + {"old": "tmp", "tmp": "old"}[match["what"]]
        + path.name[match.end("what") :]
    )
    if match["what"] == "old" and not os.path.lexists(target):
        path.rename(target)
        print(f"{target}: restored; replacing it was interrupted", file=sys.stderr)
    elif not os.path.lexists(other):  # else somebody made the target anew in between: keep both
        with suppress(OSError):  # another process cleans too, or it belongs to another user
            _remove(path)


def _is_left_over(path: Path, match: re.Match[str]) -> bool:
    pid = int(match["pid"])
    if match["machine"] != _MACHINE:
        try:
            return path.lstat().st_ctime < time.time() - _OLD
        except OSError:
            return False
    if pid == os.getpid():
        return match["process"] != _PROCESS
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _followed(path: str | Path) -> Path:
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def _hidden(path: Path, what: str) -> Path:
    """Return a new name beside `path`, which `remove_leftovers` knows again."""
    stem = path.stem if len(os.fsencode(path.name)) <= _LONGEST_NAME else path.stem[:20]
    token = f"{_MACHINE}{_PROCESS}{next(_COUNTER):x}"
    return path.with_name(f".{stem}.{token}.{os.getpid()}.{what}{path.suffix}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring what was renamed in a folder to the disk, before anything that is renamed later."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(path: Path, temporary: Path) -> str:
    """Say what did not fit, and what there is; while the half that was written is still there."""
    half = temporary.stat().st_size if temporary.is_file() else 0
    before = path.stat().st_size if path.is_file() else 0
    free = shutil.disk_usage(path.parent).free + half
    needed = f"more than {max(half, free) / 1e6:.1f} MB"
    if before > free:
        needed = f"{before / 1e6:.1f} MB, as the one that is there,"
    return (
        f"the disk is full, or your quota: {path} needs {needed} and there are "
        f"{free / 1e6:.1f} MB free. "
        + ("The one that is there is whole" if before else "There is none yet")
    )


def _replace_folder(new: Path, path: Path) -> None:
    """Put a folder in the place of another, whose content is at `new` or gone afterwards."""
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        old = new.with_name(re.sub(r"\.tmp(\.[^.]*)?$", r".old\1", new.name))
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; return False where the system or the disk cannot."""
    if sys.platform != "linux":
        return False
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


def _files_below(folder: Path) -> list[str]:
    """Return the files and links below a folder, but the record."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(name for name in found if name != RECORD_FILE)


def _is_in(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}/") for path in paths)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of where a link leads; nothing for anything else."""
    if path.is_symlink():
        return _sha256(b"link to " + os.fsencode(path.readlink()))
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded(folder: Path, command: str) -> dict[str, set[str]]:
    """Return the files that a command wrote into a folder, each with its contents' digests."""
    found: dict[str, set[str]] = {}
    try:
        lines = (folder / RECORD_FILE).read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["command"] == command:
                found.setdefault(entry["file"], set()).add(entry["sha256"])
        except (ValueError, KeyError, TypeError):
            continue  # a kill cut the line short
    return found


def _record(folder: Path, command: str, entries: Iterable[tuple[str, str]]) -> None:
    known = _recorded(folder, command)
    lines = [
        json.dumps({"command": command, "file": name, "sha256": digest})
        for name, digest in entries
        if digest not in known.get(name, ())
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
