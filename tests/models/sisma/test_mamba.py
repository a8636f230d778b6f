"""Self- and Cross-Mamba against a plain float64 NumPy recomputation from their equations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.models.sisma.mamba import CrossMamba, SelfMamba
from sisma_jax.models.sisma.scan_orders import block_orders
from tests.lowering import launches, lowered_for_cuda, moved

GRID, WIDTH, STATE, BATCH = (3, 4), 24, 5, 2
LENGTH = GRID[0] * GRID[1]
RANK = 2  # ceil(24 / 16)


def silu(x):
    return x / (1 + np.exp(-x))


def conv(p, x):
    """SiLU(DWConv3x3(x) + bias) on the grid, one pixel at a time."""
    grid = x.reshape(BATCH, *GRID, -1)
    out = np.zeros_like(grid)
    for i in range(GRID[0]):
        for j in range(GRID[1]):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < GRID[0] and 0 <= j + dj < GRID[1]:
                        out[:, i, j] += p["kernel"][1 + di, 1 + dj] * grid[:, i + di, j + dj]
    return silu(out + p["bias"]).reshape(x.shape)


def scan(p, k, u, low_rank, B, C, order):
    """Visit the rows of `order`; outputs stay where their rows are."""
    delta = np.log1p(np.exp(low_rank @ p["delta_weight"][k] + p["delta_bias"][k]))
    A = -np.exp(p["A_log"][k])
    h = np.zeros((BATCH, u.shape[-1], STATE))
    y = np.zeros_like(u)
    for row in order:
        decay = np.exp(delta[:, row, :, None] * A)
        h = decay * h + (delta[:, row] * u[:, row])[..., None] * B[:, row, None, :]
        y[:, row] = np.einsum("bcn,bn->bc", h, C[:, row]) + p["D"][k] * u[:, row]
    return y


def gate_out(p, y, z):
    mean, variance = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    y = (y - mean) / np.sqrt(variance + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    return (y * silu(z)) @ p["project_out"]["kernel"]


def numpy_self_mamba(p, tokens, orders):
    x, z = np.split(tokens @ p["project_in"]["kernel"], 2, axis=-1)
    x = conv(p["conv"], x)
    y = 0
    for k, order in enumerate(orders):
        projected = x @ p["project_x"]["kernel"][k]
        delta, B, C = np.split(projected, [RANK, RANK + STATE], axis=-1)
        y = y + scan(p["scan"], k, x, delta, B, C, order)
    return gate_out(p, y, z)


def numpy_cross_mamba(p, tokens, mask, orders):
    x, z = np.split(tokens @ p["project_in"]["kernel"], 2, axis=-1)
    x, s = conv(p["conv"], x), conv(p["conv"], mask @ p["project_mask"]["kernel"])
    y = 0
    for k, order in enumerate(orders):
        delta, B = np.split(s @ p["project_s"]["kernel"][k], [RANK], axis=-1)
        C = x @ p["project_c"]["kernel"][k]
        y = y + scan(p["scan"], k, s, delta, B, C, order)
    return gate_out(p, y, z)


def make(cls, orders, **changes):
    module = cls(**(dict(width=WIDTH, grid=GRID, state=STATE, orders=orders) | changes))
    table = jnp.asarray(block_orders(*GRID, 3, orders)[1])
    tokens, mask = jax.random.normal(jax.random.key(1), (2, BATCH, LENGTH, WIDTH))
    run = module.apply
    if cls is SelfMamba:
        inputs = (tokens,)
        params = module.init(jax.random.key(2), tokens, table)["params"]
        run = lambda params, tokens: module.apply({"params": params}, tokens, table)
    else:
        inputs = (tokens, mask)

        def run(params, tokens, mask):
            stream = module.apply({"params": params}, mask, method="mask_stream")
            return module.apply({"params": params}, tokens, stream, table)

        init = lambda m, tokens, mask: m(tokens, m.mask_stream(mask), table)
        params = module.init(jax.random.key(2), tokens, mask, method=init)["params"]
    # Away from the special values of initialisation, so that no term hides behind a zero or one.
    noise = lambda path, x: x + 0.1 * jax.random.normal(jax.random.key(len(str(path))), x.shape)
    return run, jax.tree_util.tree_map_with_path(noise, params), inputs, np.asarray(table)


def exact(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("orders", [1, 2, 4])
@pytest.mark.parametrize(
    ("cls", "oracle"), [(SelfMamba, numpy_self_mamba), (CrossMamba, numpy_cross_mamba)]
)
def test_equals_the_equations(cls, oracle, orders):
    run, params, inputs, table = make(cls, orders)
    expected = oracle(exact(params), *exact(inputs), table)
    got = np.asarray(jax.jit(run)(params, *inputs))
    assert np.abs(got - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("cls", [SelfMamba, CrossMamba])
def test_bfloat16_stays_near_float32(cls):
    run, params, inputs, _ = make(cls, 2)
    low, _, _, _ = make(cls, 2, dtype="bfloat16")
    full = np.asarray(run(params, *inputs))
    half = low(params, *jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs))
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - full).max() < 0.05 * np.abs(full).max()


def test_cross_mamba_sees_the_image_only_through_c_and_z():
    """With C and z held fast, the output depends on the mask and no longer on the image."""
    module = CrossMamba(width=WIDTH, grid=GRID, state=STATE)
    _, params, (tokens, mask), table = make(CrossMamba, 1)

    def held(names):
        def interceptor(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.module.name == "project_c" and "C" in names:
                return jnp.ones_like(out)
            if context.module.name == "project_in" and "z" in names:
                return out.at[..., out.shape[-1] // 2 :].set(1.0)
            return out

        return nn.intercept_methods(interceptor)

    def output(tokens, mask):
        stream = module.apply({"params": params}, mask, method="mask_stream")
        return np.asarray(module.apply({"params": params}, tokens, stream, jnp.asarray(table)))

    with held("Cz"):
        np.testing.assert_array_equal(output(tokens, mask), output(3 - tokens, mask))
        assert not np.array_equal(output(tokens, mask), output(tokens, 3 - mask))
    for one in "Cz":
        with held(one):
            assert not np.array_equal(output(tokens, mask), output(3 - tokens, mask))


def test_an_empty_mask_gives_nothing():
    """Zero S_M and a convolution without bias: the scanned y is zero, out is LayerNorm's bias."""
    run, params, (tokens, mask), _ = make(CrossMamba, 2)
    params["conv"]["bias"] = jnp.zeros_like(params["conv"]["bias"])
    params["norm"]["bias"] = jnp.zeros_like(params["norm"]["bias"])
    np.testing.assert_array_equal(run(params, tokens, jnp.zeros_like(mask)), 0)
    assert np.abs(run(params, tokens, mask)).max() > 0


