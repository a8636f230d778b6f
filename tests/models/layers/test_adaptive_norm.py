"""The modulated norm and its sums against plain formulas, and small scales in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.models.layers.adaptive_norm import adaptive_layer_norm, gated_sum

SHAPE = (2, 64, 48)


def drawn(dtype):
    """A residual stream, two arrays of one vector per sample, and cotangents."""
    random = np.random.default_rng(0)
    x, dy = (jnp.asarray(random.normal(size=SHAPE), jnp.float32) for _ in range(2))
    vectors = random.normal(size=(2, SHAPE[0], SHAPE[2]))
    first, second = (jnp.asarray(vector, jnp.float32).astype(dtype) for vector in vectors)
    return 3 * x + 1, first, second, dy.astype(dtype)


def results(function, *arguments):
    *inputs, dy = arguments
    y, backward = jax.vjp(function, *inputs)
    return [np.asarray(x, np.float64) for x in (y, *backward(dy.astype(y.dtype)))]


def plain(x, shift, scale):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * (1 + scale[:, None]) + shift[:, None]


def test_value_and_gradients_are_those_of_the_formula():
    arguments = drawn(jnp.float32)
    ours = jax.jit(lambda *a: results_of_norm("float32", *a))(*arguments)
    for got, expected in zip(ours, results(plain, *arguments), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)


def results_of_norm(dtype, *arguments):
    *inputs, dy = arguments
    y, backward = jax.vjp(lambda *a: adaptive_layer_norm(*a, dtype), *inputs)
    return y, *backward(dy)


def test_bfloat16_loses_no_small_scale_and_rounds_sums_over_tokens_once():
    x, shift, scale, dy = drawn(jnp.bfloat16)
    scale = scale * 0.002
    exact = [a.astype(jnp.float32) for a in (x, shift, scale, dy)]
    expected = results(plain, *exact)
    got = results_of_norm("bfloat16", x, shift, scale, dy)
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        error = np.asarray(ours, np.float64) - theirs
        assert np.sqrt(np.mean(error**2) / np.mean(theirs**2)) < 2e-3
    # What the scales add to y is a fifth of its rounding: all tokens together show it.
    n = plain(exact[0], 0 * exact[1], 0 * exact[2])
    added = np.asarray(got[0], np.float64) - np.asarray(n + exact[1][:, None])
    slopes = np.sum(added * n, 1) / np.sum(np.square(n), 1)
    assert np.corrcoef(slopes.ravel(), np.asarray(exact[2]).ravel())[0, 1] > 0.9


def test_the_gradient_of_a_gate_is_a_float32_sum_and_keeps_no_float32_copy():
    x, gate, _, _ = drawn(jnp.bfloat16)
    h = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.bfloat16)
    _, backward = jax.vjp(gated_sum, x, h, gate)
    # x is not kept, and of the two others only what they are.
    kept = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(backward)]
    assert (SHAPE, jnp.float32) not in kept and (SHAPE, h.dtype) in kept
    *_, dgate = backward(x)
    expected = np.sum(np.asarray(x, np.float64) * np.asarray(h, np.float64), 1)
    np.testing.assert_allclose(np.asarray(dgate, np.float64), expected, rtol=4e-3, atol=1e-3)
