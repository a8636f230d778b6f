"""Folders of shards: one writer, and errors of the disk told from all others."""

import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import LOCK, lock
from sisma_jax.data import shards
from sisma_jax.data.shards import Folder, Shard, plan

SHARD = Shard("train", "train-00000-of-00001.arrayrecord", ("a",))


def folder(path):
    return Folder(path, plan({"size": 4}, {SHARD.file: ["a"]}), "dataset.json")


def write(path):
    with folder(path).writing():
        folder(path).begin([SHARD])
        with folder(path).writer(SHARD) as writer:
            writer.write(b"record")
            writer.note["ids"] = ["a"]
        return folder(path).finish({"splits": {}})


def test_two_writers_of_one_folder_are_refused_and_the_first_goes_on(tmp_path):
    out = tmp_path / "out"
    with folder(out).writing():
        folder(out).begin([SHARD])
        half = out / ".unfinished" / "half.tmp"
        half.touch()
        with pytest.raises(InputError, match=r"out is being written by process \d+ on .*: wait"):
            write(out)
        assert half.exists()
    write(out)
    assert {path.name for path in out.iterdir()} == {"dataset.json", SHARD.file}


def test_the_lock_that_a_kill_leaves_makes_no_folder_full(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / "lock.holder").write_text("process 1 on a machine that is gone")
    write(tmp_path)
    assert folder(tmp_path).finished()["splits"] == {}


def test_a_folder_of_other_files_is_refused_with_all_that_is_in_it(tmp_path):
    (tmp_path / LOCK).write_text("of a door")
    (tmp_path / "letter.txt").touch()
    with pytest.raises(InputError, match="is not an empty folder: name a new or an empty one"):
        write(tmp_path)
    assert (tmp_path / LOCK).read_text() == "of a door"


def test_what_another_process_has_finished_meanwhile_is_kept(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(InputError, match="has just been finished by another process"):
        folder(tmp_path / "out").begin([SHARD])
    assert (tmp_path / "out" / SHARD.file).exists()


def test_a_finished_folder_is_read_though_it_is_locked(tmp_path):
    write(tmp_path)
    with lock(tmp_path / LOCK):
        assert folder(tmp_path).finished() is not None


@pytest.mark.parametrize("error", [RuntimeError("RESOURCE_EXHAUSTED"), OSError(5, "of the source")])
def test_errors_of_what_is_written_are_not_the_disks(error, tmp_path):
    with folder(tmp_path).writing():
        folder(tmp_path).begin([SHARD])
        with pytest.raises(type(error)) as caught, folder(tmp_path).writer(SHARD):
            raise error
        assert caught.value is error
        assert [path.name for path in (tmp_path / ".unfinished").iterdir()] == ["plan.json"]


@pytest.mark.parametrize("call", ["write", "close"])
def test_errors_of_the_disk_are_one_sentence(call, tmp_path, monkeypatch):
    class Full(shards.ArrayRecordWriter):
        pass

    def fail(self, *record):
        raise RuntimeError("write() failed: No space left on device\nand where")

    monkeypatch.setattr(Full, call, fail)
    monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
    with pytest.raises(InputError, match=r"cannot be written \(write\(\) failed: No space .*make"):
        write(tmp_path)
