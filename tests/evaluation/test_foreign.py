"""Pictures of any origin: how their names pair, and what is refused before it is looked for."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sisma_jax import evaluate
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CELEBAMASK, CLASSES
from sisma_jax.data.label_values import Reading
from sisma_jax.evaluation import evaluator, networks
from sisma_jax.evaluation.foreign import pair, read_masks
from sisma_jax.evaluation.pictures import PictureFolder
from sisma_jax.evaluation.scoring import Row
from sisma_jax.evaluation.tables import score_table
from sisma_jax.metrics.frechet import load_statistics, save_statistics, statistics
from tests.evaluation.parsers import write_parser
from tests.tiny_runs import SIZE, call, overridden


def write_pictures(folder, names, seed=0):
    folder.mkdir()
    random = np.random.default_rng(seed)
    for name in names:
        image = random.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    """Arguments that score fake/ (four pictures) against real/ (five)."""
    fake = write_pictures(tmp_path / "fake", ["1", "2", "3", "4"])
    real = write_pictures(tmp_path / "real", ["1", "2", "3", "4", "5"], seed=1)
    return ["--images", fake, "--reference", real, "--out", tmp_path / "report"]


def row_of(report):
    (row,) = json.loads((report / "report.json").read_text())["rows"]
    return row


@pytest.mark.parametrize(
    ("names", "others", "places"),
    [
        (["16"], ["15", "16"], [1]),
        (["16_0", "16_1", "15_0"], ["15", "16"], [1, 1, 0]),
        (["16_3_11"], ["16"], [0]),
        (["16_0_0"], ["16", "16_0"], [1]),  # the longest name
        (["16_0", "16_1"], ["16", "16_0"], [1, 0]),  # an exact one
        (["a_b_0"], ["a", "a_b"], [1]),
        (["00016_0", "7"], ["16", "007"], [0, 1]),
        (["2"], ["2", "02"], [0]),
    ],
)
def test_made_faces_belong_to_the_mask_that_they_are_named_after(names, others, places):
    assert pair(names, others).indices == places


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("16_0_0_0", ["16"]),
        ("16_a", ["16"]),
        ("16_", ["16"]),
        ("16-0", ["16"]),
        ("160", ["16"]),
        ("_0", ["0"]),
        ("002", ["2", "02"]),  # either may be meant
    ],
)
def test_other_names_have_no_counterpart(name, others):
    found = pair([*others, name], others)
    assert not found.indices and found.reason.startswith(f"no {name!r} (1 of {len(others) + 1} ")


def test_a_seed_ahead_of_the_name_is_not_taken_for_the_name():
    ids = [str(k) for k in range(30)]
    found = pair(["1_16", "1_17", "1_18"], ids)
    assert not found.indices and found.reason == "both '1' and '16', of which '1_16' may be"
    assert pair(["16_0", "16_1", "17_0", "17_1"], ids).indices == [16, 16, 17, 17]
    assert pair(["16_7", "17_7"], ["16", "17"]).indices == [0, 1]


def test_several_samples_of_a_mask_are_compared_with_the_same_face(folders, tmp_path):
    for name in "12":
        (tmp_path / f"fake/{name}.png").unlink()
        for k in range(2):
            content = (tmp_path / f"real/{name}.png").read_bytes()
            (tmp_path / f"fake/{name}_{k}.png").write_bytes(content)
        (tmp_path / f"fake/{int(name) + 2}.png").unlink()
    call(evaluate.main, *folders, "--metrics", "ssim")
    row = row_of(tmp_path / "report")
    assert row["scores"] == {"ssim": pytest.approx(1)} and row["count"] == 4
    assert "fake: up to 2 pictures of one face" in row["notes"]


def test_masks_pair_as_pictures_do_and_in_their_own_order_of_classes(tmp_path):
    pictures = PictureFolder(write_pictures(tmp_path / "fake", ["7_0", "7_1", "8"]))
    masks = tmp_path / "masks"
    masks.mkdir()
    for name, number in (("7", 16), ("8", 18)):  # as face-parsing.PyTorch numbers cloth and hat
        Image.fromarray(np.full((SIZE, SIZE), number, np.uint8)).save(masks / f"{name}.png")
    found = read_masks(masks, pictures, CELEBAMASK, Reading("bisenet", True))
    assert [CLASSES[labels[0, 0]] for labels in found] == ["cloth", "cloth", "hat"]
    (masks / "8.png").unlink()
    with pytest.raises(
        InputError, match=r"masks has no '8' \(1 of 3 pictures have no counterpart\)"
    ):
        read_masks(masks, pictures, CELEBAMASK)


def test_scores_by_other_masks_do_not_stay(folders, tmp_path):
    (tmp_path / "masks").mkdir()
    for name in "1234":
        labels = np.full((SIZE, SIZE), 2, np.uint8)
        Image.fromarray(labels).save(tmp_path / f"masks/{name}.png")
    command = [*folders, "--parser", write_parser(tmp_path / "p"), "--masks", tmp_path / "masks"]
    call(evaluate.main, *command, "--metrics", "miou,ssim")
    call(evaluate.main, *command, "--metrics", "acc")
    assert row_of(tmp_path / "report")["scores"].keys() == {"miou", "ssim", "psnr_db", "accuracy"}
    call(evaluate.main, *command, "--metrics", "acc", "--class-order", "bisenet")
    row = row_of(tmp_path / "report")
    assert row["scores"].keys() == {"accuracy"} and row["settings"]["masks"].endswith("masks")
    assert "the face parser is U-Net trained here " in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "ssim"], r"asks for ssim, but the pictures of .*fake .* no 'other' .*'5'"),
        (["--metrics", "fid"], "asks for what cannot be measured. FID: missing "),
        (["--metrics", "fd"], "asks for what cannot be measured. mIoU.* runs/parser cannot be"),
        (["--metrics", "acc", "--parser", "p"], "asks for miou or acc, but there are no masks"),
        (
            ["--metrics", "fd", "--parser", "p", "--reference", "s.npz"],
            "asks for fd, but a reference of statistics has no pictures",
        ),
        (["--metrics", "ssim", "--reference", "s.npz"], "asks for ssim, but a reference of stat"),
        (["--reference", "s.npy"], "s.npy is neither a folder nor a .npz file"),
        (["--reference", "no/where"], "no/where is neither a folder nor a .npz file"),
        (["--class-order", "bisenet"], "--class-order bisenet goes with --masks"),
        (["--masks", "none"], "--masks none is not a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parser(Path("p"))
    np.savez("s.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.save("s.npy", np.zeros(3))
    (tmp_path / "fake/4.png").rename(tmp_path / "fake/other.png")
    (tmp_path / "real/4.png").unlink()
    with pytest.raises(InputError, match=message):
        call(evaluate.main, *overridden(folders, arguments))
    assert not (tmp_path / "report").exists()


def test_data_whose_names_differ_is_refused_before_it_is_read(inputs_folder, tmp_path, monkeypatch):
    fake = write_pictures(tmp_path / "fake", ["12_0", "13_0", "13_1", "face"])
    monkeypatch.setattr(evaluate, "first_of", None)
    with pytest.raises(InputError, match=r"ssim, but .* it has no 'face' \(1 of 4 .*, but '14'"):
        call(
            evaluate.main, "--images", fake, "--data", inputs_folder / "data", "--test-from", 12,
            "--out", tmp_path / "report", "--metrics", "ssim",
        )  # fmt: skip


def test_statistics_are_taken_by_the_convention_that_they_were_made_with(
    folders, weights, tmp_path
):
    saved = tmp_path / "S.NPZ"
    command = ["--weights", weights, "--metrics", "fid"]
    half = ["--fid-resize", "half_pixel"]
    call(evaluate.main, *folders, *command, *half, "--save-statistics", saved)
    fid = row_of(tmp_path / "report")["scores"]["fid"]
    assert "FID (half_pixel)" in (tmp_path / "report/report.md").read_text()
    features = load_statistics(saved).features
    assert features.network == "pt_inception-2015-12-05-6726825d" and len(features.weights) == 64

    others = ["--images", tmp_path / "fake", "--reference", saved, "--out", tmp_path / "second"]
    call(evaluate.main, *others, *command, *half)
    assert row_of(tmp_path / "second")["scores"] == {"fid": fid}
    others[-1] = tmp_path / "third"
    with pytest.raises(InputError, match=r"resized by half_pixel, .* give --fid-resize half_pixel"):
        call(evaluate.main, *others, *command)
    (weights / networks.INCEPTION.file).write_text("3")
    with pytest.raises(InputError, match=rf"with the weights {features.weights[:12]}, but those"):
        call(evaluate.main, *others, *command, *half)
    assert not (tmp_path / "third").exists()


def test_statistics_that_say_no_convention_need_it_said(folders, weights, tmp_path, monkeypatch):
    others = ["--images", tmp_path / "fake", "--reference", tmp_path / "s.npz"]
    command = [*others, "--out", tmp_path / "report", "--weights", weights, "--metrics", "fid"]
    save_statistics(tmp_path / "s.npz", statistics(np.random.default_rng(0).normal(size=(9, 64))))
    with pytest.raises(InputError, match=r"does not say .*--fid-resize half_pixel for pytorch-fid"):
        call(evaluate.main, *command)
    with pytest.raises(InputError, match=r"has 64 features per picture where .* 2048"):
        call(evaluate.main, *command, "--fid-resize", "half_pixel")
    assert not (tmp_path / "report").exists()
    monkeypatch.setattr(evaluator, "FEATURES", 3)
    save_statistics(tmp_path / "s.npz", statistics(np.random.default_rng(0).normal(size=(9, 3))))
    call(evaluate.main, *command, "--fid-resize", "half_pixel")
    row = row_of(tmp_path / "report")
    assert row["scores"].keys() == {"fid"} and row["conventions"] == {"fid": "half_pixel"}
    assert "does not record how its pict" in row["notes"][0]


def test_a_heading_has_the_convention_of_its_rows():
    old, new = (
        Row(name=name, kind="pictures", count=9, key="", scores={"fid": 1.0, "ssim": 0.5}, **more)
        for name, more in (("old", {}), ("new", {"conventions": {"fid": "tf1"}}))
    )
    columns = lambda *rows: score_table(rows).columns[2:]
    assert columns(old, new) == columns(new) == ["FID (tf1) ↓", "SSIM ↑"]
    assert columns(old) == ["FID ↓", "SSIM ↑"]
    kept = dataclasses.replace(old, scores={}).over(new)
    assert columns(kept) == columns(new)
