"""The public function `selective_scan` and the choice of its implementation.

An implementation is a function that takes the arguments of `selective_scan` up to `reverse`,
already validated, and returns (y, last_state). It raises NotImplementedError, with the reason,
where it cannot run. To add one, write its module and register it in IMPLEMENTATIONS.
"""

from collections.abc import Callable
from functools import partial
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import associative, automatic, chunked, reference, segments
from . import resets as resetting
from .automatic import kernel_for_gpus, kernel_in_jax
from .pallas import device, mosaic, triton
from .validation import check_arguments, check_implementation, check_resets, check_switches

IMPLEMENTATIONS: dict[str, Callable] = {
    "sequential": reference.scan,
    "associative": associative.scan,
    "chunked": chunked.scan,
    "pallas_triton": triton.scan,
    "pallas_mosaic": mosaic.scan,
}


def best_implementation(state: int) -> str:
    """The implementation that `None` selects on JAX's default device for this state size.

    On NVIDIA GPUs from sm_80 it is a Pallas kernel if one supports the state size: "pallas_triton"
    if this jax has it, else "pallas_mosaic". In all other cases it is "chunked".
    """
    return choose(state)[0]


def choose(state: int) -> tuple[str, str]:
    """`best_implementation` and the reason for the choice, in a few words."""
    platform = device.platform()
    if platform != "cuda":
        return "chunked", f"no NVIDIA GPU: JAX computes on {platform}"
    kernel, reason = kernel_for_gpus(state)
    return "chunked" if kernel is None else kernel.BACKEND.name, reason


def check_here(name: str, state: int) -> None:
    """Raises NotImplementedError with the reason where JAX's default device cannot run `name`."""
    for kernel in (triton, mosaic):
        if kernel.BACKEND.name == name:
            kernel.check(state)


@no_type_check  # `validation` reports wrong shapes in full sentences
def selective_scan(
    u: Float[Array, "batch length channels"],
    delta: Float[Array, "batch length channels"],
    A: Float[Array, "channels state"],
    B: Float[Array, "batch length state"],
    C: Float[Array, "batch length state"],
    D: Float[Array, "channels"] | None = None,
    z: Float[Array, "batch length channels"] | None = None,
    delta_bias: Float[Array, "channels"] | None = None,
    *,
    delta_softplus: bool = False,
    h0: Float[Array, "batch channels state"] | None = None,
    order: Int[Array | np.ndarray, "length"] | None = None,
    reverse: bool = False,
    resets: Bool[Array | np.ndarray, "batch length"] | None = None,
    return_last_state: bool = False,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> (
    Float[Array, "batch length channels"]
    | tuple[Float[Array, "batch length channels"], Float[Array, "batch channels state"]]
):
    """The selective state space recurrence of Mamba (arXiv 2312.00752, algorithm 2).

        h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l
        y_l = (<C_l, h_l> + D u_l) * silu(z_l)

    for every channel of every sequence. If requested, delta_bias is added to delta and softplus
    applied to the sum beforehand. The state is float32 whatever the dtypes of the arguments, which
    may differ from each other.

    Every floating argument has reverse-mode derivatives; only "sequential" and "associative" have
    forward-mode ones, without `axis_name`. To scan in several orders, use `jax.vmap` over delta, A,
    B, C, D, delta_bias and order, with u unmapped.

    Args:
        u: input sequence, (batch, length, channels).
        delta: step sizes, shaped like u; positive once bias and softplus are applied.
        A: decay rates, (channels, state); negative for a stable recurrence.
        B: input weights of the state, (batch, length, state).
        C: output weights of the state, shaped like B.
        D: skip weights from u to y, (channels,).
        z: gate before silu, shaped like u.
        delta_bias: bias added to delta, (channels,).
        delta_softplus: apply softplus to delta (plus bias).
        h0: state before the first step, (batch, channels, state); None for zeros.
        order: int32 permutation of range(length): step s visits row order[s]. All arrays stay in
            row order. Values are validated unless `order` is traced.
        reverse: visit the rows from the last step to the first (with `order`, from its last entry).
        resets: rows at which another sequence begins, (batch, length) of bool: the state is set to
            zero, h0 included, before the step that visits such a row. With `reverse` a packed
            sequence begins at its last row. A must not be positive: where its values are not known
            (under `jit`, `grad` or `vmap` of A), channels with positive entries become NaN.
        return_last_state: also return the state after the last step visited.
        axis_name: axis of the current mesh over whose devices the length is split, in the order of
            the rows. With `jax.set_mesh` the arrays are whole and their length is a multiple of the
            number of devices. Within `jax.shard_map` (with check_vma=False) every device passes and
            gets its own rows, and h0 and the last state are those of the whole length, the same on
            every device. There is no `order` then.
        implementation: "sequential", "associative", "chunked", "pallas_triton" or
            "pallas_mosaic". None selects the best one for the platform of the arrays, for which
            the program is lowered: a Pallas kernel on NVIDIA GPUs (`kernel_for_gpus`), "chunked"
            elsewhere. A named implementation never falls back; on a CPU a Pallas kernel is
            interpreted, which is slow.

    Returns:
        y, shaped like u and in its dtype; or (y, last_state) with last_state float32
        (batch, channels, state).

    Raises:
        ValueError: if shapes disagree, `order` is not a permutation, A has positive entries
            together with `resets`, the length cannot be split over `axis_name`, or the
            implementation is unknown.
        TypeError: if an argument is anything other than a floating array, `order` is not int32,
            `resets` is not bool, or a switch is not True or False.
        NotImplementedError: if the named implementation cannot run here. A Pallas kernel raises it
            when the program is lowered for a platform without kernels.
    """
    if implementation is not None:
        check_implementation(implementation, IMPLEMENTATIONS)
    arrays = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, h0=h0)
    check_switches(delta_softplus=delta_softplus, reverse=reverse)
    check_arguments(arrays, order)
    if resets is not None:
        check_resets(resets, arrays)
    kernel = kernel_in_jax(A.shape[1])[0] if implementation is None else None
    if kernel is None:
        scan = IMPLEMENTATIONS[implementation or best_implementation(A.shape[1])]
    else:
        scan = partial(automatic.scan, kernel)
    arrays = jax.tree.map(jnp.asarray, arrays)
    if order is not None:
        order = jnp.array(order)  # a copy: nested vmaps of a NumPy table fail in custom_vjp
    if axis_name is not None:
        scan = segments.over_axis(scan, axis_name, u.shape[1], order)
    if resets is not None:
        scan = partial(resetting.scan, scan, jnp.asarray(resets))
    try:
        y, last_state = scan(**arrays, delta_softplus=delta_softplus, order=order, reverse=reverse)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise NotImplementedError(
            f"selective_scan: {repr(implementation) if implementation else 'the default'} has no "
            "forward-mode derivative; use implementation='sequential' or 'associative'"
        ) from error
    return (y, last_state) if return_last_state else y
