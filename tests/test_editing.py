"""Edited photos: the way back to noise, what an edit leaves as it was, what is refused."""

import numpy as np
import pytest

from sisma_jax import Synthesizer
from sisma_jax.editing import edit
from sisma_jax.errors import InputError
from sisma_jax.models.autoencoder import to_float, to_uint8

STEPS = 12


@pytest.fixture(scope="module")
def synthesizer(tiny_run):
    return Synthesizer.load(tiny_run, batch_size=4)


@pytest.fixture(scope="module")
def photos():
    random = np.random.default_rng(0)
    flat = random.integers(0, 256, (3, 1, 1, 3))
    return (flat + random.integers(-20, 20, (3, 32, 32, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(1).integers(0, 19, (3, 32, 32)).astype(np.uint8)


@pytest.fixture(scope="module")
def edited(labels):
    """Another label at one pixel of the first mask; the others as they were."""
    edited = labels.copy()
    edited[0, 15, 14] = (labels[0, 15, 14] + 1) % 19
    return edited


def reconstructed(synthesizer, photos):
    mean, _ = synthesizer.autoencoder.encode(to_float(photos))
    return np.asarray(to_uint8(synthesizer.autoencoder.decode(mean)))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max(-1)


def test_back_to_noise_and_forward_under_the_same_mask_is_the_reconstruction(
    synthesizer, photos, labels
):
    back = edit(synthesizer, photos, labels, labels, steps=STEPS, margin=None)
    assert back.dtype == np.uint8 and back.shape == photos.shape
    assert difference(back, reconstructed(synthesizer, photos)).max() <= 3
    forward_only = synthesizer(labels, steps=STEPS, solver="heun")
    assert difference(forward_only, back).mean() > 20, "which fresh noise does not give"


def test_without_a_margin_the_whole_face_may_follow_an_edit(synthesizer, photos, labels, edited):
    whole = edit(synthesizer, photos, labels, edited, steps=STEPS, margin=None)
    same = edit(synthesizer, photos, labels, labels, steps=STEPS, margin=None)
    assert difference(whole[0], same[0]).max() > 0
    assert difference(whole[1:], same[1:]).max() <= 1, "of photos whose mask was not edited, not"


def test_what_is_farther_from_an_edit_than_the_margin_is_the_photos_own(
    synthesizer, photos, labels, edited
):
    faces = edit(synthesizer, photos, labels, edited, steps=STEPS, margin=5)
    changed = difference(faces[0], photos[0]) > 0
    rows, columns = np.nonzero(changed)
    assert changed[15, 14], "in its middle it is the model's"
    assert rows.min() >= 10 and rows.max() <= 20
    assert columns.min() >= 9 and columns.max() <= 19
    np.testing.assert_array_equal(faces[1:], photos[1:])


def test_guidance_follows_the_edited_mask_and_batches_do_not_matter(
    synthesizer, photos, labels, edited
):
    plain = edit(synthesizer, photos, labels, edited, steps=2, margin=5)
    guided = edit(synthesizer, photos, labels, edited, steps=2, margin=5, guidance=3.0)
    assert difference(plain[0], guided[0]).max() > 0
    alone = edit(synthesizer, photos[:1], labels[:1], edited[:1], steps=2, margin=5)
    assert difference(alone[0], plain[0]).max() <= 1
    assert edit(synthesizer, photos[:0], labels[:0], edited[:0]).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 32, 16, 3), np.uint8)}, r"photos are uint8 of shape \(3, 32, 16"),
        ({"images": np.zeros((3, 32, 32, 3), np.float32)}, "photos are float32"),
        ({"edited": np.zeros((2, 32, 32), np.uint8)}, "2 edited masks do not fit 3 photos"),
        ({"edited": np.full((3, 32, 32), 19, np.uint8)}, "label 19 of map 0"),
        ({"labels": np.zeros((3, 16, 16), np.uint8)}, "labels are uint8 of shape"),
        ({"margin": -1}, "margin is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"solver": "rk4"}, "solver 'rk4' is unknown"),
        ({"guidance": float("nan")}, "guidance is nan"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    synthesizer, photos, labels, edited, changes, message
):
    arguments = {"images": photos, "labels": labels, "edited": edited} | changes
    with pytest.raises(InputError, match=message):
        edit(synthesizer, **arguments)
