"""The default: a Pallas kernel in programs for NVIDIA GPUs, "chunked" in all others.

The forward and the backward pass choose in the same way, each when its program is lowered. The
residuals have room for those of both implementations; XLA removes the unused ones.
"""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp

from . import chunked
from .by_platform import by_platform
from .checkpoints import named
from .pallas import device, launch, mosaic, triton
from .wide import widened


def kernel_in_jax(state: int) -> tuple[ModuleType | None, str]:
    """The best kernel in this jax for a state size, or None; and why better kernels are missing."""
    reasons = []
    for kernel in (mosaic, triton):
        try:
            kernel.check_kernel(state)
        except NotImplementedError as error:
            reasons.append(str(error).removeprefix("selective_scan: "))
        else:
            return kernel, "; ".join(reasons)
    return None, "; ".join(reasons)


def kernel_for_gpus(state: int) -> tuple[ModuleType | None, str]:
    """The kernel for programs on NVIDIA GPUs, or None for "chunked"; and the reason.

    It depends on the local GPU. Without one, when a program is lowered to run elsewhere, sm_80 or
    later is assumed. jax 0.11 and later lower no kernel in that case unless a mesh names the GPU
    (`jax.sharding.AbstractDevice`), so the choice there is "chunked".
    """
    kernel, reason = kernel_in_jax(state)
    if kernel is None:
        return None, reason
    capability = device.compute_capability()
    if capability is None and device.gpu() is None and jax.__version_info__ >= (0, 11):
        return None, "no NVIDIA GPU is at hand, and no mesh names one"
    architecture = "sm_80 or later" if capability is None else "sm_{}{}".format(*capability)
    if capability is not None and capability < triton.LEAST:
        return None, f"the kernels are for sm_80 and later, this GPU is {architecture}"
    return kernel, "; ".join(filter(None, [f"a kernel for this GPU, {architecture}", reason]))


def scan(
    kernel: ModuleType, u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, h0, order, reverse
):
    """See `selective_scan` in `api.py`; `kernel` comes from `kernel_in_jax`."""
    arrays = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, h0=h0)
    return _scan(kernel, (delta_softplus, reverse), arrays, widened(arrays), order)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(kernel, switches, arrays, wide, order):
    scan = lambda module, arrays, order: module.scan(**arrays, order=order, **_options(switches))
    return _chosen(partial(scan, chunked), partial(scan, kernel), arrays, order)


def _scan_forward(kernel, switches, arrays, wide, order):
    options = _options(switches)
    checkpoints = launch.checkpoints(kernel.BACKEND, arrays, **options)

    def default(arrays, order):
        scan = lambda wide: chunked.scan_twice_given(arrays, wide, order=order, **options)
        outputs, pull_back = jax.vjp(scan, widened(arrays))
        return outputs, pull_back, _unset(checkpoints)

    _, pull_back, _ = jax.eval_shape(default, arrays, order)

    def with_kernel(arrays, order):
        outputs, checkpoints = launch.forward(kernel.BACKEND, arrays, order, **options)
        return outputs, jax.tree.map(_unset, pull_back), checkpoints

    outputs, *kept = _chosen(default, with_kernel, arrays, order)
    given = {id(x) for x in jax.tree.leaves(arrays)}
    kept = jax.tree.map(lambda x: x if id(x) in given else named(x), kept)
    return outputs, (arrays, order, *kept)


def _scan_backward(kernel, switches, residuals, bars):
    def default(arrays, order, pull_back, checkpoints, bars):
        return pull_back(bars)[0]

    def with_kernel(arrays, order, pull_back, checkpoints, bars):
        return launch.backward(
            kernel.BACKEND, arrays, order, checkpoints, bars, **_options(switches)
        )

    return None, _chosen(default, with_kernel, *residuals, bars), None


_scan.defvjp(_scan_forward, _scan_backward)


def _chosen(default, with_kernel, arrays, *others):
    """Calls the one of the two that suits the platform the program is lowered for."""

    def cuda(arrays, *others):
        kernel, _ = kernel_for_gpus(arrays["A"].shape[1])
        return (default if kernel is None else with_kernel)(arrays, *others)

    return by_platform(default, cuda=cuda)(arrays, *others)


def _options(switches: tuple[bool, bool]) -> dict[str, bool]:
    return dict(zip(("delta_softplus", "reverse"), switches, strict=True))


def _unset(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros in place of the residuals of the other implementation, which are never read."""
    return jnp.zeros(shape.shape, shape.dtype)
