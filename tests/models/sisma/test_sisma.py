"""The whole model: identity at the start, sizes, two stages, depth, memory, types."""

from functools import cache, partial

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.layers.embeddings import TimeEmbedding, sincos_positions
from sisma_jax.models.sisma.config import REMAT_POLICIES
from sisma_jax.models.sisma.model import SISMABlock, init_params, matrix_axes


def small(**changes):
    return SISMAConfig.tiny(
        **(dict(latent_size=8, factor=4, patch=1, width=32, depth=2, mask_channels=8) | changes)
    )


TWIN = {"mixer": "attention", "attention_head": 8}


def inputs(config, batch=2):
    keys = jax.random.split(jax.random.key(5), 3)
    size, latent = config.image_size, config.latent_size
    z = jax.random.normal(keys[0], (batch, latent, latent, config.latent_channels))
    t = jax.random.uniform(keys[1], (batch,))
    labels = jax.random.randint(keys[2], (batch, size, size), 0, 19).astype(jnp.uint8)
    return z, t, labels


def trained(config):
    """Parameters away from the zeros of initialisation."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def leaf(path, shape):
        stacked = path[0].key == "blocks"
        fan_in = np.prod(shape.shape[stacked:-1]) if path[-1].key == "kernel" else 100
        noise = random.normal(size=shape.shape) / np.sqrt(max(fan_in, 1))
        start = {"scale": 1, "D": 1, "delta_bias": -3}.get(path[-1].key, 0)
        return jnp.asarray(start + noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def apply(config, params, *args, method=None):
    return jax.jit(
        lambda params, *args: SISMA(config).apply({"params": params}, *args, method=method)
    )(params, *args)


@cache
def new(config):
    """Parameters as initialised; do not change them in place."""
    return jax.jit(partial(init_params, config))(jax.random.key(0))


@pytest.mark.parametrize("changes", [{}, TWIN])
def test_a_new_model_is_the_zero_velocity_and_its_blocks_the_identity(changes):
    config = small(**changes)
    params = dict(new(config))
    z, t, labels = inputs(config)
    np.testing.assert_array_equal(apply(config, params, z, t, labels), 0)
    # With a final layer that lets everything through, blocks of any number change nothing.
    params["final"] = trained(config)["final"]
    shallow = small(depth=1, **changes)
    fewer = new(shallow) | {name: params[name] for name in params if name != "blocks"}
    np.testing.assert_allclose(
        apply(config, params, z, t, labels), apply(shallow, fewer, z, t, labels), atol=1e-6
    )


def test_a_new_model_that_shifts_is_the_zero_velocity_and_its_blocks_know_no_time():
    config = small(modulation="shift")
    params = dict(new(config))
    z, t, labels = inputs(config)
    np.testing.assert_array_equal(apply(config, params, z, t, labels), 0)
    block = SISMABlock(config)
    first = jax.tree.map(lambda x: x[0], params["blocks"])
    x, mask = jax.random.normal(jax.random.key(1), (2, 2, 64, config.width))
    order = jnp.arange(64)[None]
    run = jax.jit(lambda t: block.apply({"params": first}, x, t, mask, order)[0])
    out = run(jnp.ones((2, config.width)))
    np.testing.assert_array_equal(out, run(jnp.zeros((2, config.width))))
    assert np.abs(out - x).max() > 0.1  # no identity, unlike those that gate


def test_the_shift_by_time_is_added_where_the_gate_would_multiply():
    """In a block whose other maps are zero, only the three shifts are left."""
    config = small(modulation="shift")
    params = jax.tree.map(lambda x: x[0], trained(config)["blocks"])
    modulation = params["modulation"]
    params = jax.tree.map(jnp.zeros_like, params) | {"modulation": modulation}
    x, mask = jax.random.normal(jax.random.key(1), (2, 2, 64, config.width))
    t = jax.random.normal(jax.random.key(2), (2, config.width))
    got, _ = SISMABlock(config).apply({"params": params}, x, t, mask, jnp.arange(64)[None])
    vectors = jax.nn.silu(t) @ modulation["kernel"] + modulation["bias"][None]
    shifts = vectors.reshape(2, 3, 3, 1, config.width)[:, :, 2]
    np.testing.assert_allclose(got, x + shifts.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"orders": 2, "patch": 2, "modulation": "shift"},
        {"orders": 4, "remat": "block"},
        TWIN,
    ],
)
def test_two_stages_equal_the_whole(changes):
    config = small(**changes)
    params, (z, t, labels) = trained(config), inputs(config)
    features = apply(config, params, labels, method="encode_mask")
    np.testing.assert_allclose(
        apply(config, params, z, t, features, method="velocity"),
        apply(config, params, z, t, labels),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("changes", [{}, pytest.param(TWIN, marks=pytest.mark.slow)])
def test_remat_changes_no_value_and_no_gradient(changes):
    z, t, labels = inputs(small())
    params = trained(small(**changes))
    results = []
    for remat in REMAT_POLICIES:
        model = SISMA(small(remat=remat, **changes))
        loss = lambda params, model=model: jnp.sum(
            model.apply({"params": params}, z, t, labels) ** 2
        )
        results.append(jax.jit(jax.value_and_grad(loss))(params))
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(results[0][1]))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6 * largest),
            results[0],
            other,
        )


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        # Of each mixer: delta's low-rank map, and its scan with "dots".
        ({}, {"none": (0, 0), "names": (2, 0), "dots": (2, 2)}),
        # Of each attention: both products.
        (TWIN, {"none": (0, 0), "names": (0, 0), "dots": (4, 0)}),
    ],
)
def test_each_policy_computes_again_what_it_does_not_keep(changes, again):
    """Matrix products and scans of one block's gradient, beyond those without recomputation."""

    def operations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            if equation.primitive.name != "by_platform":  # a pass of the scan
                for inner in jax.extend.core.jaxprs_in_params(equation.params):
                    yield from operations(inner)

    def count(remat):
        config = small(depth=1, remat=remat, **changes)
        z, t, labels = inputs(config, batch=1)
        params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        loss = lambda params: jnp.sum(SISMA(config).apply({"params": params}, z, t, labels) ** 2)
        names = [*operations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)]
        return np.array([names.count("dot_general"), names.count("by_platform")])

    plain = count("none")
    assert {remat: tuple(map(int, count(remat) - plain)) for remat in again} == again


