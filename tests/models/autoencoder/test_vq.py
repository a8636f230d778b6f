"""The autoencoder with a codebook: nearest entries, training through them, published weights."""

import dataclasses
import hashlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import parameter_overview
from safetensors.numpy import load_file, save_file

from sisma_jax import cache_latents
from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderKL,
    layers,
    load_autoencoder,
    parameter_shapes,
    sample_latent,
    save_autoencoder,
    to_float,
)
from sisma_jax.models.autoencoder.files import save_diffusers
from sisma_jax.models.autoencoder.layers import fold_pixels, nearest
from sisma_jax.models.autoencoder.model import LOGVAR_RANGE
from sisma_jax.models.autoencoder.training import (
    codebook_init,
    codebook_loss,
    latent_scale,
    patch_pca_init,
)
from sisma_jax.models.weights import tree_checksum
from tests.autoencoders import (
    SMALL_KL,
    WEIGHTS,
    as_compvis,
    random_params,
    smooth_images,
    write_folder,
)
from tests.golden import vq_recipe as recipe
from tests.golden.files import golden_arrays, golden_tensors

SMALL_VQ = AutoencoderConfig(
    block_channels=(8, 16), layers_per_block=1, norm_groups=4, latent_channels=3, codebook=20,
    scaling_factor=1.0,
)  # fmt: skip
TINY_VQ = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4, latent_channels=3, codebook=20)


def small_vq(seed=0):
    return Autoencoder(SMALL_VQ, random_params(SMALL_VQ, seed))


def tiny_vq():
    return Autoencoder(TINY_VQ, random_params(TINY_VQ))


@partial(jax.jit, static_argnums=0)
def decode_entries(config, params, entries):
    return AutoencoderKL(config).apply({"params": params}, entries, method="decode_entries")


@jax.jit
def jitted_loss(params, images):
    return codebook_loss(AutoencoderKL(TINY_VQ), params, images, 0.25)


@jax.jit
def jitted_grad(params, images):
    return jax.grad(lambda params: jitted_loss(params, images)[0])(params)


def some_latents(seed=0, shape=(2, 4, 3, 3)):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.2, shape), jnp.float32)


def by_brute_force(entries, z):
    difference = np.asarray(z, np.float64)[..., None, :] - np.asarray(entries, np.float64)
    return np.argmin(np.sum(difference**2, -1), -1)


class TestSizes:
    @pytest.mark.parametrize(
        ("mid_attention", "count"), [(True, 55_322_782), (False, 53_219_486)], ids=["f4", "noattn"]
    )
    def test_vq_f4_has_the_parameters_of_diffusers(self, mid_attention, count):
        config = AutoencoderConfig.vq_f4(mid_attention=mid_attention)
        shapes = parameter_shapes(config)
        assert parameter_overview.count_parameters(shapes) == count
        assert shapes["quantize"]["embedding"]["embedding"].shape == (8192, 3)
        encode = lambda params, x: AutoencoderKL(config).apply(
            {"params": params}, x, method="encode"
        )
        image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
        mean, logvar = jax.eval_shape(encode, shapes, image)
        assert mean.shape == logvar.shape == (1, 64, 64, 3)
        assert config.scaling_factor == 1.0

    @pytest.mark.parametrize("codebook", [-1, True])
    def test_a_codebook_that_cannot_be(self, codebook):
        with pytest.raises(InputError, match=rf"autoencoder\.codebook is {codebook}: set a whole"):
            AutoencoderConfig(codebook=codebook)


