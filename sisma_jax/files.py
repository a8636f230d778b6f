"""Files that are whole or not there, and folders that are ours to write."""

import json
import os
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
