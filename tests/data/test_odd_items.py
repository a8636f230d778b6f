"""Items that look wrong: label maps drawn here for every kind, and the command that lists them."""

import json
import sys

import numpy as np
import pytest

from sisma_jax import inspect_data, prepare
from sisma_jax.common.errors import InputError
from sisma_jax.data import odd_items
from sisma_jax.data.classes import CELEBAMASK, CLASSES, UNLABELLED, ClassSet
from sisma_jax.data.label_maps import flip
from sisma_jax.data.thumbnails import shrunk
from tests.datasets import TOY, write_packed, write_raw, write_toy

BOXES = {
    "hair": (6, 14, 14, 50),
    "skin": (14, 16, 54, 48),
    "neck": (54, 24, 64, 40),
    "r_ear": (28, 12, 38, 16),
    "l_ear": (28, 48, 38, 52),
    "r_brow": (20, 20, 22, 29),
    "l_brow": (20, 35, 22, 44),
    "r_eye": (25, 21, 28, 28),
    "l_eye": (25, 36, 28, 43),
    "nose": (26, 30, 38, 34),
    "u_lip": (42, 26, 44, 38),
    "mouth": (44, 27, 46, 37),
    "l_lip": (46, 26, 48, 38),
}
"""Top, left, bottom, right of the parts of a plain face of 64 x 64, painted in this order."""


def face(**changed) -> np.ndarray:
    """The plain face, with parts in other boxes, or without those that are None."""
    labels = np.zeros((64, 64), np.uint8)
    for name, box in (BOXES | changed).items():
        for top, left, bottom, right in [] if box is None else np.atleast_2d(box):
            labels[top:bottom, left:right] = CLASSES.index(name)
    return labels


def exchanged(*names: str) -> np.ndarray:
    """The plain face with these parts labelled as their partners."""
    partner = lambda name: {"l": "r", "r": "l"}[name[0]] + name[1:]
    return face(**{partner(name): BOXES[name] for name in names})


def unlabelled(rows: int) -> np.ndarray:
    labels = face()
    labels[:rows] = UNLABELLED
    return labels


NO_EYES = {"l_eye": None, "r_eye": None}
NO_LIPS = {"mouth": None, "u_lip": None, "l_lip": None}
STRANDS = [(42, left, 44, left + 2) for left in (26, 29, 32, 35)]
TURNED = {"nose": (26, 44, 38, 50), "l_eye": None, "r_eye": (25, 34, 28, 41)}
TURNED |= {"l_brow": None, "r_brow": (20, 33, 22, 42)}

CASES = {
    "plain": (face(), []),
    "mirrored": (flip(face()), []),
    "unlabelled": (unlabelled(6), ["unlabelled"]),
    "few unlabelled": (unlabelled(3), []),
    "nothing": (np.full((64, 64), UNLABELLED, np.uint8), None),
    "no skin": (face(skin=None), ["no skin", "loose hair"]),
    "no nose": (face(nose=None), ["no nose"]),
    "no eyes": (face(**NO_EYES), ["no eyes"]),
    "dark glasses": (face(**NO_EYES, eye_g=(24, 20, 29, 44)), []),
    "one eye": (face(l_eye=None), ["one eye"]),
    "profile": (face(**TURNED), ["profile"]),
    "no mouth": (face(**NO_LIPS), ["no mouth"]),
    "pressed lips": (face(mouth=None), []),
    "exchanged eyes": (exchanged("l_eye", "r_eye"), ["exchanged"]),
    "exchanged brows": (exchanged("l_brow", "r_brow"), ["exchanged"]),
    "mirrored without exchange": (face()[:, ::-1], ["exchanged"]),
    "one ear of the wrong side": (face(l_ear=None, r_ear=BOXES["l_ear"]), ["exchanged"]),
    "one ear": (face(l_ear=None), []),
    "upside down": (face()[::-1], ["misplaced"]),
    "lips exchanged": (face(u_lip=BOXES["l_lip"], l_lip=BOXES["u_lip"]), ["misplaced"]),
    "an ear among the brows": (face(l_brow=[BOXES["l_brow"], (40, 57, 42, 60)]), ["far piece"]),
    "a cut brow": (face(l_brow=[(20, 35, 22, 38), (20, 40, 22, 44)]), []),
    "loose hair": (face(hair=(0, 0, 4, 20)), ["loose hair"]),
    "hair below a hat": (face(hair=(6, 40, 14, 50), hat=(2, 14, 14, 40)), []),
    "strands over the lip": (face(u_lip=STRANDS), ["pieces"]),
    "a lost brow": (face(l_brow=(20, 40, 21, 42)), ["tiny part"]),
    "a thin brow": (face(l_brow=(20, 40, 21, 43)), []),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [1, 2])
