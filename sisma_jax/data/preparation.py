"""From a layout to a prepared data set: in parallel, resumable, with a list of what was left out.

A shard is the unit of work: its items are known beforehand, its file appears whole, and then a note
of what is in it (under `.unfinished`), so an interrupted run redoes unfinished shards only and ends
with the same records. `dataset.json` is written last and so marks a finished data set.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from sisma_jax import processes
from sisma_jax.data import records
from sisma_jax.data.layouts import Entry, Layout, Reader, Rejected
from sisma_jax.data.prepared import DATASET_FILE, VERSION, file_checksum
from sisma_jax.errors import InputError
from sisma_jax.files import is_new_or_empty, read_json, write_atomically, write_json

REJECTED_FILE = "rejected.jsonl"
REJECTED_SHARE = 0.01
"""More than this is no accident: it stops, unless allowed."""

_UNFINISHED = ".unfinished"
_PLAN = "plan.json"
_ITEMS_PER_MESSAGE = 8


@dataclasses.dataclass(frozen=True)
class Shard:
    """What a worker is given."""

    split: str
    file: str
    entries: tuple[Entry, ...]


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
      split_name: of the way the data set was split, for `dataset.json`.
      shard_size: items of one shard.
      workers: processes, one per core by default; the files do not depend on it.
      strict: stop at the first item that cannot be used.
      allow_rejected: accept that more than `REJECTED_SHARE` of the items cannot be used.

    Returns:
      What `dataset.json` holds.

    Raises:
      InputError: an argument is out of range, `out` holds anything else or cannot be written, or
        too much of the data set cannot be used.
    """
    for name, value in (("--size", reader.size), ("--shard-size", shard_size)):
        if value < 1:
            raise InputError(f"{name} is {value}: give at least 1")
    shards = _shards(layout, shard_size)
    total = sum(len(shard.entries) for shard in shards)
    if not total:
        raise InputError("the data set has no item that has both an image and labels")
    limit = _Limit(total + len(layout.rejected), strict, allow_rejected)
    limit.count(layout.rejected)
    plan = _plan(layout, reader, split_name, shards)
    if (finished := read_json(out / DATASET_FILE)) is not None:
        if finished.get("plan") != plan["checksum"]:
            raise InputError(
                f"{out} holds a data set that was prepared otherwise: name another folder or "
                "delete it"
            )
        shutil.rmtree(out / _UNFINISHED, ignore_errors=True)  # where a kill has kept it
        return finished
    notes = _open_folder(out, plan, shards)
    missing = [shard for shard in shards if shard.file not in notes]
    for note in notes.values():
        limit.count([Rejected(**one) for one in note["rejected"]])
    done = total - sum(len(shard.entries) for shard in missing)
    work = partial(_write_shard, reader, out)
    with (
        tqdm(total=total, initial=done, desc="preparing", unit="image") as progress,
        contextlib.closing(processes.run(work, missing, workers, str(out))) as messages,
    ):
        for read, rejected, note in messages:
            progress.update(read)
            limit.count(rejected)
            if note is not None:
                notes[note["file"]] = note
    return _finish(layout, reader, out, split_name, plan, shards, notes)


@dataclasses.dataclass
class _Limit:
    """Stops when too much cannot be used."""

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
                f"{REJECTED_SHARE:.0%}; the last is: {rejected[-1].reason}; mend the data set, or "
                "go on without them with --allow-rejected"
            )


