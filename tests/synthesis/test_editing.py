"""Edited photos: the way back to noise, what an edit leaves as it was, what is refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax import Synthesizer
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CLASSES
from sisma_jax.flows import rectified
from sisma_jax.flows.diffusion import PUBLISHED, Diffusion
from sisma_jax.models import generators
from sisma_jax.models.autoencoder import to_float, to_uint8
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.synthesis.editing import edit
from sisma_jax.synthesis.programs import velocity_under
from tests.tiny_runs import SIZE

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 24, "solver": "ab2"},
        {"steps": 16, "shift": 2},
        {"times": np.linspace(0.4, 1, 13)},
        {"steps": 24, "solver": "ab2", "guidance": [1, 1, 1], "guidance_interval": (0.1, 0.8)},
    ],
)
def test_any_times_and_adams_bashforth_lead_back_to_the_photo(synthesizer, photos, labels, options):
    back = edit(synthesizer, photos, labels, labels, margin=None, **options)
    assert difference(back, reconstructed(synthesizer, photos)).max() <= 4


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


@pytest.mark.slow
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
        ({"times": (0, 0.8)}, "times end at 0.8, where z is still noisy"),
        ({"guidance": (1, 2)}, "guidance has 2 values for 3 label maps"),
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


@pytest.fixture(scope="module")
def styled(tiny_style_run):
    return Synthesizer.load(tiny_style_run, batch_size=4)


@pytest.fixture(scope="module")
def scadm(synthesizer):
    """Random weights, on the first stage of the tiny run."""
    config = SCADMConfig(
        latent_size=SIZE // 4, latent_channels=4, factor=4, num_classes=19, channels=16,
        multipliers=(1,), attention_sizes=(8,), head_width=8, spade_hidden=4, norm_groups=4,
        style_channels=1, style_levels=1, style_features=4, dtype="float32",
    )  # fmt: skip
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.05, leaf.shape).astype(np.float32),
        generators.parameter_shapes(config),
    )
    return Synthesizer(config, params, synthesizer.autoencoder, batch_size=4)


@pytest.fixture(scope="module")
def faces():
    pairs = [synthetic.face(0, index, SIZE) for index in range(3)]
    return tuple(np.stack(column) for column in zip(*pairs, strict=True))


def bare_of(labels, part="hat"):
    """A face without that part, and its mask with it in a corner."""
    row = next(i for i in range(len(labels)) if not (labels[i] == CLASSES.index(part)).any())
    edited = labels[row].copy()
    edited[:12, :12] = CLASSES.index(part)
    return row, edited


@pytest.mark.slow
def test_a_photo_keeps_its_own_style_both_ways(styled, faces):
    images, labels = faces
    goal, own = reconstructed(styled, images), styled.style(images, labels)
    there_and_back = lambda style: edit(
        styled, images, labels, labels, steps=24, margin=None, style=style
    )
    missed = difference(there_and_back(None), goal).mean()
    assert missed < difference(there_and_back(styled.no_style()), goal).mean() / 4
    row, wanted = bare_of(labels)
    arguments = images[row : row + 1], labels[row : row + 1], wanted[None]
    plain = edit(styled, *arguments, steps=4)
    given = edit(styled, *arguments, steps=4, style=own[row])
    np.testing.assert_array_equal(plain, given)
    without = edit(styled, *arguments, steps=4, style=styled.no_style())
    assert difference(plain, without).max() > 3, "and not that of noise"


@pytest.mark.slow
def test_another_style_changes_the_way_forward_where_it_is_given(styled, faces):
    images, labels = faces
    row, wanted = bare_of(labels)
    other = next(i for i in range(3) if i != row)
    hats = styled.style(images[other][None], np.full_like(wanted, CLASSES.index("hat"))[None])
    arguments = images[row : row + 1], labels[row : row + 1], wanted[None]
    own = styled.style(*arguments[:2])
    plain = edit(styled, *arguments, steps=4)
    hatted = edit(styled, *arguments, steps=4, style=own.take(hats, ["hat"]))
    changed = difference(plain, hatted)[0] > 0
    assert changed[:12, :12].any() and not changed[24:].any()


def test_styles_are_one_for_all_or_one_each(styled, faces, synthesizer, photos, labels):
    images, masks = faces
    edited = np.where(masks == 1, 2, masks).astype(np.uint8)
    own = styled.style(images, masks)
    one = edit(styled, images, masks, edited, steps=4, style=own[0])
    each = edit(styled, images, masks, edited, steps=4, style=own[[0, 0, 0]])
    np.testing.assert_array_equal(one, each)
    with pytest.raises(InputError, match="2 styles do not fit 3 label maps"):
        edit(styled, images, masks, edited, style=own[:2])
    with pytest.raises(InputError, match="no style conditioning"):
        edit(synthesizer, photos, labels, labels, style=own)


def np_ddim_inversion(predict, x, steps):
    """x_t of the noisiest step: DDIM the other way round, each step with the noise seen before it.

    From the data as x_0 would be without noise, a = 1, by the steps of sampling in reverse.
    """
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    products = np.cumprod(1 - betas)
    at = [(1.0, 0.0, 0.0), *((products[t] ** 0.5, (1 - products[t]) ** 0.5, float(t))
                             for t in 1 + np.arange(steps) * 1000 // steps)]  # fmt: skip
    for (a, s, t), (next_a, next_s, _) in itertools.pairwise(at):
        noise = np.asarray(predict(x, t), np.float64)
        data = (x - s * noise) / a
        x = next_a * data + next_s * noise
    return x, at[-1]


@pytest.mark.slow
def test_the_way_back_of_scadm_is_the_inversion_of_ddim(scadm, faces):
    steps = 8
    images, labels = (jnp.asarray(x) for x in faces)
    model = generators.generator(scadm.config)
    style = model.encode_style(scadm.params, to_float(images), labels)
    data = jnp.asarray(np.random.default_rng(2).normal(size=(3, SIZE // 4, SIZE // 4, 4)), "f")
    own = velocity_under(scadm.config, scadm.params, labels, None, style)
    z, _ = rectified.invert(own, data, steps=steps, solver="euler", times=model.times(steps))

    @jax.jit
    def predict(x, t):
        return model._apply(scadm.params, x.astype(jnp.float32), jnp.full(3, t), labels, style)

    expected, (a, s, _) = np_ddim_inversion(predict, np.asarray(data, np.float64), steps)
    np.testing.assert_allclose((a + s) * z, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "diffusion", [PUBLISHED, Diffusion(prediction="velocity", zero_terminal_snr=True)]
)
def test_scadm_comes_back_to_the_photo_the_nearer_the_more_steps(scadm, faces, diffusion):
    scadm = dataclasses.replace(
        scadm, config=dataclasses.replace(scadm.config, diffusion=diffusion)
    )
    images, labels = faces
    goal = reconstructed(scadm, images)

    def missed(steps):
        back = edit(scadm, images, labels, labels, steps=steps, margin=None)
        return np.abs(back.astype(float) - goal).mean()

    few, many = missed(4), missed(24)
    assert many < few / 4 and many < 1
    with pytest.raises(InputError, match="use at most 999"):
        edit(scadm, images, labels, labels, steps=1000)
