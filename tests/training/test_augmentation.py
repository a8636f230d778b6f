"""Random changes of faces and label maps: exact cases, what stays together, and their range."""

import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.training.augmentation import (
    AugmentConfig,
    augmented,
    draw,
    moved,
    recoloured,
)

EVERYTHING = AugmentConfig(
    turn=20.0, zoom=0.5, shift=0.2, brightness=0.2, contrast=0.3, saturation=0.4
)


def pictures(count=2, side=8):
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (count, side, side, 3)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(random.integers(0, 19, (count, side, side)), jnp.uint8)


def moves(turn=0.0, scale=1.0, down=0.0, right=0.0, count=2):
    return jnp.tile(jnp.asarray([[np.deg2rad(turn), np.log(scale), down, right]], "f4"), (count, 1))


def test_turns_zooms_and_shifts_are_those_of_numpy():
    images, labels = pictures()
    same = moved(images, labels, moves())
    np.testing.assert_allclose(same[0], images, atol=1e-6)
    np.testing.assert_array_equal(same[1], labels)
    turned = moved(images, labels, moves(turn=90))
    np.testing.assert_allclose(turned[0], np.rot90(images, -1, (1, 2)), atol=1e-5)
    np.testing.assert_array_equal(turned[1], np.rot90(labels, -1, (1, 2)))
    shifted = moved(images, labels, moves(down=0.25, right=-0.125))
    np.testing.assert_allclose(shifted[0][:, 2:, :-1], images[:, :-2, 1:], atol=1e-5)
    np.testing.assert_array_equal(shifted[1][:, 2:, :-1], labels[:, :-2, 1:])
    assert np.all(shifted[1][:, :2] == 255) and np.all(shifted[1][:, :, -1] == 255)
    blocks = jnp.repeat(jnp.repeat(labels[:, 2:6, 2:6], 2, 1), 2, 2)
    np.testing.assert_array_equal(moved(images, labels, moves(scale=2))[1], blocks)


def test_colours_change_as_named_and_stay_in_range():
    images, _ = pictures()
    change = lambda *values: recoloured(images, jnp.asarray([values] * 2, jnp.float32))
    np.testing.assert_allclose(change(0, 0, 0), images, atol=1e-6)
    np.testing.assert_allclose(change(0.1, 0, 0), jnp.clip(images + 0.2, -1, 1), atol=1e-6)
    grey = change(0, 0, -1)
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-6)
    flat = change(0, -1, 0)
    np.testing.assert_allclose(flat[0], jnp.full_like(images[0], images[0].mean()), atol=1e-6)
    assert np.abs(change(0.5, 1, 1)).max() <= 1


def test_a_part_of_a_batch_is_changed_as_in_the_whole(key):
    images, labels = pictures(4)
    drawn = draw(EVERYTHING, key, 4)
    whole = augmented(images, labels, drawn)
    part = augmented(images[2:], labels[2:], {name: x[2:] for name, x in drawn.items()})
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_allclose(one[2:], other, atol=1e-6)
    assert not np.allclose(whole[0], images)
    assert draw(AugmentConfig(), key, 4) == {}


def test_draws_reach_their_limits_and_no_further(key):
    drawn = draw(EVERYTHING, key, 2000)
    most = np.abs(np.concatenate([drawn["moves"], drawn["colours"]], 1)).max(0)
    limits = [np.deg2rad(20), np.log(1.5), 0.2, 0.2, 0.2, 0.3, 0.4]
    assert np.all(most <= np.asarray(limits) + 1e-6)
    np.testing.assert_allclose(most, limits, rtol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turn": 181.0}, "augment.turn is 181.0: use 0 to 180 degrees"),
        ({"zoom": -0.1}, "augment.zoom is -0.1"),
        ({"zoom": 1e9}, "augment.zoom is 1000000000.0: use 0 to 3, with which scales are up to 4"),
        ({"shift": 1.5}, "augment.shift is 1.5"),
    ],
)
def test_changes_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        AugmentConfig(**settings)
