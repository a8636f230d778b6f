"""Data sets of one's own, as people have them: what `prepare` decides and what it says."""

import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sisma_jax import inspect_data, prepare
from sisma_jax.common.errors import InputError
from sisma_jax.data.input_pipeline import open_dataset
from sisma_jax.data.layouts import survey
from sisma_jax.data.prepared import PreparedDataset
from tests.datasets import SIZE, TOY, write_toy
from tests.tiny_runs import overridden


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture
def toy(written, tmp_path):
    """Sixteen pairs, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "toy"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Prepares a folder; returns what `dataset.json` holds and what was printed."""

    def call(source, *options):
        words = ["--source", source, "--out", tmp_path / "out", "--size", SIZE, "--workers", 1]
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, overridden(words, options))])
        prepare.main()
        return json.loads((tmp_path / "out/dataset.json").read_text()), capsys.readouterr().out

    return call


def ids(description, split):
    return description["splits"][split]["ids"]


class TestSplits:
    def test_the_last_tenth_is_held_out_and_said(self, toy, run):
        description, text = run(toy)
        assert len(ids(description, "train")) == 14 and len(ids(description, "test")) == 2
        assert "the last 2 of 16 items are the test split" in text and "--test-from" in text
        assert "--config.model.num_classes=4" in text

    def test_of_two_items_one_is_held_out(self, toy, run):
        for path in [*toy.glob("*/*.png")]:
            if path.stem not in ("scene_0", "scene_1"):
                path.unlink()
        description, _ = run(toy)
        assert ids(description, "train") == ["scene_0"] and ids(description, "test") == ["scene_1"]

    def test_without_both_splits_nobody_is_told_to_train(self, toy, run):
        _, text = run(toy, "--test-from", 16)
        assert "train with" not in text
        assert "the test split has no item" in text and "--test-from" in text

    def test_a_small_raw_set_has_test_faces(self, tmp_path, run):
        from tests.datasets import COUNT, write_raw

        description, text = run(write_raw(tmp_path / "raw"))
        assert ids(description, "test") == [str(i) for i in range(COUNT - 2, COUNT)]
        assert f"it starts at item {COUNT - 2}, and --test-from changes this" in text

    def test_a_raw_set_that_reaches_the_papers_split_keeps_it(self, tmp_path):
        root = tmp_path / "raw"
        (root / "CelebA-HQ-img").mkdir(parents=True)
        for face in (3, 27_999, 28_000):
            (root / f"CelebA-HQ-img/{face}.jpg").touch()
            part = root / f"CelebAMask-HQ-mask-anno/{face // 2000}/{face:05d}_skin.png"
            part.parent.mkdir(parents=True)
            part.touch()
        layout = survey(root)
        assert [entry.id for entry in layout.splits["test"]] == ["28000"] and not layout.notes

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_validation_stands_for_a_test_split_that_is_missing(self, toy, run, tmp_path, name):
        shutil.copytree(toy, tmp_path / "both/train")
        shutil.copytree(toy, tmp_path / f"both/{name}")
        shutil.copy(toy / "classes.json", tmp_path / "both")
        description, text = run(tmp_path / "both")
        assert len(ids(description, "test")) == 16
        assert f"has no test folder: {name} is the test split" in text and "train with" in text

    def test_beside_a_test_split_validation_stays_what_it_is(self, toy, run, tmp_path):
        for name in ("train", "val", "test"):
            shutil.copytree(toy, tmp_path / "three" / name)
        shutil.copy(toy / "classes.json", tmp_path / "three")
        description, _ = run(tmp_path / "three")
        assert sorted(description["splits"]) == ["test", "train", "val"]

    def test_a_train_folder_alone_is_cut(self, toy, run, tmp_path):
        shutil.copytree(toy, tmp_path / "one/train")
        shutil.copy(toy / "classes.json", tmp_path / "one")
        description, _ = run(tmp_path / "one")
        assert len(ids(description, "test")) == 2

    @pytest.mark.parametrize("inside", [True, False])
    def test_splits_within_images_and_labels_are_read(self, toy, run, tmp_path, inside):
        for name in ("train", "val"):
            for kind in ("images", "labels"):
                place = f"{kind}/{name}" if inside else f"{name}/{kind}"
                shutil.copytree(toy / kind, tmp_path / "both" / place)
        shutil.copy(toy / "classes.json", tmp_path / "both")
        description, _ = run(tmp_path / "both")
        assert [len(ids(description, name)) for name in ("train", "test")] == [16, 16]

    def test_a_test_folder_without_labels_is_left_out_and_said(self, toy, run, tmp_path):
        for name in ("train", "val", "test"):
            shutil.copytree(toy, tmp_path / "three" / name)
        shutil.rmtree(tmp_path / "three/test/labels")
        shutil.copy(toy / "classes.json", tmp_path / "three")
        description, text = run(tmp_path / "three")
        assert "test/images has no label maps" in text and "val is the test split" in text
        assert len(ids(description, "test")) == 16

    def test_a_place_below_zero_is_refused(self, toy, run):
        with pytest.raises(InputError, match="--test-from is -1"):
            run(toy, "--test-from", -1)

    def test_one_item_cannot_be_both(self, toy, run):
        for path in [*toy.glob("*/*.png")]:
            if path.stem != "scene_0":
                path.unlink()
        text = run(toy)[1]
        assert "train with" not in text and "--test-from" not in text.split("px\n")[-1]


