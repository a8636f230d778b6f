"""Noise in label maps: by the seed alone, as strong as stated, on maps of any size and classes."""

import inspect
import zlib

import numpy as np
import pytest
from scipy import ndimage

from sisma_jax.common.errors import InputError
from sisma_jax.data import mask_noise
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.data.mask_noise import KINDS, MaskNoise
from sisma_jax.data.synthetic import face

EVERY = tuple(KINDS)


@pytest.fixture(scope="module")
def maps():
    """Label maps of the same faces by size."""
    return {size: [face(0, index, size)[1] for index in range(6)] for size in (64, 128)}


def noisy(labels, *kinds, strength=1.0, classes=19, seed=0):
    return MaskNoise(kinds, strength)(labels, classes=classes, seed=seed)


def rings(height=48, width=64, classes=5):
    """Classes in rings, of whole numbers, with an unlabelled bar."""
    y, x = np.mgrid[:height, :width]
    labels = (((y - 20) ** 2 + (x - 30) ** 2) // 200 % classes).astype(np.uint8)
    labels[30:34, 10:50] = UNLABELLED
    return labels


def halves(size=100):
    return np.tile((np.arange(size) >= size // 2).astype(np.uint8), (size, 1))


@pytest.mark.parametrize(
    ("kind", "checksum"),
    [
        ("jitter", 2501973734),
        ("morphology", 574143053),
        ("polygons", 1910633604),
        ("salt", 3784391106),
    ],
)
def test_a_seed_stands_for_one_map_on_every_machine(kind, checksum):
    before = rings()
    made = noisy(before, kind, classes=6, seed=(3, 7))
    assert zlib.crc32(made.tobytes()) == checksum
    assert (noisy(before, kind, classes=6, seed=(3, 8)) != made).any()
    np.testing.assert_array_equal(before, rings())


@pytest.mark.parametrize("kind", EVERY)
def test_more_strength_spoils_more_and_every_size_alike(kind, maps):
    def spoilt(size, strength):
        pairs = [
            (one, noisy(one, kind, strength=strength, seed=k)) for k, one in enumerate(maps[size])
        ]
        return np.mean([np.mean(clean != made) for clean, made in pairs])

    shares = {size: [spoilt(size, strength) for strength in (0.25, 0.5, 1)] for size in maps}
    for none, some, much in shares.values():
        assert 0 < none < some < much
    np.testing.assert_allclose(shares[64][2], shares[128][2], rtol=0.15)


def test_strength_0_leaves_a_map_as_it_is(maps):
    assert noisy(maps[64][0], *EVERY, strength=0) is maps[64][0]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    ("height", "width", "classes"), [(1, 1, 3), (1, 9, 2), (31, 70, 5), (70, 31, 255), (40, 40, 1)]
)
def test_maps_of_any_size_and_classes_keep_their_unlabelled_pixels(kind, height, width, classes):
    for labels in (rings(height, width, classes), np.full((height, width), UNLABELLED, np.uint8)):
        for seed in range(4):
            made = noisy(labels, kind, classes=classes, seed=seed)
            assert made.shape == labels.shape and made.dtype == np.uint8
            np.testing.assert_array_equal(made == UNLABELLED, labels == UNLABELLED)
            assert (made[made != UNLABELLED] < classes).all()


def test_kinds_together_are_one_after_the_other(maps):
    labels = maps[64][1]
    made = labels
    for kind in EVERY:
        made = noisy(made, kind, seed=5)
    np.testing.assert_array_equal(noisy(labels, *reversed(EVERY), seed=5), made)


def test_jitter_moves_boundaries_by_its_displacements():
    edges = np.stack([(noisy(halves(), "jitter", seed=k) == 0).sum(1) for k in range(100)]) - 50
    assert np.abs(edges).max() <= 100 * mask_noise.FARTHEST
    # A row's edge has moved by the field there, whose deviation is 2.2 % of 100 pixels.
    assert abs(edges.std() / 2.2 - 1) < 0.1 and abs(edges.mean()) < 0.5
    assert np.abs(np.diff(edges, axis=1)).max() <= 2


def test_morphology_dilates_and_erodes_by_up_to_its_radius():
    disc = (np.hypot(*np.mgrid[-60:61, -60:61]) <= 30).astype(np.uint8)
    radii = []
    for seed in range(60):
        # A class neither grows over unlabelled pixels nor shrinks where it has no other neighbour.
        bare = np.where(disc, 1, UNLABELLED).astype(np.uint8)
        np.testing.assert_array_equal(noisy(bare, "morphology", seed=seed), bare)
        made = noisy(disc, "morphology", seed=seed)
        radii.append(np.sqrt(made.sum() / np.pi) - 30)
        assert ndimage.label(made)[1] == ndimage.label(1 - made)[1] == 1
    # Either of the two classes moves the boundary by up to 4 % of 121 pixels.
    assert 4 < max(radii) < 2 * 4.84 + 1 and -4 > min(radii) > -2 * 4.84 - 1


def test_polygons_have_few_corners_near_the_outline():
    y, x = np.mgrid[-64:64, -64:64]
    disc = (np.hypot(y, x) <= 40).astype(np.uint8)
    away = 0.04 * 128
    for seed in range(8):
        made = noisy(disc, "polygons", seed=seed)
        moved = np.hypot(y, x)[made != disc]
        assert len(moved) and np.abs(moved - 40).max() < away + 1
        assert made[64, 64] == 1 and made[0, 0] == 0 and ndimage.label(made)[1] == 1
    square = np.zeros((64, 64), np.uint8)
    square[20:41, 10:50] = 1
    # Its corners are cut by the contour's half pixels alone.
    assert (noisy(square, "polygons", strength=0.5) != square).sum() <= 8
    specks = np.zeros((64, 64), np.uint8)
    specks[8::16, 8::16], specks[4:6, 4:6] = 1, 2
    made = noisy(specks, "polygons")
    assert (made == 1).sum() == 16 and (made == 2).any()


def test_salt_is_a_share_of_cells_with_every_other_class_as_likely():
    labels = np.full((128, 256), 2, np.uint8)
    made = np.stack([noisy(labels, "salt", strength=0.5, classes=5, seed=k) for k in range(10)])
    cells = made.reshape(10, 64, 2, 128, 2)
    assert (cells == cells[:, :, :1, :, :1]).all()
    count = np.bincount(cells[:, :, 0, :, 0].ravel(), minlength=5)
    expected = 10 * 64 * 128 * 0.1 / 4
    assert (np.abs(count[[0, 1, 3, 4]] - expected) < 5 * np.sqrt(expected)).all()
    assert (noisy(np.zeros_like(labels), "salt", classes=1) == 0).all()


@pytest.mark.parametrize(
    ("kinds", "strength", "message"),
    [
        (("jiter",), 1, "mask noise 'jiter' is unknown: did you mean 'jitter'"),
        (("fog",), 1, "'fog' is unknown: use some of jitter, morphology, polygons, salt"),
        ((), 1, "mask noise '' has no kind, or one twice: combine different ones of jitter"),
        (("salt", "salt"), 1, "mask noise 'salt\\+salt' has no kind, or one twice"),
        (("salt",), 1.5, "strength of mask noise is 1.5: use 0 to 1"),
        (("salt",), float("nan"), "strength of mask noise is nan: use 0 to 1"),
    ],
)
def test_what_is_no_noise_is_refused(kinds, strength, message):
    with pytest.raises(InputError, match=message):
        MaskNoise(kinds, strength)


def test_one_word_is_no_tuple_of_kinds():
    with pytest.raises(InputError, match=r"are 'salt': give a tuple, \('salt',\)"):
        inspect.unwrap(mask_noise.check_kinds)("salt")


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), {}, r"shape \(2, 8, 8\) and type uint8: give uint8 of"),
        (np.zeros((0, 0), np.uint8), {}, r"shape \(0, 0\)"),
        (np.zeros((8, 8)), {}, "type float64: give uint8 of shape"),
        (np.full((8, 8), 7, np.uint8), {}, "has the id 7, but classes is 5"),
        (np.zeros((8, 8), np.uint8), {"seed": -1}, "seed of mask noise is -1: give whole numbers"),
        (np.zeros((8, 8), np.uint8), {"seed": 0.5}, "seed of mask noise is 0.5"),
    ],
)
def test_what_is_no_map_or_seed_is_refused(labels, arguments, message):
    with pytest.raises(InputError, match=message):
        MaskNoise(("salt",), 0.5)(labels, **({"classes": 5, "seed": 0} | arguments))
