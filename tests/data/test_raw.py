"""Reading a raw CelebAMask-HQ folder: what an item holds, which ids there are, what is refused."""

import os
import shutil
from pathlib import Path

import grain
import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data import checksums
from sisma_jax.data.classes import CLASSES, UNLABELLED
from sisma_jax.data.raw import RawFaces
from sisma_jax.evaluation.pictures import SourcePictures

SIZE = 16


def write_image(root: Path, face: int, size: int = SIZE, **options):
    (root / "CelebA-HQ-img").mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (size, 1)), np.tile(ramp, (size, 1)).T, np.full((size, size), face % 256)],
        axis=-1,
    ).astype(np.uint8)
    Image.fromarray(pixels).save(
        root / f"CelebA-HQ-img/{face}.jpg", quality=95, subsampling=0, **options
    )


def write_part(root: Path, face: int, part: str, where: np.ndarray, mode: str = "L"):
    folder = root / f"CelebAMask-HQ-mask-anno/{face // 2000}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(where, 255, 0).astype(np.uint8)).convert(mode).save(
        folder / f"{face:05d}_{part}.png"
    )


def rectangle(top: int, left: int, bottom: int, right: int, size: int = SIZE) -> np.ndarray:
    where = np.zeros((size, size), bool)
    where[top:bottom, left:right] = True
    return where


@pytest.fixture
def root(tmp_path):
    """Four faces in two mask folders, ids out of alphabetical order, every face its own parts."""
    root = tmp_path / "faces"
    for face in (2, 10, 1999, 2000):
        write_image(root, face)
        write_part(root, face, "skin", rectangle(2, 2, 14, 14))
        write_part(root, face, "hair", rectangle(0, 0, 5, 16))
    write_part(root, 10, "l_eye", rectangle(6, 9, 8, 12))
    write_part(root, 10, "eye_g", rectangle(5, 3, 9, 13))
    return root


def test_a_source_for_grain_in_the_order_of_ids(root):
    faces = RawFaces(root, SIZE, split="all")
    assert isinstance(faces, grain.sources.RandomAccessDataSource)
    assert faces.ids.tolist() == [2, 10, 1999, 2000]
    assert len(faces) == 4
    blue = [float(item["image"][..., 2].mean()) for item in faces]
    np.testing.assert_allclose(blue, [2, 10, 1999 % 256, 2000 % 256], atol=2)


def test_later_classes_are_painted_over_earlier_ones(root):
    labels = RawFaces(root, SIZE, split="all", fields=("labels",))[1]["labels"]
    expected = np.zeros((SIZE, SIZE), np.uint8)
    for part, box in {
        "skin": (2, 2, 14, 14),
        "eye_g": (5, 3, 9, 13),
        "l_eye": (6, 9, 8, 12),
        "hair": (0, 0, 5, 16),
    }.items():
        expected[rectangle(*box)] = CLASSES.index(part)
    np.testing.assert_array_equal(labels, expected)


def test_every_part_paints_its_own_id(tmp_path):
    for column, part in enumerate(CLASSES[1:]):
        write_part(tmp_path, 0, part, rectangle(0, column, 18, column + 1, size=18))
    labels = RawFaces(tmp_path, 18, fields=("labels",))[0]["labels"]
    np.testing.assert_array_equal(labels, np.tile(np.arange(1, 19), (18, 1)))


def test_masks_are_merged_at_their_own_size_and_resized_to_the_nearest(tmp_path):
    rng = np.random.default_rng(0)
    skin, hair = rng.random((2, 32, 32)) < 0.5
    write_part(tmp_path, 0, "skin", skin)
    write_part(tmp_path, 0, "hair", hair)
    merged = np.where(hair, CLASSES.index("hair"), np.where(skin, CLASSES.index("skin"), 0))
    for size, expected in {
        8: merged[2::4, 2::4],
        16: merged[1::2, 1::2],
        32: merged,
        64: merged.repeat(2, axis=0).repeat(2, axis=1),
    }.items():
        labels = RawFaces(tmp_path, size, fields=("labels",))[0]["labels"]
        np.testing.assert_array_equal(labels, expected)


def test_an_image_is_downscaled_with_antialiasing(tmp_path):
    (tmp_path / "CelebA-HQ-img").mkdir()
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "CelebA-HQ-img/0.jpg", quality=95)
    for size in (16, 64, 100):
        image = RawFaces(tmp_path, size, fields=("image",))[0]["image"]
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        inside = image[:, 2:-2].astype(float)
        assert np.abs(inside - 127.5).max() < 8


