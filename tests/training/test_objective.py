"""What classes weigh in the loss: small ones as much as is asked for, and the rows alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.flows import diffusion, rectified
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.sisma.model import init_params
from sisma_jax.training.class_balance import class_weights
from sisma_jax.training.objective import FlowConfig, draw, latents_of, mean_loss


@pytest.fixture
def labels():
    """Two maps of 8 x 8: half 0, 7/16 of 1 and a cell of 2; and one class with unlabelled cells."""
    maps = np.zeros((2, 8, 8), np.uint8)
    maps[0, 4:] = 1
    maps[0, 6:, 6:] = 2
    maps[1, :4, :2] = 255
    return maps


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_a_class_weighs_a_power_of_its_share(labels, balance):
    weights = class_weights(jnp.asarray(labels), 4, 3, balance)
    assert weights.shape == (2, 4, 4, 1)
    np.testing.assert_allclose(np.mean(weights, (1, 2, 3)), 1, rtol=1e-6)
    cells = labels[:, ::2, ::2]
    for row, classes in ((0, (0, 1, 2)), (1, (0, 255))):
        shares = np.array([(cells[row] == k).mean() for k in classes])
        together = np.array([np.asarray(weights)[row][cells[row] == k].sum() for k in classes])
        expected = shares ** (1 - balance)
        np.testing.assert_allclose(together / together.sum(), expected / expected.sum(), rtol=1e-5)


def test_a_cell_of_two_classes_has_the_mean_of_their_weights(labels):
    labels[0, 3] = 1  # the second row of cells is shared by the first two classes
    cells = np.asarray(class_weights(jnp.asarray(labels), 4, 3, 0.7))[0, ..., 0]
    np.testing.assert_allclose(cells[1], (cells[0] + cells[2, 0]) / 2, rtol=1e-5)


def test_losses_multiply_squared_errors_by_the_weights(key):
    x, noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    weight = np.random.default_rng(1).uniform(size=(3, 4, 4, 1)).astype(np.float32)
    zero = lambda z, t: jnp.zeros_like(z)
    arguments = [jnp.asarray(a) for a in (x, noise, np.full(3, 0.3, np.float32), weight)]
    found = rectified.loss_at(zero, *arguments)
    np.testing.assert_allclose(found, np.mean(weight * (x - noise) ** 2, (1, 2, 3)), rtol=1e-5)
    found = diffusion.PUBLISHED.loss_at(zero, *arguments)
    np.testing.assert_allclose(found, np.mean(weight * noise**2, (1, 2, 3)), rtol=1e-5)


@pytest.mark.slow
def test_training_has_the_weights_of_its_section(labels):
    """The loss of a new model, whose velocity is zero."""
    config = SISMAConfig.tiny(
        latent_size=4, factor=2, num_classes=3, width=8, depth=1, state=2, mask_channels=8
    )
    balanced = FlowConfig(sampling="uniform", drop=0.0, class_balance=0.5)
    random = np.random.default_rng(0)
    moments = random.normal(size=(2, 4, 4, 8)).astype(np.float32)
    batch = {"labels": jnp.asarray(labels), "moments": jnp.asarray(moments)}
    batch |= draw(jax.random.key(0), batch, config=config, flow_config=balanced)
    first_stage = Autoencoder(AutoencoderConfig.tiny(scaling_factor=0.5), {})
    loss, _ = jax.jit(partial(mean_loss, config=config, flow_config=balanced))(
        init_params(config, jax.random.key(0)), batch, first_stage
    )
    error = latents_of(batch, first_stage) - batch["noise"]
    weights = class_weights(batch["labels"], 4, 3, 0.5)
    np.testing.assert_allclose(loss, np.mean(weights * error**2), rtol=1e-5)


def test_a_balance_beyond_equal_weight_is_refused():
    with pytest.raises(
        InputError, match=r"flow\.class_balance is 1\.5: choose a share in \[0, 1\]"
    ):
        FlowConfig(sampling="uniform", drop=0.0, class_balance=1.5)
