"""SiLU of the depthwise convolution, as CPUs and as all other platforms compute it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.models.layers import depthwise_conv
from sisma_jax.models.layers.depthwise_conv import depthwise_conv3x3_silu
from tests.compiled import compiled_for_h200, needs_compiler


@pytest.fixture(params=["cpu", "default"])
def platform(request, monkeypatch):
    """Run what this platform would, here."""
    choose = lambda *arrays, **functions: functions[request.param](*arrays)
    monkeypatch.setattr(depthwise_conv, "platform_dependent", choose)


def drawn(shape, dtype):
    random = np.random.default_rng(0)
    arrays = [random.normal(size=size) for size in (shape, (3, 3, shape[-1]), shape[-1:], shape)]
    x, kernel, bias, dy = (jnp.asarray(array, jnp.float32) for array in arrays)
    return (x.astype(dtype), kernel / 3, bias / 3), dy.astype(dtype)


def grouped(x, kernel, bias):
    """XLA's grouped convolution with bias and SiLU, in float32."""
    pre = jax.lax.conv_general_dilated(
        x.astype(jnp.float32), kernel[:, :, None], (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
        precision="highest",
    )  # fmt: skip
    return jax.nn.silu(pre + bias[None, None, None])


def results(function, arguments, dy):
    @jax.jit
    def output_and_gradients(*arguments):
        y, backward = jax.vjp(function, *arguments)
        return y, *backward(dy.astype(y.dtype))

    return [np.asarray(x, np.float64) for x in output_and_gradients(*arguments)]


@pytest.mark.parametrize("shape", [(2, 4, 5, 8), (1, 5, 4, 8)])
def test_equals_xla_s_grouped_convolution(platform, shape):
    arguments, dy = drawn(shape, jnp.float32)
    expected = results(grouped, arguments, dy)
    for ours, theirs in zip(results(depthwise_conv3x3_silu, arguments, dy), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_only_results_are_rounded(platform):
    """With sums in bfloat16 the errors are 6e-3, and 3e-2 of the bias's gradient."""
    arguments, dy = drawn((4, 16, 16, 32), jnp.bfloat16)
    expected = results(grouped, arguments, dy)
    got = results(depthwise_conv3x3_silu, arguments, dy)
    errors = [
        np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) for a, b in zip(got, expected, strict=True)
    ]
    # y is rounded once, which is 1.7e-3; dx, after the factor of SiLU, twice.
    assert errors[0] < 1.8e-3 and max(errors[1:]) < 2.8e-3


def test_saturated_values_have_finite_gradients(platform):
    x = jnp.asarray([-1000.0, -90.0, -80.0, 0.0, 90.0, 1000.0])[:, None, None, None]
    kernel = jnp.zeros((3, 3, 1)).at[1, 1].set(1)
    y, dx, *_ = results(depthwise_conv3x3_silu, (x, kernel, jnp.zeros(1)), jnp.ones_like(x))
    np.testing.assert_allclose(y.ravel(), [0, 0, 0, 0, 90, 1000], atol=1e-30)
    np.testing.assert_allclose(dx.ravel(), [0, 0, 0, 0.5, 1, 1], atol=1e-30)


def test_on_this_machine_the_platform_s_own_is_taken():
    """On CPUs the exponential that is kept is bounded."""
    arguments, _ = drawn((1, 4, 4, 8), jnp.float32)
    for platform, bounds in (("cpu", 1), ("cuda", 0)):
        traced = jax.jit(depthwise_conv3x3_silu).trace(*arguments)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.maximum") == bounds, platform


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA's CPU compiler fuses")
def test_readers_do_not_compute_the_convolution_again():
    arguments, dy = drawn((2, 4, 4, 8), jnp.float32)

    @jax.jit
    def program(x, kernel, bias):
        y, backward = jax.vjp(depthwise_conv3x3_silu, x, kernel, bias)
        return y + 1, y.sum(1), y.mT, backward(dy + jnp.tanh(y))

    windows = program.lower(*arguments).compile().as_text().count(" slice(")
    # With a kept pre between barriers there were 306.
    assert windows <= 64


@pytest.mark.slow
@needs_compiler
def test_on_a_gpu_it_is_one_kernel_and_its_gradient_reads_x_twice():
    x = jax.ShapeDtypeStruct((8, 32, 32, 256), jnp.bfloat16)
    kernel, bias = (jax.ShapeDtypeStruct(size, jnp.float32) for size in ((3, 3, 256), (256,)))

    def gradient(x, kernel, bias, dy):
        return jax.vjp(depthwise_conv3x3_silu, x, kernel, bias)[1](dy)

    def kernels(*program):
        """Operands of each kernel that are as large as x."""
        text = compiled_for_h200(*program).as_text()
        entry = text[text.index("\nENTRY") :].partition("\n}")[0].splitlines()
        large = {line.split()[0] for line in entry if "bf16[8,32,32,256]" in line.split("(")[0]}
        large |= {line.split()[1] for line in entry if "ROOT" in line and "bf16[8,32" in line}
        launched = [line for line in entry if " fusion(" in line or " reduce(" in line]
        operands = [line.partition("fusion(")[2].partition(")")[0] for line in launched]
        return [sum(name in large for name in of.split(", ")) for of in operands]

    assert kernels(depthwise_conv3x3_silu, x, kernel, bias) == [1]
    # dpre from x and dy, all sums from x and dpre, dx from dpre; and two on what the sums left.
    reads = kernels(gradient, x, kernel, bias, x)
    assert sorted(reads, reverse=True) == [2, 2, 1, 0, 0]
