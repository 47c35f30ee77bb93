"""Writing without ever leaving half a file behind."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DiskFullError(OSError):
    """There is no space for a file; the message says which one, and how much there is."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there replaces `path` at the end.

    If the body raises, `path` stays as it was and the temporary file or folder is removed. The
    temporary name keeps the suffix, since writers go by it. A folder is replaced as a whole.

    Raises:
        DiskFullError: the disk, or the user's quota on it, has no space for the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of other machines, which may have the same number, write to the same disk.
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.stem}.{token}.{os.getpid()}.tmp{path.suffix}")
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
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


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
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    for path in Path(folder).glob(".*.tmp*"):
        pid = path.name.split(".tmp")[0].rpartition(".")[2]
        if path.is_file() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            path.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace the content of a file, or create it, in one step."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of a text file, or create it, in one step."""
    write_bytes(path, text.encode())
