"""Batches from a data source, in one global order for any number of processes and threads.

Global batch k of size B holds records [kB, (k + 1)B) of an endless stream: the source repeated,
with another order in every epoch. Whether a record is mirrored depends only on the seed and its
position in the stream. Process p of n reads the contiguous rows [kB + pB/n, kB + (p + 1)B/n). The
data position of a run is one integer, the number of the next global batch, so a run resumes exactly
and may change its process count.

Batches are NumPy arrays on the host; the caller places them on devices.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Shaped

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import local_path
from sisma_jax.data import label_maps
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.latents import is_latent_cache
from sisma_jax.data.prepared import PreparedDataset, is_prepared
from sisma_jax.data.raw import FIELDS, TEST_FROM, RawFaces
from sisma_jax.data.raw_layout import COUNT_TO_MAKE
from sisma_jax.data.shards import is_unfinished

FLIPS = ("exchange", "plain", "none")
"""How training images are mirrored, as `data.flip` in a config.

"exchange" mirrors half of them and exchanges the left and right classes of their label maps.
"plain" mirrors half of them without this exchange, so that the left eye of a mirrored face is
labelled as a right eye; the published code of CA2-SIS (arXiv 2308.16071) does so. "none" mirrors
no image."""


@runtime_checkable
class Source(Protocol):
    """Random access to items; a grain data source."""

    ids: Sequence[Any]
    """Names of the items in the data set."""
    classes: ClassSet
    """Classes that the labels index."""
    checksum: str | None
    """Checksum of the data set (`checksums`); None if it has none."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The requested fields among "image" uint8 (h, w, 3), "labels" uint8 (h, w) and, of cached
        latents, "moments" float16 (2, h, w, 2 channels)."""


def open_dataset(
    path: Path | str,
    size: int,
    *,
    split: str = "train",
    test_from: int = TEST_FROM,
    fields: Sequence[str] = FIELDS,
    size_option: str = "",
    test_from_option: str = "test_from=",
) -> Source:
    """Open a prepared data set (`prepared.PreparedDataset`) or a raw folder (`raw.RawFaces`).

    See these classes for arguments and errors. `test_from` applies to raw folders only, since a
    prepared data set has its own splits. The options are how the caller's user sets size and
    `test_from`, for errors.
    """
    if is_latent_cache(path):
        raise InputError(
            f"{path} holds cached latents: set autoencoder.cache to it, and data.path to the data "
            'set that it was made of, or to "" if that is not available'
        )
    if is_prepared(path):
        return PreparedDataset(path, size, split=split, fields=fields, size_option=size_option)
    folder = local_path(path)
    quoted = shlex.quote(str(path))
    if folder.is_file():
        raise InputError(f"{path} is a file: give the folder of a data set")
    if not folder.is_dir():
        too_late = test_from >= COUNT_TO_MAKE
        splits = f" and set {test_from_option}{COUNT_TO_MAKE * 7 // 8}" if too_late else ""
        raise InputError(
            f"{path} is not a folder: write it with `python -m sisma_jax.prepare --source DIR "
            f"--out {quoted} --size {size}`, or make procedural faces with `python -m "
            f"sisma_jax.data.synthetic --out {quoted} --count {COUNT_TO_MAKE} --size {size}`"
            f"{splits}"
        )
    if is_unfinished(folder):
        raise InputError(
            f"{path} is not finished: run the command that was writing it again to continue"
        )
    if any((folder / name).is_dir() for name in ("images", "train/images")):
        raise InputError(
            f"{path} holds images and labels that are not prepared yet: run `python -m "
            f"sisma_jax.prepare --source {quoted} --out DIR --size {size}`"
        )
    return RawFaces(
        path,
        size,
        split=split,
        test_from=test_from,
        fields=fields,
        test_from_option=test_from_option,
    )


def training_stream(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    flip: str = "exchange",
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 4,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Return an endless iterator over this process's batches; reading starts at once, and
    `close()` ends it.

    Args:
      source: the items; if there are fewer than `batch_size`, a batch contains some more than once.
      batch_size: records of a global batch, over all processes.
      seed: seed of the order and of the flips, 0 <= seed < 2**32.
      flip: one of FLIPS.
      start: number of the first global batch.
      process_index: this process, 0 <= process_index < process_count.
      process_count: processes that share a global batch, each getting as many rows.
      threads: threads that read, each one batch at a time; 0 reads on demand.
      prefetch: batches of this process that are read ahead; below `threads`, threads idle.

    Returns:
      Iterator of dicts of the source's fields, (batch_size / process_count, ...): images and labels
      uint8, moments float16 (..., h, w, 2 channels).

    Raises:
      InputError: `batch_size` is not a positive multiple of `process_count`, or `flip` is not one
        of FLIPS. While iterating: whatever the source raises.
    """
    if flip not in FLIPS:
        raise InputError(f"flip is {flip!r}: choose one of {', '.join(FLIPS)}")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch size {batch_size} cannot be shared by {process_count} processes: choose a "
            f"positive multiple of {process_count}"
        )
    stream = _global_order(source, seed)
    if flip == "none":
        stream = stream.map(_as_seen)
    else:
        pairs = source.classes.flip_pairs if flip == "exchange" else ()
        classes = dataclasses.replace(source.classes, flip_pairs=pairs)
        stream = stream.random_map(partial(_flip_half, classes))
    rows = _ProcessRows(stream, batch_size, process_index, process_count)
    # Without `drop_remainder` the length of the endless stream overflows at one row a batch.
    batches = rows.batch(batch_size // process_count, drop_remainder=True)
    iterator = iter(
        batches.slice(slice(start, None)).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        )
    )
    iterator.start_prefetch()
    return iterator


