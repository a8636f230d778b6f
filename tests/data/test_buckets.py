"""Prepared data and cached latents in a bucket, with a stand-in for Google's storage: epath opens a
file system in memory, and array_record's own client asks a server on this machine."""

import os
import shutil
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from etils.epath import backend

from sisma_jax import inspect_data, prepare
from sisma_jax.common.errors import InputError
from sisma_jax.data import latents, prepared
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.data.input_pipeline import open_dataset
from sisma_jax.data.latents import LatentCache
from sisma_jax.data.shards import Folder, Shard, entry, plan
from tests.datasets import SIZE, TEST_FROM, write_raw
from tests.tiny_runs import call

STORAGE = r"""
import http.server, pathlib, re, sys, urllib.parse

class Storage(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # a range of an object, by Google's JSON API
        name = urllib.parse.unquote(re.match("/storage/v1/b/([^?]+)", self.path)[1])
        file = pathlib.Path(sys.argv[1], name.replace("/o/", "/", 1))
        if not file.is_file():
            return self.answer(404, b"")
        content = file.read_bytes()
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["range"]).groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        part = content[start : int(last) + 1 if first and last else None]
        self.answer(206, part, f"bytes {start}-{start + len(part) - 1}/{len(content)}")

    def answer(self, status, content, place=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Range", place)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""In a process of its own, for array_record's client waits without letting other threads go on."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """(folder, name) -> its address in a bucket, where copies of its files now are."""
    memory, real = fsspec.filesystem("memory"), backend.fsspec_backend.fs
    is_there = lambda path: os.fspath(path).startswith("gs://")
    stored = tmp_path_factory.mktemp("stored")
    server = subprocess.Popen(
        [sys.executable, "-c", STORAGE, stored], stdout=subprocess.PIPE, text=True
    )
    port = int(server.stdout.readline())

    def put(folder, name):
        for file in folder.iterdir():
            memory.pipe_file(f"gs://bucket/{name}/{file.name}", file.read_bytes())
        shutil.copytree(folder, stored / "bucket" / name)
        return f"gs://bucket/{name}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
        patch.setattr(
            backend.fsspec_backend, "fs", lambda path: memory if is_there(path) else real(path)
        )
        yield put
    memory.rm("gs://bucket", recursive=True)
    server.kill()
    server.wait()
    server.stdout.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    write_raw(folder / "raw")
    command = ["--source", folder / "raw", "--out", folder / "data", "--size", SIZE]
    call(prepare.main, *command, "--test-from", TEST_FROM, "--workers", 1)
    return folder / "data"


def test_prepared_data_in_a_bucket_is_read_as_on_a_disk(bucket, data, tmp_path, capsys):
    there, here = (open_dataset(path, SIZE) for path in (bucket(data, "data"), data))
    assert list(there.ids) == list(here.ids) and there.checksum == here.checksum
    for index in range(len(here)):
        np.testing.assert_array_equal(there[index]["image"], here[index]["image"])
        np.testing.assert_array_equal(there[index]["labels"], here[index]["labels"])
    command = ["--data", "gs://bucket/data", "--out", tmp_path / "sheet.png", "--verify"]
    call(inspect_data.main, *command)
    assert "all shards match their checksums" in capsys.readouterr().out


def test_cached_latents_in_a_bucket_are_read_as_on_a_disk(bucket, tmp_path):
    moments = np.random.default_rng(0).normal(size=(2, 2, 2, 8)).astype(np.float16)
    labels = np.ones((4, 4), np.uint8)
    shard = Shard("train", "train-00000-of-00001.arrayrecord", (0,))
    folder = Folder(tmp_path / "cache", plan({}, {}), latents.LATENTS_FILE)
    with folder.writing():
        folder.begin([shard])
        with folder.writer(shard) as writer:
            writer.write(latents.encode("a", moments, labels))
            writer.note["ids"] = ["a"]
        folder.finish({
            "version": latents.VERSION, "size": 4, "moments": list(moments.shape), "data": "d",
            "autoencoder": "a", **CELEBAMASK.to_json(),
            "splits": {"train": {"ids": ["a"], "shards": [entry(writer.note)]}},
        })  # fmt: skip
    address = bucket(tmp_path / "cache", "cache")
    assert latents.is_latent_cache(address)
    (item,) = LatentCache(address)
    np.testing.assert_array_equal(item["moments"], moments)
    np.testing.assert_array_equal(item["labels"], labels)


def test_what_is_missing_in_a_bucket_is_named(bucket, data):
    with pytest.raises(InputError, match=r"gs://bucket/no is not a prepared data set"):
        prepared.read_description("gs://bucket/no")
    with pytest.raises(InputError, match=r"gs://bucket/no is an address, but this has to be"):
        open_dataset("gs://bucket/no", SIZE)  # as a raw folder, which is none
    bucket(data, "torn")
    fsspec.filesystem("memory").rm("gs://bucket/torn/train-00000-of-00001.arrayrecord")
    with pytest.raises(InputError, match=r"gs://bucket/torn/train-.* is missing"):
        open_dataset("gs://bucket/torn", SIZE)


def test_without_its_client_a_bucket_is_one_sentence(monkeypatch):
    def no_client(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(backend.fsspec_backend, "fs", no_client)
    with pytest.raises(InputError, match=r"gs://b/data .* gcsfs is missing: pip install"):
        open_dataset("gs://b/data", SIZE)


def test_a_bucket_that_may_not_be_read_is_one_sentence(monkeypatch):
    def forbidden(path):
        raise RuntimeError("403 Forbidden\nand much more")

    monkeypatch.setattr(backend.fsspec_backend, "fs", forbidden)
    with pytest.raises(InputError, match=r"gs://b/data cannot be read \(403 Forbidden\): check"):
        open_dataset("gs://b/data", SIZE)


@pytest.mark.parametrize("address", ["s3://bucket/data", "https://host/data", "hf://owner/name"])
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match=f"{address} is an address"):
        open_dataset(address, SIZE)


def test_a_home_folder_is_found_where_no_shell_has_looked(data, monkeypatch):
    monkeypatch.setenv("HOME", str(data.parent))
    assert len(open_dataset("~/data", SIZE)) == len(
        open_dataset("~/raw", SIZE, test_from=TEST_FROM)
    )
