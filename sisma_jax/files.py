"""Files that are whole or not there, and folders that are ours to write."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sisma_jax.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of disks that can take no more."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs keeps in place of a large one (its specification, version 1)."""

LOCK = "lock"
"""Name of the file that a process holds locked while it writes into a folder."""
LOCK_FILES = (LOCK, f"{LOCK}.holder")
"""The files of a lock, which a killed process leaves behind; they make no folder full."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.\d+\.tmp")
"""Names that `write_atomically` gives its temporary files, which a killed process leaves behind."""

# Two letters at least: Windows' drives have one. One slash: a `Path` drops the second.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_address(path: str | os.PathLike) -> bool:
    """Whether `path` is an address, `scheme://`, which the operating system would take for a folder
    of that name."""
    return _ADDRESS.match(os.fspath(path)) is not None


def local_path(path: str | os.PathLike) -> Path:
    """`path` on this machine, with the home folder in place of `~`.

    Raises:
      InputError: it is an address.
    """
    if is_address(path):
        raise InputError(
            f"{os.fspath(path)} is an address, but this has to be a path on this machine: mount "
            "the bucket (gcsfuse), or take a disk that stays and copy it (`gcloud storage rsync`); "
            "prepared data and cached latents alone are read at gs://, autoencoders at hf://"
        )
    return Path(os.path.expanduser(path))


def library_path(path: str | os.PathLike) -> Path:
    """`local_path` of what ArrayRecord or TensorStore opens, which know names in UTF-8 only.

    Raises:
      InputError: it is an address, or its name (or that of a folder that it is in) is no UTF-8.
    """
    found = local_path(path)
    try:
        os.path.abspath(found).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{found} has bytes in its name that are no UTF-8, which the libraries that read and "
            "write there cannot use: rename it"
        ) from None
    return found


def write_atomically(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write `content` to `path`, by way of a temporary file beside it.

    After a crash of the machine `path` has the old content or the new one, unless `flush` is False:
    of many files, which `flush_all` brings to the disk together.
    """
    # As short as it can be: the name itself may be as long as the system allows.
    digest = zlib.crc32(path.name.encode(errors="surrogateescape"))
    temporary = path.with_name(f".{digest:08x}.{os.getpid()}.tmp")  # `_TEMPORARY`
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, path) if flush else os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; bytes of file names that are none are written as \\udcNN."""
    write_atomically(path, text.encode(errors="backslashreplace"))


def put_in_place(temporary: Path, path: Path) -> None:
    """Name a written file (or folder) `path`, once what is in it is on the disk."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent, whole=False)


def _flush(path: Path, *, whole: bool = True) -> None:
    """Bring a file, or a folder's entries (and the `whole` of what is in it), to the disk."""
    if path.is_dir():
        for entry in path.iterdir() if whole else ():
            _flush(entry)
        if os.name == "nt":  # which has no such thing for folders
            return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot, and a folder's entry is in place whatever they answer.
        cannot = error.errno in (errno.EINVAL, errno.ENOTSUP)
        if not cannot and (path.is_file() or error.errno in (errno.EIO, *NO_ROOM)):
            raise
    finally:
        os.close(descriptor)


def flush_all() -> None:
    """Bring everything that was written to the disk, where the system can be asked to."""
    if hasattr(os, "sync"):
        os.sync()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no intact one."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


LEFT_BY_SYSTEMS = frozenset(
    ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", ".ds_store",
     ".appledouble", ".directory", ".fseventsd", ".spotlight-v100", ".trashes", "__macosx",
     "@eadir", "lost+found", "$recycle.bin", "system volume information")
)  # fmt: skip
"""Names, in lower case, of what Windows, macOS, Linux desktops and network storage put into folders
by themselves."""


def is_left_by_system(name: str) -> bool:
    """Whether an operating system, not a person, has put a file or folder of that name there."""
    return (
        name.startswith("._")
        or name.endswith(":Zone.Identifier")  # of a download, copied from Windows to WSL
        or name.lower() in LEFT_BY_SYSTEMS
    )


def stem(path: Path) -> str:
    """A file's name without its suffix, in the one spelling (Unicode's NFC) of names that look
    alike: macOS takes accents apart."""
    return unicodedata.normalize("NFC", path.stem)


def is_content(name: str) -> bool:
    """Whether a file or folder of that name may be part of a data set: it is neither hidden nor
    left by an operating system."""
    return not name.startswith(".") and not is_left_by_system(name)


def refuse_lfs_pointer(path: str | os.PathLike) -> None:
    """Raises InputError if git-lfs has left a pointer in place of the file, as a clone without
    git-lfs does; what cannot be opened is left to whoever reads it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` there"
            )


def is_new_or_empty(folder: Path, besides: tuple[str, ...] = ()) -> bool:
    """Whether a command may write its output there. Files named `besides`, what operating systems
    leave, and temporary files of a killed process do not count."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        path.name in besides or is_left_by_system(path.name) or _TEMPORARY.fullmatch(path.name)
        for path in folder.iterdir()
    )


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

    It ends with the process, however that ends. A file beside it, for the locked one itself cannot
    be read on Windows, says who holds it; both go when it is given back. Where the file system has
    no locks nothing is locked, with a warning.

    Raises:
      LockedError: if another process holds it.
      OSError: if the file cannot be made.
    """
    path.open("ab").close()
    holder = path.with_name(f"{path.name}.holder")
    # A lock in a file's mere existence, which the library offers instead, would outlive machines.
    held = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        known = ""
        with contextlib.suppress(OSError):  # it has just been given back
            known = holder.read_text("utf-8").strip()
        raise LockedError(known or "another process") from None
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
        # The lock last: whoever takes it next writes files of these names.
        for file in (holder, path):
            with contextlib.suppress(OSError):  # of Windows, where the library removes the latter
                file.unlink()
        held.release()


@contextlib.contextmanager
def writing(folder: Path, *, begun: bool) -> Iterator[None]:
    """Make `folder` where there is none, and keep other processes from writing there meanwhile.

    Args:
      folder: of the output.
      begun: whether it holds what the caller has begun to write; else it has to be empty.

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
    """A new folder to write into, which becomes `path` at the end; after an error it is gone.

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
