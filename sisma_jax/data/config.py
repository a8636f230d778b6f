"""The config's section `data`: opens its splits and feeds a run with batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from sisma_jax.common.config import check_choice, check_least
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import LOCK_FILES, is_new_or_empty, local_path
from sisma_jax.data import synthetic
from sisma_jax.data.input_pipeline import (
    FLIPS,
    Source,
    batch_ids,
    open_dataset,
    training_stream,
)
from sisma_jax.data.prepared import is_prepared
from sisma_jax.devices.hosts import is_first, together
from sisma_jax.devices.sharding import row_share

Batches = Iterator[dict[str, np.ndarray]]
"""The closable iterator of `training_stream`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The config's section `data`."""

    path: str
    size: int
    """Side of images and label maps in pixels."""
    test_from: int
    """First id of the test split."""
    flip: str
    """How training images are mirrored, one of `input_pipeline.FLIPS`."""
    threads: int
    """Number of threads that read ahead."""
    synthetic_count: int
    """Number of synthetic faces to write to `path` if it does not exist; 0 for none."""

    def __post_init__(self) -> None:
        check_least(self, "data", 0, "threads", "synthetic_count")
        check_choice(self, "data", "flip", FLIPS)

    def open(self, split: str, fields: Sequence[str]) -> Source:
        """Open a split; raises InputError if there is no such data."""
        self._check_path()
        return open_dataset(
            self.path,
            self.size,
            split=split,
            test_from=self.test_from,
            fields=fields,
            size_option="--config.data.size=",
            test_from_option="--config.data.test_from=",
        )

    def feed(self, source: Source, mesh: Mesh, *, batch_size: int, seed: int) -> "Feed":
        """Return the feed of global batches for the devices of `mesh`."""
        place, sharers = row_share(mesh)

        def open_stream(start: int) -> Batches:
            return training_stream(
                source,
                batch_size=batch_size,
                seed=seed,
                flip=self.flip,
                start=start,
                process_index=place,
                process_count=sharers,
                threads=self.threads,
            )

        ids = lambda batch: batch_ids(source, batch_size=batch_size, seed=seed, batch=batch)
        return Feed(open_stream, ids)

    def is_to_be_made(self) -> bool:
        """Whether `make_if_synthetic` has faces to write, all or the rest of an unfinished set.

        Raises:
          InputError: if `path` cannot be written.
        """
        self._check_path()
        if not self.synthetic_count or is_prepared(self.path):
            return False
        path = local_path(self.path)
        if is_new_or_empty(path, besides=LOCK_FILES):
            return True
        begun = synthetic.read_unfinished_settings(path) or {}
        return all(begun.get(name) == x for name, x in self._synthetic_settings().items())

    def _check_path(self) -> None:
        if not self.path:  # as it may be for cached latents
            raise InputError(
                "data.path is empty: give the folder of a data set, raw or prepared by "
                "sisma_jax.prepare"
            )

    def _synthetic_settings(self) -> dict[str, int]:
        return {"count": self.synthetic_count, "size": self.size, "seed": 0}

    def check_split(self) -> None:
        """Raise InputError if a split of the faces to be written would be empty."""
        if not 0 < self.test_from < self.synthetic_count:
            raise InputError(
                f"data.test_from is {self.test_from} of data.synthetic_count "
                f"{self.synthetic_count} faces, which leaves the "
                f"{'train' if self.test_from < 1 else 'test'} split empty: choose a number between"
            )

    def open_if_there(self, train: Sequence[str], test: Sequence[str]) -> list[Source]:
        """Open the training and the test split; return [] if the faces are yet to be written.

        Args:
          train, test: fields of the items of either split.

        Raises:
          InputError: if there is no such data, or a split would be empty.
        """
        if self.is_to_be_made():
            self.check_split()
            return []
        return self.open_both(train, test)

    def open_both(self, train: Sequence[str], test: Sequence[str]) -> list[Source]:
        """Open the training and the test split with these fields; see `open`."""
        return [self.open("train", train), self.open("test", test)]

    def make_if_synthetic(self) -> None:
        """Write the synthetic faces if the config requests them and they are missing or incomplete.

        Only the first process writes; the others wait.

        Raises:
          InputError: if `path` cannot be written.
        """
        with together():
            if is_first():
                self._make_if_synthetic()

    def _make_if_synthetic(self) -> None:
        if not self.is_to_be_made():
            return
        path = local_path(self.path)
        begun = synthetic.read_unfinished_settings(path)
        how = "is incomplete: continuing to" if begun else "has no faces yet: writing"
        print(f"{path} {how} {self.synthetic_count} synthetic faces")
        synthetic.write_dataset(path, **self._synthetic_settings())


@dataclasses.dataclass(frozen=True)
class Feed:
    """The source of a run's batches."""

    open: Callable[[int], Batches]
    """Number of the first global batch -> an endless iterator of this process's rows."""
    ids: Callable[[int], list[str]]
    """Number of a global batch -> names of its items in the data set."""