def batch_ids(source: Source, *, batch_size: int, seed: int, batch: int) -> list[str]:
    """Names of the items in global batch number `batch`, without reading them."""
    order = _global_order(range(len(source)), seed)
    return [str(source.ids[order[batch * batch_size + row]]) for row in range(batch_size)]


def _global_order(source: Source | range, seed: int) -> grain.MapDataset:
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def fixed_batch(source: Source, count: int) -> dict[str, Shaped[np.ndarray, "count ..."]]:
    """The first `count` items of a source, in its order, never mirrored, stacked.

    Raises:
      InputError: the source has fewer items.
    """
    if count > len(source):
        raise InputError(
            f"{count} faces are asked for, but {source} has {len(source)}: ask for fewer or "
            "choose a larger split"
        )
    return items(source, range(count))


def items(source: Source, indices: Sequence[int]) -> dict[str, Shaped[np.ndarray, "count ..."]]:
    """The items at `indices`, never mirrored, stacked."""
    chosen = [_as_seen(source[index]) for index in indices]
    return {field: np.stack([item[field] for item in chosen]) for field in chosen[0]}


def mirror(classes: ClassSet, item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mirrored item, labels with left and right classes exchanged."""
    # take() instead of a slice: copying a reversed view into a batch is several times slower.
    by_field = {
        "image": lambda x: x.take(np.arange(x.shape[1] - 1, -1, -1), axis=1),
        "labels": lambda x: label_maps.flip(x, classes),
        "moments": lambda x: x[::-1],
    }
    return {field: by_field[field](value) for field, value in item.items()}


def _flip_half(
    classes: ClassSet, item: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    return _as_seen(item if rng.random() < 0.5 else mirror(classes, item))


def _as_seen(item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The item without mirroring: of cached moments, only those of the image itself."""
    return item | {"moments": item["moments"][0]} if "moments" in item else item


class _ProcessRows(grain.MapDataset):
    """The rows of one process, from a stream in global order.

    The rows are selected after all random operations. Grain derives randomness from the requested
    index; this order makes it the global index, so batches do not depend on the process count.
    """

    def __init__(
        self, stream: grain.MapDataset, batch_size: int, process_index: int, process_count: int
    ):
        super().__init__(stream)
        self._batch_size = batch_size
        self._rows = batch_size // process_count
        self._first_row = process_index * self._rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._rows

    def __getitem__(self, index):
        batch, row = divmod(index, self._rows)
        return self._parent[batch * self._batch_size + self._first_row + row]