class TestQuantising:
    @pytest.mark.parametrize("block", [5, 7, 1024])
    def test_nearest_entries_are_those_of_brute_force(self, block, monkeypatch):
        monkeypatch.setattr(layers, "NEAREST_BLOCK", block)
        random = np.random.default_rng(0)
        entries, z = random.normal(size=(20, 3)), random.normal(size=(500, 3))
        actual = nearest(jnp.float32(entries), jnp.float32(z))
        assert actual.dtype == jnp.int32
        np.testing.assert_array_equal(actual, by_brute_force(np.float32(entries), np.float32(z)))

    def test_of_entries_that_are_as_near_it_is_the_first(self, monkeypatch):
        monkeypatch.setattr(layers, "NEAREST_BLOCK", 2)
        entries = jnp.array([[5.0], [1.0], [-1.0], [1.0]])
        np.testing.assert_array_equal(nearest(entries, jnp.array([[0.0], [1.0]])), [1, 1])

    def test_entries_are_rows_of_the_codebook(self):
        autoencoder, z = small_vq(), some_latents()
        entries, indices = autoencoder.quantise(z)
        codebook = autoencoder.params["quantize"]["embedding"]["embedding"]
        np.testing.assert_array_equal(indices, by_brute_force(codebook, z))
        np.testing.assert_array_equal(entries, codebook[indices])
        assert len(np.unique(indices)) > 5

    def test_decoding_is_the_same_everywhere_in_a_cell(self):
        autoencoder, z = small_vq(), some_latents()
        entries, indices = autoencoder.quantise(z)
        decoded = autoencoder.decode(z)
        for share in (0.3, 1.0):  # cells are convex
            np.testing.assert_array_equal(autoencoder.decode(z + share * (entries - z)), decoded)
        codebook = autoencoder.params["quantize"]["embedding"]["embedding"]
        others = codebook[(indices + 1) % SMALL_VQ.codebook]
        assert np.abs(autoencoder.decode(others) - decoded).max() > 1e-3

    def test_decoding_goes_on_from_the_entries(self):
        autoencoder, z = small_vq(), some_latents()
        entries, _ = autoencoder.quantise(z)
        as_they_are = decode_entries(SMALL_VQ, autoencoder.params, entries)
        np.testing.assert_allclose(autoencoder.decode(z), as_they_are, rtol=1e-4, atol=1e-5)

    def test_there_has_to_be_a_codebook(self):
        autoencoder = Autoencoder(SMALL_KL, random_params(SMALL_KL))
        with pytest.raises(InputError, match=r"no codebook to quantise by: set autoencoder\.codeb"):
            autoencoder.quantise(jnp.zeros((1, 2, 2, 4)))


class TestPosterior:
    def test_a_draw_is_the_latent_ahead_of_quantising(self, key):
        autoencoder, images = small_vq(), smooth_images(2, 16, 16)
        mean, logvar = autoencoder.encode(images)
        np.testing.assert_array_equal(logvar, LOGVAR_RANGE[0])
        assert float(jnp.abs(mean - autoencoder.quantise(mean)[0]).max()) > 1e-2
        noise = jax.random.normal(key, mean.shape)
        # exp(-15) is 3e-7, two and a half spacings of float32 at 1.
        np.testing.assert_allclose(autoencoder.to_latents(noise, images), mean, rtol=0, atol=2e-6)

    def test_cached_moments_hold_them_too(self, key):
        autoencoder = small_vq()
        images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
        moments = cache_latents.encode(autoencoder, jnp.asarray(images))[:, 0]
        mean, logvar = jnp.split(moments, 2, axis=-1)
        expected, _ = autoencoder.encode(to_float(images))
        latents = sample_latent(jax.random.normal(key, mean.shape), mean, logvar, 1.0)
        np.testing.assert_allclose(latents, expected, rtol=1e-3, atol=1e-3)


