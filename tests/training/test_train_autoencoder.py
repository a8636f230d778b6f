"""The first stage's command: what it exports, and when."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax import train_autoencoder
from sisma_jax.common.errors import InputError
from sisma_jax.data.input_pipeline import fixed_batch, open_dataset
from sisma_jax.models.autoencoder import (
    AutoencoderConfig,
    AutoencoderKL,
    load_autoencoder,
    sample_latent,
    to_float,
)
from sisma_jax.train_autoencoder import LossConfig
from tests.tiny_runs import CONFIGS, SIZE, call


def run(inputs_folder, workdir, variant="", **overrides):
    settings = {
        "data.path": inputs_folder / "data",
        "data.size": SIZE,
        "data.test_from": 12,
        "autoencoder.block_channels": "(8,)",
        "autoencoder.norm_groups": 4,
        "train.steps": 4,
        "train.warmup": 1,
        "train.schedule": "constant",
        "train.log_every": 2,
        "checkpoint.every": 2,
    } | {key.replace("__", "."): value for key, value in overrides.items()}
    call(
        train_autoencoder.main,
        f"--config={CONFIGS / 'autoencoder.py'}:{variant}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    )


def test_the_export_is_scaled_and_reconstructs_and_continues(inputs_folder, tmp_path, capsys):
    run(inputs_folder, tmp_path / "run")
    said = capsys.readouterr().out
    assert "on 4 test images" in said and "changed in this run" not in said
    autoencoder = load_autoencoder(tmp_path / "run")
    faces = fixed_batch(open_dataset(inputs_folder / "data", SIZE, split="all"), 12)["image"]
    images = to_float(faces)
    mean, _ = autoencoder.encode(images)
    np.testing.assert_allclose(np.std(mean * autoencoder.scaling_factor), 1, atol=0.1)
    # Starting from principal components, even four steps reconstruct well.
    error = np.mean((np.asarray(autoencoder.decode(mean)) - images) ** 2)
    assert 10 * np.log10(4 / error) > 18
    run(inputs_folder, tmp_path / "run", train__steps=6)
    assert "continuing" in capsys.readouterr().out
    before = (tmp_path / "run/autoencoder/config.json").stat().st_mtime_ns
    run(inputs_folder, tmp_path / "run", train__steps=6)
    assert "step 6: PSNR" in capsys.readouterr().out
    assert (tmp_path / "run/autoencoder/config.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_codebook_is_trained_and_its_usage_reported(inputs_folder, tmp_path, capsys):
    settings = {"autoencoder__codebook": 32, "train__steps": 2, "train__optimizer": "adamw"}
    run(inputs_folder, tmp_path / "run", "vq", **settings)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert 0.5 < report["codebook_usage"] <= 1
    assert f"they use {report['codebook_usage']:.1%} of the codebook" in capsys.readouterr().out
    autoencoder = load_autoencoder(tmp_path / "run")
    faces = fixed_batch(open_dataset(inputs_folder / "data", SIZE, split="all"), 16)["image"]
    mean, _ = autoencoder.encode(to_float(faces))
    used = np.unique(autoencoder.quantise(mean[12:])[1])
    assert len(used) == round(32 * report["codebook_usage"])
    np.testing.assert_allclose(np.std(mean * autoencoder.scaling_factor), 1, atol=0.1)


@pytest.mark.parametrize("codebook", [0, 8])
def test_the_error_of_the_reconstruction_has_the_weights_of_the_classes(codebook, key):
    config = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4, codebook=codebook)
    module, random = AutoencoderKL(config), np.random.default_rng(0)
    images = random.integers(0, 256, (2, 8, 8, 3), np.uint8)
    images[:, :, 0] = 255
    labels = np.where(np.arange(8) < 1, 1, 0).astype(np.uint8) * np.ones((2, 8, 1), np.uint8)
    batch = {"image": jnp.asarray(images), "labels": jnp.asarray(labels)}
    batch |= train_autoencoder.draw(config, key, batch)
    params = module.init(key, to_float(batch["image"]))["params"]

    def loss(balance):
        settings = LossConfig(kl_weight=0.1, commitment=0.2, class_balance=balance)
        return train_autoencoder.batch_loss(module, settings, 3, params, batch)

    (plain, metrics), (weighted, same) = loss(0.0), loss(1.0)
    # Of an eighth of the pixels that weighs as much as the rest: 4 and 4 / 7.
    weights = np.where(labels == 1, 4, 4 / 7)[..., None]
    latents = module.apply({"params": params}, to_float(batch["image"]), method="encode")[0]
    if codebook:
        latents = module.apply({"params": params}, latents, method="quantise")[0]
        decoded = module.apply({"params": params}, latents, method="decode_entries")
    else:
        mean, logvar = module.apply({"params": params}, to_float(batch["image"]), method="encode")
        z = sample_latent(batch["noise"], mean, logvar, scaling_factor=1.0)
        decoded = module.apply({"params": params}, z, method="decode")
    error = np.abs(np.asarray(decoded - to_float(batch["image"])))
    np.testing.assert_allclose(weighted - plain, np.mean((weights - 1) * error), rtol=1e-3)
    np.testing.assert_allclose(metrics["reconstruction"], np.mean(error), rtol=1e-5)
    assert metrics["reconstruction"] == same["reconstruction"]


@pytest.mark.parametrize("codebook", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_a_discriminator_judges_the_reconstructions_and_is_trained_on_them(
    codebook, inputs_folder, tmp_path
):
    settings = {
        "autoencoder__codebook": codebook,
        "loss__adversarial_weight": 0.5,
        "discriminator__channels": 4,
        "discriminator__layers": 2,
        "train__log_every": 1,
    }
    run(inputs_folder, tmp_path / "run", "vq" if codebook else "", train__steps=2, **settings)
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        total = row["reconstruction"] + 0.5 * row["adversarial"]
        if codebook:
            total += 1.25 * row["quantisation"]
        else:
            total += 0.005 * row["kl"]
        np.testing.assert_allclose(row["loss"], total, rtol=1e-4)
        sides = row["discriminator_fake"] + row["discriminator_real"]
        np.testing.assert_allclose(row["discriminator_loss"], sides, rtol=1e-4)
        assert row["discriminator_gradient_norm"] > 0
    assert "discriminator" not in (tmp_path / "run/parameters.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "codebook"), [("", 0), ("vq", 32)])
def test_small_parts_come_closer_where_they_weigh_more(variant, codebook, inputs_folder, tmp_path):
    settings = {"train__steps": 30, "autoencoder__codebook": codebook, "train__log_every": 30}
    faces = fixed_batch(open_dataset(inputs_folder / "data", SIZE, split="train"), 12)
    images, labels = to_float(faces["image"]), faces["labels"]
    share = np.mean(labels[..., None] == np.arange(19), (1, 2))
    small = np.take_along_axis(share, labels.reshape(12, -1).astype(int), 1) < 0.03

    def error(balance):
        """Mean absolute error of the pixels of small parts."""
        workdir = tmp_path / f"{balance}"
        run(inputs_folder, workdir, variant, loss__class_balance=balance, **settings)
        autoencoder = load_autoencoder(workdir)
        latents = autoencoder.encode(images)[0]
        if codebook:
            latents = autoencoder.quantise(latents)[0]
        decoded = np.asarray(autoencoder.decode(latents))
        return np.abs(decoded - images).mean(-1).reshape(12, -1)[small].mean()

    assert error(1.0) < 0.97 * error(0.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__size": 30}, "data.size 30 is not a multiple of the autoencoder's factor 4"),
        ({"data__size": 8}, "data.size is 8, but SSIM needs 11 pixels"),
        ({"autoencoder__norm_groups": 3}, "autoencoder.norm_groups 3 does not divide"),
        ({"train__batch_size": 6}, "6 is not divisible by the 4 devices"),
        (
            {"data__size": 0},
            "data.size is 0: choose a multiple of the autoencoder's factor 4 above",
        ),
        ({"autoencoder__image_channels": 1}, "image_channels is 1, but faces have 3: set it to 3"),
        ({"discriminator__scales": 0}, "discriminator.scales is 0: set 1 or more"),
        (
            {"loss__adversarial_weight": 0.5, "discriminator__layers": 6},
            "layers 6 halve images 6 times, but those of data.size 32 can be halved 5 times",
        ),
        ({"autoencoder__dtype": "auto"}, "dtype is 'auto', .* choose 'float32' or 'bfloat16'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    overrides, message, inputs_folder, tmp_path
):
    with pytest.raises(InputError, match=message):
        run(inputs_folder, tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_weight": -1.0}, "loss.kl_weight is -1"),
        ({"commitment": -1.0}, "loss.commitment is -1"),
        ({"class_balance": 2.0}, r"loss.class_balance is 2.0: choose a share in \[0, 1\]"),
    ],
)
def test_wrong_weights_of_the_loss_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LossConfig(**{"kl_weight": 0.1, "commitment": 0.2} | settings)
