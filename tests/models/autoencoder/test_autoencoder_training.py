"""What training an autoencoder is made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderKL,
    posterior_kl,
    sample_latent,
)
from sisma_jax.models.autoencoder.layers import fold_pixels
from sisma_jax.models.autoencoder.training import (
    autoencoder_loss,
    latent_scale,
    patch_pca_init,
    posterior_noise,
)
from tests.autoencoders import SMALL_KL, SMALL_TINY, random_params, smooth_images


class TestTraining:
    def test_new_model_reconstructs_like_principal_components(self):
        images = smooth_images(16, 32, 32)
        module = AutoencoderKL(SMALL_TINY)
        params = patch_pca_init(
            jax.jit(module.init)(jax.random.key(0), images[:1])["params"], images
        )
        patches = np.asarray(fold_pixels(images, 4), np.float64).reshape(-1, 48)
        mean = patches.mean(0)
        components = np.linalg.svd(patches - mean, full_matrices=False)[2][:4]
        expected = mean + (patches - mean) @ components.T @ components
        actual = fold_pixels(module.apply({"params": params}, images), 4).reshape(-1, 48)
        np.testing.assert_allclose(actual, expected, atol=1e-4)
        latents, logvar = module.apply({"params": params}, images, method="encode")
        np.testing.assert_allclose(jnp.std(latents, axis=(0, 1, 2)), 1.0, atol=1e-3)
        assert float(logvar.max()) < 0

    def test_principal_components_leave_the_given_parameters_alone(self):
        params = random_params(SMALL_TINY)
        before = jax.tree.map(np.array, params)
        after = patch_pca_init(params, smooth_images(4, 16, 16))
        jax.tree.map(np.testing.assert_array_equal, params, before)
        assert jax.tree.structure(after) == jax.tree.structure(params)
        assert after["encoder"] is params["encoder"]

    def test_principal_components_need_linear_maps(self):
        with pytest.raises(InputError, match=r"set autoencoder\.linear_skip"):
            patch_pca_init(random_params(SMALL_KL), smooth_images(1, 16, 16))

    @pytest.mark.parametrize(
        ("fold", "levels", "factor"), [(1, 1, 1), (1, 2, 2), (2, 2, 4), (4, 2, 8), (4, 3, 16)]
    )
    def test_any_power_of_two_is_a_factor(self, fold, levels, factor, key):
        config = AutoencoderConfig(
            block_channels=(4,) * levels, layers_per_block=1, norm_groups=2, fold=fold,
            mid_attention=False, linear_skip=factor > 1,
        )  # fmt: skip
        assert config.factor == factor
        module, images = AutoencoderKL(config), smooth_images(2, 32, 16)
        params = module.init(key, images)["params"]
        if config.linear_skip:
            params = patch_pca_init(params, images)
        mean, _ = module.apply({"params": params}, images, method="encode")
        assert mean.shape == (2, 32 // factor, 16 // factor, 4)
        noise = posterior_noise(config, key, images)
        _, metrics = autoencoder_loss(module, params, noise, images, 1e-3)
        assert np.isfinite(float(metrics["psnr"]))

    @pytest.mark.parametrize("config", [SMALL_KL, SMALL_TINY], ids=["kl", "tiny"])
    def test_every_parameter_gets_a_finite_gradient(self, config, key):
        module, images = AutoencoderKL(config), smooth_images(2, 16, 16)
        noise = posterior_noise(config, key, images)
        loss = lambda params: autoencoder_loss(module, params, noise, images, 1e-3)
        grads, metrics = jax.jit(jax.grad(loss, has_aux=True))(random_params(config))
        for name, gradient in jax.tree_util.tree_leaves_with_path(grads):
            assert bool(jnp.isfinite(gradient).all()), name
        # A softmax does not see a constant added to every key.
        attention = grads["encoder"]["mid_block"].pop("attentions_0", None)
        assert (attention is not None) == config.mid_attention
        grads["decoder"]["mid_block"].pop("attentions_0", None)
        for name, gradient in jax.tree_util.tree_leaves_with_path(grads):
            assert bool((gradient != 0).any()), name
        assert set(metrics) == {"reconstruction", "kl", "psnr"}

    def test_loss_adds_the_weighted_divergence_and_psnr_follows_the_error(self, key):
        module, params = AutoencoderKL(SMALL_TINY), random_params(SMALL_TINY)
        images = smooth_images(1, 16, 16)
        noise = posterior_noise(SMALL_TINY, key, images)
        loss, metrics = autoencoder_loss(module, params, noise, images, 0.5)
        mean, logvar = module.apply({"params": params}, images, method="encode")
        z = sample_latent(noise, mean, logvar, 1.0)
        error = np.asarray(module.apply({"params": params}, z, method="decode")) - images
        assert float(metrics["reconstruction"]) == pytest.approx(np.abs(error).mean(), rel=1e-4)
        assert float(metrics["kl"]) == pytest.approx(float(posterior_kl(mean, logvar)), rel=1e-4)
        expected = float(metrics["reconstruction"]) + 0.5 * float(metrics["kl"])
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        decibels = 10 * np.log10(4 / np.mean(error**2))
        assert float(metrics["psnr"]) == pytest.approx(decibels, rel=1e-4)

    def test_latent_scale_gives_unit_deviation(self, key):
        images = smooth_images(70, 16, 16)
        autoencoder = Autoencoder(SMALL_TINY, random_params(SMALL_TINY))
        scale = latent_scale(autoencoder, images)
        config = dataclasses.replace(SMALL_TINY, scaling_factor=scale)
        noise = posterior_noise(config, key, images)
        latents = Autoencoder(config, autoencoder.params).to_latents(noise, images)
        assert float(latents.std()) == pytest.approx(1.0, abs=0.05)
