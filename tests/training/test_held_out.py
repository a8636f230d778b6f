"""The loss on held-out items: the same for the same weights, whatever it is computed with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.data.input_pipeline import fixed_batch, open_dataset
from sisma_jax.devices.sharding import MeshConfig, make_mesh
from sisma_jax.flows import rectified
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import load_autoencoder, to_float
from sisma_jax.models.sisma.model import init_params
from sisma_jax.training import held_out
from sisma_jax.training.held_out import EvaluationConfig, held_out_loss
from sisma_jax.training.objective import latent_noise
from tests.tiny_runs import SIZE

CONFIG = SISMAConfig.tiny(
    latent_size=SIZE // 4, factor=4, width=16, depth=1, state=2, mask_channels=8
)
SETTINGS = EvaluationConfig(every=1, items=7, bins=2, hook="")


@pytest.fixture(scope="module")
def parts(inputs_folder):
    source = open_dataset(inputs_folder / "data", SIZE, split="train", test_from=12)
    return source, load_autoencoder(inputs_folder / "autoencoder")


def evaluated(parts, batch_size, devices, settings=SETTINGS, shift=0, **options):
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), jax.devices()[:devices])
    params = init_params(CONFIG, jax.random.key(0))
    return held_out_loss(CONFIG, settings, *parts, mesh, batch_size, **options)(params, shift)


@pytest.mark.slow
def test_every_item_counts_once_at_its_own_noise(parts):
    """A new model is the zero velocity, so that its loss is known: the mean of (x - noise)^2."""
    source, autoencoder = parts
    expected = []
    for index in range(SETTINGS.items):
        key = jax.random.fold_in(jax.random.key(0), index)
        noise = latent_noise(CONFIG, key, 1)
        x = autoencoder.to_latents(noise["posterior"], to_float(source[index]["image"][None]))
        expected.append(float(np.mean((np.asarray(x) - noise["noise"]) ** 2)))
    found = evaluated(parts, 4, 4)
    assert list(found) == ["test_loss", "test_loss/0-0.5", "test_loss/0.5-1"]
    np.testing.assert_allclose(list(found.values()), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize(("batch_size", "devices"), [(8, 4), (2, 2)])
def test_batch_size_and_devices_do_not_matter(batch_size, devices, parts):
    few = evaluated(parts, batch_size, devices)
    np.testing.assert_allclose(list(few.values()), list(evaluated(parts, 4, 4).values()), rtol=1e-5)


def test_times_lie_in_their_bins_and_cover_them(parts, monkeypatch):
    """A loss that is the time itself has the middle of a bin as the bin's loss."""
    monkeypatch.setattr(rectified, "loss_at", lambda velocity, x, noise, t, weight: t)
    settings = EvaluationConfig(every=1, items=12, bins=4, hook="")
    found = evaluated(parts, 4, 4, settings)
    by_bin = [found[name] for name in found if "/" in name]
    np.testing.assert_allclose(by_bin, [0.125, 0.375, 0.625, 0.875], atol=0.02)


def test_times_follow_the_distribution_of_training(parts, monkeypatch):
    """A loss that is the squared distance of the time from 1/2 has its variance as the mean."""
    variance = lambda params, latents, batch, config: jnp.square(batch["time"] - 0.5)
    monkeypatch.setattr(held_out, "losses", variance)
    settings = EvaluationConfig(every=1, items=12, bins=20, hook="")
    for sampling in rectified.TIME_SAMPLINGS:
        times = rectified.sample_time(jax.random.key(0), 1000, sampling)
        found = evaluated(parts, 4, 4, settings, sampling=sampling)["test_loss"]
        np.testing.assert_allclose(found, np.var(times), rtol=0.02)


def test_shifted_masks_are_those_of_the_item_before(parts, monkeypatch):
    """The loss is replaced by the product of image and mask, which shows the shift of masks."""
    product = lambda images, labels: images[..., 0].astype("float32") * labels.astype("float32")
    loss = lambda params, latents, batch, config: product(batch["image"], batch["labels"]).mean(
        (1, 2)
    )
    monkeypatch.setattr(held_out, "losses", loss)
    faces = fixed_batch(parts[0], SETTINGS.items)
    for shift in (0, 1):
        expected = product(faces["image"], np.roll(faces["labels"], shift, axis=0)).mean()
        found = evaluated(parts, 4, 4, shift=shift)["test_loss"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": -1}, "evaluation.every is -1"),
        ({"items": 0}, "evaluation.items is 0"),
        ({"bins": 0}, "evaluation.bins is 0"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        EvaluationConfig(**{**vars(SETTINGS), **changes})
