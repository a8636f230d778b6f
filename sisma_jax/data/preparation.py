"""Preparing a data set from a layout: in parallel, resumable, with a list of rejected items.

`shards` writes and resumes shards; this module handles the items and rejections.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sisma_jax.common import processes
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import write_text
from sisma_jax.common.progress import bar
from sisma_jax.data import records, shards
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.data.layouts import Layout, Reader, Rejected
from sisma_jax.data.prepared import DATASET_FILE, VERSION
from sisma_jax.data.shards import Folder, Shard

REJECTED_FILE = "rejected.jsonl"
REJECTED_SHARE = 0.01
"""Preparation stops at a larger share of rejected items, unless allowed."""

_ITEMS_PER_MESSAGE = 8


def prepare(
    layout: Layout,
    reader: Reader,
    out: Path,
    *,
    split_name: str,
    shard_size: int = 1024,
    workers: int | None = None,
    strict: bool = False,
    allow_rejected: bool = False,
) -> dict[str, Any]:
    """Write a prepared data set, or continue writing it.

    Args:
      layout: the data set, listed.
      reader: how its items are read.
      out: a new or empty folder, or one where the same preparation was interrupted or finished.
      split_name: name of the split, for `dataset.json`.
      shard_size: items of one shard.
      workers: processes, one per core by default; the files do not depend on it.
      strict: stop at the first item that cannot be used.
      allow_rejected: accept that more than `REJECTED_SHARE` of the items cannot be used.

    Returns:
      The content of `dataset.json`.

    Raises:
      InputError: an argument is out of range, `out` holds other files or cannot be written, or too
        many items cannot be used.
    """
    for name, value in (("--size", reader.size), ("--shard-size", shard_size)):
        if value < 1:
            raise InputError(f"{name} is {value}: give at least 1")
    tasks = shards.cut(layout.splits, shard_size)
    total = sum(len(shard.items) for shard in tasks)
    if not total:
        why = f"; the first rejected: {layout.rejected[0].reason}" if layout.rejected else ""
        raise InputError(f"{layout.root} has no item with both an image and labels{why}")
    limit = _Limit(total + len(layout.rejected), strict, allow_rejected)
    limit.count(layout.rejected)
    folder = Folder(out, _plan(layout, reader, split_name, tasks), DATASET_FILE)
    if (finished := folder.finished()) is not None:
        print(
            f"{out} was finished before, and nothing is read again: delete it to prepare "
            "changed data"
        )
        return finished
    with folder.writing():
        return _write(layout, reader, folder, split_name, tasks, workers, limit)


def _write(
    layout: Layout,
    reader: Reader,
    folder: Folder,
    split_name: str,
    tasks: list[Shard],
    workers: int | None,
    limit: "_Limit",
) -> dict[str, Any]:
    notes = folder.begin(tasks)
    total = sum(len(shard.items) for shard in tasks)
    for shard in tasks:
        if shard.file in notes and _is_repaired(reader, shard, notes[shard.file]):
            del notes[shard.file]
    missing = [shard for shard in tasks if shard.file not in notes]
    for note in notes.values():
        limit.count([Rejected(**one) for one in note["rejected"]])
    done = total - sum(len(shard.items) for shard in missing)
    work = partial(_write_shard, reader, folder)
    with (
        bar(total=total, initial=done, desc="preparing", unit="image") as progress,
        contextlib.closing(processes.run(work, missing, workers, str(folder.path))) as messages,
    ):
        for read, rejected, note in messages:
            progress.update(read)
            limit.count(rejected)
            if note is not None:
                notes[note["file"]] = note
    return _finish(layout, reader, folder, split_name, tasks, notes)


UNLABELLED_SHARE = 0.01
"""Share of unlabelled pixels in a split above which a note is printed."""


def oddities(description: dict[str, Any]) -> list[str]:
    """Notes, as sentences, on what may be wrong with a prepared data set's labels.

    Args:
      description: the content of `dataset.json`.
    """
    notes = []
    for name, split in description["splits"].items():
        if split["ids"]:
            notes += oddities_of(name, split["class_frequency"], split["unlabelled"])
    if share := description.get("nearest_colour_share"):
        notes.append(
            f"{share:.2%} of the label pixels took the nearest class colour "
            f"(--nearest-colour {description['nearest_colour']:g})"
        )
    return notes


def oddities_of(split: str, shares: dict[str, float], unlabelled: float) -> list[str]:
    """Notes on one split, from the shares of its pixels (`ClassSet.shares`)."""
    notes = []
    empty = [name for name, share in shares.items() if not share]
    if empty:
        notes.append(
            f"split {split!r} has no pixel of {len(empty)} of the {len(shares)} classes: "
            f"{', '.join(empty)}"
        )
    if unlabelled > UNLABELLED_SHARE:
        notes.append(
            f"{unlabelled:.1%} of the pixels of split {split!r} are unlabelled ({UNLABELLED}): if "
            f"{UNLABELLED} stands for a class, number it as in the list of classes"
        )
    return notes


def missing_splits(description: dict[str, Any]) -> list[str]:
    """Splits that training needs and that are empty in a prepared data set."""
    splits = description["splits"]
    return [name for name in ("train", "test") if not splits.get(name, {"ids": []})["ids"]]


@dataclasses.dataclass
class _Limit:
    """Counts rejected items and raises InputError when there are too many."""

    total: int
    strict: bool
    allow: bool
    rejected: int = 0

    def count(self, rejected: list[Rejected]) -> None:
        self.rejected += len(rejected)
        if self.strict and rejected:
            raise InputError(f"{rejected[0].reason} (--strict stops at the first)")
        if not self.allow and self.rejected > REJECTED_SHARE * self.total:
            raise InputError(
                f"{self.rejected} of {self.total} items cannot be used, more than "
                f"{REJECTED_SHARE:.0%}; the last is: {rejected[-1].reason}; repair the data set, "
                "or leave them out with --allow-rejected"
            )


def _plan(layout: Layout, reader: Reader, split_name: str, tasks: list[Shard]) -> dict[str, Any]:
    settings = {
        "version": VERSION,
        "source": str(layout.root.resolve()),
        "size": reader.size,
        "crop": reader.crop,
        "class_order": reader.class_order,
        "split": split_name,
        "coding": records.CODING,
        **reader.classes.to_json(),
        **_nearest(reader),
    }
    return shards.plan(
        settings, {shard.file: [entry.id for entry in shard.items] for shard in tasks}
    )


def _nearest(reader: Reader) -> dict[str, float]:
    """The setting of --nearest-colour, if given."""
    distance = reader.nearest_colour
    return {} if distance is None else {"nearest_colour": distance}


def _is_repaired(reader: Reader, shard: Shard, note: dict[str, Any]) -> bool:
    """Whether an item that the shard rejected can be read now."""
    rejected = {one["id"] for one in note["rejected"]}
    for entry in shard.items:
        if entry.id in rejected:
            with contextlib.suppress(InputError):
                reader.read(entry)
                return True
    return False


def _write_shard(
    reader: Reader, folder: Folder, shard: Shard
) -> Iterator[tuple[int, list[Rejected], dict | None]]:
    """Yield how many items were read and which were rejected since the last yield; at the end
    the note."""
    # Freeing one large block makes glibc keep the memory that the pictures' arrays free.
    np.empty(24 << 20, np.uint8)
    ids, rejected = [], []
    pixels = np.zeros(256, np.int64)
    shares = 0.0
    reported = reported_rejected = 0
    with folder.writer(shard) as writer:
        for read, entry in enumerate(shard.items, 1):
            try:
                item = reader.read(entry)
            except InputError as error:
                rejected.append(Rejected(entry.id, str(error)))
            else:
                writer.write(records.encode(entry.id, item))
                pixels += np.bincount(item["labels"].reshape(-1), minlength=256)
                shares += float(item.get("share", 0.0))
                ids.append(entry.id)
            if read - reported >= _ITEMS_PER_MESSAGE:
                yield read - reported, rejected[reported_rejected:], None
                reported, reported_rejected = read, len(rejected)
        writer.note["ids"] = ids
        writer.note["pixels"] = pixels.tolist()
        writer.note["shares"] = shares
        writer.note["rejected"] = [dataclasses.asdict(one) for one in rejected]
    yield len(shard.items) - reported, rejected[reported_rejected:], writer.note


def _finish(
    layout: Layout,
    reader: Reader,
    folder: Folder,
    split_name: str,
    tasks: list[Shard],
    notes: dict[str, dict],
) -> dict[str, Any]:
    rejected = [dataclasses.asdict(one) for one in layout.rejected]
    splits: dict[str, dict] = {name: {"ids": [], "shards": []} for name in layout.splits}
    pixels = {name: np.zeros(256, np.int64) for name in layout.splits}
    shares = 0.0
    for shard in tasks:
        note = notes[shard.file]
        rejected += note["rejected"]
        pixels[shard.split] += note["pixels"]
        shares += note.get("shares", 0.0)
        if note["ids"]:
            splits[shard.split]["ids"] += note["ids"]
            splits[shard.split]["shards"].append(shards.entry(note))
        else:
            (folder.path / shard.file).unlink(missing_ok=True)
    for name, split in splits.items():
        split["class_frequency"], split["unlabelled"] = reader.classes.shares(pixels[name])
    description = {
        "version": VERSION,
        "size": reader.size,
        "split": split_name,
        "layout": layout.name,
        **reader.classes.to_json(),
        "coding": records.CODING,
        "resampling": {"image": "lanczos, once (JPEG draft to 2x at least)", "labels": "nearest"},
        "rejected": len(rejected),
        "splits": splits,
    }
    if _nearest(reader):
        count = sum(len(split["ids"]) for split in splits.values())
        description |= _nearest(reader) | {"nearest_colour_share": shares / max(count, 1)}
    lines = "".join(json.dumps(one) + "\n" for one in rejected)
    write_text(folder.path / REJECTED_FILE, lines)
    return folder.finish(description)
