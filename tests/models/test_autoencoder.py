"""The autoencoder against closed forms and plain NumPy; its files against damage."""

import dataclasses
import functools
import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import parameter_overview
from safetensors.numpy import load_file, save_file

from sisma_jax.errors import InputError
from sisma_jax.models.autoencoder import (
    LOGVAR_RANGE,
    Autoencoder,
    AutoencoderConfig,
    AutoencoderKL,
    load_autoencoder,
    parameter_shapes,
    posterior_kl,
    sample_latent,
    save_autoencoder,
)
from sisma_jax.models.autoencoder_layers import (
    Attention,
    Downsample,
    fold_pixels,
    norm,
    unfold_pixels,
)
from sisma_jax.models.autoencoder_training import (
    autoencoder_loss,
    latent_scale,
    patch_pca_init,
)
from sisma_jax.models.weights import load_tree, save_tree

SMALL_KL = AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4)
SMALL_TINY = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4)


cached_shapes = functools.cache(parameter_shapes)


def random_params(config, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), leaf.dtype),
        cached_shapes(config),
    )


def smooth_images(count, height, width, seed=0):
    """Images with correlated pixels, in [-1, 1]."""
    coarse = np.random.default_rng(seed).uniform(-1, 1, (count, height // 8, width // 8, 3))
    image = coarse.repeat(8, axis=1).repeat(8, axis=2)
    for axis in (1, 2):
        image = (image + np.roll(image, 1, axis) + np.roll(image, 2, axis)) / 3
    return jnp.asarray(image, jnp.float32)


class NormOnly(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x):
        return norm(self.config, x, "norm")


@pytest.fixture
def folder(tmp_path):
    save_autoencoder(tmp_path / "saved", SMALL_TINY, random_params(SMALL_TINY))
    return tmp_path / "saved"


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

    def test_folding_pixels_is_undone(self):
        x = jnp.arange(2 * 8 * 12 * 3, dtype=jnp.float32).reshape(2, 8, 12, 3)
        folded = fold_pixels(x, 4)
        assert folded.shape == (2, 2, 3, 48)
        np.testing.assert_array_equal(folded[0, 1, 2].reshape(4, 4, 3), x[0, 4:8, 8:12])
        np.testing.assert_array_equal(unfold_pixels(folded, 4), x)

    def test_bfloat16_decodes_like_float32(self):
        config = dataclasses.replace(SMALL_KL, dtype="bfloat16")
        params = random_params(SMALL_KL)
        z = jax.random.normal(jax.random.key(1), (1, 4, 6, 4))
        exact, rounded = (Autoencoder(c, params).decode(z) for c in (SMALL_KL, config))
        assert rounded.dtype == jnp.float32
        assert float(jnp.mean(jnp.abs(exact - rounded))) < 0.02 * float(jnp.std(exact))
        assert not jnp.array_equal(exact, rounded)


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
        latent = sample_latent(key, mean, logvar, 0.5)
        assert abs(float(latent.mean()) - 1.5) < 0.02
        assert abs(float(latent.std()) - 1.0) < 0.02

    def test_samples_of_half_precision_moments_are_float32(self, key):
        moments = jnp.zeros((2, 4, 4, 4), jnp.float16)
        assert sample_latent(key, moments, moments, 0.18215).dtype == jnp.float32

    def test_latents_and_images_use_the_scaling_factor_once(self, key):
        config = dataclasses.replace(SMALL_TINY, scaling_factor=0.25)
        autoencoder = Autoencoder(config, random_params(config))
        images = smooth_images(1, 16, 16)
        mean, logvar = autoencoder.encode(images)
        latents = autoencoder.to_latents(key, images)
        z = sample_latent(key, mean, logvar, 1.0)
        np.testing.assert_allclose(latents, 0.25 * z, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            autoencoder.from_latents(latents), autoencoder.decode(z), rtol=1e-4, atol=1e-4
        )

    def test_divergence_is_that_of_gaussians(self):
        mean, logvar = jnp.array([0.0, 1.0]), jnp.array([0.0, np.log(4.0)], jnp.float32)
        expected = (0.0 + 0.5 * (1 + 4 - 1 - np.log(4.0))) / 2
        assert float(posterior_kl(mean, logvar)) == pytest.approx(expected, rel=1e-6)


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

    @pytest.mark.parametrize("config", [SMALL_KL, SMALL_TINY], ids=["kl", "tiny"])
    def test_every_parameter_gets_a_finite_gradient(self, config, key):
        module, images = AutoencoderKL(config), smooth_images(2, 16, 16)
        loss = lambda params: autoencoder_loss(module, params, key, images, 1e-3)
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
        loss, metrics = autoencoder_loss(module, params, key, images, 0.5)
        error = float(metrics["reconstruction"])
        assert float(loss) == pytest.approx(error + 0.5 * float(metrics["kl"]), rel=1e-5)
        assert float(metrics["psnr"]) == pytest.approx(10 * np.log10(4 / error), rel=1e-4)

    def test_latent_scale_gives_unit_deviation(self, key):
        images = smooth_images(70, 16, 16)
        autoencoder = Autoencoder(SMALL_TINY, random_params(SMALL_TINY))
        scale = latent_scale(autoencoder, images)
        config = dataclasses.replace(SMALL_TINY, scaling_factor=scale)
        latents = Autoencoder(config, autoencoder.params).to_latents(key, images)
        assert float(latents.std()) == pytest.approx(1.0, abs=0.05)


class TestFiles:
    def test_round_trip(self, folder):
        loaded = load_autoencoder(folder)
        assert loaded.config == SMALL_TINY
        jax.tree.map(np.testing.assert_array_equal, loaded.params, random_params(SMALL_TINY))

    def test_run_folder_holds_an_autoencoder(self, folder, tmp_path):
        os.rename(folder, tmp_path / "autoencoder")
        (tmp_path / "config.json").write_text("{}")
        assert load_autoencoder(tmp_path).config == SMALL_TINY

    def test_passes_through_jit_as_an_argument(self, folder):
        autoencoder, z = load_autoencoder(folder), jnp.ones((1, 2, 2, 4))
        decoded = jax.jit(lambda autoencoder, z: autoencoder.decode(z))(autoencoder, z)
        np.testing.assert_allclose(decoded, autoencoder.decode(z), rtol=1e-4, atol=1e-4)

    def test_saving_again_replaces_and_leaves_nothing_behind(self, folder):
        config = dataclasses.replace(SMALL_TINY, scaling_factor=2.0)
        save_autoencoder(folder, config, random_params(config, seed=1))
        assert load_autoencoder(folder).scaling_factor == 2.0
        assert [child.name for child in folder.parent.iterdir()] == ["saved"]

    def test_files_have_the_usual_mode(self, folder):
        plain = folder.parent / "plain"
        plain.write_text("")
        usual = plain.stat().st_mode
        assert {child.stat().st_mode for child in folder.iterdir()} == {usual}

    def test_other_folders_are_not_overwritten(self, folder):
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="holds other things"):
            save_autoencoder(folder, SMALL_TINY, random_params(SMALL_TINY))
        assert (folder / "notes.txt").read_text() == "mine"

    def test_names_that_differ_are_listed(self, folder):
        file = folder / "weights.safetensors"
        tensors = load_file(file)
        tensors["extra/kernel"] = np.zeros(1, np.float32)
        del tensors["quant_conv/bias"]
        tensors["quant_conv/kernel"] = np.zeros((1, 1, 4, 8), np.float32)
        tensors["linear_decoder/bias"] = tensors["linear_decoder/bias"].astype(np.float16)
        save_file(tensors, file)
        with pytest.raises(InputError) as caught:
            load_autoencoder(folder)
        for phrase in (
            "missing: quant_conv/bias",
            "left over: extra/kernel",
            "quant_conv/kernel (1, 1, 4, 8) instead of (1, 1, 8, 8)",
            "linear_decoder/bias float16 instead of float32",
        ):
            assert phrase in str(caught.value)

    def test_long_lists_are_cut(self, tmp_path):
        like = {str(i): jnp.zeros(1) for i in range(30)}
        save_tree(tmp_path / "a.safetensors", {"other": jnp.zeros(1)}, {})
        with pytest.raises(InputError, match="and 22 more"):
            load_tree(tmp_path / "a.safetensors", like)

    def test_bfloat16_trees_survive(self, tmp_path):
        tree = {"a": {"b": jnp.arange(5, dtype=jnp.bfloat16)}}
        save_tree(tmp_path / "a.safetensors", tree, {})
        loaded = load_tree(tmp_path / "a.safetensors", tree)
        assert loaded["a"]["b"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(loaded["a"]["b"], tree["a"]["b"])

    @pytest.mark.parametrize("length", [0, 5, 300])
    def test_truncated_weights_are_refused(self, folder, length):
        file = folder / "weights.safetensors"
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(InputError, match="cut short"):
            load_autoencoder(folder)

    @pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pth", ".pt"])
    def test_pickled_files_are_refused(self, tmp_path, suffix):
        for read in (load_autoencoder, lambda path: load_tree(path, {})):
            with pytest.raises(InputError, match="convert it to safetensors"):
                read(tmp_path / f"weights{suffix}")

    def test_published_folders_are_refused_for_now(self, folder):
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"")
        with pytest.raises(InputError, match="diffusers' format"):
            load_autoencoder(folder)
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        with pytest.raises(InputError, match="diffusers' format"):
            load_autoencoder(folder)

    @pytest.mark.parametrize(
        ("change", "phrase"),
        [
            ({"widht": 3}, "unknown entries widht"),
            ({"fold": 3}, "fold is 3"),
            ({"block_channels": 8}, "block_channels"),
        ],
    )
    def test_wrong_config_is_refused(self, folder, change, phrase):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(InputError, match=phrase):
            load_autoencoder(folder)

    def test_missing_scaling_factor_is_named(self, folder):
        fields = json.loads((folder / "config.json").read_text())
        del fields["scaling_factor"]
        (folder / "config.json").write_text(json.dumps(fields))
        with pytest.raises(InputError, match="scaling_factor"):
            load_autoencoder(folder)

    @pytest.mark.parametrize("text", ["{", "[]", ""])
    def test_config_that_is_no_object_is_refused(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            load_autoencoder(folder)

    def test_missing_paths_are_named(self, folder, tmp_path):
        with pytest.raises(InputError, match=r"no autoencoder in .*nowhere"):
            load_autoencoder(tmp_path / "nowhere")
        with pytest.raises(InputError, match="give the folder"):
            load_autoencoder(folder / "weights.safetensors")
        (folder / "weights.safetensors").unlink()
        with pytest.raises(InputError, match="no weight file"):
            load_autoencoder(folder)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (dict(block_channels=()), "block_channels is empty"),
        (dict(block_channels=(8, 0)), "block_channels is 0"),
        (dict(block_channels=(48,), norm_groups=32), "does not divide the 48"),
        (dict(latent_channels=0), "latent_channels is 0"),
        (dict(fold=3), "fold is 3"),
        (dict(scaling_factor=0.0), "scaling_factor is 0"),
        (dict(dtype="float16"), "dtype is 'float16'"),
    ],
)
def test_bad_configurations_are_refused(change, phrase):
    with pytest.raises(InputError, match=phrase):
        AutoencoderConfig(**change)
