"""Files that visitors upload, look at and download: for a while, and not more than fit."""

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sisma_jax.errors import InputError

AGE = 3600.0
"""Seconds that a file stays. The browser fetches it in the first of them."""
MOST_BYTES = 2 * 2**30
"""Of all files together; the oldest make room for new ones."""
_DISK_BLOCK = 4096
"""Bytes that a file or a folder takes at least."""
_EVERY = 60.0
"""Seconds between looks at what is there."""


class TemporaryFiles:
    """A folder for them, which gradio writes into as well."""

    def __init__(
        self,
        folder: Path,
        *,
        age: float = AGE,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ):
        """
        Args:
          folder: an existing one.
          age: seconds that a file stays after it was written last.
          most_bytes: of all files together.
          clock: seconds, of the clock that files' times are of.
        """
        self.folder, self._age, self._most_bytes, self._clock = folder, age, most_bytes, clock
        self._kept: set[Path] = set()
        self._lock = threading.Lock()

    def keep_present(self) -> None:
        """Let what is there now stay: the page itself shows it to whoever opens it."""
        self._kept |= {path for path, _ in self._files()}

    def new_folder(self) -> Path:
        """An empty folder, for a file to download."""
        self.tidy()
        return Path(tempfile.mkdtemp(dir=self.folder))

    def holds(self, path: str) -> bool:
        """Whether a path leads into the folder, whether or not something is there."""
        try:
            inside = Path(os.path.realpath(path)).relative_to(os.path.realpath(self.folder))
        except ValueError:  # elsewhere, or no path at all
            return False
        return bool(inside.parts)

    def uploaded(self, path: str | None) -> Path:
        """The file that a visitor has uploaded.

        Raises:
          InputError: if that is none, or none any more.
        """
        if not isinstance(path, str) or not self.holds(path) or not os.path.isfile(path):
            raise InputError("the uploaded file is not there any more: upload it again")
        return Path(path)

    def tidy(self) -> None:
        """Delete files that have had their time, and the oldest until the others fit."""
        with self._lock:
            now = self._clock()
            files = sorted(self._files(), key=lambda file: file[1].st_mtime)
            total = sum(_room(status) for _, status in files)
            for path, status in files:
                old = now - status.st_mtime > self._age
                if path not in self._kept and (old or total > self._most_bytes):
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                        total -= _room(status)
            # A young one may be about to be written into.
            for place, _, _ in os.walk(self.folder, topdown=False):
                with contextlib.suppress(OSError):
                    if place != str(self.folder) and now - os.stat(place).st_mtime > self._age:
                        os.rmdir(place)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for place, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # gradio moves files meanwhile
                    status = os.lstat(os.path.join(place, name))
                    if stat.S_ISREG(status.st_mode):
                        found.append((Path(place, name), status))
        return found


def _room(status: os.stat_result) -> int:
    """Bytes of a disk that a file takes, with the folder that it lies in: many small ones fill it,
    too."""
    return -(-status.st_size // _DISK_BLOCK) * _DISK_BLOCK + _DISK_BLOCK


@contextlib.contextmanager
def temporary_files() -> Iterator[TemporaryFiles]:
    """For all that visitors upload and download: tidied all the time, and gone in the end."""
    with tempfile.TemporaryDirectory(prefix="sisma_jax_paint_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        files, ended = TemporaryFiles(Path(folder)), threading.Event()

        def tidy_until_the_end() -> None:
            while not ended.wait(_EVERY):
                files.tidy()

        tidying = threading.Thread(target=tidy_until_the_end, daemon=True)
        tidying.start()
        try:
            yield files
        finally:
            ended.set()
            tidying.join()
