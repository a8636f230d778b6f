"""Self- and cross-attention and the twin's block against float64 NumPy; queries in blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.models import SISMAConfig
from sisma_jax.models.layers import attention as attention_module
from sisma_jax.models.layers.attention import attention, blocked_attention
from sisma_jax.models.sisma.attention_mixers import CrossAttention, SelfAttention
from sisma_jax.models.sisma.model import SISMABlock, init_params
from tests.compiled import compiled_for_h200, needs_compiler

WIDTH, HEAD, BATCH, LENGTH, SEEN = 24, 8, 2, 12, 20


def exact(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def drawn(*shapes, seed=1):
    """By the host, which compiles nothing."""
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def random_params(init, *inputs):
    """Parameters away from the special values of initialisation."""
    shapes, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0), *inputs)["params"])
    arrays = drawn(*(leaf.shape for leaf in shapes), seed=2)
    return jax.tree.unflatten(tree, [WIDTH**-0.5 * array for array in arrays])


def numpy_attention(p, tokens, seen, head):
    q, k, v = (
        x @ p[f"project_{name}"]["kernel"] for name, x in (("q", tokens), ("k", seen), ("v", seen))
    )
    out = np.zeros_like(q)
    for start in range(0, q.shape[-1], head):
        part = slice(start, start + head)
        for sample in range(len(q)):
            logits = q[sample, :, part] @ k[sample, :, part].T / np.sqrt(head)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[sample, :, part] = weights @ v[sample, :, part]
    return out @ p["project_out"]["kernel"]


def make(cls, **changes):
    module = cls(**(dict(width=WIDTH, head=HEAD) | changes))
    tokens, seen = drawn((BATCH, LENGTH, WIDTH), (BATCH, SEEN, WIDTH))
    if cls is SelfAttention:
        call, inputs = lambda m, tokens: m(tokens), (tokens,)
    else:
        call, inputs = lambda m, tokens, seen: m(tokens, m.mask_stream(seen)), (tokens, seen)
    params = random_params(partial(module.init, method=call), *inputs)
    run = lambda params, *inputs: module.apply({"params": params}, *inputs, method=call)
    return run, params, inputs


def output_and_gradients(run, params, *inputs):
    def loss(params, *inputs):
        output = run(params, *inputs)
        return jnp.sum(output.astype(jnp.float32) ** 2), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(params, *inputs)
    return output, gradients


@pytest.fixture(scope="module", params=[SelfAttention, CrossAttention])
def attended(request):
    """An attention, its parameters and inputs, and what they give in float32."""
    run, params, inputs = make(request.param)
    return request.param, params, inputs, output_and_gradients(run, params, *inputs)


def test_equals_the_equations(attended):
    _, params, inputs, (got, _) = attended
    tokens, seen = exact(inputs)[0], exact(inputs)[-1]
    expected = numpy_attention(exact(params), tokens, seen, HEAD)
    assert np.abs(np.asarray(got) - expected).max() < 1e-5 * np.abs(expected).max()


def test_bfloat16_stays_near_float32_with_its_gradients(attended):
    cls, params, inputs, full = attended
    run, _, _ = make(cls, dtype="bfloat16")
    half = output_and_gradients(run, params, *(x.astype(jnp.bfloat16) for x in inputs))
    assert half[0].dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        assert 0 < np.abs(np.asarray(b, np.float32) - a).max() < 0.05 * np.abs(a).max()


def test_a_bias_hides_keys_and_a_query_that_sees_none_reads_zeros():
    q, k, v = drawn((1, 3, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4))
    bias = jnp.log(jnp.array([[[0.2, 0, 0.8, 0, 0], [0, 0, 0, 1, 0], [0] * 5]], jnp.float32))

    @jax.jit
    def output_and_gradients(*qkv):
        output, backward = jax.vjp(lambda *qkv: attention(*qkv, bias), *qkv)
        return output, *backward(jnp.ones_like(output))

    out, *gradients = output_and_gradients(q, k, v)
    assert all(np.isfinite(x).all() for x in gradients)
    logits = np.einsum("lnh,snh->lns", q[0, :1], k[0, [0, 2]]) / 2
    weights = np.exp(logits) * [0.2, 0.8]
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(out[0, :1], np.einsum("lns,snh->lnh", weights, v[0, [0, 2]]), 1e-5)
    np.testing.assert_allclose(out[0, 1], v[0, 3], 1e-5)
    assert (out[0, 2] == 0).all()
    assert (gradients[0][0, 2] == 0).all()  # of q
    assert (gradients[1][0, [1, 3, 4]] == 0).all() and (gradients[2][0, [1, 4]] == 0).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("length", [16, 18])
def test_queries_in_blocks_have_the_values_and_gradients_of_all_at_once(
    length, biased, monkeypatch
):
    q, weight, k, v = drawn(*[(2, length, 3, 5)] * 2, *[(2, 11, 3, 5)] * 2)
    bias = jnp.asarray(drawn((2, length, 11), seed=3)[0]) if biased else None

    def results():
        @jax.jit
        def output_and_gradients(*qkv):
            output, backward = jax.vjp(lambda *qkv: blocked_attention(*qkv, bias), *qkv)
            return output, *backward(weight)

        return output_and_gradients(q, k, v)

    whole = results()
    monkeypatch.setattr(attention_module, "LONGEST_WHOLE", 8)
    monkeypatch.setattr(attention_module, "QUERIES", 4)
    loops = str(jax.make_jaxpr(lambda *qkv: blocked_attention(*qkv))(q, k, v))
    assert "length=4" in loops
    for a, b in zip(whole, results(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    """Forward and backward; of all queries at once they are 16 times as many numbers."""

    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        loss = lambda q, k, v: jnp.sum(blocked_attention(q, k, v) ** 2)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(4096), temporaries(16384)
    assert many < 4.2 * few < 4 * 16384**2 / 2


def gradient_of_layers(layers, prevent_cse=True):
    def loss(x):
        for _ in range(layers):
            x = attention(x, x, x, prevent_cse=prevent_cse)
        return jnp.sum(x)

    return jax.grad(loss)


def test_a_barrier_precedes_each_softmax_that_is_recomputed_outside_of_scans():
    x = jax.ShapeDtypeStruct((1, 8, 2, 4), jnp.float32)
    for prevent_cse, barriers in ((True, 3), (False, 0)):
        text = jax.jit(gradient_of_layers(3, prevent_cse)).lower(x).as_text()
        assert text.count("stablehlo.optimization_barrier") == barriers


@pytest.mark.slow
@needs_compiler
def test_on_a_gpu_no_layer_keeps_its_softmax():
    """A layer keeps its input, 2 MiB; its softmax would be 64 MiB."""
    x = jax.ShapeDtypeStruct((2, 1024, 8, 32), jnp.float32)

    def temporaries(*arguments):
        compiled = compiled_for_h200(gradient_of_layers(*arguments), x)
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    many = temporaries(6)
    assert many - temporaries(2) < 4 * 4
    assert temporaries(6, False) - many > 4 * 64  # XLA merges both computations of a softmax


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_block(p, x, t, mask, modulation):
    sublayers = (
        lambda h: numpy_attention(p["self_attention"], h, h, HEAD),
        lambda h: numpy_attention(p["cross_attention"], h, mask, HEAD),
        lambda h: dense(p["ff_out"], gelu(dense(p["ff_in"], h))),
    )
    vectors = np.split(dense(p["modulation"], silu(t))[:, None], 9, axis=-1)
    for i, sublayer in enumerate(sublayers):
        shift, scale, last = vectors[3 * i : 3 * i + 3]
        h = sublayer(layer_norm(x) * (1 + scale) + shift)
        x = x + (last * h if modulation == "gate" else h + last)
    return x


@pytest.mark.parametrize("modulation", ["gate", "shift"])
def test_a_block_of_the_twin_equals_the_equations(modulation):
    config = SISMAConfig.tiny(
        width=WIDTH, mixer="attention", attention_head=HEAD, modulation=modulation
    )
    x, mask, t = drawn(*[(BATCH, LENGTH, WIDTH)] * 2, (BATCH, WIDTH))
    order = np.arange(LENGTH, dtype=np.int32)[None]
    block = SISMABlock(config)
    params = random_params(block.init, x, t, mask, order)
    got, _ = jax.jit(block.apply)({"params": params}, x, t, mask, order)
    expected = numpy_block(exact(params), *exact((x, t, mask)), modulation)
    assert np.abs(np.asarray(got) - expected).max() < 1e-5 * np.abs(expected).max()


def test_at_ff_ratio_7_a_block_of_the_twin_has_the_parameters_of_one_of_mamba():
    def block_size(config):
        shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes["blocks"])) / config.depth

    D = SISMAConfig.large().width
    twin = block_size(SISMAConfig.large(mixer="attention", ff_ratio=7))
    assert twin == 31 * D**2 + 9 * D + 7 * D + D  # and the biases of modulation and feed-forward
    assert 1 < block_size(SISMAConfig.large()) / twin < 1.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "conv"}, "model.mixer is 'conv': choose one of mamba, attention"),
        (
            {"mixer": "attention", "attention_head": 100},
            "model.attention_head 100 does not divide model.width 768: choose a head that does",
        ),
        ({"attention_head": 0}, "model.attention_head is 0: set a whole number"),
        ({"modulation": "scale"}, "model.modulation is 'scale': choose one of gate, shift"),
    ],
)
def test_impossible_twins_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SISMAConfig(**changes)


def test_a_head_that_does_not_fit_is_nothing_to_a_model_of_mamba():
    assert SISMAConfig(attention_head=100).mixer == "mamba"
