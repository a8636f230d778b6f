"""The first stage's perceptual loss: its value, its gradient, its files, and runs that use it."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sisma_jax import train_autoencoder
from sisma_jax.common.config import load_config, to_json
from sisma_jax.common.errors import InputError
from sisma_jax.data import synthetic
from sisma_jax.models.autoencoder import (
    AutoencoderConfig,
    AutoencoderKL,
    load_autoencoder,
    sample_latent,
    to_float,
)
from sisma_jax.models.autoencoder.training import perceptual_distance, posterior_noise
from sisma_jax.models.judges.backbones import ALEXNET, VGG16
from sisma_jax.models.judges.lpips import is_linear, load_lpips, published_shapes
from sisma_jax.runs.folder import RunFolder
from sisma_jax.train_autoencoder import LossConfig
from sisma_jax.training import auxiliary
from tests.autoencoders import random_params
from tests.golden import judges_recipe as recipe
from tests.tiny_runs import CONFIGS, call

LEVELS = 2
"""Compared levels; the stand-in's deeper ones are zero, since they are read but not computed."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Stand-ins for the files of VGG-16 (vgg, and linear for LPIPS) and of AlexNet."""
    folder = tmp_path_factory.mktemp("weights")
    shapes = published_shapes(VGG16)
    deep = published_shapes(VGG16).keys() - published_shapes(VGG16.first(LEVELS)).keys()
    tensors = {
        name: np.zeros(shape, np.float32) if name in deep else recipe.tensor(name, shape)
        for name, shape in shapes.items()
    }
    save_file({k: v for k, v in tensors.items() if not is_linear(k)}, folder / "vgg.safetensors")
    save_file({k: v for k, v in tensors.items() if is_linear(k)}, folder / "linear.safetensors")
    for name, linear in (("alex", False), ("alex-linear", True)):
        zeros = {
            k: np.zeros(shape, np.float32)
            for k, shape in published_shapes(ALEXNET).items()
            if is_linear(k) == linear
        }
        save_file(zeros, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def lpips(weights):
    files = weights / "vgg.safetensors", weights / "linear.safetensors"
    return load_lpips(*files, backbones=(VGG16,), levels=LEVELS)


@pytest.mark.parametrize("codebook", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_the_loss_has_the_weighted_distance_of_the_reconstructions(codebook, lpips, key):
    config = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4, codebook=codebook)
    module, random = AutoencoderKL(config), np.random.default_rng(0)
    pictures = jnp.asarray(random.integers(0, 256, (2, 8, 8, 3)), jnp.uint8)
    images = to_float(pictures)
    noise = posterior_noise(config, key, images)
    params = random_params(config)

    def loss_of(params, weight, network):
        settings = LossConfig(kl_weight=0.1, commitment=0.1, perceptual_weight=weight,
            perceptual_network="of the test" if weight else "")  # fmt: skip
        batch = {"image": pictures, "noise": noise}
        return train_autoencoder.batch_loss(module, settings, 3, params, batch, network)

    def perceptual(params, network):
        loss, metrics = loss_of(params, 0.5, network)
        return metrics["perceptual"], (loss, metrics)

    @jax.jit
    def losses(params, network):
        with_network = jax.value_and_grad(perceptual, has_aux=True)(params, network)
        return loss_of(params, 0.0, None), with_network

    (plain, without), ((_, (loss, metrics)), gradient) = losses(params, lpips)
    assert metrics.keys() - without.keys() == {"perceptual"}
    np.testing.assert_allclose(loss - plain, 0.5 * metrics["perceptual"], rtol=1e-4)
    z, logvar = module.apply({"params": params}, images, method="encode")
    if codebook:
        z = module.apply({"params": params}, z, method="quantise")[0]
        decoded = module.apply({"params": params}, z, method="decode_entries")
    else:
        z = sample_latent(noise, z, logvar, scaling_factor=1.0)
        decoded = module.apply({"params": params}, z, method="decode")
    expected = np.mean(lpips.distance(decoded, images))
    np.testing.assert_allclose(metrics["perceptual"], expected, rtol=1e-4)
    for part in "encoder", "decoder":
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient[part]))
        assert 1e-4 < largest < np.inf, f"no gradient to the {part}"