@pytest.mark.parametrize("changes", [{"orders": 2}, TWIN])
def test_every_parameter_has_a_gradient(changes):
    config = small(**changes)
    z, t, labels = inputs(config)
    loss = lambda params: jnp.sum(SISMA(config).apply({"params": params}, z, t, labels) ** 2)
    grads = jax.jit(jax.grad(loss))(trained(config))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("changes", [{}, TWIN | {"modulation": "shift"}])
def test_mask_and_time_both_matter(changes):
    config = small(**changes)
    params, (z, t, labels) = trained(config), inputs(config)
    plain = apply(config, params, z, t, labels)
    for other in (
        apply(config, params, z, t, jnp.flip(labels, 2)),
        apply(config, params, z, t, jnp.full_like(labels, 255)),
        apply(config, params, z, 1 - t, labels),
    ):
        assert np.abs(other - plain).max() > 1e-3


def test_samples_of_a_batch_do_not_mix():
    config = small(orders=2)
    params, (z, t, labels) = trained(config), inputs(config, batch=3)
    alone = apply(config, params, z[1:2], t[1:2], labels[1:2])
    np.testing.assert_allclose(
        apply(config, params, z, t, labels)[1:2], alone, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("changes", [{"orders": 2}, TWIN | {"modulation": "shift"}])
def test_bfloat16_computes_low_and_keeps_float32_parameters_and_output(changes):
    config, low = small(**changes), small(dtype="bfloat16", **changes)
    params, (z, t, labels) = trained(config), inputs(config)
    assert {x.dtype for x in jax.tree.leaves(new(low))} == {jnp.dtype("float32")}
    full, half = apply(config, params, z, t, labels), apply(low, params, z, t, labels)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(full - half).max() < 0.1 * np.abs(full).max()


def test_the_streams_of_the_mask_are_kept_in_bfloat16():
    """Step sizes too: the scan applies their bias and softplus in float32, as in Self-Mamba."""
    config = small(dtype="bfloat16", orders=2, style="mamba", style_levels=2)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    _, _, labels = inputs(config)
    run = lambda params: SISMA(config).apply({"params": params}, labels, method="encode_mask")
    streams = jax.eval_shape(run, params)
    assert streams.mask.delta.shape == (2, 2, 2, 64, 64)  # blocks, orders, batch, tokens, channels
    assert {leaf.dtype for leaf in jax.tree.leaves(streams)} == {jnp.dtype("bfloat16")}


def block_parameters(c):
    """The count of one block, written out from the specification."""
    D, n, K = c.width, c.state, c.orders
    d, r = c.expand * D, -(-c.width // 16)
    modulation = D * 9 * D + 9 * D
    ff = 2 * c.ff_ratio * D * D + c.ff_ratio * D + D
    if c.mixer == "attention":
        return modulation + ff + 8 * D * D
    conv, norm = 9 * d + d, 2 * d
    scan = K * (r * d + d + d * n + d)  # W_dt, b_dt, A_log, D_skip
    self_mamba = D * 2 * d + conv + K * d * (r + 2 * n) + scan + norm + d * D
    cross = D * 2 * d + D * d + conv + K * d * (r + n) + K * d * n + scan + norm + d * D
    return modulation + ff + self_mamba + cross


def all_parameters(c):
    D, patch = c.width, c.patch**2 * c.latent_channels
    length = c.grid[0] * c.grid[1]
    encoder, channels, inner = 0, c.num_classes, c.mask_channels
    for _ in range(c.downsampling.bit_length() - 1):
        encoder += 9 * channels * inner + inner + 2 * inner
        channels, inner = inner, 2 * inner
    encoder += 9 * channels * D + D + length * D + 2 * D
    patches_in = patch * D + D + length * D
    time = 256 * D + D + D * D + D
    final = D * 2 * D + 2 * D + D * patch + patch
    return c.depth * block_parameters(c) + encoder + patches_in + time + final


@pytest.mark.parametrize(
    ("name", "millions"),
    [("tiny", 2.99), ("small", 61.0), ("base", 137.8), ("large", 231.1), ("xlarge", 456.4)],
)
def test_exact_parameter_counts(name, millions):
    config = getattr(SISMAConfig, name)()
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == all_parameters(config)
    np.testing.assert_allclose(count / 1e6, millions, atol=0.05)


@pytest.mark.parametrize(
    "changes",
    [{"orders": 2}, {"orders": 4}, {"mixer": "attention"}, {"mixer": "attention", "ff_ratio": 7}],
)
def test_exact_parameter_counts_with_other_mixers(changes):
    config = SISMAConfig.tiny(**changes)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == all_parameters(config)


def program_size(config):
    z, t, labels = inputs(config, batch=1)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    loss = lambda params: jnp.sum(SISMA(config).apply({"params": params}, z, t, labels) ** 2)
    return jax.jit(jax.grad(loss)).lower(params).as_text()


def test_with_dots_kept_the_twin_keeps_no_product_of_all_tokens_with_all():
    config = small(latent_size=16, depth=2, remat="dots", **TWIN)
    z, t, labels = inputs(config, batch=1)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    loss = lambda params: jnp.sum(SISMA(config).apply({"params": params}, z, t, labels))
    kept = [x.shape for x in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params))]
    assert (2, 1, 256, 32) in kept  # of each block
    assert not [shape for shape in kept if shape.count(256) > 1]


