"""The default: a Pallas kernel in programs for NVIDIA GPUs, "chunked" in all others.

Both ways of the gradient are decided alike, each where its program is lowered. What is kept for the
backward pass has room for either implementation's, and XLA removes the other's.
"""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp

from kernels.selective_scan import chunked, pallas_scan
from kernels.selective_scan.by_platform import by_platform


def scan(
    kernel: ModuleType, u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, h0, order, reverse
):
    """See `kernels.selective_scan.api.selective_scan`; `kernel` is what NVIDIA GPUs get."""
    arrays = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, h0=h0)
    return _scan(kernel, (delta_softplus, reverse), arrays, order)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(kernel, switches, arrays, order):
    scan = lambda module, arrays, order: module.scan(**arrays, order=order, **_options(switches))
    return by_platform(partial(scan, chunked), cuda=partial(scan, kernel))(arrays, order)


def _scan_forward(kernel, switches, arrays, order):
    options = _options(switches)
    checkpoints = pallas_scan.checkpoints(kernel.BACKEND, arrays, **options)

    def default(arrays, order):
        outputs, pull_back = jax.vjp(lambda x: chunked.scan(**x, order=order, **options), arrays)
        return outputs, pull_back, _unset(checkpoints)

    _, pull_back, _ = jax.eval_shape(default, arrays, order)

    def cuda(arrays, order):
        outputs, checkpoints = pallas_scan.forward(kernel.BACKEND, arrays, order, **options)
        return outputs, jax.tree.map(_unset, pull_back), checkpoints

    outputs, *kept = by_platform(default, cuda=cuda)(arrays, order)
    return outputs, (arrays, order, *kept)


def _scan_backward(kernel, switches, residuals, bars):
    def default(arrays, order, pull_back, checkpoints, bars):
        return pull_back(bars)[0]

    def cuda(arrays, order, pull_back, checkpoints, bars):
        return pallas_scan.backward(
            kernel.BACKEND, arrays, order, checkpoints, bars, **_options(switches)
        )

    return by_platform(default, cuda=cuda)(*residuals, bars), None


_scan.defvjp(_scan_forward, _scan_backward)


def _options(switches: tuple[bool, bool]) -> dict[str, bool]:
    return dict(zip(("delta_softplus", "reverse"), switches, strict=True))


def _unset(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """In place of what the other implementation keeps; not a number, lest it be ever mixed up."""
    value = jnp.nan if jnp.issubdtype(shape.dtype, jnp.floating) else 0
    return jnp.full(shape.shape, value, shape.dtype)
