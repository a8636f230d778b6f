"""Soft edges, as anti-aliased drawing and JPEG leave them: whose colours are taken for whose."""

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data import label_maps
from sisma_jax.data.classes import CELEBAMASK, CLASSES, PALETTE, ClassSet
from sisma_jax.data.label_values import Reading
from tests.data.test_label_maps import CLASS_COUNT, indexed, refusal


@pytest.fixture
def soft(tmp_path):
    """Skin beside hair, with a column of their mean between them."""
    skin, hair = (PALETTE[CLASSES.index(name)].astype(int) for name in ("skin", "hair"))
    row = np.stack([skin, skin, (2 * skin + hair) // 3, hair, hair]).astype(np.uint8)
    Image.fromarray(np.tile(row, (4, 1, 1))).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_within_the_distance_the_nearest_class_is_taken_and_its_share_told(soft):
    labels, share = label_maps.read_with_share(soft, CELEBAMASK, Reading(nearest_colour=100))
    assert [CLASSES[label] for label in labels[0]] == ["skin"] * 3 + ["hair"] * 2
    assert share == 0.2


def test_between_two_classes_there_is_no_third_one(tmp_path):
    # The mean of skin and hair is nearer to the left ear's colour than to either.
    labels = np.ones((32, 32), np.uint8)
    labels[:, 16:] = CLASSES.index("hair")
    picture = Image.fromarray(label_maps.colourise(labels))
    picture.resize((96, 96), Image.Resampling.BILINEAR).save(tmp_path / "a.png")
    read = label_maps.read_label_map(tmp_path / "a.png", nearest_colour=140)
    assert set(np.unique(read)) == {1, CLASSES.index("hair")}
    assert (read == 1)[:, :48].all() and not (read == 1)[:, 48:].any()


@pytest.mark.parametrize("resampling", ["BOX", "BILINEAR", "BICUBIC"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_blend_that_is_a_third_classs_colour_is_not_that_class(tmp_path, resampling, size):
    """Hair over background passes through the colour of the lower lip."""
    y, x = np.mgrid[:128, :128]
    hair, cloth = CLASSES.index("hair"), CLASSES.index("cloth")
    labels = np.where(np.hypot(y - 64, x - 64) < 50, hair, 0).astype(np.uint8)
    labels[100:, 30:98] = cloth  # over background it passes through the necklace's
    picture = Image.fromarray(label_maps.colourise(labels))
    picture.resize((size, size), Image.Resampling[resampling]).save(tmp_path / "a.png")
    read = label_maps.read_label_map(tmp_path / "a.png", nearest_colour=200)
    assert set(np.unique(read)) == {0, hair, cloth}
    assert np.mean(read != label_maps.resize_nearest(labels, size)) < 0.015


def test_small_classes_between_others_stay(tmp_path):
    """A lip of three rows between hair and background is no blend of these."""
    labels = np.zeros((48, 48), np.uint8)
    labels[:20] = CLASSES.index("hair")
    labels[20:23] = CLASSES.index("l_lip")
    picture = label_maps.colourise(labels)
    picture[40, 40] = 3, 3, 3  # something soft, so that colours are taken for the nearest
    Image.fromarray(picture).save(tmp_path / "a.png")
    read = label_maps.read_label_map(tmp_path / "a.png", nearest_colour=100)
    np.testing.assert_array_equal(read, labels)


def test_grey_between_black_and_white_is_not_unlabelled(tmp_path):
    classes = ClassSet(("off", "on"), ((0, 0, 0), (255, 255, 255)))
    values = np.zeros((32, 32), np.uint8)
    values[:, 15], values[:, 16], values[:, 17:] = 60, 128, 255
    Image.fromarray(values).convert("RGB").save(tmp_path / "a.png")
    read = label_maps.read_label_map(
        tmp_path / "a.png", classes, allow_unlabelled=True, nearest_colour=230
    )
    assert set(np.unique(read)) == {0, 1}


def test_a_palette_of_few_soft_colours_is_read_as_colours(tmp_path):
    labels = np.zeros((32, 32), np.uint8)
    labels[:, 16:] = CLASSES.index("hair")
    picture = Image.fromarray(label_maps.colourise(labels))
    soft = picture.resize((48, 48), Image.Resampling.BILINEAR).quantize(8, dither=0)
    soft.save(tmp_path / "a.png")
    read = label_maps.read_label_map(tmp_path / "a.png", nearest_colour=200)
    assert set(np.unique(read)) == {0, CLASSES.index("hair")}


def test_masks_blurred_by_a_jpeg_are_nearly_the_same(tmp_path, monkeypatch):
    labels = np.zeros((64, 64), np.uint8)
    labels[8:56, 8:56], labels[20:40, 24:50] = 1, CLASSES.index("hair")
    picture = Image.fromarray(label_maps.colourise(labels))
    picture.save(tmp_path / "a.jpg", quality=90)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    read = label_maps.read_label_map(tmp_path / "a.png", nearest_colour=200)
    assert np.mean(read != labels) < 0.01


def test_beyond_it_the_pixel_and_its_distance_are_told(soft):
    message = refusal(soft, nearest_colour=60)
    assert "(136, 0, 68) at pixel (2, 0)" in message and "92 away" in message


def test_without_it_the_option_is_named(soft):
    assert "--nearest-colour" in refusal(soft)


def test_exact_files_are_read_as_they_were(tmp_path):
    labels = np.arange(620, dtype=np.uint8).reshape(20, 31) % CLASS_COUNT
    Image.fromarray(label_maps.colourise(labels)).save(tmp_path / "a.png")
    read, share = label_maps.read_with_share(
        tmp_path / "a.png", CELEBAMASK, Reading(nearest_colour=100)
    )
    np.testing.assert_array_equal(read, labels)
    assert share == 0


def test_a_palette_of_soft_colours_is_read_as_colours(soft):
    with Image.open(soft) as image:
        rgb = np.asarray(image)
    colours, places = np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)
    palette = np.concatenate([np.full((100, 3), 7, np.uint8), colours])
    indexed((100 + places).astype(np.uint8).reshape(rgb.shape[:2]), palette).save(soft)
    labels = label_maps.read_label_map(soft, nearest_colour=100)
    assert [CLASSES[label] for label in labels[0]] == ["skin"] * 3 + ["hair"] * 2


def test_a_jpeg_is_no_label_map_even_so(soft, tmp_path):
    with Image.open(soft) as image:
        image.save(tmp_path / "a.jpg")
    assert "compression" in refusal(tmp_path / "a.jpg", nearest_colour=100)


@pytest.mark.parametrize("distance", [0, -1, 442, float("nan")])
def test_distances_that_are_none_are_refused(distance):
    with pytest.raises(InputError, match="give a distance in RGB"):
        Reading(nearest_colour=distance)
