"""The public function, and the one place where an implementation is chosen.

An implementation is a function with the arguments of `selective_scan` up to `reverse`, already
checked. It returns (y, last_state), and raises NotImplementedError with the reason where it
cannot run. To add one: write its file, and enter it in IMPLEMENTATIONS.
"""

from collections.abc import Callable
from functools import partial
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kernels.selective_scan import (
    associative,
    automatic,
    chunked,
    device,
    pallas_mosaic,
    pallas_triton,
    reference,
)
from kernels.selective_scan.automatic import kernel_for_gpus, kernel_in_jax
from kernels.selective_scan.validation import check_arguments, check_implementation

IMPLEMENTATIONS: dict[str, Callable] = {
    "sequential": reference.scan,
    "associative": associative.scan,
    "chunked": chunked.scan,
    "pallas_triton": pallas_triton.scan,
    "pallas_mosaic": pallas_mosaic.scan,
}


def best_implementation(state: int) -> str:
    """The name which `implementation=None` stands for on JAX's default device, by the states.

    On NVIDIA GPUs from sm_80 on a Pallas kernel if it takes that many states: "pallas_triton"
    while jax has it, then "pallas_mosaic". Anywhere else (CPUs, older GPUs, TPUs) "chunked".
    """
    return choose(state)[0]


def choose(state: int) -> tuple[str, str]:
    """`best_implementation`, and why it is that one, in a few words."""
    platform = device.platform()
    if platform != "cuda":
        return "chunked", f"no NVIDIA GPU: JAX computes on {platform}"
    kernel, reason = kernel_for_gpus(state)
    return "chunked" if kernel is None else kernel.BACKEND.name, reason


def check_here(name: str, state: int) -> None:
    """Raises NotImplementedError with the reason where JAX's default device cannot run `name`."""
    for kernel in (pallas_triton, pallas_mosaic):
        if kernel.BACKEND.name == name:
            kernel.check(state)


@no_type_check  # a wrong shape is answered by `validation`, in words
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
    return_last_state: bool = False,
    implementation: str | None = None,
) -> (
    Float[Array, "batch length channels"]
    | tuple[Float[Array, "batch length channels"], Float[Array, "batch channels state"]]
):
    """The selective state space recurrence of Mamba (arXiv 2312.00752, algorithm 2).

        h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l
        y_l = (<C_l, h_l> + D u_l) * silu(z_l)

    for every channel of every sequence, with delta_l <- delta_l + delta_bias, and then its
    softplus, where asked for. The state is computed in float32 whatever the arguments' dtypes,
    which may differ from each other.

    Reverse-mode derivatives exist for every floating argument; forward-mode ones only for
    "sequential" and "associative". Several orders of one layer are a `jax.vmap` over delta, A, B,
    C, D, delta_bias and order, with u unmapped.

    Args:
        u: what is scanned, (batch, length, channels).
        delta: step sizes, shaped like u; positive once bias and softplus are applied.
        A: decay rates, (channels, state), negative for a stable recurrence.
        B: what u writes into the state, (batch, length, state).
        C: what is read from the state, shaped like B.
        D: weight of the skip from u to y, (channels,).
        z: the gate before its silu, shaped like u.
        delta_bias: added to delta, (channels,).
        delta_softplus: whether delta (plus bias) goes through softplus.
        h0: the state before the first step, (batch, channels, state); zero if absent.
        order: int32 permutation of range(length): step s visits row order[s]. All arrays stay in
            row order. Checked where its values are known; a traced one is trusted.
        reverse: visit from the last step to the first (with `order`, from its last entry).
        return_last_state: also return the state after the last step visited.
        implementation: "sequential", "associative", "chunked", "pallas_triton" or
            "pallas_mosaic"; None takes the best for the platform that the program is lowered for,
            which is where the arrays are: a Pallas kernel on NVIDIA GPUs (`kernel_for_gpus`), on
            others "chunked". A named one never falls back; on a CPU a Pallas kernel is
            interpreted, which is slow.

    Returns:
        y, shaped like u and in its dtype; or (y, last_state) with last_state float32
        (batch, channels, state).

    Raises:
        ValueError: shapes which disagree, an order which is no permutation, an unknown
            implementation.
        TypeError: something else than a floating array, an order which is not int32.
        NotImplementedError: the named implementation cannot run here; of a Pallas kernel on a
            platform that has none, when the program is lowered for it.
    """
    if implementation is not None:
        check_implementation(implementation, IMPLEMENTATIONS)
    arrays = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, h0=h0)
    check_arguments(arrays, order)
    kernel = kernel_in_jax(A.shape[1])[0] if implementation is None else None
    if kernel is None:
        scan = IMPLEMENTATIONS[implementation or best_implementation(A.shape[1])]
    else:
        scan = partial(automatic.scan, kernel)
    arrays = jax.tree.map(jnp.asarray, arrays)
    if order is not None:
        order = jnp.array(order)  # a copy: nested vmaps of a NumPy table fail in custom_vjp
    try:
        y, last_state = scan(**arrays, delta_softplus=delta_softplus, order=order, reverse=reverse)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise NotImplementedError(
            f"selective_scan: {repr(implementation) if implementation else 'the default'} has no "
            "forward-mode derivative; name 'sequential' or 'associative', which have"
        ) from error
    return (y, last_state) if return_last_state else y