class TestTraining:
    def test_loss_and_its_parts(self):
        autoencoder, images = tiny_vq(), smooth_images(2, 16, 16)
        loss, metrics = jitted_loss(autoencoder.params, images)
        z, _ = autoencoder.encode(images)
        error = np.abs(autoencoder.decode(z) - images).mean()
        distance = np.square(z - autoencoder.quantise(z)[0]).mean()
        assert float(metrics["reconstruction"]) == pytest.approx(float(error), rel=1e-4)
        assert float(metrics["quantisation"]) == pytest.approx(float(distance), rel=1e-4)
        assert float(loss) == pytest.approx(float(error + 1.25 * distance), rel=1e-4)
        assert set(metrics) == {"reconstruction", "quantisation", "psnr"}

    def test_the_decoders_gradient_reaches_the_encoder_straight_through(self):
        autoencoder, images = tiny_vq(), smooth_images(2, 16, 16)
        grads = jitted_grad(autoencoder.params, images)
        for name, gradient in jax.tree_util.tree_leaves_with_path(grads):
            assert bool(jnp.isfinite(gradient).all() & (gradient != 0).any()), name
        z, _ = autoencoder.encode(images)
        entries, indices = autoencoder.quantise(z)
        reconstruction = lambda entries: jnp.mean(
            jnp.abs(decode_entries(TINY_VQ, autoencoder.params, entries) - images)
        )
        # The bias of quant_conv is added to every latent.
        through = jax.jit(jax.grad(reconstruction))(entries) + 0.25 * 2 * (z - entries) / z.size
        np.testing.assert_allclose(
            grads["quant_conv"]["bias"], through.sum((0, 1, 2)), rtol=1e-3, atol=1e-6
        )
        # Entries are drawn to their latents and know nothing of the images.
        pull = np.zeros((TINY_VQ.codebook, 3))
        np.add.at(pull, np.asarray(indices), np.asarray(2 * (entries - z) / z.size))
        actual = grads["quantize"]["embedding"]["embedding"]
        np.testing.assert_allclose(actual, pull, rtol=1e-3, atol=1e-6)

    def test_it_starts_from_components_of_one_scale_and_a_codebook_in_use(self):
        images = smooth_images(16, 32, 32)
        new = jax.jit(AutoencoderKL(TINY_VQ).init)(jax.random.key(0), images[:1])["params"]
        autoencoder = Autoencoder(TINY_VQ, patch_pca_init(new, images))
        latents, _ = autoencoder.encode(images)
        variance = np.var(latents, axis=(0, 1, 2))
        assert float(variance.mean()) == pytest.approx(1, abs=1e-3)
        patches = np.asarray(fold_pixels(images, 4), np.float64).reshape(-1, 48)
        spectrum = np.linalg.eigvalsh(np.cov(patches, rowvar=False))[::-1]
        np.testing.assert_allclose(variance / variance[0], spectrum[:3] / spectrum[0], rtol=1e-3)
        decoded = decode_entries(TINY_VQ, autoencoder.params, latents)
        error = float(np.square(decoded - images).mean())
        assert error == pytest.approx(spectrum[3:].sum() / 48, rel=1e-2)

        before = jax.tree.map(np.array, autoencoder.params)
        started = Autoencoder(TINY_VQ, codebook_init(autoencoder, images))
        jax.tree.map(np.testing.assert_array_equal, autoencoder.params, before)
        entries, indices = started.quantise(latents)
        assert len(np.unique(indices)) == TINY_VQ.codebook
        assert float(np.square(entries - latents).mean()) < 0.25
        published = autoencoder.quantise(latents)[1]
        assert len(np.unique(published)) < TINY_VQ.codebook

    def test_a_codebook_may_be_larger_than_what_it_starts_from(self):
        config = dataclasses.replace(TINY_VQ, codebook=200)
        autoencoder = Autoencoder(config, random_params(config))
        params = codebook_init(autoencoder, smooth_images(1, 16, 16))
        assert params["quantize"]["embedding"]["embedding"].shape == (200, 3)

    def test_training_lowers_the_loss(self):
        params, images = random_params(TINY_VQ), smooth_images(2, 16, 16)
        params = codebook_init(Autoencoder(TINY_VQ, params), images)
        losses = []
        for _ in range(60):
            losses.append(float(jitted_loss(params, images)[0]))
            grads = jitted_grad(params, images)
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        assert np.mean(losses[-5:]) < 0.7 * losses[0]

    def test_latent_scale_is_that_of_unquantised_latents(self):
        autoencoder, images = tiny_vq(), smooth_images(2, 16, 16)
        mean, _ = autoencoder.encode(images)
        expected = 1 / float(np.std(mean))
        assert latent_scale(autoencoder, images) == pytest.approx(expected, rel=1e-4)


