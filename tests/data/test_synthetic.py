"""Synthetic faces: what a mask fixes, what a look changes, and the files they are written to."""

import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import LOCK, lock
from sisma_jax.data.classes import CLASSES
from sisma_jax.data.config import DataConfig
from sisma_jax.data.input_pipeline import open_dataset
from sisma_jax.data.layouts import survey
from sisma_jax.data.raw import RawFaces
from sisma_jax.data.synthetic import face, face_parts, read_settings, write_dataset, writer
from sisma_jax.data.synthetic.figure import majority, sample_figure

SIZE = 64
COUNT = 160
LABEL = {name: index for index, name in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def faces():
    """Images and label maps of the first faces of set 0."""
    images, labels = zip(*(face(0, index, SIZE) for index in range(COUNT)), strict=True)
    return np.stack(images), np.stack(labels)


def merged(parts, size):
    labels = np.zeros((size, size), np.uint8)
    for name in CLASSES[1:]:
        if name in parts:
            labels[parts[name]] = LABEL[name]
    return labels


# ---- one face ----


def test_a_face_depends_on_its_arguments_alone(faces):
    images, labels = faces
    again = face(0, 17, SIZE)
    np.testing.assert_array_equal(again[0], images[17])
    np.testing.assert_array_equal(again[1], labels[17])
    assert (face(1, 17, SIZE)[1] != labels[17]).any()


def test_a_look_changes_the_picture_and_not_the_mask(faces):
    images, labels = faces
    other, same = face(0, 5, SIZE, look=1)
    np.testing.assert_array_equal(same, labels[5])
    assert np.abs(other.astype(int) - images[5]).mean() > 5


@pytest.mark.parametrize("size", [32, 33, 64, 100, 256])
def test_every_size_gives_an_image_and_labels(size):
    image, labels = face(3, 1, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert labels.shape == (size, size) and labels.dtype == np.uint8
    assert labels.max() < len(CLASSES)


def test_sizes_show_the_same_face():
    small, large = face(0, 2, 64)[1], face(0, 2, 256)[1]
    assert (small == large[2::4, 2::4]).mean() > 0.95


def test_all_classes_occur_as_often_as_on_people(faces):
    _, labels = faces
    share = {name: np.mean([(map_ == i).any() for map_ in labels]) for name, i in LABEL.items()}
    for name in ("background", "skin", "nose", "l_lip", "cloth"):
        assert share[name] == 1, name
    for name in ("l_brow", "r_brow", "u_lip", "hair", "neck", "l_eye", "r_eye"):
        assert share[name] > 0.9, name
    for name, (least, most) in {
        "eye_g": (0.12, 0.25),
        "hat": (0.07, 0.18),
        "ear_r": (0.13, 0.30),
        "neck_l": (0.10, 0.24),
        "mouth": (0.30, 0.50),
        "l_ear": (0.35, 0.70),
        "r_ear": (0.35, 0.70),
    }.items():
        assert least < share[name] < most, (name, share[name])


def test_left_and_right_are_the_subjects_own(faces):
    _, labels = faces
    columns = np.arange(SIZE)
    for part in ("eye", "brow", "ear"):
        sides = [[], []]
        for map_ in labels:
            masks = map_ == LABEL[f"l_{part}"], map_ == LABEL[f"r_{part}"]
            if all(mask.any() for mask in masks):
                for side, mask in zip(sides, masks, strict=True):
                    side.append((mask.sum(0) * columns).sum() / mask.sum())
        left, right = map(np.array, sides)
        assert len(left) > 20
        assert (left > right + 4).all(), part


def test_faces_fill_the_crop_like_the_data_set(faces):
    _, labels = faces
    eyes = (labels == LABEL["l_eye"]) | (labels == LABEL["r_eye"])
    height = [np.nonzero(map_.any(1))[0].mean() / SIZE for map_ in eyes if map_.any()]
    assert 0.44 < np.mean(height) < 0.49
    heads = (labels >= LABEL["skin"]) & (labels <= LABEL["l_lip"])
    assert 0.45 < np.median([map_.any(0).mean() for map_ in heads]) < 0.65


def test_the_turned_face_shows_more_of_the_nearer_side(faces):
    _, labels = faces
    yaw = np.array([sample_figure(0, index, SIZE).pose.yaw for index in range(80)])
    far, near = ((labels[:80] == LABEL[eye]).sum((1, 2)) for eye in ("l_eye", "r_eye"))
    clear = (far > 0) & (near > 0)
    assert np.corrcoef(yaw[clear], (near - far)[clear])[0, 1] > 0.5


def test_majority_is_the_most_frequent_of_four():
    samples = np.array(list(itertools.product(range(4), repeat=4)), np.uint8)
    tiled = samples.reshape(16, 16, 2, 2).transpose(0, 2, 1, 3).reshape(32, 32)
    for four, winner in zip(samples, majority(tiled).ravel(), strict=True):
        counts = np.bincount(four)
        assert counts[winner] == counts.max()
        if (counts == 2).sum() == 2:
            assert winner == four.max()


# ---- colours are independent of the mask, and follow its regions ----


def mean_colour(image, labels, name):
    return image[labels == LABEL[name]].mean(0)


def test_looks_of_one_mask_differ_as_much_as_faces_do(faces):
    images, labels = faces
    mask = labels[3]
    looks = [face(0, 3, SIZE, look=look)[0] for look in range(1, 61)]
    for name in ("skin", "hair", "background"):
        across = [
            mean_colour(image, map_, name)
            for image, map_ in zip(images, labels, strict=True)
            if (map_ == LABEL[name]).mean() > 0.05
        ]
        within = [mean_colour(image, mask, name) for image in looks]
        ratio = np.std(within, axis=0).mean() / np.std(across, axis=0).mean()
        assert 0.7 < ratio < 1.4, (name, ratio)


def test_no_colour_can_be_told_from_the_mask(faces):
    images, labels = faces
    long_hair = (labels == LABEL["hair"]).mean((1, 2))
    skin = np.array([mean_colour(i, m, "skin").mean() for i, m in zip(images, labels, strict=True)])
    # A correlation by chance has a standard deviation of 0.08 over 160 faces.
    assert abs(np.corrcoef(long_hair, skin)[0, 1]) < 0.25


def test_regions_explain_most_of_a_picture(faces):
    images, labels = faces
    explained = []
    for image, map_ in zip(images[:60].astype(float), labels[:60], strict=True):
        residual = sum(
            ((image[map_ == label] - image[map_ == label].mean(0)) ** 2).sum()
            for label in np.unique(map_)
        )
        explained.append(1 - residual / ((image - image.mean((0, 1))) ** 2).sum())
    assert np.median(explained) > 0.7


# ---- part masks ----


@pytest.mark.parametrize("mask_size", [32, 64, 128])
def test_parts_painted_in_index_order_give_the_labels(mask_size):
    for index in range(20):
        parts = face_parts(0, index, SIZE, mask_size)
        labels = merged(parts, mask_size)
        expected = majority(sample_figure(0, index, SIZE).label_samples(mask_size))
        np.testing.assert_array_equal(labels, expected)
        assert list(parts) == [name for name in CLASSES if name in parts]


def test_skin_lies_below_the_features_and_glasses_below_the_eyes():
    under_eyes = []
    for index in range(40):
        parts = face_parts(0, index, SIZE)
        assert (parts["skin"] & parts["nose"]).sum() > 0.9 * parts["nose"].sum()
        if "eye_g" in parts and "l_eye" in parts:
            under_eyes.append((parts["eye_g"] & parts["l_eye"]).any())
        bare = parts["skin"] & ~(merged(parts, SIZE) == LABEL["skin"])
        assert not (bare & parts.get("hair", np.zeros_like(bare))).any()
    assert under_eyes and np.mean(under_eyes) > 0.8


# ---- the data set on disk ----

SMALL = {"count": 40, "size": 32, "seed": 3}


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "set"
    assert write_dataset(folder, **SMALL, workers=1)
    return folder


def test_layout_is_that_of_the_data_set(dataset):
    assert sorted(path.name for path in dataset.iterdir()) == [
        "CelebA-HQ-img",
        "CelebA-HQ-to-CelebA-mapping.txt",
        "CelebAMask-HQ-mask-anno",
        "synthetic.json",
    ]
    assert {path.name for path in (dataset / "CelebA-HQ-img").iterdir()} == {
        f"{index}.jpg" for index in range(40)
    }
    for index in range(40):
        found = {path.name for path in dataset.glob(f"*/0/{index:05d}_*.png")}
        assert found == {f"{index:05d}_{part}.png" for part in face_parts(3, index, 32)}


def test_masks_are_white_on_black_and_give_the_labels_back(dataset):
    for index in (0, 7, 39):
        parts = {}
        for path in dataset.glob(f"*/0/{index:05d}_*.png"):
            image = Image.open(path)
            assert image.mode == "L" and image.size == (32, 32)
            pixels = np.asarray(image)
            assert set(np.unique(pixels)) <= {0, 255}
            parts[path.stem.split("_", 1)[1]] = pixels > 0
        np.testing.assert_array_equal(merged(parts, 32), face(3, index, 32)[1])


def test_images_are_jpeg_at_quality_95_without_chroma_subsampling(dataset, tmp_path):
    image = Image.open(dataset / "CelebA-HQ-img" / "7.jpg")
    assert image.mode == "RGB"
    assert {layer[1:3] for layer in image.layer} == {(1, 1)}
    Image.new("RGB", (8, 8)).save(tmp_path / "reference.jpg", quality=95, subsampling=0)
    assert image.quantization == Image.open(tmp_path / "reference.jpg").quantization
    difference = np.asarray(image).astype(int) - face(3, 7, 32)[0]
    assert np.abs(difference).mean() < 3


def test_mapping_has_the_real_files_columns(dataset):
    lines = (dataset / "CelebA-HQ-to-CelebA-mapping.txt").read_text().splitlines()
    assert lines[0].split() == ["idx", "orig_idx", "orig_file"]
    rows = [line.split() for line in lines[1:]]
    assert [int(row[0]) for row in rows] == list(range(40))
    assert len({row[1] for row in rows}) == 40
    assert all(row[2] == f"{int(row[1]) + 1:06d}.jpg" and int(row[1]) < 202_599 for row in rows)


def test_two_thousand_faces_share_a_mask_folder(tmp_path, monkeypatch):
    from sisma_jax.data import raw_layout

    monkeypatch.setattr(raw_layout, "FACES_PER_MASK_FOLDER", 3)
    write_dataset(tmp_path / "set", count=7, size=32, seed=0, workers=1)
    masks = tmp_path / "set" / "CelebAMask-HQ-mask-anno"
    assert sorted(path.name for path in masks.iterdir()) == ["0", "1", "2"]
    assert (masks / "2" / "00006_skin.png").exists()


def test_files_do_not_depend_on_workers_or_count(dataset, tmp_path):
    write_dataset(tmp_path / "two", **SMALL, workers=2)
    assert contents(tmp_path / "two") == contents(dataset)
    write_dataset(tmp_path / "few", count=5, size=32, seed=3, workers=1)
    few, all_ = contents(tmp_path / "few"), contents(dataset)
    assert all(few[name] == all_[name] for name in few if name.suffix in (".jpg", ".png"))


def test_masks_may_have_a_size_of_their_own(tmp_path):
    write_dataset(tmp_path / "set", count=2, size=64, mask_size=32, seed=0, workers=1)
    assert Image.open(tmp_path / "set" / "CelebA-HQ-img" / "1.jpg").size == (64, 64)
    masks = list((tmp_path / "set").glob("*/0/00001_*.png"))
    assert masks and all(Image.open(path).size == (32, 32) for path in masks)


def test_an_interrupted_run_is_continued_to_the_same_files(dataset, tmp_path):
    folder = tmp_path / "set"
    write_dataset(folder, **SMALL, workers=1)
    # As an interruption leaves it: no finished mark, ids missing, one half-written.
    (folder / "synthetic.json").rename(folder / "synthetic.unfinished.json")
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").unlink()
    for index in range(9, 30):
        (folder / "CelebA-HQ-img" / f"{index}.jpg").unlink()
    for path in folder.glob("*/0/0001*.png"):
        path.unlink()
    (folder / "CelebA-HQ-img" / ".9.jpg.4711.tmp").write_bytes(b"half")
    untouched = (folder / "CelebA-HQ-img" / "3.jpg").stat().st_mtime_ns
    assert write_dataset(folder, **SMALL, workers=1)
    assert contents(folder) == contents(dataset)
    assert (folder / "CelebA-HQ-img" / "3.jpg").stat().st_mtime_ns == untouched


def test_a_finished_set_is_left_alone(dataset):
    assert read_settings(dataset) == {
        "count": 40, "size": 32, "mask_size": 32, "seed": 3, "version": 1,
    }  # fmt: skip
    before = (dataset / "synthetic.json").stat().st_mtime_ns
    assert not write_dataset(dataset, **SMALL, workers=1)
    assert (dataset / "synthetic.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("mark", ["synthetic.json", "synthetic.unfinished.json"])
def test_other_settings_are_refused(tmp_path, mark):
    folder = tmp_path / "set"
    write_dataset(folder, count=2, size=32, seed=0, workers=1)
    (folder / "synthetic.json").rename(folder / mark)
    with pytest.raises(InputError, match="seed 0 instead of 1"):
        write_dataset(folder, count=2, size=32, seed=1, workers=1)


def interrupted(folder, **settings):
    """A set of which the last face is missing, as a kill leaves it."""
    write_dataset(folder, workers=1, **settings)
    (folder / "synthetic.json").rename(folder / "synthetic.unfinished.json")
    last = settings["count"] - 1
    (folder / f"CelebA-HQ-img/{last}.jpg").unlink()
    for path in folder.glob(f"*/0/{last:05d}_*.png"):
        path.unlink()
    return folder


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: RawFaces(folder, 32, split="all"),
        lambda folder: open_dataset(folder, 32),
        lambda folder: survey(folder, test_from=2),
    ],
)
def test_an_unfinished_set_is_read_by_nobody_and_the_command_that_goes_on_is_named(read, tmp_path):
    folder = interrupted(tmp_path / "a set", count=3, size=32, mask_size=48, seed=7)
    with pytest.raises(InputError, match="is a synthetic data set that is not finished") as caught:
        read(folder)
    command = re.search("`python -m sisma_jax.data.synthetic (.*)`", str(caught.value))[1]
    assert run(*shlex.split(command)).returncode == 0
    read(folder)


def test_two_writers_of_one_set_are_refused(tmp_path):
    folder = interrupted(tmp_path / "set", count=3, size=32, seed=7)
    with (
        lock(folder / LOCK),
        pytest.raises(InputError, match=r"set is being written by process \d+ on"),
    ):
        write_dataset(folder, count=3, size=32, seed=7, workers=1)
    assert write_dataset(folder, count=3, size=32, seed=7, workers=1)
    assert not list(folder.glob("lock*"))


def test_faces_of_files_that_a_crash_has_emptied_are_made_again(dataset, tmp_path):
    folder = tmp_path / "set"
    write_dataset(folder, **SMALL, workers=1)
    (folder / "synthetic.json").rename(folder / "synthetic.unfinished.json")
    for name in ("CelebA-HQ-img/4.jpg", "CelebAMask-HQ-mask-anno/0/00007_skin.png"):
        (folder / name).write_bytes(b"")
    assert write_dataset(folder, **SMALL, workers=1)
    assert contents(folder) == contents(dataset)


def test_the_set_is_on_the_disk_before_it_is_called_finished(tmp_path, monkeypatch):
    marks = []
    monkeypatch.setattr(
        writer, "flush_all", lambda: marks.append([path.name for path in tmp_path.glob("*.json")])
    )
    write_dataset(tmp_path, count=2, size=32, seed=0, workers=1)
    assert marks == [["synthetic.unfinished.json"]]


def test_a_config_that_asks_for_the_set_completes_it(tmp_path, capsys):
    folder = interrupted(tmp_path / "set", count=3, size=32, seed=0)
    data = DataConfig(
        path=str(folder), size=32, test_from=2, flip="none", threads=0, synthetic_count=3
    )
    data.make_if_synthetic()
    assert "is incomplete: continuing to 3 synthetic faces" in capsys.readouterr().out
    assert len(data.open("train", ("image", "labels"))) == 2


def test_a_config_that_asks_for_another_set_completes_none(tmp_path):
    folder = interrupted(tmp_path / "set", count=3, size=32, seed=0)
    data = DataConfig(
        path=str(folder), size=32, test_from=2, flip="none", threads=0, synthetic_count=4
    )
    data.make_if_synthetic()
    with pytest.raises(InputError, match="--count 3 --size 32 --mask-size 32 --seed 0`"):
        data.open("train", ("image", "labels"))


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not an empty folder"):
        write_dataset(tmp_path, **SMALL, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "count 0"),
        ({"size": 31}, "size 31"),
        ({"size": 1025}, "size 1025"),
        ({"mask_size": 8}, "mask-size 8"),
        ({"seed": -1}, "seed -1"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_made(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        write_dataset(tmp_path / "set", **{**SMALL, **change})
    assert not (tmp_path / "set").exists()


def test_an_output_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_dataset(tmp_path / "file" / "set", **SMALL, workers=1)


# ---- the command ----


def run(*arguments):
    command = [sys.executable, "-m", "sisma_jax.data.synthetic", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_writes_says_so_and_is_idempotent(tmp_path):
    arguments = ["--out", tmp_path / "set", "--count", 3, "--size", 32, "--workers", 1]
    first, second = run(*arguments), run(*arguments)
    assert first.returncode == second.returncode == 0
    assert "3 faces" in first.stdout and "already complete" in second.stdout
    assert json.loads((tmp_path / "set" / "synthetic.json").read_text())["count"] == 3


def test_the_command_answers_wrong_input_with_one_sentence(tmp_path):
    answer = run("--out", tmp_path / "set", "--count", 0)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("blow", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_killed_command_continues_to_the_same_files(tmp_path, blow):
    arguments = ["--count", 200, "--size", 64, "--workers", 2]
    run("--out", tmp_path / "whole", *arguments)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "sisma_jax.data.synthetic", "--out", killed, *arguments]
    process = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.DEVNULL,
        # Tests that run as a shell's background job ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(killed.glob("CelebA-HQ-img/*.jpg")):
        time.sleep(0.05)
    process.send_signal(signal.Signals[blow])
    assert process.wait() != 0
    assert not (killed / "synthetic.json").exists()
    time.sleep(3)  # a worker finishes the faces it is at before it notices
    assert run("--out", killed, *arguments).returncode == 0
    assert contents(killed) == contents(tmp_path / "whole")


def test_workers_do_not_wait_for_jax():
    code = "import sys, sisma_jax.data.synthetic.writer; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
