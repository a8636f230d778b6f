"""Temporary files that visitors upload, view and download, bounded in age and size."""

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sisma_jax.common.errors import InputError

AGE = 3600.0
"""Seconds that a file is kept. The browser fetches it within the first few."""
MOST_BYTES = 2 * 2**30
"""Bytes of all files together; the oldest are deleted for new ones."""
_DISK_BLOCK = 4096
"""Least bytes that a file or a folder takes."""
_EVERY = 60.0
"""Seconds between two calls of `tidy`."""


class TemporaryFiles:
    """A folder of temporary files, which gradio also writes into."""

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
          folder: an existing folder.
          age: seconds that a file is kept after it was last written.
          most_bytes: limit of all files together.
          clock: function that returns seconds, on the clock of file times.
        """
        self.folder, self._age, self._most_bytes, self._clock = folder, age, most_bytes, clock
        self._kept: set[Path] = set()
        self._lock = threading.Lock()

    def keep_present(self) -> None:
        """Never delete the present files, which the page shows when it is opened."""
        self._kept |= {path for path, _ in self._files()}

    def new_folder(self) -> Path:
        """Make an empty folder, for a file to download."""
        self.tidy()
        return Path(tempfile.mkdtemp(dir=self.folder))

    def holds(self, path: str) -> bool:
        """Whether a path is inside the folder, even if nothing exists there."""
        try:
            inside = Path(os.path.realpath(path)).relative_to(os.path.realpath(self.folder))
        except ValueError:  # elsewhere, or not a path
            return False
        return bool(inside.parts)

    def uploaded(self, path: str | None) -> Path:
        """The path of a file that a visitor has uploaded.

        Raises:
          InputError: if it is not in the folder, or no longer exists.
        """
        if not isinstance(path, str) or not self.holds(path) or not os.path.isfile(path):
            raise InputError("the uploaded file no longer exists: upload it again")
        return Path(path)

    def tidy(self) -> None:
        """Delete expired files, then the oldest until the others fit."""
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
            # A new folder may be about to receive a file.
            for place, _, _ in os.walk(self.folder, topdown=False):
                with contextlib.suppress(OSError):
                    if place != str(self.folder) and now - os.stat(place).st_mtime > self._age:
                        os.rmdir(place)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        files = []
        for place, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # gradio moves files meanwhile
                    status = os.lstat(os.path.join(place, name))
                    if stat.S_ISREG(status.st_mode):
                        files.append((Path(place, name), status))
        return files


def _room(status: os.stat_result) -> int:
    """Bytes on the disk of a file and its folder, since many small files fill a disk, too."""
    return -(-status.st_size // _DISK_BLOCK) * _DISK_BLOCK + _DISK_BLOCK


@contextlib.contextmanager
def temporary_files() -> Iterator[TemporaryFiles]:
    """A folder of temporary files, tidied regularly and removed at the end."""
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
