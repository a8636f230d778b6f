"""From data sets as people have them to shards: the same items, nothing hidden, nothing twice."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sisma_jax import inspect_data, prepare
from sisma_jax.common.errors import InputError
from sisma_jax.data import layouts, preparation
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.data.input_pipeline import open_dataset, training_stream
from sisma_jax.data.prepared import PreparedDataset
from sisma_jax.data.raw import RawFaces
from tests.datasets import COUNT, SIZE, TEST_FROM, write_packed, write_raw, write_toy
from tests.tiny_runs import overridden


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw") / "raw")


@pytest.fixture
def damaged(raw, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(raw, tmp_path / "damaged"))


def run(source, out, *options, monkeypatch, test_from=TEST_FROM):
    settings = ["--source", source, "--out", out, "--size", SIZE, "--workers", 1]
    settings += ["--test-from", test_from, "--shard-size", 6]
    command = ["prepare", *overridden(settings, options)]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    prepare.main()
    return json.loads((out / "dataset.json").read_text())


def items(path, split):
    return [*open_dataset(path, SIZE, split=split, test_from=TEST_FROM)]


def rejected(out):
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return {one["id"]: one["reason"] for one in map(json.loads, lines)}


def same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for field in one:
            np.testing.assert_array_equal(one[field], other[field])


def test_shards_hold_what_the_raw_folder_gives(raw, tmp_path, monkeypatch):
    description = run(raw, tmp_path / "out", monkeypatch=monkeypatch)
    for split in ("train", "test"):
        same(items(tmp_path / "out", split), items(raw, split))
    assert description["splits"]["train"]["ids"] == [str(i) for i in range(TEST_FROM)]
    assert [s["count"] for s in description["splits"]["train"]["shards"]] == [6, 6, 4]
    assert description["size"] == SIZE and description["split"] == "sis"
    assert rejected(tmp_path / "out") == {}
    labels = np.stack([item["labels"] for item in items(raw, "train")])
    frequency = description["splits"]["train"]["class_frequency"]
    np.testing.assert_allclose(frequency["skin"], np.mean(labels == 1))
    np.testing.assert_allclose(sum(frequency.values()), 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "rejected.jsonl",
        "test-00000-of-00001.arrayrecord",
        *(f"train-{k:05d}-of-00003.arrayrecord" for k in range(3)),
    ]


def test_the_packed_layout_gives_the_same(raw, tmp_path, monkeypatch):
    packed = write_packed(tmp_path / "packed", raw)
    run(packed, tmp_path / "out", monkeypatch=monkeypatch)
    for split in ("train", "test"):
        same(items(tmp_path / "out", split), items(raw, split))


def test_the_misspelt_mask_folder_is_read(damaged, raw, tmp_path, monkeypatch):
    (damaged / "CelebAMask-HQ-mask-anno").rename(damaged / "CelebAMaskHQ-mask-anno")
    run(damaged, tmp_path / "out", monkeypatch=monkeypatch)
    same(items(tmp_path / "out", "test"), items(raw, "test"))


def test_the_official_split_goes_by_the_originals(raw, tmp_path, monkeypatch):
    description = run(raw, tmp_path / "out", "--split", "official", monkeypatch=monkeypatch)
    lines = (raw / "CelebA-HQ-to-CelebA-mapping.txt").read_text().splitlines()[1:]
    original = {line.split()[0]: int(line.split()[1]) for line in lines}
    splits = {name: split["ids"] for name, split in description["splits"].items()}
    assert sum(map(len, splits.values())) == COUNT
    assert all(original[i] < 162_771 for i in splits["train"])
    assert all(162_771 <= original[i] < 182_638 for i in splits["val"])
    assert all(original[i] >= 182_638 for i in splits["test"])
    assert splits["train"] and splits["val"]


def test_workers_change_nothing(raw, tmp_path, monkeypatch):
    one = run(raw, tmp_path / "one", monkeypatch=monkeypatch)
    two = run(raw, tmp_path / "two", "--workers", 2, monkeypatch=monkeypatch)
    assert one == two


def test_an_interrupted_run_redoes_unfinished_shards_only(raw, tmp_path, monkeypatch):
    whole = run(raw, tmp_path / "whole", monkeypatch=monkeypatch)
    real, calls = layouts.Reader.read, []

    def failing(self, entry):
        calls.append(entry.id)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return real(self, entry)

    monkeypatch.setattr(layouts.Reader, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path / "out", monkeypatch=monkeypatch)
    assert not (tmp_path / "out/dataset.json").exists()
    with pytest.raises(InputError, match="out is not finished"):
        open_dataset(tmp_path / "out", SIZE)
    assert run(raw, tmp_path / "out", monkeypatch=monkeypatch) == whole
    # Two shards of six were finished, of which nothing is read again.
    assert calls[15:] == [str(i) for i in range(12, COUNT)]
    before = len(calls)
    assert run(raw, tmp_path / "out", monkeypatch=monkeypatch) == whole
    assert len(calls) == before


def test_another_preparation_in_the_folder_is_refused(raw, damaged, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(raw, out, monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="finished and has other items or settings"):
        run(damaged, out, monkeypatch=monkeypatch)  # a copy, with the same ids
    with pytest.raises(InputError, match="finished and has another size: name another folder"):
        run(raw, out, "--size", 16, monkeypatch=monkeypatch)
    begun, real = tmp_path / "begun", preparation._finish
    monkeypatch.setattr(preparation, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(raw, begun, monkeypatch=monkeypatch)
    monkeypatch.setattr(preparation, "_finish", real)
    with pytest.raises(InputError, match="is unfinished and has another source"):
        run(damaged, begun, monkeypatch=monkeypatch)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        run(raw, tmp_path / "full", monkeypatch=monkeypatch)


def part(folder, face, name):
    return folder / f"CelebAMask-HQ-mask-anno/0/{face:05d}_{name}.png"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def grey(path, value=90):
    Image.fromarray(np.full((SIZE, SIZE), value, np.uint8)).save(path)


DAMAGE = {
    "missing image": (lambda d: (d / "CelebA-HQ-img/2.jpg").unlink(), "2", "have no image"),
    "truncated image": (lambda d: cut(d / "CelebA-HQ-img/2.jpg"), "2", "cannot be read"),
    "empty image": (lambda d: (d / "CelebA-HQ-img/2.jpg").write_bytes(b""), "2", "cannot be read"),
    "truncated part": (lambda d: cut(part(d, 2, "skin")), "2", "cannot be read"),
    "part of another size": (
        lambda d: Image.new("L", (SIZE // 2,) * 2, 255).save(part(d, 2, "nose")),
        "2",
        "bring all parts of a face to one size",
    ),
    "part that is no mask": (lambda d: grey(part(d, 2, "skin")), "2", "is not a binary mask"),
    "no parts": (lambda d: [p.unlink() for p in d.rglob("00002_*.png")], "2", "no part mask"),
    "stray name": (lambda d: part(d, 2, "skin").rename(part(d, 2, "cheek")), "2", "is not named"),
    "wrong folder": (
        lambda d: (
            (d / "CelebAMask-HQ-mask-anno/1").mkdir(),
            part(d, 2, "skin").rename(d / "CelebAMask-HQ-mask-anno/1/00002_skin.png"),
        ),
        "2",
        "lies in the wrong folder",
    ),
    "two names for one id": (
        lambda d: shutil.copy(d / "CelebA-HQ-img/2.jpg", d / "CelebA-HQ-img/02.jpg"),
        "2",
        "are two images of one face",
    ),
    "black parts": (
        lambda d: [Image.new("L", (SIZE, SIZE)).save(path) for path in d.rglob("00002_*.png")],
        "2",
        "are black",
    ),
    "image too small": (
        lambda d: Image.new("RGB", (16, 16)).save(d / "CelebA-HQ-img/2.jpg"),
        "2",
        "choose a smaller size",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_listed_and_the_rest_is_kept(name, damaged, tmp_path, monkeypatch):
    damage, face, reason = DAMAGE[name]
    damage(damaged)
    with pytest.raises(InputError, match=r"more than 1%.*--allow-rejected"):
        run(damaged, tmp_path / "out", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="--strict stops at the first"):
        run(damaged, tmp_path / "strict", "--strict", monkeypatch=monkeypatch)
    description = run(damaged, tmp_path / "out", "--allow-rejected", monkeypatch=monkeypatch)
    assert list(rejected(tmp_path / "out")) == [face]
    assert reason in rejected(tmp_path / "out")[face]
    kept = [str(i) for i in range(TEST_FROM) if str(i) != face]
    assert description["splits"]["train"]["ids"] == kept
    assert description["rejected"] == 1
    assert len(items(tmp_path / "out", "train")) == len(kept)


def test_a_photograph_is_turned_as_its_exif_says(damaged, raw, tmp_path, monkeypatch):
    path = damaged / "CelebA-HQ-img/0.jpg"
    image = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = image.rotate(180)
    turned.save(path, quality=100, subsampling=0, exif=exif)
    run(damaged, tmp_path / "out", monkeypatch=monkeypatch)
    item, expected = items(tmp_path / "out", "train")[0], items(raw, "train")[0]
    assert np.abs(item["image"].astype(int) - expected["image"]).mean() < 3
    np.testing.assert_array_equal(item["labels"], expected["labels"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "toy")


def test_any_classes_can_be_prepared(toy, tmp_path, monkeypatch):
    description = run(toy, tmp_path / "out", monkeypatch=monkeypatch, test_from=12)
    assert [one["name"] for one in description["classes"]] == [
        "sky", "sand", "left_stone", "right_stone",
    ]  # fmt: skip
    source = PreparedDataset(tmp_path / "out", SIZE)
    assert len(source.classes) == 4 and source.ids[:3] == ["scene_0", "scene_1", "scene_10"]
    colours = np.asarray(Image.open(toy / "labels/scene_0.png"))
    np.testing.assert_array_equal(source.classes.shown[source[0]["labels"]], colours)
    with contextlib.closing(training_stream(source, batch_size=8, seed=0)) as stream:
        batch = next(stream)
    # Stone 2 stays on the left, mirrored or not, since the mirrored labels change sides.
    for labels in batch["labels"]:
        assert np.nonzero(labels == 2)[1].max() < np.nonzero(labels == 3)[1].min()


PAIR_DAMAGE = {
    "no label map": (lambda d: (d / "labels/scene_3.png").unlink(), "has no label map"),
    "no image": (lambda d: (d / "images/scene_3.png").unlink(), "has no image"),
    "a label of no class": (lambda d: grey(d / "labels/scene_3.png", 7), "holds the value 7"),
    "two images of a name": (
        lambda d: shutil.copy(d / "images/scene_3.png", d / "images/scene_3.jpg"),
        "have one name",
    ),
    "another shape": (
        lambda d: Image.new("RGB", (40, 32)).save(d / "images/scene_3.png"),
        "do not have the same shape",
    ),
    "colours that nobody states": (
        lambda d: Image.new("F", (SIZE, SIZE)).save(d / "images/scene_3.png", "TIFF"),
        "whose colours are undefined",
    ),
    "no labelled pixel": (lambda d: grey(d / "labels/scene_3.png", 255), "all are unlabelled"),
    "a label map as JPEG": (
        lambda d: Image.new("L", (SIZE, SIZE)).save(d / "labels/scene_3.png", "JPEG"),
        "whose compression blurs values",
    ),
}


@pytest.mark.parametrize("name", PAIR_DAMAGE)
def test_damaged_pairs_are_listed(name, toy, tmp_path, monkeypatch):
    damage, reason = PAIR_DAMAGE[name]
    folder = Path(shutil.copytree(toy, tmp_path / "toy"))
    damage(folder)
    out = tmp_path / "out"
    run(folder, out, "--allow-rejected", monkeypatch=monkeypatch, test_from=12)
    assert reason in rejected(out)["scene_3"]
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 1
    assert "scene_3" not in PreparedDataset(out, SIZE).ids


def test_images_that_are_no_squares_are_cropped_where_asked(toy, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(toy, tmp_path / "toy"))
    for name, colour in (("images", (1, 2, 3)), ("labels", (90, 160, 255))):
        sheet = Image.new("RGB", (SIZE * 2, SIZE), colour)
        sheet.paste(Image.open(toy / name / "scene_0.png"), (SIZE // 2, 0))
        sheet.save(folder / name / "scene_0.png")
    out = tmp_path / "out"
    run(folder, out, "--allow-rejected", monkeypatch=monkeypatch, test_from=12)
    assert "with --crop" in rejected(out)["scene_0"]
    run(folder, tmp_path / "crop", "--crop", monkeypatch=monkeypatch, test_from=12)
    run(toy, tmp_path / "whole", monkeypatch=monkeypatch, test_from=12)
    same(
        [PreparedDataset(tmp_path / "crop", SIZE)[0]],
        [PreparedDataset(tmp_path / "whole", SIZE)[0]],
    )


def test_a_photograph_that_is_no_square_keeps_its_labels(toy, tmp_path, monkeypatch):
    """The JPEG decoder may halve it, to a pixel more or less than half."""
    folder = Path(shutil.copytree(toy, tmp_path / "toy"))
    (folder / "images/scene_0.png").unlink()
    Image.new("RGB", (301, 201)).save(folder / "images/scene_0.jpg")
    Image.new("RGB", (301, 201), (230, 200, 120)).save(folder / "labels/scene_0.png")
    out = tmp_path / "out"
    run(folder, out, "--crop", monkeypatch=monkeypatch, test_from=12)
    item = PreparedDataset(out, SIZE)[0]
    assert (item["labels"] == 1).all() and item["image"].max() < 4


def test_a_name_that_one_split_has_twice_is_still_the_others(raw, tmp_path, monkeypatch):
    packed = write_packed(tmp_path / "packed", raw)
    for name in ("images", "labels"):
        for path in (packed / "train" / name).glob("3.*"):
            shutil.copy(path, packed / "test" / name)
    shutil.copy(packed / "train/images/3.jpg", packed / "train/images/3.jpeg")
    description = run(packed, tmp_path / "out", "--allow-rejected", monkeypatch=monkeypatch)
    assert "3" not in description["splits"]["train"]["ids"]
    assert "3" in description["splits"]["test"]["ids"]


@pytest.mark.parametrize(
    "option", [("--classes", "classes.json"), ("--class-order", "bisenet"), ("--crop",)]
)
def test_options_of_pairs_are_refused_for_a_raw_folder(option, raw, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=rf"{option[0]} is for folders of images and labels"):
        run(raw, tmp_path / "out", *option, monkeypatch=monkeypatch)


def test_what_a_kill_after_the_end_leaves_is_tidied(raw, tmp_path, monkeypatch):
    out = tmp_path / "out"
    whole = run(raw, out, monkeypatch=monkeypatch)
    (out / ".unfinished").mkdir()
    (out / ".unfinished/plan.json").write_text("{}")
    assert run(raw, out, monkeypatch=monkeypatch) == whole
    assert not (out / ".unfinished").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["classes"].pop(), "name 'right_stone', which is no class"),
        (lambda v: v["classes"][0].update(name="sand"), "two classes have the"),
        (lambda v: v["classes"][0].update(color=[1, 2]), "not three whole numbers"),
        (lambda v: v.pop("classes"), "a list of classes reads"),
        (lambda v: v["flip_pairs"].append(["sky", "left_stone"]), "share a class"),
    ],
)
def test_a_wrong_list_of_classes_is_refused_at_once(change, message, toy, tmp_path, monkeypatch):
    value = json.loads((toy / "classes.json").read_text())
    change(value)
    (tmp_path / "classes.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        run(toy, tmp_path / "out", "--classes", tmp_path / "classes.json", monkeypatch=monkeypatch)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_data_set_are_refused(tmp_path, raw, toy, monkeypatch):
    with pytest.raises(InputError, match="holds no data set"):
        run(tmp_path, tmp_path / "out", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="is not a folder"):
        run(tmp_path / "nothing", tmp_path / "out", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="leave --split out"):
        run(toy, tmp_path / "out", "--split", "official", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="--size is 0"):
        run(raw, tmp_path / "out", "--size", 0, monkeypatch=monkeypatch)


class TestOpening:
    @pytest.fixture
    def out(self, raw, tmp_path):
        out = tmp_path / "out"
        layout = layouts.survey(raw, test_from=TEST_FROM)
        reader = layouts.Reader(SIZE, CELEBAMASK, "canonical", crop=False)
        preparation.prepare(layout, reader, out, split_name="sis", shard_size=6, workers=1)
        return out

    def test_what_does_not_fit_is_said(self, out, tmp_path):
        for arguments, message in (
            (
                dict(size=64),
                "32 pixels, but 64 are asked for: prepare another folder with --size 64",
            ),
            (
                dict(size=64, size_option="--config.data.size="),
                "for: set --config.data.size=32, or",
            ),
            (dict(size=SIZE, split="val"), "has no split 'val': choose train or test"),
        ):
            with pytest.raises(InputError, match=message):
                PreparedDataset(out, **arguments)
        copy = Path(shutil.copytree(out, tmp_path / "copy"))
        shard = copy / "train-00001-of-00003.arrayrecord"
        shutil.copy(copy / "test-00000-of-00001.arrayrecord", shard)
        with pytest.raises(InputError, match=r"hold 14 records where 16 are listed"):
            PreparedDataset(copy, SIZE)
        shard.write_bytes(b"")
        with pytest.raises(InputError, match=r"cannot be opened|hold"):
            PreparedDataset(copy, SIZE)
        shard.unlink()
        with pytest.raises(InputError, match=r"00001-of-00003\.arrayrecord is missing"):
            PreparedDataset(copy, SIZE)
        (copy / "dataset.json").write_text("{")
        with pytest.raises(InputError, match="is damaged"):
            PreparedDataset(copy, SIZE)

    def test_two_processes_see_the_batches_of_one(self, out):
        source = PreparedDataset(out, SIZE)

        def batches(**process):
            stream = training_stream(source, batch_size=6, seed=1, start=2, **process)
            with contextlib.closing(stream):
                return [next(stream) for _ in range(4)]

        one = batches()
        halves = [batches(process_index=p, process_count=2) for p in (0, 1)]
        for whole, *rows in zip(one, *halves, strict=True):
            for field, value in whole.items():
                joined = np.concatenate([half[field] for half in rows])
                np.testing.assert_array_equal(joined, value)

    def test_fields_that_are_not_asked_for_are_not_decoded(self, out, raw):
        item = PreparedDataset(out, SIZE, fields=("labels",))[3]
        assert list(item) == ["labels"]
        np.testing.assert_array_equal(
            item["labels"], RawFaces(raw, SIZE, test_from=16)[3]["labels"]
        )

    def test_inspection_shows_and_counts(self, out, raw, tmp_path, monkeypatch, capsys):
        def inspect(*words):
            sheet = tmp_path / "sheet.png"
            command = ["inspect_data", "--out", sheet, *words]
            monkeypatch.setattr(sys, "argv", [str(word) for word in command])
            inspect_data.main()
            return np.asarray(Image.open(sheet)), capsys.readouterr().out

        picture, text = inspect("--data", out, "--count", 4, "--verify")
        item = PreparedDataset(out, SIZE)[0]
        np.testing.assert_array_equal(picture[:SIZE, :SIZE], item["image"])
        colours = CELEBAMASK.shown[item["labels"]]
        np.testing.assert_array_equal(picture[:SIZE, SIZE + 2 : 2 * SIZE + 2], colours)
        assert "'train': 16, 'test': 4" in text and "match their checksums" in text
        raw_picture, raw_text = inspect(
            "--data", raw, "--count", 4, "--size", SIZE, "--test-from", TEST_FROM
        )
        np.testing.assert_array_equal(picture, raw_picture)
        share = next(line for line in text.splitlines() if "hair" in line)
        assert share in raw_text

    def test_a_changed_shard_is_found(self, out, tmp_path):
        copy = Path(shutil.copytree(out, tmp_path / "copy"))
        shard = copy / "train-00000-of-00003.arrayrecord"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        description = json.loads((copy / "dataset.json").read_text())
        with pytest.raises(InputError, match="its checksum differs"):
            inspect_data.verify(copy, description)
