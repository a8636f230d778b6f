"""Five hundred odd pictures through all that reads pictures: read, or told in a sentence."""

import json
import sys

import numpy as np
import pytest

from sisma_jax import Synthesizer, prepare
from sisma_jax.common.errors import InputError
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.data.prepared import PreparedDataset
from sisma_jax.evaluation.pictures import PictureFolder
from sisma_jax.painting.starts import Starts, Subject
from sisma_jax.painting.studio import Studio
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.references import read_face
from tests import odd_pictures
from tests.tiny_runs import SIZE

COUNT = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of numbered names, each with a label map."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    labels = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 19).astype(np.uint8)
    for seed in range(COUNT):
        odd_pictures.write(folder / "images", f"{seed:03d}", seed, SIZE)
        write_label_map(folder / "labels" / f"{seed:03d}.png", labels)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    return sorted((folder / "images").iterdir())


def outcomes(read, files) -> tuple[int, int]:
    """How many were read and how many told in one sentence; any other error ends the test."""
    read_count = told = 0
    for file in files:
        try:
            image = read(file)
        except InputError as error:
            assert file.name in str(error) and "\n" not in str(error), file
            told += 1
        else:
            assert image.dtype == np.uint8 and image.shape[-3:] == (SIZE, SIZE, 3), file
            read_count += 1
    return read_count, told


def test_prepare_takes_or_lists_every_one(folder, tmp_path, monkeypatch):
    words = ["--source", folder, "--out", tmp_path / "out", "--size", SIZE, "--crop"]
    words += ["--workers", 1, "--allow-rejected"]
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words)])
    prepare.main()
    description = json.loads((tmp_path / "out/dataset.json").read_text())
    ids = [one for split in description["splits"].values() for one in split["ids"]]
    lines = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    rejected = [json.loads(line)["id"] for line in lines]
    assert sorted(ids + rejected) == [f"{seed:03d}" for seed in range(COUNT)]
    assert len(ids) > COUNT // 3 and len(rejected) > COUNT // 10
    item = PreparedDataset(tmp_path / "out", SIZE)[0]
    assert item["image"].shape == (SIZE, SIZE, 3)


def test_references_are_read_or_told(files):
    taken, told = outcomes(lambda file: read_face(file, SIZE, "--reference"), files)
    assert taken > COUNT // 3 and told > COUNT // 10


def test_pictures_to_evaluate_are_read_or_told(files, tmp_path):
    def read(file):
        """Beside itself, since a set has two pictures at least."""
        both = tmp_path / file.stem
        both.mkdir()
        for name in ("a", "b"):
            (both / f"{name}_{file.name}").write_bytes(file.read_bytes())
        pictures = PictureFolder(both)
        image = pictures.read([0])[0]
        assert image.shape[:2] == pictures.size
        return np.zeros((SIZE, SIZE, 3), np.uint8)

    taken, told = outcomes(read, files)
    assert taken > COUNT // 3 and told > COUNT // 10


def test_photos_of_the_page_are_read_or_told(tiny_run, files):
    start = Starts("a mask", 1, lambda _: Subject(np.zeros((SIZE, SIZE), np.uint8), None))
    synthesizer = Synthesizer.load(tiny_run)
    studio = Studio("tiny", synthesizer, start, None, "no parser", SamplingOptions(steps=2))
    taken, told = outcomes(studio.read_photo, files)
    assert taken > COUNT // 3 and told > COUNT // 10
