"""CA2-SIS's training: the authors' losses, both stages, parts of a batch, runs and their errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.config import load_config
from sisma_jax.common.errors import InputError
from sisma_jax.devices import sharding
from sisma_jax.devices.sharding import MeshConfig, make_mesh, put_batch
from sisma_jax.models.ca2sis import CA2SISConfig, from_torch
from sisma_jax.models.ca2sis import discriminator as published
from sisma_jax.models.generators import model_config, parameter_shapes
from sisma_jax.runs.checkpoint import abstract_like, averaged_weights
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import OpponentState
from sisma_jax.training.adversarial import DiscriminatorSection
from sisma_jax.training.ca2sis.objective import (
    LossSection,
    own_attention,
    trainable_ca2sis,
)
from sisma_jax.training.program import assemble
from sisma_jax.training.state import init_state, make_step
from tests import tiny_runs
from tests.golden import ca2sis_recipe as recipe
from tests.training import toy
from tests.training.test_adversarial import golden, network  # noqa: F401  fixtures

SMALLEST = {
    "mask_size": 16,
    "grid": 8,
    "stem_width": 4,
    "widths": (4, 4),
    "attention_sizes": (8,),
    "heads": 1,
    "head_width": 4,
    "last_heads": 1,
    "last_head_width": 4,
    "norm_groups": 2,
    "style_channels": 1,
    "style_levels": 1,
    "style_features": 3,
    "noise_width": 2,
    "mapping_width": 4,
    "remat": "none",
}
"""Pictures of 16 pixels."""
CONFIG = CA2SISConfig(**SMALLEST)
DISCRIMINATOR = DiscriminatorSection(channels=4, layers=2, scales=1)
SETTINGS = {"schedule": "linear", "betas": (0.0, 0.9), "steps": 4}


def batch(count=4):
    random = np.random.default_rng(0)
    return {
        "image": jnp.asarray(random.integers(0, 256, (count, 16, 16, 3)), jnp.uint8),
        "labels": jnp.asarray(random.integers(0, 19, (count, 16, 16)), jnp.uint8),
    }


def stepper(loss=LossSection(perceptual=0.0), **changes):  # noqa: B008  a constant
    config = toy.settings(**SETTINGS | changes)
    one = trainable_ca2sis(CONFIG, DISCRIMINATOR, loss, config, seed=0)
    step = make_step(one.loss_fn, one.draw, one.optimizer, config, 0, one.opponents)
    step = jax.jit(step)

    def call(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return step(*arguments)

    return call, init_state(one.init_params(), one.optimizer, one.opponents)


def test_the_losses_of_a_step_are_those_of_the_authors_code(golden, network, monkeypatch):  # noqa: F811
    # The authors' pictures are not whole numbers of grey levels.
    monkeypatch.setattr("sisma_jax.training.ca2sis.objective.to_float", lambda images: images)
    config = CA2SISConfig.tiny()
    one = trainable_ca2sis(
        config, DiscriminatorSection(channels=8), LossSection(), toy.settings(), seed=0
    )
    params = from_torch(recipe.tensors(golden, "netG."), config)
    of = published.from_torch(
        recipe.tensors(golden, "netD."), DiscriminatorSection(channels=8).network(5)
    )
    batch = {"image": jnp.asarray(recipe.images()), "labels": jnp.asarray(golden["tiny/label"])}
    opponent = one.opponents["discriminator"]
    state = opponent.advanced(OpponentState(of["params"], of["spectral"], None))
    with jax.numpy_dtype_promotion("standard"):
        total, terms = jax.jit(one.loss_fn)(params, batch, {"discriminator": state}, network)
        against, parts = jax.jit(opponent.loss_fn)(state.params, batch, state.variables, params)
    expected = {name: golden[f"tiny/loss/{name}"] for name in ("G_total", "D_Fake", "D_real")}
    np.testing.assert_allclose(total, expected["G_total"], rtol=5e-6)
    np.testing.assert_allclose(terms["attention"], golden["tiny/att_loss"], rtol=5e-6)
    np.testing.assert_allclose(parts["discriminator_fake"], expected["D_Fake"], rtol=5e-6)
    np.testing.assert_allclose(against, expected["D_Fake"] + expected["D_real"], rtol=5e-6)


def test_a_step_in_parts_is_that_of_the_whole_batch():
    (whole, state), (parts, _) = stepper(), stepper(accumulate=2)
    (one, metrics), (other, of_parts) = whole(state, batch()), parts(state, batch())
    for name in metrics:
        np.testing.assert_allclose(metrics[name], of_parts[name], rtol=2e-4, err_msg=name)
    # Adam's first step is the sign of the gradient, so the averages of the gradients are compared.
    averages = lambda state: (state.opt_state, state.opponents["discriminator"].opt_state)
    compared = 0
    for a, b in zip(*(jax.tree.leaves(averages(x)) for x in (one, other)), strict=True):
        if np.abs(a).max() > 1e-8:  # others are rounding errors of zero, as before a norm
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max())
            compared += 1
    assert compared > 100
    norms = "gradient_norm", "discriminator_gradient_norm"
    assert all(metrics[name] > 0 for name in norms)


@pytest.mark.slow
def test_a_step_on_sharded_parameters_is_that_of_one_device(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 1)
    config = toy.settings(**SETTINGS)
    one = trainable_ca2sis(CONFIG, DISCRIMINATOR, LossSection(perceptual=0.0), config, seed=0)
    found = []
    for count in (1, 2):
        mesh = make_mesh(MeshConfig(data=1, fsdp=count), jax.devices()[:count])
        program = assemble(one, config=config, seed=0, mesh=mesh)
        with jax.numpy_dtype_promotion("standard"):
            state, metrics = program.step(
                program.init(), put_batch(jax.tree.map(np.asarray, batch()), mesh)
            )
        found.append({name: float(x) for name, x in metrics.items()})
    placed = jax.tree.leaves((state.params, state.opponents))
    assert sum(not x.sharding.is_fully_replicated for x in placed) > 100
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-4, err_msg=name)


def test_random_styles_train_the_mapping_network_alone():
    loss = LossSection(perceptual=0.0, styles="random", diversity=1.0)
    step, state = stepper(loss)
    # New transformers end in zeros, so that styles would have no effect.
    state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
    new, metrics = step(state, batch())
    for part, before in state.params.items():
        same = all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(new.params[part]), strict=True)
        )
        assert same == (part != "mapping"), part
    assert metrics["diversity"] > 0
    assert not {"reconstruction", "feature_matching"} & metrics.keys()
    np.testing.assert_allclose(
        metrics["loss"],
        metrics["adversarial"] + metrics["attention"] - metrics["diversity"],
        rtol=1e-5,
    )


def test_terms_of_weight_zero_are_not_computed():
    weights = {"perceptual": 0.0, "attention": 0.0, "adversarial": 0.0, "reconstruction": 2.0}
    step, state = stepper(LossSection(**weights))
    _, metrics = step(state, batch())
    assert not {"attention", "perceptual", "adversarial"} & metrics.keys()
    np.testing.assert_allclose(
        metrics["loss"],
        0.0 + 10 * metrics["feature_matching"] + 2 * metrics["reconstruction"],
        rtol=1e-5,
    )


def test_the_small_variants_have_the_parameters_that_their_config_states():
    text = (tiny_runs.CONFIGS / "ca2sis.py").read_text("utf-8")
    for variant in ("synthetic", "64"):
        shapes = parameter_shapes(model_config(load_config(f"ca2sis:{variant}")))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert re.search(rf"{variant} +{count / 1e6:.1f} M ", text), count


def test_own_attention_is_the_mean_share_of_a_pixels_own_class():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [255, 255, 2, 2], [255, 255, 2, 2]], np.uint8)
    logits = jnp.log(jnp.asarray([0.5, 0.25, 0.25]))  # at all pixels, those of no class left out
    logits = jnp.broadcast_to(logits, (1, 2, 2, 3))
    np.testing.assert_allclose(
        own_attention([logits], jnp.asarray(labels)[None]), (0.5 + 0.25 + 0.25) / 3, rtol=1e-6
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ca2sis")
    tiny_runs.write_inputs(folder)
    return folder


def run(inputs, workdir, **overrides):
    """Train through the command; `write_inputs` writes faces of 32 pixels."""
    settings = {f"model.{name}": value for name, value in SMALLEST.items()}
    settings |= {
        "model.grid": 16,
        "model.mask_size": 32,
        "model.attention_sizes": (16,),
        "data.path": inputs / "data",
        "data.size": tiny_runs.SIZE,
        "data.test_from": 12,
        "data.synthetic_count": 0,
        "discriminator.channels": 4,
        "discriminator.layers": 2,
        "discriminator.scales": 1,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.log_every": 1,
        "train.sample_every": 100,
        "samples.masks": 2,
        "evaluation.every": 2,
        "evaluation.items": 3,
        "checkpoint.every": 2,
    } | {name.replace("__", "."): value for name, value in overrides.items()}
    tiny_runs.call(
        tiny_runs.train.main,
        f"--config={tiny_runs.CONFIGS / 'ca2sis.py'}:synthetic",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    )


def averaged(workdir):
    folder = RunFolder(workdir)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = parameter_shapes(model_config(folder.config()))
    return averaged_weights(folder, abstract_like(shapes, jax.tree.map(lambda _: here, shapes)))


CONSTANT = {"train.schedule": "constant"}


@pytest.fixture(scope="module")
def whole_run(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(inputs, workdir, **CONSTANT)
    return workdir


def test_a_run_continues_to_the_bit(inputs, tmp_path, capsys, whole_run):
    rows = (whole_run / "metrics.jsonl").read_text()
    for name in ("discriminator_loss", "discriminator_gradient_norm", "saturated", "test_ssim"):
        assert name in rows, name
    for steps in (2, 4):
        run(inputs, tmp_path / "stopped", **CONSTANT, train__steps=steps)
    assert "no perceptual term" in capsys.readouterr().out
    (step, one), (_, other) = averaged(whole_run), averaged(tmp_path / "stopped")
    assert step == 4
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_random_styles_follow_on_a_finished_run(inputs, tmp_path, whole_run):
    _, one = averaged(whole_run)
    second = {"loss.styles": "random", "train.init_from": whole_run}
    run(inputs, tmp_path / "random", **second, train__steps=1, evaluation__every=0)
    _, random = averaged(tmp_path / "random")
    kernels = (params["decoder"]["conv_in"]["kernel"] for params in (random, one))
    np.testing.assert_allclose(*kernels, rtol=1e-6)  # an average of equal weights is rounded
    assert list((tmp_path / "random" / "samples").glob("*.png"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.size": 64}, "draw 32 pixels"),
        ({"loss.styles": "random"}, "--config.train.init_from"),
        ({"loss.styles": "all"}, "loss.styles"),
        ({"loss.diversity": 1.0}, "loss.diversity is 1.0"),
        (
            {"model.widths": (8, 8, 8)},
            "data.size is 32, but model.grid 16 and the 3 stages of model.widths draw 64 pixels",
        ),
        ({"data.size": 0}, "data.size is 0, but model.grid 16 and the 2 stages"),
        (
            {f"loss.{x}": 0.0 for x in ("adversarial", "feature_matching", "attention")}
            | {"loss.reconstruction": 0.0},
            "no loss, since loss.adversarial, .* are all 0 and loss.perceptual_network is empty",
        ),
        (
            {"loss.styles": "random", "loss.adversarial": 0.0, "loss.attention": 0.0},
            "loss.diversity are all 0 with loss.styles 'random': set one of them above 0",
        ),
        (
            {"discriminator.scales": 5},
            "scales 5 and discriminator.layers 2 halve images 6 times, but those of data.size 32 "
            "can be halved 5 times",
        ),
        ({"loss.attention": -1.0}, "loss.attention"),
        ({"discriminator.learning_rate": 0.0}, "discriminator.learning_rate is 0.0"),
        ({"loss.perceptual_network": "vgg19.pth"}, "loss.perceptual_network"),
        ({"flow.drop": 0.1}, "flow"),
        (
            {"loss.perceptual_network": "vgg19.safetensors", "loss.perceptual": 0.0},
            "loss.perceptual_network is 'vgg19.safetensors', which loss.perceptual 0 does not use",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(inputs, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        run(inputs, tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()