def test_the_fast_decode_looks_like_the_full_one(tmp_path):
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    (tmp_path / "CelebA-HQ-img").mkdir()
    file = tmp_path / "CelebA-HQ-img/0.jpg"
    coarse.resize((256, 256), Image.Resampling.BICUBIC).save(file, quality=95, subsampling=0)
    image = RawFaces(tmp_path, 64, fields=("image",))[0]["image"]
    with Image.open(file) as full:
        slow = np.asarray(full.resize((64, 64), Image.Resampling.LANCZOS))
    error = np.mean((image.astype(float) - slow) ** 2)
    assert 10 * np.log10(255**2 / error) > 40


def test_an_image_at_its_own_size_is_the_decoded_file(root):
    image = RawFaces(root, SIZE)[0]["image"]
    with Image.open(root / "CelebA-HQ-img/2.jpg") as file:
        np.testing.assert_array_equal(image, np.asarray(file))


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P"])
def test_part_masks_of_every_plain_mode_mean_the_same(root, mode):
    write_part(root, 2, "nose", rectangle(7, 7, 10, 10), mode=mode)
    labels = RawFaces(root, SIZE)[0]["labels"]
    np.testing.assert_array_equal(labels == CLASSES.index("nose"), rectangle(7, 7, 10, 10))


def test_an_empty_part_mask_paints_nothing(root):
    before = RawFaces(root, SIZE)[0]["labels"]
    write_part(root, 2, "hat", np.zeros((SIZE, SIZE), bool))
    np.testing.assert_array_equal(RawFaces(root, SIZE)[0]["labels"], before)


def test_soft_edges_are_cut_at_one_half(root):
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[4:8, 4:8] = 255
    values[8, 4:6], values[8, 6:8] = 127, 128
    Image.fromarray(values).save(root / "CelebAMask-HQ-mask-anno/0/00002_cloth.png")
    labels = RawFaces(root, SIZE)[0]["labels"]
    np.testing.assert_array_equal(labels == CLASSES.index("cloth"), values >= 128)


def test_a_small_part_whose_edges_were_resampled_is_read(root):
    where = Image.fromarray(np.where(rectangle(6, 6, 9, 9), 255, 0).astype(np.uint8))
    soft = where.resize((SIZE * 3, SIZE * 3), Image.Resampling.BILINEAR)
    soft = soft.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    soft.save(root / "CelebAMask-HQ-mask-anno/0/00002_nose.png")
    labels = RawFaces(root, SIZE)[0]["labels"]
    np.testing.assert_array_equal(labels == CLASSES.index("nose"), rectangle(6, 6, 9, 9))


def test_a_part_that_is_transparent_where_it_is_not_is_refused(root):
    image = Image.fromarray(rectangle(6, 6, 9, 9).astype(np.uint8))
    image.putpalette([255] * 6)
    image.save(root / "CelebAMask-HQ-mask-anno/0/00002_nose.png", transparency=0)
    assert "transparent" in refusal(root)


def test_splits_are_by_id(root):
    def ids(split, test_from):
        return RawFaces(root, SIZE, split=split, test_from=test_from).ids.tolist()

    assert ids("train", 1999) == [2, 10]
    assert ids("test", 1999) == [1999, 2000]
    assert ids("all", 1999) == [2, 10, 1999, 2000]
    assert ids("train", 28_000) == [2, 10, 1999, 2000]


def test_a_split_starts_at_its_own_parts(root):
    labels = RawFaces(root, SIZE, split="test", test_from=3)[0]["labels"]
    assert CLASSES.index("l_eye") in labels


def test_images_are_read_without_masks(root):
    masks = root / "CelebAMask-HQ-mask-anno"
    masks.rename(root / "elsewhere")
    item = RawFaces(root, SIZE, fields=("image",))[0]
    assert list(item) == ["image"]


def test_the_misspelt_mask_folder_is_found(root):
    (root / "CelebAMask-HQ-mask-anno").rename(root / "CelebAMaskHQ-mask-anno")
    assert RawFaces(root, SIZE)[0]["labels"].any()


