"""Atomic writes of files and folders, locks on output folders, and local paths."""

import contextlib
import errno
import json
import os
import re
import socket
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sisma_jax.common.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of disks that are full or read-only."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of git-lfs's pointer to a large file (its specification, version 1)."""

LOCK = "lock"
"""Name of the file that a process holds locked while it writes into a folder."""
LOCK_FILES = (LOCK, f"{LOCK}.holder")
"""Files of a lock. A killed process leaves them behind, so an empty folder may hold them."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.\d+\.tmp")
"""Names that `write_atomically` gives its temporary files, which a killed process leaves behind."""

# Two letters at least: Windows' drives have one. One slash: a `Path` drops the second.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_address(path: str | os.PathLike) -> bool:
    """Whether `path` is an address (`scheme://`), which would otherwise become a folder."""
    return _ADDRESS.match(os.fspath(path)) is not None


def local_path(path: str | os.PathLike) -> Path:
    """`path` on this machine, with the home folder in place of `~`.

    Raises:
      InputError: it is an address.
    """
    if is_address(path):
        raise InputError(
            f"{os.fspath(path)} is an address, but this has to be a path on this machine: mount "
            "the bucket (gcsfuse), or use a persistent disk and copy it (`gcloud storage rsync`); "
            "only prepared data and cached latents are read at gs://, and autoencoders at hf://"
        )
    return Path(os.path.expanduser(path))


def library_path(path: str | os.PathLike) -> Path:
    """`local_path` for ArrayRecord and TensorStore, which support names in UTF-8 only.

    Raises:
      InputError: it is an address, or its absolute path is not UTF-8.
    """
    local = local_path(path)
    try:
        os.path.abspath(local).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{local} has bytes in its name that are not UTF-8, which the libraries that read and "
            "write there cannot use: rename it"
        ) from None
    return local


def write_atomically(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write `content` to `path` through a temporary file beside it.

    After a crash of the machine `path` has the old content or the new one; with `flush` False only
    after a later `flush_all`, which is faster for many files.
    """
    # Short, since the name itself may have the greatest length that the system allows.
    digest = zlib.crc32(path.name.encode(errors="surrogateescape"))
    temporary = path.with_name(f".{digest:08x}.{os.getpid()}.tmp")  # `_TEMPORARY`
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, path) if flush else os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; bytes of file names that are not UTF-8 are written as \\udcNN."""
    write_atomically(path, text.encode(errors="backslashreplace"))


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a file or folder to the disk, then rename it to `path`."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent, recursive=False)


def _flush(path: Path, *, recursive: bool = True) -> None:
    """Flush a file, or a folder's entries (with `recursive` also their content), to the disk."""
    if path.is_dir():
        for entry in path.iterdir() if recursive else ():
            _flush(entry)
        if os.name == "nt":  # Windows cannot flush folders
            return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do not support it, and a folder's entry is in place regardless.
        cannot = error.errno in (errno.EINVAL, errno.ENOTSUP)
        if not cannot and (path.is_file() or error.errno in (errno.EIO, *NO_ROOM)):
            raise
    finally:
        os.close(descriptor)


def flush_all() -> None:
    """Flush all written data to the disk, where the system has a call for it."""
    if hasattr(os, "sync"):
        os.sync()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


LEFT_BY_SYSTEMS = frozenset(
    ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", ".ds_store",
     ".appledouble", ".directory", ".fseventsd", ".spotlight-v100", ".trashes", "__macosx",
     "@eadir", "lost+found", "$recycle.bin", "system volume information")
)  # fmt: skip
"""Lower-case names of files and folders that Windows, macOS, Linux desktops and network storage
create by themselves."""


def is_left_by_system(name: str) -> bool:
    """Whether a file or folder of that name is created by operating systems, not by people."""
    return (
        name.startswith("._")
        or name.endswith(":Zone.Identifier")  # of a download, copied from Windows to WSL
        or name.lower() in LEFT_BY_SYSTEMS
    )


def stem(path: Path) -> str:
    """A file's name without its suffix, in Unicode's NFC, so that names that look alike are equal
    (macOS decomposes accents)."""
    return unicodedata.normalize("NFC", path.stem)


