"""Files that are whole or not there, and folders that are ours to write."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sisma_jax.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of disks that can take no more."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs keeps in place of a large one (its specification, version 1)."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, by way of a temporary file beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no intact one."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def refuse_lfs_pointer(path: str | os.PathLike) -> None:
    """Raises InputError if git-lfs has left a pointer in place of the file, as a clone without
    git-lfs does; what cannot be opened is left to whoever reads it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` there"
            )


def is_new_or_empty(folder: Path, besides: tuple[str, ...] = ()) -> bool:
    """Whether a command may write its output there; files named `besides` do not count."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(path.name in besides for path in folder.iterdir())


def why_unwritable(folder: Path) -> str | None:
    """Why a folder that may not be there yet cannot be written, as far as one can tell without
    writing; None where nothing speaks against it."""
    place = next((x for x in (folder, *folder.parents) if x.exists()), folder)
    if not place.is_dir():
        return os.strerror(errno.ENOTDIR)
    return None if os.access(place, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


class LockedError(Exception):
    """Says which process holds a lock."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock that other processes see, on other machines too where they share the file system.

    It ends with the process, however that ends; the file stays. Where the file system has no locks
    nothing is locked, with a warning.

    Raises:
      LockedError: if another process holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockedError(file.read().strip() or "another process") from None
        except OSError as error:
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): a second run in this folder would "
                "not be noticed",
                stacklevel=3,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `path` at the end; after an error it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        new = Path(folder) / "new"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, Path(folder) / "old")
        os.replace(new, path)
