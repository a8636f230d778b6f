"""The selective scan around a pair of Pallas kernels: all that does not depend on the backend.

The forward kernel stores the state before every `chunk` steps where a gradient is wanted; the
backward kernel recomputes the rest, so what is kept beside the arguments is (batch, length / chunk,
state, channels) floats. No atomics: two runs give the same bits.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.selective_scan import device, sharding
from kernels.selective_scan.arithmetic import LN_2, LOG2_E
from kernels.selective_scan.launch_plan import (
    BACKWARD,
    FORWARD,
    MAX_ROWS_PER_LANE,
    STATES,
    Plan,
    plan,
)

Arrays = dict[str, jax.Array]
"""By the argument's name in `selective_scan`; what is absent has no entry."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is known before tracing."""

    softplus: bool
    reverse: bool
    chunk: int
    """Steps between two checkpoints of the state."""
    forward: Plan
    backward: Plan


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What a backend brings. Its two kernels are functions of (options, arrays).

    They find A as (state, channels) times log2(e), and states as (batch, state, channels).
    """

    name: str
    """Of the implementation."""
    plans: tuple[Plan, ...]
    """The cheapest of them is taken."""
    forward: Callable[..., Arrays]
    """With `checkpoints=` as well: y, last_state, and checkpoints where they are wanted."""
    backward: Callable[[Options, Arrays], Arrays]
    """From the arguments, `checkpoints`, `ybar` and `last_state_bar` to gradients.

    Of sums over everything a program has its own: B and C are (batch, blocks, length or more,
    state), A is (batch, state, channels), D and delta_bias are (batch, channels).
    """


def longest_chunk(backward: Plan) -> int:
    """Most steps between checkpoints whose rows fit the backward kernel's registers."""
    # Lanes that share a channel read B and C at addresses of their own, two registers each.
    return MAX_ROWS_PER_LANE // (backward.vectors if backward.groups == 1 else 2)


def check(name: str, state: int, least: tuple[int, int]) -> None:
    """Raises NotImplementedError where A has not one of STATES, or the GPU is older than `least`.

    On a CPU the kernels are interpreted.
    """
    if state not in STATES:
        raise NotImplementedError(
            f"selective_scan: {name!r} takes {', '.join(map(str, STATES))} states, but A "
            f"has {state}; name 'chunked', which takes any number"
        )
    platform = jax.default_backend()
    if platform not in ("cpu", "gpu"):
        raise NotImplementedError(
            f"selective_scan: {name!r} is for NVIDIA GPUs, but JAX runs on {platform}; "
            "name 'chunked', which runs everywhere"
        )
    capability = device.compute_capability()
    if platform == "gpu" and (capability is None or capability < least):
        found = "no NVIDIA GPU" if capability is None else "sm_{}{}".format(*capability)
        raise NotImplementedError(
            f"selective_scan: {name!r} needs an NVIDIA GPU from sm_{least[0]}{least[1]} on, but "
            f"this is {found}; name 'chunked', which runs everywhere"
        )


def scan(
    kernels: Kernels,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    *,
    delta_softplus,
    h0,
    order,
    reverse,
    chunk=None,
):
    """See `kernels.selective_scan.api.selective_scan`.

    Args:
      chunk: steps between two checkpoints of the state, 4, 8 or 16. Fewer of them keep more
        checkpoints, (batch, length / chunk, state, channels) floats, and leave more registers free.
        None takes the most that fit the registers.
    """
    single = lambda x: None if x is None else x.astype(jnp.float32)
    inputs = {
        "u": u,
        "delta": delta,
        "A": LOG2_E * single(A).mT,
        "B": single(B),
        "C": single(C),
        "D": single(D),
        "z": z,
        "delta_bias": single(delta_bias),
        "h0": None if h0 is None else single(h0).mT,
        "order": order,
    }
    inputs = {name: x for name, x in inputs.items() if x is not None}

    def on_one_device(inputs: Arrays):
        options = _options(kernels.plans, inputs, delta_softplus, reverse, chunk)
        arrays = {name: x for name, x in inputs.items() if name != "order"}
        order = {name: x for name, x in inputs.items() if name == "order"}
        return _scan(kernels, options, arrays, order)

    mapped = sharding.over_batch(on_one_device, len(u), lambda name: ARGUMENTS[name][0] == "batch")
    y, last_state = mapped(inputs)
    return y, last_state.mT


