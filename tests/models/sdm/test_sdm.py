"""SDM against the same network in NumPy at float64, its step against Bayes' rule, sizes, cost."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.models.layers import spade
from sisma_jax.models.layers.spade import SPADE, ResBlock, double, halve
from sisma_jax.models.layers.unet import in_compute_type
from sisma_jax.models.sdm.model import (
    SDM,
    SDMConfig,
    init_params,
    sdm_macs,
    sdm_mask_macs,
    sdm_step,
    semantic_map,
)
from tests.models.cost.test_cost import contractions

TINY = SDMConfig.tiny()
FLAT = SDMConfig.tiny(image_size=8, multipliers=(1,))
"""One resolution: it compiles fastest."""
PUBLISHED_PARAMETERS = 653_062_918
"""Parameters of the published UNetModel, as counted from its modules and by PyTorch."""


def randomised(shapes):
    """Weights of every size where initialisation has zeros and ones."""
    random = np.random.default_rng(0)

    def leaf(path, shape):
        spread = 0.3 if len(shape.shape) == 1 else np.prod(shape.shape[:-1]) ** -0.5
        noise = spread * random.normal(size=shape.shape)
        return (noise + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@cache
def shapes_of(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


@cache
def params_of(config):
    return randomised(shapes_of(config))


def inputs(config, batch=2):
    random = np.random.default_rng(5)
    size = config.image_size
    x = jnp.asarray(random.normal(size=(batch, size, size, 3)), jnp.float32)
    patches = random.integers(0, config.num_classes, (batch, size // 4, size // 4))
    labels = patches.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    labels[:, :5, :6] = 255
    labels[:, 6, 7] = 3  # a single pixel that no coarser resolution sees
    return x, jnp.asarray([731, 4][:batch], jnp.int32), jnp.asarray(labels)


@cache
def model(config):
    return jax.jit(SDM(config).apply)


def predict(config, params, x, t, labels):
    return model(config)({"params": params}, x, t, labels)


# The network once more, in NumPy.


def np_conv(p, x):
    size = p["kernel"].shape[0]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows, p["kernel"], optimize=True) + p["bias"]


def np_dense(p, x):
    return x @ p["kernel"] + p["bias"]


def np_norm(x, groups, p=None):
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    x = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return x if p is None else x * p["scale"] + p["bias"]


def np_silu(x):
    return x / (1 + np.exp(-x))


def np_double(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def np_halve(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def np_spade(p, x, semantics, groups):
    side = semantics.shape[1] // x.shape[1]
    rows, columns = (side * np.arange(n) for n in x.shape[1:3])
    hidden = np.maximum(np_conv(p["shared"], semantics[:, rows][:, :, columns]), 0)
    gamma, beta = np_conv(p["gamma"], hidden), np_conv(p["beta"], hidden)
    return np_norm(x, groups) * (1 + gamma) + beta


def np_block(p, x, time, semantics, groups, resample=None, scale_shift=True):
    def norm(name, h):
        if semantics is None:
            return np_norm(h, groups, p[name])
        return np_spade(p[name], h, semantics, groups)

    resample = resample or (lambda x: x)
    h = np_conv(p["conv1"], resample(np_silu(norm("norm1", x))))
    x = resample(x)
    time = np_dense(p["time"], np_silu(time))[:, None, None]
    if scale_shift:
        channels = h.shape[-1]
        h = norm("norm2", h) * (1 + time[..., :channels]) + time[..., channels:]
    else:
        h = norm("norm2", h + time)
    return (np_conv(p["skip"], x) if "skip" in p else x) + np_conv(p["conv2"], np_silu(h))


def np_attention(p, x, groups, head_width):
    b, h, w, c = x.shape
    qkv = np_dense(p["qkv"], np_norm(x, groups, p["norm"])).reshape(b, h * w, 3 * c)
    mixed = np.empty((b, h * w, c))
    for start in range(0, c, head_width):
        q, k, v = np.split(qkv[..., 3 * start : 3 * (start + head_width)], 3, axis=-1)
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(head_width))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed[..., start : start + head_width] = weights @ v
    return x + np_dense(p["out"], mixed.reshape(x.shape))


def np_semantics(labels, num_classes):
    batch, height, width = labels.shape
    out = np.zeros((batch, height, width, num_classes + 1))
    for b, i, j in np.ndindex(labels.shape):
        if labels[b, i, j] < num_classes:
            out[b, i, j, labels[b, i, j]] = 1
        for row, column in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            inside = 0 <= row < height and 0 <= column < width
            if inside and labels[b, row, column] != labels[b, i, j]:
                out[b, i, j, -1] = 1
    return out


def np_sdm(c, p, x, t, labels):
    """The published forward pass: a stack of features, pushed by the encoder, popped after."""
    p, x, t = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (p, x, t))
    semantics = np_semantics(np.asarray(labels), c.num_classes)
    angles = t[:, None] * 10000.0 ** (-np.arange(c.channels // 2) / (c.channels // 2))
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    time = np_dense(p["time"]["out"], np_silu(np_dense(p["time"]["in"], waves)))
    block = lambda name, h, *map_, **options: np_block(
        p[name], h, time, *(map_ or [None]), c.norm_groups, **options
    )
    attend = lambda name, h: np_attention(p[name], h, c.norm_groups, c.head_width)

    h = np_conv(p["conv_in"], x)
    stack = [h]
    last = len(c.multipliers) - 1
    for level in range(last + 1):
        for i in range(c.blocks):
            h = block(f"down_{level}_{i}", h)
            if c.image_size // 2**level in c.attention_sizes:
                h = attend(f"down_{level}_{i}_attention", h)
            stack.append(h)
        if level < last:
            h = block(f"halve_{level}", h, resample=np_halve)
            stack.append(h)
    h = block("middle_1", attend("middle_attention", block("middle_0", h, semantics)), semantics)
    for level in range(last, -1, -1):
        for i in range(c.blocks + 1):
            h = block(f"up_{level}_{i}", np.concatenate([h, stack.pop()], axis=-1), semantics)
            if c.image_size // 2**level in c.attention_sizes:
                h = attend(f"up_{level}_{i}_attention", h)
        if level > 0:
            h = block(f"double_{level}", h, semantics, resample=np_double)
    assert not stack
    return np_conv(p["conv_out"], np_silu(np_norm(h, c.norm_groups, p["norm_out"])))


@pytest.mark.parametrize(
    "config",
    [
        SDMConfig.tiny(image_size=8, multipliers=(2, 1), num_classes=5),
        pytest.param(TINY, marks=pytest.mark.slow),
    ],
)
def test_forward_is_numpy_s(config):
    params, (x, t, labels) = params_of(config), inputs(config)
    output = predict(config, params, x, t, labels)
    assert output.shape == (*x.shape[:3], 6) and output.dtype == jnp.float32
    expected = np_sdm(config, params, x, t, labels)
    np.testing.assert_allclose(output, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("steered", [True, False])
@pytest.mark.parametrize(
    ("resample", "np_resample", "scale_shift"),
    [(None, None, True), (None, None, False), (halve, np_halve, True), (double, np_double, True)],
)
def test_a_block_is_numpy_s(steered, resample, np_resample, scale_shift):
    """Norm, then the mask's scale and shift, then those of time."""
    random = np.random.default_rng(2)
    block = ResBlock(
        12, groups=4, hidden=5, dtype="float32", scale_shift=scale_shift, resample=resample
    )
    shapes = [(2, 8, 8, 8), (2, 6), (2, 16, 16, 3)]
    x, time, semantics = (jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes)
    args = (x, time, semantics) if steered else (x, time)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), *args))["params"]
    params = randomised(shapes)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x, time, semantics))
    expected = np_block(
        *exact[:3], exact[3] if steered else None, 4, np_resample, scale_shift=scale_shift
    )
    output = jax.jit(block.apply)({"params": params}, *args)
    np.testing.assert_allclose(output, expected, atol=1e-4)


