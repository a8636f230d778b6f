"""SISMA with a style: where a class's token can reach, and what stays as it was."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.cost.by_hand import macs, mask_macs, style_macs, velocity_macs
from sisma_jax.models.cost.by_xla import xla_macs
from sisma_jax.models.layers.style_encoder import class_shares
from sisma_jax.models.sisma.model import init_params, matrix_axes
from sisma_jax.models.sisma.style_mixers import StyleAttention

STYLED = ("attention", "full_attention", "mamba")
FIRST_STYLE = [STYLED[0], *(pytest.param(style, marks=pytest.mark.slow) for style in STYLED[1:])]
"""The others among the slow tests."""
SIZES = dict(
    latent_size=4, factor=4, num_classes=3, patch=1, width=16, depth=2, state=2, mask_channels=8,
    attention_head=8, style_channels=2, style_levels=2, style_features=4,
)  # fmt: skip


def config(style="attention", **changes):
    return SISMAConfig.tiny(**(SIZES | dict(style=style) | changes))


@cache
def init(config):
    return jax.jit(partial(init_params, config))(jax.random.key(0))


def randomised(params):
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.2 * random.normal(size=x.shape).astype(x.dtype), params)


def inputs(batch=2):
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, (batch, 8, 8), np.uint8).repeat(2, 1).repeat(2, 2)
    z = random.normal(size=(batch, 4, 4, 4)).astype(np.float32)
    images = random.uniform(-1, 1, (batch, 16, 16, 3)).astype(np.float32)
    return tuple(map(jnp.asarray, (z, np.linspace(0.2, 0.8, batch, dtype="f"), labels, images)))


def mixed(masked, labels):
    """The attention's output as a function of the style tokens."""
    module = StyleAttention(width=8, head=4, masked=masked, dtype="float32")
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.normal(size=(1, 16, 8)), jnp.float32)
    style = jnp.asarray(random.normal(size=(1, 3, 6)), jnp.float32)
    shares = class_shares(jnp.asarray(labels), (4, 4), 3)

    def both(module, style):
        return module(tokens, module.style_stream(style, shares))

    params = module.init(jax.random.key(0), style, method=both)
    return (lambda style: module.apply(params, style, method=both)), style


def test_a_token_has_no_gradient_to_classes_that_its_cell_does_not_show():
    labels = np.zeros((1, 16, 16), np.uint8)
    labels[:, :, 8:] = 1
    labels[:, 0, 15] = 2  # one pixel of the last cell of the first row
    attend, style = mixed(True, labels)
    reach = np.abs(jax.jacobian(attend)(style)).max((2, 3, 5))[0]  # (token, class)
    assert (reach[[0, 1, 4, 5]][:, 1:] == 0).all() and (reach[[0, 1, 4, 5], 0] > 0).all()
    assert (reach[[2, 6, 7]][:, [0, 2]] == 0).all() and (reach[[2, 6, 7], 1] > 0).all()
    assert reach[3, 0] == 0 and reach[3, 1] > 0 and reach[3, 2] > 0
    attend, style = mixed(False, labels)
    assert (np.abs(jax.jacobian(attend)(style)).max((2, 3, 5)) > 0).all()


def test_a_cell_without_a_class_reads_nothing_and_its_gradient_is_finite():
    labels = np.full((1, 16, 16), 255, np.uint8)
    labels[:, 4:] = 1
    attend, style = mixed(True, labels)
    out = attend(style)
    assert (np.asarray(out)[:, :4] == 0).all() and (np.asarray(out)[:, 4:] != 0).any()
    assert np.isfinite(jax.grad(lambda s: jnp.sum(jnp.square(attend(s))))(style)).all()


@pytest.mark.parametrize(
    ("style", "mixer"),
    [
        ("attention", "mamba"),
        ("mamba", "attention"),
        pytest.param("full_attention", "mamba", marks=pytest.mark.slow),
        pytest.param("mamba", "mamba", marks=pytest.mark.slow),
    ],
)
def test_two_stages_are_the_whole_and_a_style_counts(style, mixer):
    module = SISMA(config(style, mixer=mixer, depth=1))
    params = {"params": randomised(init(module.config))}
    z, t, labels, images = inputs()

    @jax.jit
    def ways(params):
        tokens = module.apply(params, images, labels, method="encode_style")
        features = module.apply(params, labels, tokens, method="encode_mask")
        nothing = module.apply(params, images, jnp.full_like(labels, 255), method="encode_style")
        return (
            tokens,
            module.apply(params, z, t, labels, tokens),
            module.apply(params, z, t, features, method="velocity"),
            module.apply(params, z, t, labels),
            module.apply(params, z, t, labels, nothing),
        )

    tokens, whole, staged, plain, of_nothing = ways(params)
    assert tokens.shape == (2, 3, 8) and np.abs(tokens).max() <= 1
    np.testing.assert_allclose(staged, whole, atol=1e-5)
    assert np.abs(plain - whole).max() > 1e-3
    np.testing.assert_allclose(of_nothing, plain, atol=1e-5)