def _shards(layout: Layout, size: int) -> list[Shard]:
    shards = []
    for split, entries in layout.splits.items():
        count = -(-len(entries) // size)
        for k in range(count):
            file = f"{split}-{k:05d}-of-{count:05d}.arrayrecord"
            shards.append(Shard(split, file, tuple(entries[k * size : (k + 1) * size])))
    return shards


def _plan(layout: Layout, reader: Reader, split_name: str, shards: list[Shard]) -> dict[str, Any]:
    """What decides the records; `checksum` is that of it all."""
    settings = {
        "version": VERSION,
        "source": str(layout.root.resolve()),
        "size": reader.size,
        "crop": reader.crop,
        "class_order": reader.class_order,
        "split": split_name,
        "coding": records.CODING,
        **reader.classes.to_json(),
    }
    items = {shard.file: [entry.id for entry in shard.entries] for shard in shards}
    text = json.dumps([settings, items], sort_keys=True)
    return {"settings": settings, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def _open_folder(out: Path, plan: dict[str, Any], shards: list[Shard]) -> dict[str, dict]:
    """Makes `out` ready to be written; the notes of the shards that are finished, by file."""
    unfinished = out / _UNFINISHED
    found = read_json(unfinished / _PLAN)
    if found is not None and found != plan:
        different = [k for k, v in plan["settings"].items() if found["settings"].get(k) != v]
        what = f"another {' and '.join(different)}" if different else "other items"
        raise InputError(
            f"{out} holds an unfinished preparation of {what}: name another folder or delete it"
        )
    try:
        if found is None and not is_new_or_empty(out):
            raise InputError(f"{out} is not an empty folder: name a new or an empty one")
        unfinished.mkdir(parents=True, exist_ok=True)
        write_json(unfinished / _PLAN, plan)
        for stale in unfinished.glob("*.tmp"):
            stale.unlink()
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror}): name another folder"
        ) from error
    notes = {shard.file: read_json(unfinished / f"{shard.file}.json") for shard in shards}
    return {file: note for file, note in notes.items() if note is not None}


def _write_shard(
    reader: Reader, out: Path, shard: Shard
) -> Iterator[tuple[int, list[Rejected], dict | None]]:
    """Yields how many items were read since last time, those rejected, and at last the note."""
    # One large block freed makes glibc keep what the pictures' arrays free, and not hand it back.
    np.empty(24 << 20, np.uint8)
    unfinished = out / _UNFINISHED
    temporary = unfinished / f"{shard.file}.{os.getpid()}.tmp"
    ids, rejected = [], []
    pixels = np.zeros(256, np.int64)
    told = told_rejected = 0
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for read, entry in enumerate(shard.entries, 1):
                try:
                    item = reader.read(entry)
                except InputError as error:
                    rejected.append(Rejected(entry.id, str(error)))
                else:
                    writer.write(records.encode(entry.id, item))
                    pixels += np.bincount(item["labels"].reshape(-1), minlength=256)
                    ids.append(entry.id)
                if read - told >= _ITEMS_PER_MESSAGE:
                    yield read - told, rejected[told_rejected:], None
                    told, told_rejected = read, len(rejected)
        finally:
            writer.close()
        note = {
            "file": shard.file,
            "split": shard.split,
            "ids": ids,
            "sha256": file_checksum(temporary),
            "pixels": pixels.tolist(),
            "rejected": [dataclasses.asdict(one) for one in rejected],
        }
        os.replace(temporary, out / shard.file)
        write_json(unfinished / f"{shard.file}.json", note)
    except (OSError, RuntimeError) as error:  # the writer's own errors are of the latter kind
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"{out} cannot be written ({reason}): make room, and the same command continues"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    yield len(shard.entries) - told, rejected[told_rejected:], note


def _finish(
    layout: Layout,
    reader: Reader,
    out: Path,
    split_name: str,
    plan: dict[str, Any],
    shards: list[Shard],
    notes: dict[str, dict],
) -> dict[str, Any]:
    rejected = [dataclasses.asdict(one) for one in layout.rejected]
    splits: dict[str, dict] = {name: {"ids": [], "shards": []} for name in layout.splits}
    pixels = {name: np.zeros(256, np.int64) for name in layout.splits}
    for shard in shards:
        note = notes[shard.file]
        rejected += note["rejected"]
        pixels[shard.split] += note["pixels"]
        if note["ids"]:
            splits[shard.split]["ids"] += note["ids"]
            entry = {"file": shard.file, "count": len(note["ids"]), "sha256": note["sha256"]}
            splits[shard.split]["shards"].append(entry)
        else:
            (out / shard.file).unlink(missing_ok=True)
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
        "plan": plan["checksum"],
        "splits": splits,
    }
    lines = "".join(json.dumps(one) + "\n" for one in rejected)
    write_atomically(out / REJECTED_FILE, lines.encode())
    write_json(out / DATASET_FILE, description)
    shutil.rmtree(out / _UNFINISHED)
    return description