@pytest.mark.parametrize(("factor", "offset", "seen"), [(1, 0, True), (2, 0, True), (2, 1, False)])
def test_spade_modulates_only_near_a_change_of_the_mask(factor, offset, seen):
    """Two 3x3 convolutions reach two pixels; a coarse image sees every second pixel, the first."""
    layer = SPADE(groups=2, hidden=8, dtype="float32")
    x = jax.random.normal(jax.random.key(1), (1, 12, 12, 4))
    labels = np.zeros((1, 12 * factor, 12 * factor), np.uint8)
    one_hot = lambda labels: jax.nn.one_hot(jnp.asarray(labels), 3)
    params = randomised(jax.eval_shape(layer.init, jax.random.key(0), x, one_hot(labels)))
    apply = jax.jit(layer.apply)
    before = apply(params, x, one_hot(labels))
    labels[0, 5 * factor + offset, 7 * factor + offset] = 2
    changed = np.abs(apply(params, x, one_hot(labels)) - before).max(axis=(0, 3)) > 0
    expected = np.zeros((12, 12), bool)
    expected[3:8, 5:10] = seen
    np.testing.assert_array_equal(changed, expected)


def test_edges_are_where_a_neighbour_differs_and_the_unlabelled_have_no_class():
    labels = np.random.default_rng(0).choice([0, 1, 1, 1, 2, 255], (3, 7, 9)).astype(np.uint8)
    labels = np.concatenate([labels, np.full((1, 7, 9), 255, np.uint8)])
    semantics = jax.jit(semantic_map, static_argnums=1)(labels, 3)
    np.testing.assert_array_equal(semantics, np_semantics(labels, 3))
    assert semantics.shape == (4, 7, 9, 4)
    assert not semantics[-1].any()


