"""The autoencoder against closed forms and plain NumPy."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import parameter_overview

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderKL,
    parameter_shapes,
    posterior_kl,
    sample_latent,
)
from sisma_jax.models.autoencoder.layers import (
    Attention,
    Downsample,
    fold_pixels,
    norm,
    unfold_pixels,
)
from sisma_jax.models.autoencoder.model import LOGVAR_RANGE
from tests.autoencoders import SMALL_KL, SMALL_TINY, random_params, smooth_images
from tests.lowering import equations, lowered_for_cuda

cached_shapes = functools.cache(parameter_shapes)


class NormOnly(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x):
        return norm(self.config, x, "norm")


class TestArchitecture:
    def test_stable_diffusion_has_the_published_number_of_parameters(self):
        shapes = cached_shapes(AutoencoderConfig.stable_diffusion())
        assert parameter_overview.count_parameters(shapes) == 83_653_863

    def test_parameter_names_are_those_of_diffusers(self):
        shapes = cached_shapes(AutoencoderConfig.stable_diffusion())
        encoder, decoder = shapes["encoder"], shapes["decoder"]
        assert set(shapes) == {"encoder", "decoder", "quant_conv", "post_quant_conv"}
        assert encoder["down_blocks_0"]["resnets_0"]["conv1"]["kernel"].shape == (3, 3, 128, 128)
        assert encoder["down_blocks_1"]["resnets_0"]["conv_shortcut"]["kernel"].shape[2] == 128
        assert "downsamplers_0" not in encoder["down_blocks_3"]
        assert set(encoder["mid_block"]["attentions_0"]) == {
            "group_norm",
            "to_q",
            "to_k",
            "to_v",
            "to_out_0",
        }
        assert set(decoder["up_blocks_0"]) == {
            "resnets_0",
            "resnets_1",
            "resnets_2",
            "upsamplers_0",
        }
        assert "upsamplers_0" not in decoder["up_blocks_3"]

    @pytest.mark.parametrize(
        ("config", "image", "latent"),
        [
            (AutoencoderConfig.stable_diffusion(), (2, 256, 256, 3), (2, 32, 32, 4)),
            (AutoencoderConfig.stable_diffusion(), (1, 64, 96, 3), (1, 8, 12, 4)),
            (AutoencoderConfig.tiny(), (2, 64, 64, 3), (2, 16, 16, 4)),
            (AutoencoderConfig.tiny(), (1, 32, 48, 3), (1, 8, 12, 4)),
            (SMALL_KL, (1, 10, 6, 3), (1, 5, 3, 4)),
        ],
    )
    def test_shapes(self, config, image, latent):
        module, params = AutoencoderKL(config), cached_shapes(config)

        def both(params, images):
            mean, logvar = module.apply({"params": params}, images, method="encode")
            return mean, logvar, module.apply({"params": params}, mean, method="decode")

        mean, logvar, decoded = jax.eval_shape(
            both, params, jax.ShapeDtypeStruct(image, jnp.float32)
        )
        assert mean.shape == logvar.shape == latent
        assert decoded.shape == image
        assert mean.dtype == decoded.dtype == jnp.float32

    def test_size_that_the_factor_does_not_divide_is_refused(self):
        with pytest.raises(InputError, match=r"30 x 32 pixels.*multiple of 4"):
            jax.eval_shape(
                AutoencoderKL(SMALL_TINY).init, jax.random.key(0), jnp.zeros((1, 30, 32, 3))
            )

    def test_downsampling_pads_below_and_to_the_right_only(self):
        random = np.random.default_rng(1)
        x, kernel = random.normal(size=(1, 4, 6, 8)), random.normal(size=(3, 3, 8, 8))
        bias = random.normal(size=8)
        padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        expected = np.empty((1, 2, 3, 8))
        for i in range(2):
            for j in range(3):
                window = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                expected[0, i, j] = np.einsum("ijc,ijcd->d", window, kernel) + bias
        params = jax.tree.map(jnp.float32, {"conv": {"kernel": kernel, "bias": bias}})
        actual = Downsample(SMALL_KL).apply({"params": params}, jnp.float32(x))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)

    def test_attention_is_single_head_over_all_positions(self):
        random = np.random.default_rng(3)
        x = random.normal(size=(1, 2, 3, 8))
        linear = lambda: {"kernel": random.normal(size=(8, 8)), "bias": random.normal(size=8)}
        params = {name: linear() for name in ("to_q", "to_k", "to_v", "to_out_0")}
        params["group_norm"] = {"scale": random.normal(size=8), "bias": random.normal(size=8)}
        groups = x.reshape(1, 6, 4, 2)
        centred = groups - groups.mean((1, 3), keepdims=True)
        tokens = (centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)).reshape(6, 8)
        tokens = tokens * params["group_norm"]["scale"] + params["group_norm"]["bias"]
        apply = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
        query, key, value = (apply(name, tokens) for name in ("to_q", "to_k", "to_v"))
        weights = np.exp(query @ key.T / np.sqrt(8))
        weights /= weights.sum(1, keepdims=True)
        expected = x + apply("to_out_0", weights @ value).reshape(x.shape)
        params = jax.tree.map(jnp.float32, params)
        actual = Attention(SMALL_KL).apply({"params": params}, jnp.float32(x))
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("spread", [1.0, 1e-3])
    def test_group_norm_has_epsilon_1e_6_and_keeps_small_variance(self, spread):
        x = np.float32(5.0 + spread * np.random.default_rng(2).normal(size=(1, 8, 8, 8)))
        groups = x.astype(np.float64).reshape(1, 64, 4, 2)
        mean = groups.mean((1, 3), keepdims=True)
        variance = groups.var((1, 3), keepdims=True)
        expected = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
        layer = NormOnly(SMALL_KL)
        actual, _ = layer.init_with_output(jax.random.key(0), jnp.asarray(x))
        # 5 +- 1e-3 keeps three to four digits of the spread in float32.
        np.testing.assert_allclose(actual, expected, atol=1e-5 if spread == 1.0 else 2e-3)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_float32_asks_for_full_precision_of_every_product(self, dtype):
        """Chips whose default is less (TF32, bfloat16 passes) take it where nothing is asked."""
        config = dataclasses.replace(SMALL_KL, dtype=dtype)
        jaxpr = jax.make_jaxpr(AutoencoderKL(config).init)(
            jax.random.key(0), jnp.zeros((1, 8, 8, 3))
        )
        products = [
            equation.params["precision"]
            for equation in equations(jaxpr.jaxpr)
            if equation.primitive.name in ("conv_general_dilated", "dot_general")
        ]
        assert len(products) > 20
        full = jax.lax.Precision.HIGHEST
        asked = [precision in (full, (full, full)) for precision in products]
        assert all(asked) if dtype == "float32" else not any(asked)

    def test_auto_computes_in_the_type_of_the_platform_that_a_program_is_lowered_for(self):
        params, images = random_params(SMALL_TINY), smooth_images(1, 16, 16)
        auto = Autoencoder(dataclasses.replace(SMALL_TINY, dtype="auto"), params)
        there_and_back = lambda autoencoder, images: autoencoder.decode(
            autoencoder.encode(images)[0]
        )
        here = there_and_back(auto, images)
        expected = there_and_back(Autoencoder(SMALL_TINY, params), images)
        np.testing.assert_array_equal(here, expected)
        convolved = re.compile(r"stablehlo\.convolution.*-> tensor<\S+x(\w+)>")
        on_gpu = convolved.findall(lowered_for_cuda(there_and_back, auto, images))
        on_cpu = convolved.findall(jax.jit(there_and_back).lower(auto, images).as_text())
        assert {*on_gpu} == {"bf16"} and {*on_cpu} == {"f32"} and len(on_gpu) == len(on_cpu) > 10
        with pytest.raises(ValueError, match=r"'auto' is for `Autoencoder`"):
            AutoencoderKL(auto.config).apply({"params": params}, images)

    def test_folding_pixels_is_undone(self):
        x = jnp.arange(2 * 8 * 12 * 3, dtype=jnp.float32).reshape(2, 8, 12, 3)
        folded = fold_pixels(x, 4)
        assert folded.shape == (2, 2, 3, 48)
        np.testing.assert_array_equal(folded[0, 1, 2].reshape(4, 4, 3), x[0, 4:8, 8:12])
        np.testing.assert_array_equal(unfold_pixels(folded, 4), x)


class TestPosterior:
    def test_logvar_is_clamped(self):
        config, images = SMALL_KL, jnp.zeros((1, 4, 4, 3))
        params = random_params(config)
        for value, bound in zip((-1e3, 1e3), LOGVAR_RANGE, strict=True):
            params["quant_conv"]["bias"] = jnp.full(8, value)
            _, logvar = Autoencoder(config, params).encode(images)
            np.testing.assert_array_equal(logvar, bound)
        assert LOGVAR_RANGE == (-30.0, 20.0)

    def test_samples_have_the_scaled_moments(self, key):
        shape = (200_000,)
        mean, logvar = jnp.full(shape, 3.0), jnp.full(shape, np.log(4.0))
        latent = sample_latent(jax.random.normal(key, shape), mean, logvar, 0.5)
        assert abs(float(latent.mean()) - 1.5) < 0.02
        assert abs(float(latent.std()) - 1.0) < 0.02

    def test_samples_of_half_precision_moments_are_float32(self, key):
        moments = jnp.zeros((2, 4, 4, 4), jnp.float16)
        noise = jax.random.normal(key, moments.shape)
        assert sample_latent(noise, moments, moments, 0.18215).dtype == jnp.float32

    def test_latents_and_images_use_the_scaling_factor_once(self, key):
        config = dataclasses.replace(SMALL_TINY, scaling_factor=0.25)
        autoencoder = Autoencoder(config, random_params(config))
        images = smooth_images(1, 16, 16)
        mean, logvar = autoencoder.encode(images)
        noise = jax.random.normal(key, mean.shape)
        latents = autoencoder.to_latents(noise, images)
        z = sample_latent(noise, mean, logvar, 1.0)
        np.testing.assert_allclose(latents, 0.25 * z, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            autoencoder.from_latents(latents), autoencoder.decode(z), rtol=1e-4, atol=1e-4
        )

    def test_divergence_is_that_of_gaussians(self):
        mean, logvar = jnp.array([0.0, 1.0]), jnp.array([0.0, np.log(4.0)], jnp.float32)
        expected = (0.0 + 0.5 * (1 + 4 - 1 - np.log(4.0))) / 2
        assert float(posterior_kl(mean, logvar)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (dict(block_channels=()), "block_channels is empty"),
        (dict(block_channels=(8, 0)), r"block_channels is \(8, 0\): give whole numbers"),
        (dict(block_channels=(48,), norm_groups=32), "does not divide the 48"),
        (dict(latent_channels=0), "latent_channels is 0"),
        (dict(fold=3), "fold is 3"),
        (dict(scaling_factor=0.0), "scaling_factor is 0"),
        (dict(block_channels=(32,), linear_skip=True), "cannot make 4 latent channels of patches"),
        (dict(dtype="float16"), "dtype is 'float16'"),
    ],
)
def test_bad_configurations_are_refused(change, phrase):
    with pytest.raises(InputError, match=phrase):
        AutoencoderConfig(**change)