class TestOwnFiles:
    def test_round_trip(self, tmp_path):
        save_autoencoder(tmp_path / "saved", SMALL_VQ, small_vq().params)
        loaded = load_autoencoder(tmp_path / "saved")
        assert loaded.config == SMALL_VQ
        np.testing.assert_array_equal(
            loaded.decode(some_latents()), small_vq().decode(some_latents())
        )
        assert loaded.checksum() == small_vq().checksum() != small_vq(seed=1).checksum()

    def test_folders_from_before_there_were_codebooks_load(self, tmp_path):
        params = random_params(SMALL_KL)
        save_autoencoder(tmp_path / "old", SMALL_KL, params)
        file = tmp_path / "old/config.json"
        fields = json.loads(file.read_text())
        assert fields.pop("codebook") == 0
        file.write_text(json.dumps(fields))
        old = load_autoencoder(tmp_path / "old")
        assert old.config == SMALL_KL
        # Caches of latents name their autoencoder by this.
        sizes = {k: v for k, v in fields.items() if k not in ("model", "scaling_factor", "dtype")}
        both = json.dumps([sizes, tree_checksum(params)], sort_keys=True)
        assert old.checksum() == hashlib.sha256(both.encode()).hexdigest()


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("vq")


def tensors_of(golden, name):
    return golden_tensors(golden, recipe, f"{name}/")


def assert_equals_diffusers(autoencoder, golden, name):
    encoded, _ = autoencoder.encode(recipe.images())
    decoded = autoencoder.decode(recipe.latents())
    for key, actual in (("encoded", encoded), ("decoded", decoded)):
        expected = golden[f"{name}/{key}"]
        assert np.abs(np.asarray(actual) - expected).max() < 1e-5 * np.abs(expected).max(), key
    for key, z in (("encoded", encoded), ("latent", recipe.latents())):
        np.testing.assert_array_equal(autoencoder.quantise(z)[1], golden[f"{name}/{key}_indices"])