def test_label_maps(case, scale):
    labels, kinds = CASES[case]
    found = odd_items.of_labels(labels.repeat(scale, 0).repeat(scale, 1), CELEBAMASK)
    if kinds is None:
        assert {"unlabelled", "one class", "no skin", "no eyes", "no mouth"} == set(found)
    else:
        assert found == kinds


def test_pictures():
    noise = np.random.default_rng(0).uniform(0, 1, (32, 32, 3))
    grey = noise[..., :1].repeat(3, -1)
    kinds = lambda picture: odd_items.of_picture(np.clip(picture * 255, 0, 255).astype(np.uint8))
    assert kinds(noise * [1, 0.8, 0.8]) == []
    assert kinds(grey) == ["grey"]
    assert kinds(noise * 0.3) == ["dark", "flat"]
    assert kinds(1 - noise**4 * 0.9) == ["bright"]
    assert kinds(0.4 + 0.2 * noise) == ["flat"]


def test_near_duplicates_are_found_also_mirrored_and_across_blocks(monkeypatch):
    monkeypatch.setattr(odd_items, "_ROWS", 4)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 16, 16, 3)).astype(np.uint8)
    images[9] = np.clip(images[0].astype(int) + rng.integers(-5, 6, (16, 16, 3)), 0, 255)
    images[10] = images[5, :, ::-1]
    pairs = odd_items.near_duplicates(shrunk(images), shrunk(images[:, :, ::-1]))
    assert [pair[:3] for pair in pairs] == [(5, 10, True), (0, 9, False)]
    assert pairs[0][3] == 0 and 0.005 < pairs[1][3] < 0.02


def test_other_classes_are_judged_as_far_as_they_can_be():
    toy = ClassSet.from_json(TOY)
    assert odd_items.judged(toy) == ["unlabelled", "one class", "dark", "bright", "flat", "grey"]
    assert odd_items.of_labels(np.ones((8, 8), np.uint8), toy) == ["one class"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("faces") / "raw")


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """Lists odd items of a data set; returns the printed text and the file's content."""

    def call(data, *options):
        words = ["--data", data, "--out", tmp_path / "sheet.png", "--odd", tmp_path / "odd.json"]
        monkeypatch.setattr(sys, "argv", ["inspect_data", *map(str, [*words, *options])])
        capsys.readouterr()
        inspect_data.main()
        return capsys.readouterr().out, json.loads((tmp_path / "odd.json").read_text())

    return call


def prepared(source, out, monkeypatch):
    words = ["--source", source, "--out", out, "--size", 32, "--workers", 1]
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words)])
    prepare.main()
    return out


def test_the_command_lists_faces_of_all_splits(raw, tmp_path, monkeypatch, inspect):
    packed = write_packed(tmp_path / "packed", raw)
    for name in ("images/2.jpg", "labels/2.png"):  # a training item again in the test split
        there = packed / "test" / name.replace("2.", "77.")
        there.write_bytes((packed / "train" / name).read_bytes())
    out, found = inspect(prepared(packed, tmp_path / "out", monkeypatch), "--ids", 3, 2)
    assert found["items"] == {"train": 16, "test": 5}
    assert set(found["kinds"]) == set(odd_items.KINDS) and not found["not_judged"]
    copies = [pair["items"] for pair in found["near_duplicates"] if not pair["distance"]]
    assert copies == [[["train", "2"], ["test", "77"]]]
    assert "train/2=test/77" in out
    lines = [line.split() for line in out.splitlines()]
    for name, ids in found["kinds"].items():
        assert [*name.split(), str(sum(map(len, ids.values())))] in [
            line[: len(name.split()) + 1] for line in lines
        ]
    assert not found["kinds"]["exchanged"]["train"]
    monkeypatch.setattr(sys, "argv", ["inspect", "--data", "x", "--odd", "a", "--out", "a"])
    with pytest.raises(InputError, match="--odd and --out are both a: name two files"):
        inspect_data.main()
    monkeypatch.setattr(sys, "argv", ["inspect", "--data", "x", "--odd", str(tmp_path)])
    with pytest.raises(InputError, match=r"--odd .* cannot be written \(it is a folder\)"):
        inspect_data.main()
    with pytest.raises(InputError, match="--ids 99 is not in split 'train'"):
        inspect(tmp_path / "out", "--ids", 99)


def test_the_command_says_what_it_cannot_judge(tmp_path, monkeypatch, inspect):
    data = prepared(write_toy(tmp_path / "toy"), tmp_path / "out", monkeypatch)
    out, found = inspect(data)
    assert "exchanged" in found["not_judged"] and "l_eye" in found["not_judged"]["exchanged"]
    assert "not judged: no skin, no nose" in out and "lacks the classes" in out


def test_raw_folders_are_listed_as_one(raw, inspect):
    _, found = inspect(raw, "--size", 32, "--test-from", 16)
    assert found["items"] == {"all": 20}