def test_the_published_size_has_the_published_number_of_parameters():
    shapes = shapes_of(SDMConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED_PARAMETERS
    sides = {5: 8, 4: 16, 3: 32}
    attentions = {name for name in shapes if name.endswith("attention")}
    assert attentions == {"middle_attention"} | {
        f"{way}_{level}_{i}_attention"
        for way, count in (("down", 2), ("up", 3))
        for level in sides
        for i in range(count)
    }
    steered = [name for name in shapes if "shared" in shapes[name].get("norm1", {})]
    assert len(steered) == 2 + 6 * 3 + 5


EASY = SDMConfig.tiny(image_size=8, multipliers=(1,), num_classes=7)
"""Settings of the network around a tested step."""


def easy(x, t, labels):
    """A function of all that a network sees."""
    seen = jnp.concatenate([jnp.sin(3 * x), jnp.cos(2 * x)], axis=-1)
    of_mask = labels.astype(jnp.float32)[..., None] / 100
    return seen * (0.5 + of_mask) + of_mask - t.astype(jnp.float32)[:, None, None, None] / 1000


@pytest.fixture
def easy_step(monkeypatch):
    """A step with `easy` in the network's place: (t, seed, guidance) -> x_{t-1}."""
    monkeypatch.setattr(SDM, "__call__", lambda self, *args: easy(*args))
    x, _, labels = inputs(EASY)

    def step(t, seed, guidance=1.0):
        return sdm_step(EASY, {}, x, jnp.asarray(t), labels, jax.random.key(seed), guidance)

    return step


def np_step(x, t, labels, guidance, noise):
    """x_{t-1} by Bayes' rule: what the image says of it, times what x_t says of it."""
    output, null = easy(x, t, labels), easy(x, t, jnp.full_like(labels, 255))
    output, null, x = (np.asarray(y, np.float64) for y in (output, null, x))
    eps = null[..., :3] + guidance * (output[..., :3] - null[..., :3])
    rows = []
    for i, step in enumerate(np.asarray(t)):
        betas = 1e-4 + (0.02 - 1e-4) * np.arange(step + 1) / 999
        beta, product = betas[-1], np.prod(1 - betas)
        image = np.clip((x[i] - np.sqrt(1 - product) * eps[i]) / np.sqrt(product), -1, 1)
        if step == 0:
            rows.append(image)
            continue
        before = np.prod(1 - betas[:-1])
        least = 1 / ((1 - beta) / beta + 1 / (1 - before))
        pull = np.sqrt(1 - beta) / beta * x[i] + np.sqrt(before) / (1 - before) * image
        share = (output[i, ..., 3:] + 1) / 2
        rows.append(least * pull + np.sqrt(beta**share * least ** (1 - share)) * noise[i])
    return np.stack(rows)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("steps", [(999, 0), (1, 500)])
def test_a_step_samples_the_posterior_and_guidance_1_is_the_plain_model(steps, guidance, easy_step):
    x, _, labels = inputs(EASY)
    t = jnp.asarray(steps, jnp.int32)
    noise = np.asarray(jax.random.normal(jax.random.key(3), x.shape), np.float64)
    expected = np_step(x, t, labels, guidance, noise)
    np.testing.assert_allclose(easy_step(t, 3, guidance), expected, atol=1e-4)


def test_guidance_costs_a_second_pass_and_1_none():
    params, args = params_of(FLAT), (*inputs(FLAT), jax.random.key(3))
    cost = lambda guidance: contractions(
        jax.make_jaxpr(sdm_step, static_argnums=(0, 6))(FLAT, params, *args, guidance).jaxpr
    )
    assert (cost(1.0), cost(1.5)) == (2 * sdm_macs(FLAT), 4 * sdm_macs(FLAT))


def test_a_step_is_the_key_s_and_the_last_has_no_noise(easy_step):
    t = np.array([731, 4], np.int32)
    np.testing.assert_array_equal(easy_step(t, 0), easy_step(t, 0))
    assert np.abs(easy_step(t, 0) - easy_step(t, 1)).max() > 1e-3
    np.testing.assert_array_equal(easy_step(0 * t, 0), easy_step(0 * t, 1))


def test_bfloat16_is_close_to_numpy_s():
    low = dataclasses.replace(FLAT, dtype="bfloat16")
    params, (x, t, labels) = params_of(FLAT), inputs(FLAT)
    full, half = np_sdm(FLAT, params, x, t, labels), predict(low, params, x, t, labels)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(full - half).max() / np.abs(full).max() < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_in_the_compute_type_are_those_that_a_step_would_round(dtype):
    config = dataclasses.replace(FLAT, dtype=dtype)
    params, args = shapes_of(config), inputs(config)
    program = jax.make_jaxpr(lambda p: SDM(config).apply({"params": p}, *args))(params).jaxpr
    rounded = {
        equation.invars[0]
        for equation in program.eqns
        if equation.primitive.name == "convert_element_type"
        and equation.params["new_dtype"] == jnp.bfloat16
    }
    stored = jax.tree.leaves(jax.eval_shape(lambda p: in_compute_type(config, p), params))
    assert [leaf.dtype == jnp.bfloat16 for leaf in stored] == [v in rounded for v in program.invars]


def traced_macs(config):
    size = (1, config.image_size, config.image_size)
    args = (
        jax.ShapeDtypeStruct((*size, 3), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct(size, jnp.uint8),
    )
    apply = lambda params, *args: SDM(config).apply({"params": params}, *args)
    return contractions(jax.make_jaxpr(apply)(shapes_of(config), *args).jaxpr)


@pytest.mark.parametrize(
    "config",
    [
        SDMConfig(),
        pytest.param(
            SDMConfig.tiny(multipliers=(2, 1, 3), attention_sizes=(16,), blocks=2, num_classes=5),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_hand_count_of_macs_is_the_program_s(config):
    assert traced_macs(config) == sdm_macs(config)


def test_macs_of_the_mask_are_those_of_spade(monkeypatch):
    monkeypatch.setattr(spade.SPADE, "__call__", lambda self, x, semantics, rounded=True: x)
    assert traced_macs(TINY) == sdm_macs(TINY) - sdm_mask_macs(TINY)


def test_macs_of_the_published_size():
    assert sdm_macs(SDMConfig()) == 1_721_497_780_224
    assert sdm_mask_macs(SDMConfig()) == 601_665_011_712


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, r"sdm\.blocks is 0: set a whole number"),
        ({"multipliers": (1, 0)}, r"sdm\.multipliers is \(1, 0\): give whole numbers"),
        ({"multipliers": ()}, r"sdm\.multipliers is empty"),
        ({"image_size": 15}, r"sdm\.image_size is 15: choose a multiple of 2"),
        ({"norm_groups": 5}, r"sdm\.norm_groups 5 does not divide sdm\.channels 16"),
        ({"head_width": 12}, r"sdm\.head_width 12 does not divide sdm\.channels 16"),
        ({"channels": 15, "norm_groups": 5, "head_width": 5}, r"sdm\.channels is 15: .* even"),
        ({"dtype": "float16"}, r"sdm\.dtype is 'float16': choose"),
    ],
)
def test_sizes_that_make_no_model_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        SDMConfig.tiny(**changes)


def test_inputs_of_another_size_are_named():
    params, (x, t, labels) = params_of(TINY), inputs(SDMConfig.tiny(image_size=24))
    with pytest.raises(ValueError, match=r"label maps \(24, 24\) do not both have .* \(16, 16\)"):
        SDM(TINY).apply({"params": params}, x, t, labels)