class TestPublished:
    @pytest.mark.parametrize("name", recipe.ATTENTION)
    @pytest.mark.parametrize("naming", ["diffusers", "compvis", "ldm"])
    def test_every_naming_equals_diffusers(self, name, naming, golden, tmp_path):
        tensors = tensors_of(golden, name)
        if naming == "compvis":
            tensors = as_compvis(tensors, levels=3)
            tensors["loss.discriminator.main.0.bias"] = np.zeros(4)
        elif naming == "ldm":
            tensors = as_compvis(tensors, levels=3, prefix="first_stage_model.")
            tensors["model.diffusion_model.out.2.weight"] = np.zeros((1, 1), np.float32)
        folder = write_folder(tmp_path, recipe.config_fields(name), tensors)
        autoencoder = load_autoencoder(folder)
        assert autoencoder.config.mid_attention == recipe.ATTENTION[name]
        assert autoencoder.config.codebook == recipe.ENTRIES
        assert_equals_diffusers(autoencoder, golden, name)

    @pytest.mark.parametrize("mid_attention", [True, False])
    @pytest.mark.parametrize("prefix", ["", "first_stage_model."])
    def test_sizes_of_a_lone_file_are_read_off_its_names(self, mid_attention, prefix, tmp_path):
        config = AutoencoderConfig(
            block_channels=(32, 32, 64), layers_per_block=1, latent_channels=3, codebook=7,
            mid_attention=mid_attention, scaling_factor=1.0,
        )  # fmt: skip
        params = random_params(config)
        save_diffusers(tmp_path / "folder", config, params)
        written = load_autoencoder(tmp_path / "folder")
        save_file(
            as_compvis(load_file(tmp_path / "folder" / WEIGHTS), levels=3, prefix=prefix),
            tmp_path / "lone.safetensors",
        )
        lone = load_autoencoder(tmp_path / "lone.safetensors")
        assert lone.config == written.config == config
        for autoencoder in (lone, written):
            jax.tree.map(np.testing.assert_array_equal, autoencoder.params, params)

    def test_the_scaling_factor(self, golden, tmp_path):
        fields, tensors = recipe.config_fields("noattn"), tensors_of(golden, "noattn")
        del fields["scaling_factor"]
        folder = write_folder(tmp_path, fields, tensors)
        assert load_autoencoder(folder).scaling_factor == 1.0
        assert load_autoencoder(folder, scaling_factor=0.5).scaling_factor == 0.5
        write_folder(tmp_path, fields | {"scaling_factor": 0.25}, tensors)
        assert load_autoencoder(folder).scaling_factor == 0.25

    def test_what_differs_is_listed(self, golden, tmp_path):
        tensors = tensors_of(golden, "noattn")
        tensors["quantize.embedding.weight"] = np.zeros((recipe.ENTRIES, 4), np.float32)
        folder = write_folder(tmp_path, recipe.config_fields("attention"), tensors)
        with pytest.raises(InputError) as caught:
            load_autoencoder(folder)
        for phrase in (
            "missing: decoder.mid_block.attentions.0.group_norm.bias",
            "quantize.embedding.weight (40, 4) instead of (40, 3)",
        ):
            assert phrase in str(caught.value)
        del tensors["quantize.embedding.weight"]
        write_folder(tmp_path, recipe.config_fields("noattn"), tensors)
        with pytest.raises(InputError, match=r"missing: quantize\.embedding\.weight;"):
            load_autoencoder(folder)

    @pytest.mark.parametrize(
        ("changes", "phrase"),
        [
            ({"_class_name": "MoVQ"}, "describes a MoVQ: give the folder of an AutoencoderKL or a"),
            ({"vq_embed_dim": 4}, "vq_embed_dim = 4, but this package's"),
            ({"norm_type": "spatial"}, "norm_type = 'spatial', but this package's"),
            ({"lookup_from_codebook": True}, "lookup_from_codebook = True"),
            ({"num_vq_embeddings": "many"}, "codebook is 'many', which is not of type int"),
            ({"num_vq_embeddings": None}, "codebook is None, which is not of type int"),
        ],
    )
    def test_a_config_that_cannot_be(self, changes, phrase, golden, tmp_path):
        fields = recipe.config_fields("noattn") | changes
        with pytest.raises(InputError) as caught:
            load_autoencoder(write_folder(tmp_path, fields, tensors_of(golden, "noattn")))
        assert phrase in str(caught.value)

    def test_a_config_without_its_codebook(self, golden, tmp_path):
        fields = recipe.config_fields("noattn")
        del fields["num_vq_embeddings"]
        with pytest.raises(InputError, match=r"config\.json lacks num_vq_embeddings"):
            load_autoencoder(write_folder(tmp_path, fields, tensors_of(golden, "noattn")))

    def test_exports_name_the_class(self, tmp_path):
        save_diffusers(tmp_path / "out", SMALL_VQ, small_vq().params)
        assert json.loads((tmp_path / "out/config.json").read_text()) == {
            "_class_name": "VQModel",
            "act_fn": "silu",
            "block_out_channels": [8, 16],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "in_channels": 3,
            "latent_channels": 3,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "num_vq_embeddings": 20,
            "out_channels": 3,
            "scaling_factor": 1.0,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        }
        loaded = load_autoencoder(tmp_path / "out")
        assert loaded.config == SMALL_VQ
        jax.tree.map(np.testing.assert_array_equal, loaded.params, small_vq().params)
        with pytest.raises(InputError, match="diffusers' VQModel has no fold and no linear_skip"):
            save_diffusers(tmp_path / "tiny", TINY_VQ, random_params(TINY_VQ))
