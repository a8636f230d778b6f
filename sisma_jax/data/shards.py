"""Writing a folder of ArrayRecord shards: resumable, with atomic files and one writer.

A shard is the unit of work, and its items are fixed in advance. Its complete file is moved into
place, and then a note on its content is written (under `.unfinished`). A run that continues an
interrupted one therefore repeats only unfinished shards and ends with the same records. The
description is written last and marks a finished folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import (
    LOCK_FILES,
    is_new_or_empty,
    library_path,
    put_in_place,
    read_json,
    why_unwritable,
    write_json,
    writing,
)

_UNFINISHED = ".unfinished"
_PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """The work of one worker: items for one file."""

    split: str
    file: str
    items: Sequence[Any]


def cut(splits: Mapping[str, Sequence[Any]], size: int) -> list[Shard]:
    """Cut the items of every split into shards of `size`."""
    shards = []
    for split, items in splits.items():
        count = -(-len(items) // size)
        for k in range(count):
            file = f"{split}-{k:05d}-of-{count:05d}.arrayrecord"
            shards.append(Shard(split, file, tuple(items[k * size : (k + 1) * size])))
    return shards


def plan(settings: dict[str, Any], items: dict[str, list[str]]) -> dict[str, Any]:
    """The settings, and a checksum of them and the ids by file, which determine the records."""
    text = json.dumps([settings, items], sort_keys=True)
    return {"settings": settings, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def is_unfinished(path: Path) -> bool:
    """Whether shards are being written into a folder, or were until an interruption."""
    return (path / _UNFINISHED).is_dir()


def check_folder(path: Path, description_file: str) -> None:
    """Check in advance whether shards of any plan may be written into a folder.

    Raises:
      InputError: it holds other files, or cannot be written.
    """
    if (reason := why_unwritable(path)) is not None:
        raise InputError(f"{path} cannot be written ({reason}): name another folder")
    ours = (path / description_file).exists() or (path / _UNFINISHED).exists()
    if not ours and not is_new_or_empty(path, besides=LOCK_FILES):
        raise InputError(f"{path} is not an empty folder: name a new or an empty one")


class Folder:
    """A folder that shards are written into, for one plan.

    Args:
      path: the folder.
      plan: as `plan` returns it.
      description_file: name of the file that marks a finished folder.
      sentences: how an error of a folder with another plan ends if only this setting differs, by
        setting; for settings whose names no user knows.
    """

    def __init__(
        self,
        path: Path,
        plan: dict[str, Any],
        description_file: str,
        sentences: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self._plan = library_path(path), plan
        self._sentences = sentences or {}
        self._description = self.path / description_file
        self._unfinished = self.path / _UNFINISHED

    def finished(self) -> dict[str, Any] | None:
        """The description if the folder is finished, else None.

        Raises:
          InputError: it was finished with another plan; the message names differing settings that
            the description also has.
        """
        description = read_json(self._description)
        if description is None:
            return None
        if description.get("plan") != self._plan["checksum"]:
            shared = self._plan["settings"].keys() & description.keys()
            raise self._other_plan("finished", description, shared, "other items or settings")
        shutil.rmtree(self._unfinished, ignore_errors=True)  # in case `finish` failed to
        return description

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder against other writers; required for all methods except `finished`.

        Raises:
          InputError: it holds other files than a plan's shards, cannot be written, or another
            process writes here.
        """
        return writing(self.path, begun=self._unfinished.is_dir())

    def begin(self, shards: Sequence[Shard]) -> dict[str, dict]:
        """Set up the folder for writing; return the notes of finished shards, by file.

        Raises:
          InputError: it was begun with another plan, or cannot be written.
        """
        if read_json(self._description) is not None:  # since the caller checked
            raise InputError(
                f"{self.path} has just been finished by another process: run the command again"
            )
        begun = read_json(self._unfinished / _PLAN)
        if begun is not None and begun != self._plan:
            stored = begun["settings"]
            raise self._other_plan("unfinished", stored, self._plan["settings"], "other items")
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            write_json(self._unfinished / _PLAN, self._plan)
            for stale in self._unfinished.glob("*.tmp"):
                stale.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): name another folder"
            ) from error
        notes = {shard.file: read_json(self._note(shard)) for shard in shards}
        return {file: note for file, note in notes.items() if note is not None}

    def finish(self, description: dict[str, Any]) -> dict[str, Any]:
        """Write the description, with the plan's checksum, and tidy up."""
        description = description | {"plan": self._plan["checksum"]}
        write_json(self._description, description)
        shutil.rmtree(self._unfinished, ignore_errors=True)  # `finished` tries again
        return description

    def _other_plan(
        self, state: str, stored: dict[str, Any], compared: Collection[str], otherwise: str
    ) -> InputError:
        """The error of a folder that is `state` with the settings `stored`, of which `compared` are
        looked at; `otherwise` is what differs if these are equal."""
        settings = self._plan["settings"]
        names = [name for name in settings if name in compared]
        names = [name for name in names if stored.get(name) != settings[name]]
        told = [name for name in names if name not in self._sentences]
        if names and not told:
            return InputError(f"{self.path} {self._sentences[names[0]]}")
        what = f"another {' and '.join(told)}" if told else otherwise
        return InputError(
            f"{self.path} is {state} and has {what}: name another folder or delete it"
        )

    def _note(self, shard: Shard) -> Path:
        return self._unfinished / f"{shard.file}.json"

    @contextlib.contextmanager
    def writer(self, shard: Shard) -> Iterator["Writer"]:
        """Write one shard, which appears with its note when the block ends without an error.

        Raises:
          InputError: it cannot be written.
        """
        temporary = self._unfinished / f"{shard.file}.{os.getpid()}.tmp"
        try:
            with self._explain_write_errors():
                writer = ArrayRecordWriter(str(temporary), "group_size:1")
            shard_writer = Writer(
                writer, {"file": shard.file, "split": shard.split}, self._explain_write_errors
            )
            try:
                yield shard_writer
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it would hide the original error
                    writer.close()
                raise
            with self._explain_write_errors():
                writer.close()
                shard_writer.note["sha256"] = file_checksum(temporary)
                put_in_place(temporary, self.path / shard.file)
                write_json(self._note(shard), shard_writer.note)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        """Turn write errors into InputError; the block must only write."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # the writer raises RuntimeError
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["unknown"])[0]
            raise InputError(
                f"{self.path} cannot be written ({reason}): make room, and the same command "
                "continues"
            ) from error


@dataclasses.dataclass
class Writer:
    """Writes a shard's records; `note` is saved under `.unfinished`."""

    _writer: ArrayRecordWriter
    note: dict[str, Any]
    _explain_errors: Callable[[], contextlib.AbstractContextManager[None]]

    def write(self, record: bytes) -> None:
        with self._explain_errors():
            self._writer.write(record)


def entry(note: Mapping[str, Any]) -> dict[str, Any]:
    """A shard's entry in a description."""
    return {"file": note["file"], "count": len(note["ids"]), "sha256": note["sha256"]}


def file_checksum(path: epath.Path | Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