def test_a_token_sees_only_mask_tokens_earlier_in_its_order():
    run, params, (tokens, mask), table = make(CrossMamba, 1)
    # The convolution mixes neighbours; without its off-centre taps only the scan carries.
    kernel = jnp.zeros_like(params["conv"]["kernel"]).at[1, 1].set(1.0)
    params["conv"]["kernel"] = kernel
    step = LENGTH // 2
    changed = np.asarray(mask).copy()
    changed[:, table[0][step]] += 1
    difference = np.abs(run(params, tokens, jnp.asarray(changed)) - run(params, tokens, mask))
    per_step = np.asarray(difference).max((0, 2))[table[0]]
    np.testing.assert_array_equal(per_step[:step], 0)
    assert (per_step[step:] > 0).all()


def test_initial_step_sizes_and_decays_are_mambas():
    _, params, _, _ = make(SelfMamba, 2)
    module = SelfMamba(width=WIDTH, grid=GRID, state=STATE, orders=2)
    table = jnp.asarray(block_orders(*GRID, 1, 2)[0])
    params = module.init(jax.random.key(0), jnp.zeros((1, LENGTH, WIDTH)), table)["params"]["scan"]
    delta = np.log1p(np.exp(np.asarray(params["delta_bias"], np.float64)))
    assert delta.min() > 1e-3 * 0.99 and delta.max() < 1e-1 * 1.01
    decays = np.broadcast_to(np.arange(1, STATE + 1), (2, 2 * WIDTH, STATE))
    np.testing.assert_allclose(np.exp(params["A_log"]), decays, rtol=1e-6)
    np.testing.assert_array_equal(params["D"], 1)
    assert np.abs(params["delta_weight"]).max() <= RANK**-0.5


@pytest.mark.parametrize("orders", [1, 2])
@pytest.mark.parametrize("cls", [SelfMamba, CrossMamba])
def test_on_a_gpu_one_kernel_each_way_reads_the_rows_in_place(cls, orders):
    """No gather, scatter or transpose of (batch, length, channels) beside the scan."""
    module = cls(width=WIDTH, grid=(8, 8), state=4, orders=orders, dtype="bfloat16")
    order = jnp.asarray(block_orders(8, 8, 1, orders)[0])

    def output(module, tokens, mask):
        if cls is SelfMamba:
            return module(tokens, order)
        return module(tokens, module.mask_stream(mask), order)

    def loss(params, tokens, mask):
        y = module.apply({"params": params}, tokens, mask, method=output)
        return jnp.sum(y.astype(jnp.float32))

    tokens = jax.ShapeDtypeStruct((BATCH, 64, WIDTH), jnp.bfloat16)
    init = lambda tokens: module.init(jax.random.key(0), tokens, tokens, method=output)["params"]
    shapes = jax.eval_shape(init, tokens)
    text = lowered_for_cuda(jax.grad(loss, (0, 1, 2)), shapes, tokens, tokens)
    assert launches(text) == 2
    for operation in moved(text):
        # What the depthwise convolution's gradient turns over is its 3x3 kernel; 64 channels are
        # the 48 as the kernel has them.
        assert "transpose" in operation or "3x3x" in operation
        assert "64x48" not in operation and "64x64" not in operation