def is_content(name: str) -> bool:
    """Whether a file or folder of that name may be part of a data set: neither hidden nor created
    by an operating system."""
    return not name.startswith(".") and not is_left_by_system(name)


def other_files(names: Collection[str]) -> str:
    """The number and the first of files that are not those looked for, for a message."""
    if len(names) == 1:
        return f"1 other file, {min(names)}"
    return f"{len(names)} other files, such as {min(names)}"


def refuse_lfs_pointer(path: str | os.PathLike) -> None:
    """Raises InputError if the file is a git-lfs pointer, as in a clone without git-lfs. Files that
    cannot be opened pass."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` there"
            )


def is_new_or_empty(folder: Path, besides: tuple[str, ...] = ()) -> bool:
    """Whether a command may write its output there; files named in `besides`, files that operating
    systems create, and temporary files of a killed process do not count."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        path.name in besides or is_left_by_system(path.name) or _TEMPORARY.fullmatch(path.name)
        for path in folder.iterdir()
    )


def why_unwritable(folder: Path) -> str | None:
    """The reason why a folder, which may not exist yet, cannot be written, as far as can be told
    without writing; None if there is none."""
    if folder.is_file():
        return "it is a file"
    place = next((x for x in (folder, *folder.parents) if x.exists()), folder)
    if not place.is_dir():
        return os.strerror(errno.ENOTDIR)
    return None if os.access(place, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def check_output_folder(option: str, folder: Path) -> None:
    """Raises InputError unless the folder that an option names is new or empty, and can be
    written."""
    if (reason := why_unwritable(folder)) is not None:
        raise InputError(f"{option} {folder} cannot be written ({reason}): name another folder")
    if not is_new_or_empty(folder):
        raise InputError(f"{option} {folder} is not empty: name a new or an empty folder")


def check_output_file(option: str, path: Path) -> None:
    """Raises InputError if the file that an option names cannot be written, before it is."""
    reason = "it is a folder" if path.is_dir() else why_unwritable(path.parent)
    if reason is not None:
        raise InputError(f"{option} {path} cannot be written ({reason}): name another file")


class LockedError(Exception):
    """Another process holds a lock; the message names it."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock against other processes, also on other machines that share the file system.

    The lock ends with the process, however that ends. A second file names the holder, since Windows
    cannot read a locked file; both are removed on release. A file system without locks gives a
    warning and no lock.

    Raises:
      LockedError: if another process holds it.
      OSError: if the file cannot be made.
    """
    path.open("ab").close()
    holder = path.with_name(f"{path.name}.holder")
    # The library's fallback, a file whose existence is the lock, would survive a crash.
    held = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        name = ""
        with contextlib.suppress(OSError):  # just released
            name = holder.read_text("utf-8").strip()
        raise LockedError(name or "another process") from None
    except OSError as error:
        warnings.warn(
            f"{path} cannot be locked ({error.strerror}): a second process in this folder would "
            "not be noticed",
            stacklevel=3,
        )
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", "utf-8")
        yield
    finally:
        # Release last: the next holder writes files of these names.
        for file in (holder, path):
            with contextlib.suppress(OSError):  # Windows: the library removes `path`
                file.unlink()
        held.release()


@contextlib.contextmanager
def writing(folder: Path, *, begun: bool) -> Iterator[None]:
    """Create `folder` if it is missing, and lock it against other writers meanwhile.

    Args:
      folder: the output folder.
      begun: whether the caller has already begun to write there; otherwise it must be empty.

    Raises:
      InputError: it is not empty, cannot be written, or another process writes there.
    """
    with contextlib.ExitStack() as held:
        try:
            if not begun and not is_new_or_empty(folder, besides=LOCK_FILES):
                raise InputError(f"{folder} is not an empty folder: name a new or an empty one")
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(folder / LOCK))
        except LockedError as error:
            raise InputError(
                f"{folder} is being written by {error}: wait for its end, or name another folder"
            ) from None
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}): name another folder"
            ) from error
        yield


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, renamed to `path` at the end and removed after an error.

    Raises:
      InputError: `path` is an address.
    """
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        new = Path(folder) / "new"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, Path(folder) / "old")
        put_in_place(new, path)