def test_the_program_does_not_grow_with_depth():
    few, many = program_size(small(depth=2)), program_size(small(depth=16))
    assert len(few.splitlines()) == len(many.splitlines())


@pytest.mark.slow
def test_with_blocks_recomputed_memory_grows_by_one_stream_per_block():
    """Per further block: one float32 (batch, length, width), beside the gradients."""
    batch = 16

    def temporaries(depth, remat):
        config = small(depth=depth, remat=remat)
        z, t, labels = inputs(config, batch)
        params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        loss = lambda params: jnp.sum(SISMA(config).apply({"params": params}, z, t, labels) ** 2)
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    config = small()
    stream = 4 * batch * config.grid[0] * config.grid[1] * config.width
    per_block, dots, everything = (
        (temporaries(18, remat) - temporaries(2, remat)) / 16 for remat in ("block", "dots", "none")
    )
    assert per_block < 1.5 * stream + 4 * 4 * block_parameters(config)
    assert 2 * per_block < dots < 0.8 * everything
    assert everything > 8 * stream


@pytest.mark.parametrize("changes", [{"orders": 2}, TWIN])
def test_linear_maps_are_told_from_the_state_space_norms_and_biases(changes):
    params = new(small(**changes))
    axes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            leaf.shape,
            matrix_axes(path, leaf),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for name, (shape, maps) in axes.items():
        is_map = name.endswith(("kernel", "delta_weight")) and "/conv/" not in name
        assert (maps is not None) == is_map, name
        if is_map:
            # A map's output axis is its last, and what is not an input is stacked.
            assert maps[1] == (len(shape) - 1,)
            stacked = set(range(len(shape))) - set(maps[0]) - set(maps[1])
            expected = 1 if name.startswith("blocks") else 0
            expected += any(
                part in name for part in ("project_x", "project_s/", "project_c", "delta_")
            )
            assert len(stacked) == expected, name


def test_sizes_that_do_not_fit_are_named():
    config = small()
    params, (z, t, labels) = trained(config), inputs(config)
    with pytest.raises(ValueError, match="16x16 pixels do not fit the model's 32x32"):
        apply(config, params, z, t, labels[:, :16, :16])
    with pytest.raises(ValueError, match=r"\(4, 8, 4\) do not fit the model's \(8, 8, 4\)"):
        apply(config, params, z[:, :4], t, labels)


def test_time_embedding_starts_with_cosines_of_a_thousand_t():
    module = TimeEmbedding(8, "float32")
    params = module.init(jax.random.key(0), jnp.zeros(1))["params"]
    # An identity in place of the perceptron's first map shows the waves.
    seen = []
    hook = lambda next_fun, args, kwargs, context: (
        (seen.append(args[0]) if context.module.name == "Dense_0" else None)
        or next_fun(*args, **kwargs)
    )
    import flax.linen as nn

    with nn.intercept_methods(hook):
        module.apply({"params": params}, jnp.array([0.25]))
    waves = np.asarray(seen[0][0], np.float64)
    frequencies = 10000.0 ** (-np.arange(128) / 128)
    expected = np.concatenate([np.cos(250 * frequencies), np.sin(250 * frequencies)])
    np.testing.assert_allclose(waves, expected, atol=2e-4)


def test_initial_positions_tell_all_tokens_apart():
    table = sincos_positions(6, 5, 32)
    assert table.shape == (30, 32)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert distances[~np.eye(30, dtype=bool)].min() > 0.5