class TestMending:
    def spoil(self, toy):
        whole = (toy / "labels/scene_3.png").read_bytes()
        (toy / "labels/scene_3.png").write_bytes(b"")
        return whole

    def test_what_was_mended_is_read_again(self, toy, run):
        whole = self.spoil(toy)
        with pytest.raises(InputError, match="cannot be used"):
            run(toy)
        (toy / "labels/scene_3.png").write_bytes(whole)
        description, _ = run(toy)
        assert description["rejected"] == 0 and "scene_3" in ids(description, "train")

    def test_a_finished_set_says_that_nothing_is_read_again(self, toy, run):
        self.spoil(toy)
        run(toy, "--allow-rejected")
        assert "was finished before, and nothing is read again" in run(toy, "--allow-rejected")[1]


class TestWhatLabelsHold:
    def test_a_class_without_a_pixel_and_unlabelled_pixels_are_said(self, toy, run):
        for path in (toy / "labels").iterdir():
            half = np.zeros((SIZE, SIZE), np.uint8)
            half[::2] = 255
            Image.fromarray(half).save(path)
        description, text = run(toy)
        assert "has no pixel of 3 of the 4 classes: sand, left_stone, right_stone" in text
        assert "50.0% of the pixels of split 'train' are unlabelled (255)" in text
        assert description["splits"]["train"]["unlabelled"] == 0.5

    def test_inspection_says_so_too(self, toy, run, tmp_path, monkeypatch, capsys):
        for path in (toy / "labels").iterdir():
            Image.new("L", (SIZE, SIZE)).save(path)
        run(toy)
        words = ["inspect_data", "--data", tmp_path / "out", "--out", tmp_path / "sheet.png"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        inspect_data.main()
        assert "has no pixel of 3 of the 4 classes" in capsys.readouterr().out

    def test_a_full_set_is_not_talked_about(self, toy, run):
        assert "no pixel" not in run(toy)[1]


class TestFiles:
    def test_those_of_operating_systems_are_passed_over(self, toy, run):
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._scene_0.png", "Icon\r"):
            for folder in ("images", "labels"):
                (toy / folder / name).touch()
        for folder in ("images/__MACOSX", "labels/@eaDir"):
            (toy / folder).mkdir()
        assert run(toy)[0]["rejected"] == 0

    def test_downloads_copied_from_windows_are_passed_over(self, toy, run):
        for path in [*(toy / "images").iterdir()]:
            path.with_name(f"{path.name}:Zone.Identifier").write_text("[ZoneTransfer]")
        assert run(toy)[0]["rejected"] == 0

    def test_names_that_macos_spells_otherwise_are_the_same(self, toy, run):
        for folder, form in (("images", "NFD"), ("labels", "NFC")):
            name = unicodedata.normalize(form, "Zoë")
            (toy / folder / "scene_0.png").rename(toy / folder / f"{name}.png")
        description, _ = run(toy)
        assert description["rejected"] == 0 and "Zo\u00eb" in ids(description, "train")

    def test_without_a_list_of_classes_it_is_said_whose_are_meant(self, toy, run):
        (toy / "classes.json").rename(toy / "Classes.json")
        for path in (toy / "labels").iterdir():
            Image.new("L", (SIZE, SIZE), 1).save(path)
        assert "has no classes.json: labels are taken for CelebAMask-HQ's" in run(toy)[1]

    def test_colours_that_are_no_whole_numbers_are_refused(self, toy, run):
        for colour in ([0.5, 0.4, 1.0], "023"):
            changed = json.loads(json.dumps(TOY))
            changed["classes"][0]["color"] = colour
            (toy / "classes.json").write_text(json.dumps(changed))
            with pytest.raises(InputError, match="is not three whole numbers"):
                run(toy)

    def test_sides_that_were_rounded_are_the_same_shape(self, toy, run):
        Image.new("RGB", (100, 67)).save(toy / "images/scene_0.png")
        Image.new("L", (50, 34)).save(toy / "labels/scene_0.png")
        assert run(toy, "--crop", "--size", 16)[0]["rejected"] == 0

    def test_pairs_that_are_not_prepared_are_told_how_to(self, toy):
        with pytest.raises(InputError, match=r"sisma_jax\.prepare --source .*toy"):
            open_dataset(toy, SIZE)

    def test_a_folder_with_only_those_is_empty(self, toy, run, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/.DS_Store").touch()
        run(toy)

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_a_list_of_classes_from_any_editor_is_read(self, toy, run, encoding):
        (toy / "classes.json").write_text(json.dumps(TOY), encoding=encoding)
        assert len(run(toy)[0]["classes"]) == 4

    def test_names_that_are_no_utf8_are_kept(self, toy, run, tmp_path):
        name = os.fsdecode(b"v\xe9lo")
        for folder in ("images", "labels"):
            (toy / folder / "scene_0.png").rename(toy / folder / f"{name}.png")
        description, _ = run(toy)
        assert name in ids(description, "train") + ids(description, "test")
        sources = [PreparedDataset(tmp_path / "out", SIZE, split=s) for s in ("train", "test")]
        assert sum(1 for source in sources for _ in source) == 16

    @pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp", ".PNG"])
    def test_pictures_and_labels_of_other_formats_are_the_same(self, toy, written, run, suffix):
        before, _ = run(written)
        for path in [*toy.glob("*/*.png")]:
            image = Image.open(path)
            path.unlink()
            options = {"lossless": True} if suffix == ".webp" else {}
            image.save(path.with_suffix(suffix), **options)
        shutil.rmtree(Path(sys.argv[sys.argv.index("--out") + 1]))
        after, _ = run(toy)
        assert (
            after["splits"]["train"]["class_frequency"]
            == (before["splits"]["train"]["class_frequency"])
        )
        assert after["rejected"] == 0


class TestNamesThatDiffer:
    def rename(self, folder, image, label):
        for path in [*(folder / "images").iterdir()]:
            path.rename(path.with_name(image.format(path.stem[6:]) + ".png"))
        for path in [*(folder / "labels").iterdir()]:
            path.rename(path.with_name(label.format(path.stem[6:]) + ".png"))

    @pytest.mark.parametrize(
        ("image", "label"),
        [
            ("a_{}_leftImg8bit", "a_{}_gtFine_labelIds"),
            ("img{}", "mask{}"),
            ("{}", "{}_mask"),
            ("photo 1-{}", "photo 1-{}-seg"),
        ],
    )
    def test_what_is_their_own_pairs_them_and_is_said(self, toy, written, run, image, label):
        self.rename(toy, image, label)
        description, text = run(toy)
        assert description["rejected"] == 0
        assert f"{image.format(0)}.png is paired with {label.format(0)}.png" in text
        assert image.format(0) in ids(description, "train")

    def test_other_numbers_are_other_items(self, toy, run):
        """Nobody's names are stretched: images 1000.. do not belong to labels 2000.. ."""
        for folder, first in (("images", 1000), ("labels", 2000)):
            for k, path in enumerate(sorted((toy / folder).iterdir())):
                path.rename(path.with_name(f"{first + k}.png"))
        with pytest.raises(InputError, match=r"16 images and 16 label maps .*1000\.png and 2000"):
            run(toy)

    def test_numbers_that_count_from_elsewhere_are_told(self, toy, run):
        """image_0.. and mask_1..: all but one have a number in common, and none belong together."""
        for folder, first in (("images", 0), ("labels", 1)):
            for k, path in enumerate(sorted((toy / folder).iterdir(), reverse=True)):
                path.rename(path.with_name(f"{folder}_{first + 15 - k}.png"))
        with pytest.raises(InputError, match="16 images and 16 label maps"):
            run(toy)

    def test_several_label_maps_of_an_image_are_told(self, toy, run):
        self.rename(toy, "{}_leftImg8bit", "{}_gtFine_labelIds")
        for path in [*(toy / "labels").iterdir()]:
            shutil.copy(path, path.with_name(path.name.replace("labelIds", "color")))
        with pytest.raises(InputError, match=r"16 images and 32 label maps"):
            run(toy)

    def test_one_pair_of_two_names_is_told(self, toy, run):
        for path in [*toy.glob("*/*.png")]:
            if path.stem != "scene_0":
                path.unlink()
        self.rename(toy, "x", "y")
        with pytest.raises(InputError, match=r"x\.png and y\.png"):
            run(toy)


class TestSoftEdges:
    @pytest.fixture
    def soft(self, toy):
        for path in (toy / "labels").iterdir():
            with Image.open(path) as image:
                image.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BILINEAR).save(path)
        return toy

    def test_they_are_refused_with_the_option_that_takes_them(self, soft, run):
        with pytest.raises(InputError, match="--nearest-colour"):
            run(soft)

    def test_the_nearest_class_is_taken_and_the_share_said_and_kept(self, soft, run):
        description, text = run(soft, "--nearest-colour", 120)
        assert description["rejected"] == 0 and description["nearest_colour"] == 120
        assert 0.01 < description["nearest_colour_share"] < 0.3
        share = f"{description['nearest_colour_share']:.2%}"
        assert f"{share} of the label pixels took the nearest class colour" in text

    def test_a_distance_out_of_range_is_refused_first(self, tmp_path, run):
        with pytest.raises(InputError, match="--nearest-colour is 0"):
            run(tmp_path / "nothing", "--nearest-colour", 0)


def test_a_large_photo_that_is_no_square_is_decoded_small(toy, run, tmp_path, monkeypatch):
    from sisma_jax.data import image_files

    monkeypatch.setattr(image_files, "MAX_PIXELS", 100 * 100)
    (toy / "images/scene_0.png").unlink()
    Image.new("RGB", (400, 300), (10, 200, 30)).save(toy / "images/scene_0.jpg")
    Image.new("RGB", (80, 60), (230, 200, 120)).save(toy / "labels/scene_0.png")
    description, _ = run(toy, "--crop")
    assert description["rejected"] == 0
    item = PreparedDataset(tmp_path / "out", SIZE)[0]
    assert (item["labels"] == 1).all() and np.abs(item["image"] - np.array((10, 200, 30))).max() < 4