def test_files_of_the_operating_system_are_passed_over(root):
    for stray in (
        "CelebA-HQ-img/._2.jpg",
        "CelebA-HQ-img/Thumbs.db",
        "CelebA-HQ-img/desktop.ini",
        "CelebAMask-HQ-mask-anno/0/Thumbs.db",
        "CelebAMask-HQ-mask-anno/ehthumbs.db",
        "CelebAMask-HQ-mask-anno/.DS_Store",
        "CelebAMask-HQ-mask-anno/0/._00002_skin.png",
        "CelebAMask-HQ-mask-anno/0/.DS_Store",
    ):
        (root / stray).write_bytes(b"stray")
    assert len(RawFaces(root, SIZE)) == 4


def refusal(path: Path, size: int = SIZE, **options) -> str:
    with pytest.raises(InputError) as caught:
        RawFaces(path, size, **options)
    message = str(caught.value)
    assert not message.endswith(".") and ". " not in message.replace(".jpg", "").replace(".png", "")
    return message


def test_a_missing_folder_is_refused_with_how_to_make_one(tmp_path):
    message = refusal(tmp_path / "nowhere")
    assert f"python -m sisma_jax.data.synthetic --out {tmp_path / 'nowhere'}" in message


def test_a_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    message = refusal(tmp_path)
    assert "CelebAMask-HQ-mask-anno" in message and "sisma_jax.data.synthetic" in message


@pytest.mark.parametrize("folder", ["CelebA-HQ-img", "CelebAMask-HQ-mask-anno"])
def test_an_empty_folder_is_refused(root, folder):
    for path in sorted((root / folder).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    message = refusal(root)
    assert folder in message and "holds no" in message


def test_images_without_masks_are_counted_and_the_first_is_named(root):
    for face in (3, 500):
        write_image(root, face)
    message = refusal(root)
    assert "2 images without any mask (first: 3)" in message
    assert "6 images" in message and "4 masked faces" in message


def test_masks_without_images_are_counted_and_the_first_is_named(root):
    os.unlink(root / "CelebA-HQ-img/10.jpg")
    os.unlink(root / "CelebA-HQ-img/2000.jpg")
    assert "masks without an image for 2 faces (first: 10)" in refusal(root)


def test_an_unknown_part_is_refused(root):
    write_part(root, 10, "left_eye", rectangle(0, 0, 1, 1))
    message = refusal(root)
    assert "00010_left_eye.png" in message and "l_eye" in message


@pytest.mark.parametrize("name", ["x3.jpg", "face.jpg", "-3.jpg", "3_.JPG", "12345678901.jpg"])
def test_a_misnamed_image_is_refused(root, name):
    os.rename(root / "CelebA-HQ-img/2.jpg", root / "CelebA-HQ-img" / name)
    assert name in refusal(root)


def test_a_part_in_the_wrong_folder_is_refused(root):
    masks = root / "CelebAMask-HQ-mask-anno"
    os.rename(masks / "0/00010_l_eye.png", masks / "1/00010_l_eye.png")
    message = refusal(root)
    assert str(masks / "1/00010_l_eye.png") in message and str(masks / "0") in message


def test_an_empty_split_is_refused_with_the_ids_there_are(root):
    message = refusal(root, split="test", test_from_option="--test-from ")
    assert "from 2 to 2000" in message and "starts at 28000" in message
    assert message.endswith(": set --test-from N with N from 3 to 2000")


def test_an_unknown_split_is_refused(root):
    assert "'valid'" in refusal(root, split="valid")


def test_images_smaller_than_asked_for_are_refused_at_once(root):
    message = refusal(root, size=32)
    assert "CelebA-HQ-img/2.jpg" in message and "16 x 16" in message and "32 x 32" in message


def test_an_oblong_image_is_refused(root):
    Image.new("RGB", (16, 24)).save(root / "CelebA-HQ-img/2.jpg")
    assert "16 x 24" in refusal(root)


def test_parts_of_unequal_size_are_refused(root):
    write_part(root, 2, "cloth", rectangle(0, 0, 4, 4, size=32))
    message = refusal(root)
    assert "00002_cloth.png" in message and "32 x 32" in message and "16 x 16" in message


def test_a_part_that_is_not_black_and_white_is_refused(root):
    file = root / "CelebAMask-HQ-mask-anno/0/00002_nose.png"
    Image.fromarray(rectangle(7, 7, 10, 10).astype(np.uint8)).save(file)
    message = refusal(root)
    assert str(file) in message and "9 pixels" in message


def test_a_part_with_alpha_is_refused(root):
    file = root / "CelebAMask-HQ-mask-anno/0/00002_nose.png"
    Image.new("RGBA", (SIZE, SIZE)).save(file)
    assert str(file) in refusal(root)


@pytest.mark.parametrize(
    "name", ["CelebA-HQ-img/2.jpg", "CelebAMask-HQ-mask-anno/0/00002_skin.png"]
)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6])
def test_a_file_cut_short_is_refused_by_name(root, name, keep):
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[: int(len(content) * keep)])
    assert str(root / name) in refusal(root)


