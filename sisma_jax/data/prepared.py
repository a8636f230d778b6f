"""A prepared data set: ArrayRecord shards of `records`, and `dataset.json` that says what they are.

`sisma_jax.prepare` writes it. The folder may be a local path or, where the libraries can read it, a
bucket (`gs://`).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from sisma_jax.data import records
from sisma_jax.data.classes import ClassSet
from sisma_jax.errors import InputError

DATASET_FILE = "dataset.json"
VERSION = 1
"""Grows when older software could not read the records."""


def is_prepared(path: Path | str) -> bool:
    return (epath.Path(path) / DATASET_FILE).exists()


def read_description(path: Path | str) -> dict[str, Any]:
    """What `dataset.json` holds.

    Raises:
      InputError: it is missing, damaged or of a newer version.
    """
    file = epath.Path(path) / DATASET_FILE
    try:
        description = json.loads(file.read_text())
        version = description["version"]
    except OSError as error:
        raise InputError(
            f"{path} is not a prepared data set, it has no {DATASET_FILE}: write one with `python "
            "-m sisma_jax.prepare`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: prepare the data set again") from error
    if version != VERSION:
        raise InputError(
            f"{file} is of version {version}, but this software reads version {VERSION}: prepare "
            "the data set again, or update"
        )
    return description


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PreparedDataset:
    """Random access to the items of one split, in the order of their ids; a grain data source.

    Item `i` is a dict of the fields asked for: "image" uint8 (size, size, 3) and "labels" uint8
    (size, size). Reading is thread-safe.

    Attributes:
      ids: list of str, the data set's own names of its items.
      classes: what labels are ids of.
    """

    def __init__(
        self,
        path: Path | str,
        size: int,
        *,
        split: str = "train",
        fields: Sequence[str] = ("image", "labels"),
    ):
        """Opens the shards.

        Raises:
          InputError: it is not a prepared data set, of another size, without that split, or shards
            are missing or hold another number of records.
        """
        import grain  # takes seconds, which processes that only write need not wait for

        description = read_description(path)
        if description["size"] != size:
            raise InputError(
                f"{path} was prepared at {description['size']} pixels, but {size} are asked for: "
                "set data.size to it, or prepare another folder"
            )
        if split not in description["splits"]:
            raise InputError(
                f"{path} has no split {split!r}: it has {', '.join(description['splits'])}"
            )
        chosen = description["splits"][split]
        self.ids: list[str] = chosen["ids"]
        self.classes = ClassSet.from_json(description)
        self._path, self._size, self._fields = path, size, tuple(fields)
        if not self.ids:
            raise InputError(f"split {split!r} of {path} is empty: prepare it with another split")
        files = [epath.Path(path) / shard["file"] for shard in chosen["shards"]]
        for file in files:
            if not file.exists():
                raise InputError(f"{file} is missing: prepare the data set again")
        try:
            self._records = grain.sources.ArrayRecordDataSource([str(file) for file in files])
            count = len(self._records)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the shards of {path} cannot be opened ({str(error).splitlines()[0]}): prepare "
                "the data set again"
            ) from error
        if count != len(self.ids):
            raise InputError(
                f"the shards of split {split!r} of {path} hold {count} records where "
                f"{DATASET_FILE} lists {len(self.ids)}: prepare the data set again"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = range(len(self))[index]  # IndexError, which ends an iteration, past the last
        return records.decode(self._records[place], self._fields, self._size)

    def __repr__(self) -> str:
        return f"PreparedDataset({str(self._path)!r}, size={self._size}, {len(self)} items)"