def _options(plans, inputs: Arrays, softplus: bool, reverse: bool, chunk: int | None) -> Options:
    batch, length, channels = inputs["u"].shape
    forward, backward = (
        plan(
            cost,
            plans,
            batch=batch,
            channels=channels,
            state=len(inputs["A"]),
            multiprocessors=device.multiprocessors(),
        )
        for cost in (FORWARD, BACKWARD)
    )
    if chunk is None:
        # A short scan needs no steps past its end.
        chunk = min(longest_chunk(backward), max(4, pl.next_power_of_2(length)))
    return Options(softplus, reverse, chunk, forward, backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(kernels: Kernels, options: Options, inputs: Arrays, order: Arrays):
    """y and the last state (batch, state, channels)."""
    outputs = kernels.forward(options, inputs | order, checkpoints=False)
    return outputs["y"], outputs["last_state"]


def _scan_forward(kernels, options, inputs, order):
    outputs = kernels.forward(options, inputs | order, checkpoints=True)
    return (outputs["y"], outputs["last_state"]), (inputs, order, outputs["checkpoints"])


def _scan_backward(kernels, options, residuals, cotangents):
    inputs, order, checkpoints = residuals
    ybar, last_state_bar = cotangents
    more = {"checkpoints": checkpoints, "ybar": ybar, "last_state_bar": last_state_bar}
    bars = kernels.backward(options, inputs | order | more)
    # Sums over what the programs had apart: blocks of channels, or sequences.
    for name in ("B", "C"):
        bars[name] = jnp.sum(bars[name][:, :, : ybar.shape[1]], 1)
    for name in ("D", "delta_bias", "A"):
        if name in bars:
            bars[name] = jnp.sum(bars[name], 0)
    bars["A"] *= LN_2
    return {name: bars[name] for name in inputs}, None


_scan.defvjp(_scan_forward, _scan_backward)


# What the kernels read and write, by axis.
_SEQUENCE = ("batch", "length", "channels")
_STATE = ("batch", "state", "channels")
_CHECKPOINTS = ("batch", "chunks", "state", "channels")
ARGUMENTS = {
    "u": _SEQUENCE,
    "delta": _SEQUENCE,
    "A": ("state", "channels"),
    "B": ("batch", "length", "state"),
    "C": ("batch", "length", "state"),
    "D": ("channels",),
    "z": _SEQUENCE,
    "delta_bias": ("channels",),
    "h0": _STATE,
    "order": ("length",),
    "checkpoints": _CHECKPOINTS,
    "ybar": _SEQUENCE,
    "last_state_bar": _STATE,
}
RESULTS = {"y": _SEQUENCE, "last_state": _STATE, "checkpoints": _CHECKPOINTS}
GRADIENTS = {
    "u": _SEQUENCE,
    "delta": _SEQUENCE,
    "A": _STATE,
    "B": ("batch", "blocks", "steps", "state"),
    "C": ("batch", "blocks", "steps", "state"),
    "D": ("batch", "channels"),
    "z": _SEQUENCE,
    "delta_bias": ("batch", "channels"),
    "h0": _STATE,
}


def sizes(options: Options, plan: Plan, inputs: Arrays) -> dict[str, int]:
    """The length of every axis; `steps` is the length with the last chunk filled up."""
    batch, length, channels = inputs["u"].shape
    chunks = pl.cdiv(length, options.chunk)
    return {
        "batch": batch,
        "length": length,
        "channels": channels,
        "state": len(inputs["A"]),
        "chunks": chunks,
        "steps": chunks * options.chunk,
        "blocks": pl.cdiv(channels, plan.channels),
    }


def result_dtypes(inputs: Arrays, *, checkpoints: bool) -> dict[str, jnp.dtype]:
    """What the forward kernel writes."""
    results = {"y": inputs["u"].dtype, "last_state": jnp.dtype(jnp.float32)}
    return results | ({"checkpoints": jnp.dtype(jnp.float32)} if checkpoints else {})


def gradient_dtypes(inputs: Arrays) -> dict[str, jnp.dtype]:
    """What the backward kernel writes: all gradients, and always that of h0."""
    names = [name for name in GRADIENTS if name in inputs or name == "h0"]
    in_its_dtype = ("u", "delta", "z")
    single = jnp.dtype(jnp.float32)
    return {name: inputs[name].dtype if name in in_its_dtype else single for name in names}