def test_a_file_that_vanished_after_listing_is_refused_by_name(root):
    faces = RawFaces(root, SIZE)
    os.unlink(root / "CelebA-HQ-img/10.jpg")
    with pytest.raises(InputError, match=r"10\.jpg"):
        faces[1]


def test_a_png_under_the_name_of_a_jpeg_is_read(root):
    Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(root / "CelebA-HQ-img/2.jpg", format="PNG")
    assert (RawFaces(root, SIZE)[0]["image"] == (1, 2, 3)).all()


def test_names_padded_or_ending_otherwise_are_read(root):
    before = [*RawFaces(root, SIZE, split="all")]
    images, masks = root / "CelebA-HQ-img", root / "CelebAMask-HQ-mask-anno"
    (images / "2.jpg").rename(images / "00002.JPG")
    with Image.open(images / "10.jpg") as image:
        image.save(images / "10.bmp")
    (images / "10.jpg").unlink()
    (masks / "0/00010_l_eye.png").rename(masks / "0/10_l_eye.PNG")
    (masks / "1").rename(masks / "01")
    after = [*RawFaces(root, SIZE, split="all")]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["labels"], other["labels"])


def test_two_images_of_one_face_are_refused(root):
    write_image(root, 3)
    (root / "CelebA-HQ-img/3.jpg").rename(root / "CelebA-HQ-img/2.jpeg")
    assert "are two images of one face" in refusal(root)


def test_a_folder_of_other_files_is_told_with_the_first(root):
    for path in (root / "CelebA-HQ-img").iterdir():
        path.rename(path.with_suffix(".heic"))
    assert "but 4 other files, such as 10.heic" in refusal(root)


def test_a_face_whose_parts_are_all_black_is_unlabelled_with_a_warning(root):
    for part in ("skin", "hair"):
        write_part(root, 1999, part, np.zeros((SIZE, SIZE), bool))
    faces = RawFaces(root, SIZE)
    with pytest.warns(UserWarning, match="all 2 part masks of face 1999"):
        assert (faces[2]["labels"] == UNLABELLED).all()


# ---- the checksum ----


def test_the_checksum_is_of_the_listing_and_of_both_splits(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    opened = lambda split: RawFaces(copy, SIZE, split=split, test_from=11).checksum
    before = opened("train")
    assert before == opened("test") == RawFaces(root, SIZE, split="all").checksum
    face = int(RawFaces(copy, SIZE, split="all").ids[-1])
    part = next(copy.glob(f"*/{face // 2000}/{face:05d}_hair.png"))
    part.rename(tmp_path / "hair.png")
    without_hair = opened("train")
    (tmp_path / "hair.png").rename(part)
    assert opened("train") == before
    for path in (copy / f"CelebA-HQ-img/{face}.jpg", *copy.glob(f"*/*/{face:05d}_*.png")):
        path.unlink()
    assert len({before, without_hair, opened("train")}) == 3


def test_pictures_of_one_listing_are_told_apart_by_looking(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    faces = lambda: RawFaces(copy, SIZE, split="all", fields=("image",))
    key, checksum = SourcePictures(faces(), 2).key, faces().checksum
    assert SourcePictures(faces(), 2).key == key
    first, second = (copy / f"CelebA-HQ-img/{face}.jpg" for face in faces().ids[:2])
    first.write_bytes(second.read_bytes())
    assert faces().checksum == checksum and SourcePictures(faces(), 2).key != key


def test_checksums_of_different_kinds_tell_nothing():
    listed, whole = checksums.of_listing([1, 2], {}), "ab" * 32
    assert checksums.differ(listed, checksums.of_listing([1, 3], {}))
    assert checksums.differ(whole, "cd" * 32)
    for before, now in ((listed, whole), (whole, listed), (None, listed), (listed, listed)):
        assert not checksums.differ(before, now)
