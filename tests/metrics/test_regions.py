"""Colour coherence by hand. The other metrics of regions are tested with the demo and styles."""

import numpy as np

from sisma_jax.data.class_names import CANONICAL
from sisma_jax.metrics.regions import COHERENT_PAIRS, colour_coherence, explained_variance

EYES = ("l_eye", "r_eye")


def drawn(*rectangles, size=8):
    """A grey picture with its mask: rectangles (name, colour, rows, columns) on background."""
    image, labels = np.full((size, size, 3), 128, np.uint8), np.zeros((size, size), np.uint8)
    for name, colour, rows, columns in rectangles:
        image[rows, columns], labels[rows, columns] = colour, CANONICAL.index(name)
    return image, labels


def test_colour_coherence_is_the_distance_of_mean_colours_over_pictures_with_both_regions():
    left, right, top = slice(0, 4), slice(4, 8), slice(0, 2)
    pictures = [
        drawn(("l_eye", (10, 20, 30), top, left), ("r_eye", (13, 20, 26), top, right)),
        # The left eye's mean is (12, 12, 12).
        drawn(
            ("l_eye", (0, 0, 0), slice(0, 1), left),
            ("l_eye", (24, 24, 24), slice(1, 2), left),
            ("r_eye", (24, 24, 24), top, right),
        ),
        drawn(("l_eye", (255, 0, 0), top, left), ("skin", (9, 9, 9), slice(4, 8), left)),
    ]
    images, labels = map(np.stack, zip(*pictures, strict=True))
    found = colour_coherence(images, labels, CANONICAL)
    assert found.keys() == {EYES}
    np.testing.assert_allclose(found[EYES], (np.sqrt((9 + 0 + 16) / 3) + 12) / 2)


def test_colour_coherence_knows_the_pairs_by_their_names():
    assert all(set(pair) <= set(CANONICAL) for pair in COHERENT_PAIRS)
    image, _ = drawn(("skin", (50, 50, 50), slice(0, 4), slice(0, 8)))
    labels = np.zeros((8, 8), np.uint8)
    labels[:4] = 1
    assert colour_coherence(image[None], labels[None], ("nose", "skin")) == {("skin", "nose"): 78}
    assert colour_coherence(image[None], labels[None], ("sky", "skin")) == {}


def test_explained_variance_counts_every_class_and_unlabelled_pixels_and_is_1_without_variance():
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, (1, 8, 8, 3), np.uint8)
    mask = np.full((1, 8, 8), 40, np.uint8)  # a class that CelebAMask-HQ does not have
    mask[:, :4] = 255
    by_halves = [noise[0, :4].astype(float), noise[0, 4:].astype(float)]
    within = sum(np.sum((half - half.mean((0, 1))) ** 2) for half in by_halves)
    total = np.sum((noise[0] - noise[0].mean((0, 1))) ** 2)
    np.testing.assert_allclose(explained_variance(noise, mask), [1 - within / total])
    assert explained_variance(np.full_like(noise, 7), mask) == 1