@pytest.mark.parametrize("style", FIRST_STYLE)
def test_a_new_model_is_the_zero_velocity_and_then_every_parameter_learns(style):
    module = SISMA(config(style, depth=1))
    params = init(module.config)
    z, t, labels, images = inputs()

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        tokens = module.apply({"params": params}, images, labels, method="encode_style")
        v = module.apply({"params": params}, z, t, labels, tokens)
        return jnp.sum(jnp.square(v - z)), v

    assert (gradient(params)[1] == 0).all()
    grads, _ = gradient(randomised(params))
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(leaf).max() > 0
    ]
    assert silent == []


def test_parameters_of_the_style_are_counted_by_hand():
    size = lambda **changes: sum(
        x.size
        for x in jax.tree.leaves(
            jax.eval_shape(
                lambda key: init_params(dataclasses.replace(config("none"), **changes), key),
                jax.random.key(0),
            )
        )
    )
    D, token, k = 16, 8, 3
    modulation = 3 * D * D + 3 * D
    encoder = (27 * k * 2 + 2 * k + 2 * k * 2) + sum(
        k * (9 * a * b + 3 * b) for a, b in ((2, 4), (4, 8), (8, 16), (16, 8), (16, 4))
    ) + k * (8 * 4 + 4 + 4 * 4 + 4)  # fmt: skip
    attention = 2 * D * D + 2 * token * D
    added = encoder + 2 * (modulation + attention)
    assert size(style="attention") - size() == size(style="full_attention") - size() == added


def test_a_model_without_a_style_refuses_one():
    module = SISMA(config("none"))
    z, t, labels, _ = inputs()
    params = {"params": init(module.config)}
    with pytest.raises(ValueError, match="has no style conditioning"):
        module.apply(params, z, t, labels, jnp.zeros((2, 3, 8)))


def test_linear_maps_of_the_style_are_known_to_the_optimizer():
    params = init(config())
    axes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): matrix_axes(path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert axes["style_encoder/conv_in/kernel"] == ((0, 1, 2), (3,))
    assert axes["style_encoder/down_1_conv/kernel"] == ((1, 2, 3), (4,))
    assert axes["style_encoder/out_1/kernel"] == ((1,), (2,))
    assert axes["blocks/style_attention/project_k/kernel"] == ((1,), (2,))
    assert axes["style_encoder/out_1/bias"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(style="words"), "model.style is 'words': choose one of none, attention"),
        (dict(style_levels=4), "model.style_levels is 4, which halves images of 16 pixels 5 times"),
        (dict(attention_head=5), "model.attention_head 5 does not divide model.width 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        config(**changes)


@pytest.mark.parametrize("style", FIRST_STYLE)
def test_macs_by_hand_are_near_xlas_count(style):
    sizes = config(style, width=64, depth=3, state=8, latent_size=8, style_levels=2)
    assert macs(sizes) == mask_macs(sizes) + velocity_macs(sizes) + style_macs(sizes)
    assert 1 <= xla_macs(sizes).velocity / velocity_macs(sizes) < 1.35
    module, pixels = SISMA(sizes), sizes.image_size
    params = jax.eval_shape(lambda key: init_params(sizes, key), jax.random.key(0))
    encode = jax.jit(lambda *x: module.apply({"params": x[0]}, *x[1:], method="encode_style"))
    image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
    label = jax.ShapeDtypeStruct((1, pixels, pixels), jnp.uint8)
    by_xla = encode.lower(params, image, label).cost_analysis()["flops"] / 2
    assert 1 <= by_xla / style_macs(sizes) < 2


@pytest.mark.parametrize("style", STYLED)
def test_half_precision_stays_inside(style):
    """Shapes and types alone: promotion is strict here, so that nothing widens by accident."""
    module = SISMA(config(style, dtype="bfloat16"))
    params = jax.eval_shape(partial(init_params, module.config), jax.random.key(0))
    z, t, labels, images = inputs()

    def velocity(params):
        tokens = module.apply({"params": params}, images, labels, method="encode_style")
        return tokens, module.apply({"params": params}, z, t, labels, tokens)

    tokens, v = jax.eval_shape(velocity, params)
    assert tokens.dtype == v.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    jax.eval_shape(jax.grad(lambda p: jnp.sum(velocity(p)[1])), params)
