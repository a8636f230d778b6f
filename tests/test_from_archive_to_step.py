"""Two hundred faces in the archive's layout, prepared both ways, to the first training steps."""

import json

import numpy as np
import pytest

from sisma_jax import prepare
from sisma_jax.data import synthetic
from sisma_jax.data.prepared import PreparedDataset
from sisma_jax.data.raw import RawFaces
from tests.datasets import write_packed
from tests.tiny_runs import SIZE, call, train_tiny

TEST_FROM = 168


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive") / "raw"
    synthetic.write_dataset(folder, count=200, size=64, mask_size=SIZE, seed=1, workers=2)
    return folder


def prepared(source, out, *options):
    command = ["--source", source, "--out", out, "--size", SIZE, "--test-from", TEST_FROM]
    call(prepare.main, *command, "--shard-size", 64, "--workers", 1, *options)
    return out


@pytest.mark.slow
def test_from_the_archive_to_training(raw, inputs_folder, tmp_path):
    shards = prepared(raw, tmp_path / "sis")
    official = prepared(raw, tmp_path / "official", "--split", "official")
    packed = prepared(write_packed(tmp_path / "packed", raw, TEST_FROM), tmp_path / "from_packed")

    everything = RawFaces(raw, SIZE, split="all")
    for folder, splits in (
        (shards, ("train", "test")),
        (official, ("train", "val", "test")),
        (packed, ("train", "test")),
    ):
        description = json.loads((folder / "dataset.json").read_text())
        assert sum(len(split["ids"]) for split in description["splits"].values()) == 200
        for split in splits:
            if not description["splits"][split]["ids"]:
                continue
            source = PreparedDataset(folder, SIZE, split=split)
            for index, face in enumerate(source.ids):
                item, expected = source[index], everything[int(face)]
                np.testing.assert_array_equal(item["labels"], expected["labels"])
                np.testing.assert_array_equal(item["image"], expected["image"])

    train_tiny(inputs_folder, tmp_path / "run", data__path=shards, train__steps=5)
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 5 and np.isfinite(json.loads(rows[-1])["loss"])