def test_the_gradient_is_that_of_the_distance_and_only_the_reconstructions(lpips):
    a, b = (to_float(recipe.pictures(name, (8, 8))) for name in "ab")
    value, (to_a, to_b) = jax.value_and_grad(
        lambda a, b: perceptual_distance(lpips, a, b), argnums=(0, 1)
    )(a, b)
    direct = jax.grad(lambda a: jnp.mean(lpips.distance(a, b)))(a)
    np.testing.assert_allclose(value, np.mean(lpips.distance(a, b)), rtol=1e-5)
    np.testing.assert_allclose(to_a, direct, atol=1e-5 * np.abs(direct).max())
    assert np.abs(direct).max() > 0 and not np.any(to_b)
    # Along the gradient the distance changes by as much as the gradient says.
    step = 1e-3 * to_a / jnp.linalg.norm(to_a)
    change = perceptual_distance(lpips, a + step, b) - perceptual_distance(lpips, a - step, b)
    np.testing.assert_allclose(change, 2e-3 * jnp.linalg.norm(to_a), rtol=0.02)


def run(inputs_folder, workdir, **overrides):
    """Train a tiny first stage of 16 pixels with the perceptual loss."""
    settings = {
        "data.path": inputs_folder / "data",
        "data.size": 16,
        "data.test_from": 12,
        "autoencoder.block_channels": "(8,)",
        "autoencoder.norm_groups": 4,
        "autoencoder.linear_skip": False,
        "train.steps": 2,
        "train.warmup": 1,
        "train.optimizer": "adamw",
        "train.schedule": "constant",
        "train.log_every": 2,
        "checkpoint.every": 2,
        "loss.perceptual_weight": 0.5,
        "loss.perceptual_levels": LEVELS,
    } | {key.replace("__", "."): value for key, value in overrides.items()}
    call(
        train_autoencoder.main,
        f"--config={CONFIGS / 'autoencoder.py'}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    )


def test_a_run_belongs_to_the_weights_of_its_loss(
    inputs_folder, weights, lpips, tmp_path, monkeypatch, capsys
):
    tasks = []

    def stopped_at_once(*, task, **_):
        tasks.append(task)
        return SimpleNamespace(step=0)

    monkeypatch.setattr(auxiliary, "train", stopped_at_once)
    vgg, moved, other = (tmp_path / f"{name}.safetensors" for name in ("vgg", "moved", "other"))
    shutil.copy(weights / "vgg.safetensors", vgg)
    tensors = load_file(vgg)
    save_file(tensors | {"features.2.bias": tensors["features.2.bias"] + 0.01}, other)
    folder, linear = tmp_path / "run", weights / "linear.safetensors"
    begin = partial(run, inputs_folder, folder, loss__perceptual_linear=linear)

    begin(loss__perceptual_network=vgg)
    (network,) = tasks[0].constants
    jax.tree.map(np.testing.assert_array_equal, network, lpips)
    params = jax.eval_shape(tasks[0].trainable.init_params)
    batch = {"image": jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.uint8)}
    batch |= jax.eval_shape(tasks[0].trainable.draw, jax.random.key(0), batch)
    _, metrics = jax.eval_shape(tasks[0].trainable.loss_fn, params, batch, network)
    assert metrics.keys() == {"kl", "reconstruction", "psnr", "perceptual"}

    (folder / "checkpoints" / "1").mkdir(parents=True)  # without a step the run begins anew
    vgg.rename(moved)
    refused = r"trained with other weights of the perceptual loss \(\w{8}\) than .* original files"
    with pytest.raises(InputError, match=refused):
        begin(loss__perceptual_network=other)
    with pytest.raises(InputError, match=refused):
        begin(loss__perceptual_network=moved, loss__perceptual_linear="")
    with pytest.raises(InputError, match=r"perceptual_weight = 0\.5, but this run has 0\.25"):
        begin(loss__perceptual_network=moved, loss__perceptual_weight=0.25)
    assert len(tasks) == 1
    begin(loss__perceptual_network=moved)
    assert len(tasks) == 2
    assert "changed in this run: loss.perceptual_network from" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_weights(inputs_folder, weights, tmp_path, capsys):
    settings = {
        "loss__perceptual_network": weights / "vgg.safetensors",
        "loss__perceptual_linear": weights / "linear.safetensors",
        "train__accumulate": 2,
        "mesh__fsdp": 2,
    }
    run(inputs_folder, tmp_path / "whole", train__steps=4, **settings)
    for steps in (2, 4, 4):  # the last time it is finished
        run(inputs_folder, tmp_path / "parts", train__steps=steps, **settings)
    assert capsys.readouterr().out.count("step 4: PSNR") == 3
    whole, parts = (load_autoencoder(tmp_path / name).params for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    lines = (tmp_path / "parts/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        sum_of_parts = row["reconstruction"] + 0.005 * row["kl"] + 0.5 * row["perceptual"]
        np.testing.assert_allclose(row["loss"], sum_of_parts, rtol=1e-4)
    assert "features_0" not in (tmp_path / "parts/parameters.txt").read_text()


def test_older_runs_continue_without_it_only(tmp_path):
    config = load_config("autoencoder")
    older = config.copy_and_resolve_references()
    for key in [key for key in older.loss if key.startswith(("perceptual", "adversarial"))]:
        del older.loss[key]
    del older.discriminator
    assert len(older.loss) == 3
    run = RunFolder(tmp_path)
    run.config_file.write_text(to_json(older))
    (run.checkpoints / "1").mkdir(parents=True)
    run.check(config)
    config.loss.perceptual_weight = 0.5
    with pytest.raises(InputError, match=r"_weight, which was always 0\.0, but this run has 0\.5"):
        run.check(config)


NETWORK = {"perceptual_weight": 0.5, "perceptual_network": "vgg.safetensors"}
LINEAR = NETWORK | {"perceptual_linear": "linear.safetensors"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perceptual_weight": -0.5}, "loss.perceptual_weight is -0.5: set 0 or more"),
        ({"perceptual_levels": 0}, "loss.perceptual_levels is 0: VGG-16 .* choose 1 to 5"),
        ({"perceptual_levels": 6}, "loss.perceptual_levels is 6: VGG-16 .* choose 1 to 5"),
        (
            {"perceptual_weight": 0.5},
            r"weight is 0.5, but loss.perceptual_network is empty: give the path of .*vgg16-",
        ),
        (
            {"perceptual_network": "vgg.safetensors"},
            "network is 'vgg.safetensors', which loss.perceptual_weight 0 does not use: set a",
        ),
        ({"perceptual_linear": "x"}, "linear is 'x', which loss.perceptual_weight 0 does not use"),
        ({"perceptual_levels": 3}, "levels is 3, which loss.perceptual_weight 0 does not use"),
        (
            NETWORK | {"perceptual_network": "nowhere.safetensors"},
            "loss.perceptual_network: there is no weight file nowhere.safetensors: check the path",
        ),
        (
            NETWORK | {"perceptual_network": "vgg.pth"},
            "loss.perceptual_network: vgg.pth is a pickled file.* convert it once",
        ),
        (
            NETWORK | {"perceptual_network": "gs://bucket/vgg.safetensors"},
            "loss.perceptual_network: gs://bucket/vgg.safetensors is an address",
        ),
        (
            NETWORK | {"perceptual_network": "alex.safetensors"},
            "alex.safetensors does not hold torchvision's VGG-16 in float32.*convert vgg16-",
        ),
        (
            NETWORK | {"perceptual_network": "narrow.safetensors"},
            "narrow.safetensors does not hold torchvision's VGG-16 in float32.*convert vgg16-",
        ),
        (
            LINEAR | {"perceptual_linear": "alex-linear.safetensors"},
            "loss.perceptual_network or loss.perceptual_linear: alex-linear.safetensors does not "
            "hold LPIPS' weights for VGG-16 but .* convert weights/v0.1/vgg.pth of",
        ),
        (
            LINEAR | {"perceptual_linear": "vgg.safetensors"},
            "vgg.safetensors does not hold LPIPS' weights for VGG-16 but features",
        ),
        (
            LINEAR | {"perceptual_linear": "negative.safetensors"},
            "negative.safetensors holds negative weights",
        ),
    ],
)  # fmt: skip
def test_settings_and_files_that_do_not_fit_are_refused(
    settings, message, weights, tmp_path, monkeypatch
):
    for file in weights.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "vgg.pth").write_bytes(b"")
    narrow = load_file(weights / "alex.safetensors") | {"features.0.bias": np.zeros(3, np.float32)}
    save_file(narrow, tmp_path / "narrow.safetensors")
    linear = load_file(weights / "linear.safetensors")
    linear["lin4.model.1.weight"][0, 7] = -0.1
    save_file(linear, tmp_path / "negative.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        LossConfig(kl_weight=0.1, commitment=0.2, **settings).network(64)


def test_images_that_the_levels_shrink_to_nothing_are_refused(weights):
    settings = dict(NETWORK, perceptual_network=str(weights / "vgg.safetensors"))
    for levels, smallest in ((5, 16), (2, 2)):
        loss = LossConfig(kl_weight=0.1, commitment=0.2, perceptual_levels=levels, **settings)
        assert len(loss.network(smallest).backbone.levels) == levels
        message = (
            f"data.size is {smallest - 1}, but loss.perceptual_levels {levels} needs {smallest}"
        )
        with pytest.raises(InputError, match=message):
            loss.network(smallest - 1)


def test_a_missing_network_is_told_before_faces_are_made(inputs_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "write_dataset", lambda *_, **__: pytest.fail("faces"))
    with pytest.raises(InputError, match=r"^loss\.perceptual_network: there is no weight file now"):
        run(
            inputs_folder, tmp_path / "run", data__path=tmp_path / "data",
            loss__perceptual_network="nowhere.safetensors",
        )  # fmt: skip
    assert not any(tmp_path.iterdir())
