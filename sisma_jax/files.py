"""Files that are whole or not there, and folders that are ours to write."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


def is_new_or_empty(folder: Path) -> bool:
    """Whether a command may write its output there."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


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
