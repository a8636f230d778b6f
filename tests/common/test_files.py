"""Files that are whole or not there, locks that end with their process, paths that are none."""

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sisma_jax.common import files
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import (
    LOCK,
    LockedError,
    is_new_or_empty,
    local_path,
    lock,
    whole_folder,
    write_atomically,
)
from sisma_jax.common.hub import local_path as autoencoder_path
from sisma_jax.data.prepared import PreparedDataset
from sisma_jax.data.shards import Folder
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.synthesizer import Synthesizer

HOLD = """
import sys, time; from pathlib import Path; from sisma_jax.common.files import lock
with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)
"""


def test_a_lock_is_seen_by_other_processes_and_ends_with_a_killed_one(tmp_path):
    held = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / LOCK], stdout=subprocess.PIPE)
    try:
        assert held.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=rf"^process {held.pid} on \S"), lock(tmp_path / LOCK):
            pass
    finally:
        held.kill()
        held.wait()
        held.stdout.close()
    with lock(tmp_path / LOCK):
        words = (tmp_path / "lock.holder").read_text()
        assert words.startswith(f"process {os.getpid()} on ")
    assert not list(tmp_path.iterdir())


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path / LOCK):
        raise ZeroDivisionError
    with lock(tmp_path / LOCK), pytest.raises(LockedError), lock(tmp_path / LOCK):
        pass
    with lock(tmp_path / LOCK):
        pass


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said = pytest.warns(UserWarning, match=r"lock cannot be locked \(No locks available\)")
    with said, lock(tmp_path / LOCK):
        pass


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), lock(tmp_path / "file" / LOCK):
        pass


@pytest.fixture
def order(monkeypatch):
    """What was brought to the disk and what was named, in order, by the files' names."""
    told = []
    flush, replace = os.fsync, os.replace

    def fsync(descriptor):
        told.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        flush(descriptor)

    def put(before, after):
        told.append(("name", Path(after).name))
        replace(before, after)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", put)
    return told


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_the_name(tmp_path, order):
    write_atomically(tmp_path / "a", b"content")
    temporary = order[0][1]
    assert temporary.startswith(".") and temporary.endswith(f".{os.getpid()}.tmp")
    assert order == [("flush", temporary), ("name", "a"), ("flush", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_leaves_makes_no_folder_full(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda before, after: None)
        killed.setattr(Path, "unlink", lambda path, missing_ok: None)
        write_atomically(tmp_path / "config.json", b"content")
    assert len(list(tmp_path.iterdir())) == 1
    assert is_new_or_empty(tmp_path)
    (tmp_path / ".own.tmp").touch()
    assert not is_new_or_empty(tmp_path)


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, order):
    with whole_folder(tmp_path / "new one") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    flushed = [name for what, name in order[: order.index(("name", "new one"))]]
    assert flushed == ["file", "inner", "new"]
    assert order[-1] == ("flush", tmp_path.name)


def test_a_file_system_that_cannot_flush_is_no_error_and_a_full_one_is(tmp_path, monkeypatch):
    def fail_with(number):
        def fsync(descriptor):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    fail_with(errno.EINVAL)
    write_atomically(tmp_path / "a", b"content")
    fail_with(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", b"other")
    assert (tmp_path / "a").read_bytes() == b"content" and len(list(tmp_path.iterdir())) == 1


def test_home_is_found_where_no_shell_does(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert (
        local_path("~/runs/a") == RunFolder(Path("~/runs/a")).path == Path("/home/someone/runs/a")
    )
    assert local_path("a~/b") == Path("a~/b")


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://a/b", "file:///run", Path("gs://b/run")])
def test_an_address_is_no_path_on_this_machine(path):
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))} is an address, .*: mount"):
        local_path(path)


def test_what_looks_like_a_drive_or_a_colon_in_a_name_is_a_path():
    for path in ("C:/runs", "runs/a:b/c", "step:4", "a/gs://b"):
        assert not files.is_address(path)


@pytest.mark.parametrize(
    "use",
    [
        Synthesizer.load,
        lambda path: RunFolder(Path(path)),
        lambda path: autoencoder_path(path, "config.json", ["weights"]),
        lambda path: whole_folder(Path(path)).__enter__(),
    ],
)
def test_where_python_is_given_an_address_it_makes_no_folder_of_it(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is an address"):
        use("gs://bucket/run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "open_folder",
    [
        lambda path: Folder(path, {}, "dataset.json"),
        RunFolder,
        lambda path: PreparedDataset(path, 32),
        lambda path: RunFolder(path / "inside"),
    ],
)
def test_a_folder_that_libraries_cannot_name_is_told(open_folder, tmp_path):
    with pytest.raises(InputError, match=r"not UTF-8.*: rename it"):
        open_folder(tmp_path / os.fsdecode(b"v\xe9lo"))
