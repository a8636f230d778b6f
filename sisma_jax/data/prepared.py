"""A prepared data set: ArrayRecord shards of `records`, and `dataset.json`, which describes them.

`sisma_jax.prepare` writes it. The folder is local or in a bucket (`gs://`), which epath (through
gcsfs, the extra `bucket`) and array_record read.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import is_address, library_path, refuse_lfs_pointer
from sisma_jax.common.install import how_to_install
from sisma_jax.data import records
from sisma_jax.data.classes import ClassSet

DATASET_FILE = "dataset.json"
VERSION = 1
"""Incremented when older software cannot read the records."""


BUCKET = "gs://"


def folder(path: Path | str) -> epath.Path:
    """The folder of a prepared data set or latent cache, on this machine or in a bucket.

    Raises:
      InputError: `path` is an address of another scheme.
    """
    return epath.Path(path if os.fspath(path).startswith(BUCKET) else library_path(path))


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn errors of a bucket and its client, which have many types, into InputError."""
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except Exception as error:
        if not is_address(path):
            raise
        if isinstance(error, ImportError):
            raise InputError(
                f"{path} is in a bucket, but gcsfs is missing: {how_to_install('bucket')}, or copy "
                "the folder to a disk"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} cannot be read ({reason}): check the address, and that this machine may read "
            "the bucket"
        ) from error


def is_prepared(path: Path | str) -> bool:
    with reading(path):
        return (folder(path) / DATASET_FILE).exists()


def read_description(path: Path | str) -> dict[str, Any]:
    """Read `dataset.json`.

    Raises:
      InputError: it is missing, damaged or of a newer version.
    """
    return read_versioned(
        path,
        DATASET_FILE,
        VERSION,
        what="prepared data set",
        command="sisma_jax.prepare --source DIR --out DIR --size PIXELS",
    )


def read_versioned(
    path: Path | str, name: str, version: int, *, what: str, command: str
) -> dict[str, Any]:
    """Read the file `name` of a folder that `command`, a module with its options, writes.

    Raises:
      InputError: it is missing, damaged or of another version.
    """
    file = folder(path) / name
    try:
        with reading(path):
            content = file.read_bytes()
        description = json.loads(content)
        stored_version = description["version"]
    except OSError as error:
        raise InputError(
            f"{path} is not a {what}, it has no {name}: write one with `python -m {command}`"
        ) from error
    except InputError:  # from `reading`
        raise
    except (ValueError, KeyError, TypeError) as error:
        refuse_lfs_pointer(file)
        raise InputError(f"{file} is damaged: write {path} again") from error
    if stored_version != version:
        raise InputError(
            f"{file} has version {stored_version}, but this software reads version {version}: "
            f"write {path} again, or update"
        )
    return description


def checksum(description: dict[str, Any]) -> str:
    """SHA-256 of a prepared data set's size, classes, ids and shards (by their checksums)."""
    kept = {name: description[name] for name in ("size", "classes", "flip_pairs", "splits")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def open_split(path: Path | str, description: dict[str, Any], split: str) -> tuple[list[str], Any]:
    """The ids of a split and its records, for random access by any thread.

    Raises:
      InputError: there is no such split, it is empty, or shards are missing or hold another number
        of records than the description says.
    """
    import grain  # takes seconds; processes that only write do not need it

    if split not in description["splits"]:
        raise InputError(
            f"{path} has no split {split!r}: choose {' or '.join(description['splits'])}"
        )
    chosen = description["splits"][split]
    ids: list[str] = chosen["ids"]
    if not ids:
        raise InputError(f"split {split!r} of {path} is empty: write it with another split")
    files = [folder(path) / shard["file"] for shard in chosen["shards"]]
    with reading(path):
        for file in files:
            if not file.exists():
                raise InputError(f"{file} is missing: write {path} again")
    try:
        stored = grain.sources.ArrayRecordDataSource([str(file) for file in files])
        count = len(stored)
    except (RuntimeError, ValueError) as error:
        for file in files:
            refuse_lfs_pointer(file)
        raise InputError(
            f"the shards of {path} cannot be opened ({str(error).splitlines()[0]}): write it again"
        ) from error
    if count != len(ids):
        raise InputError(
            f"the shards of split {split!r} of {path} hold {count} records where {len(ids)} are "
            "listed: write it again"
        )
    return ids, stored


class PreparedDataset:
    """Random access to the items of one split, in the order of their ids; a grain data source.

    Item `i` is a dict of the requested fields: "image" uint8 (size, size, 3) and "labels" uint8
    (size, size). Reading is thread-safe.

    Attributes:
      ids: list of str, names of the items in the data set.
      classes: the classes that labels index.
      checksum: checksum of the whole data set.
    """

    def __init__(
        self,
        path: Path | str,
        size: int,
        *,
        split: str = "train",
        fields: Sequence[str] = ("image", "labels"),
        size_option: str = "",
    ):
        """Open the shards.

        Args:
          path: the folder, or its address.
          size: side of the items in pixels, which has to be that of the data set.
          split: "train" or "test".
          fields: fields of an item.
          size_option: how the caller's user sets `size`, for errors; "" if that is not possible.

        Raises:
          InputError: it is not a prepared data set, has another size, lacks the split, or shards
            are missing or hold another number of records.
        """
        description = read_description(path)
        if description["size"] != size:
            set_it = f"set {size_option}{description['size']}, or " if size_option else ""
            raise InputError(
                f"{path} was prepared at {description['size']} pixels, but {size} are asked for: "
                f"{set_it}prepare another folder with --size {size}"
            )
        self.classes = ClassSet.from_json(description)
        self.checksum = checksum(description)
        self._path, self._split, self._size = path, split, size
        self._fields = tuple(fields)
        self.ids, self._records = open_split(path, description, split)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = range(len(self))[index]  # IndexError past the end, to end an iteration
        return records.decode(self._records[place], self._fields, self._size)

    def __str__(self) -> str:
        return f"split {self._split!r} of {self._path}"

    def __repr__(self) -> str:
        return f"PreparedDataset({str(self._path)!r}, size={self._size}, {len(self)} items)"
