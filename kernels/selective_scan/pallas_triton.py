"""The selective scan as one Pallas kernel each way, through Triton, for NVIDIA GPUs from sm_80 on.

Everything of `selective_scan` happens inside: step sizes, the recurrence, skip, gate and orders.
The forward kernel stores the state before every `chunk` steps where a gradient is wanted; the
backward kernel recomputes the rest, so what is kept beside the arguments is (batch, length / chunk,
state, channels) floats. No atomics: two runs give the same bits. On a CPU the kernels are
interpreted, which is for tests.
"""

import dataclasses
import warnings
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kernels.selective_scan import device, sharding, triton_backward, triton_forward
from kernels.selective_scan.launch_plan import (
    BACKWARD,
    FORWARD,
    MAX_ROWS_PER_LANE,
    STATES,
    Plan,
    plan,
)
from kernels.selective_scan.triton_arithmetic import LN_2, LOG2_E, Arithmetic
from kernels.selective_scan.triton_layout import Layout

# Known, and of no use to those who call the scan: Mosaic GPU is to take this backend's place.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is known before tracing."""

    softplus: bool
    reverse: bool
    chunk: int
    forward: Plan
    backward: Plan


def longest_chunk(backward: Plan) -> int:
    """Most steps between checkpoints whose rows fit the backward kernel's registers."""
    # Lanes that share a channel read B and C at addresses of their own, two registers each.
    return MAX_ROWS_PER_LANE // (backward.vectors if backward.groups == 1 else 2)


def check(state: int) -> None:
    """Raises NotImplementedError with the reason where these kernels cannot run."""
    if state not in STATES:
        raise NotImplementedError(
            f"selective_scan: 'pallas_triton' takes {', '.join(map(str, STATES))} states, but A "
            f"has {state}; name 'chunked', which takes any number"
        )
    platform = jax.default_backend()
    if platform not in ("cpu", "gpu"):
        raise NotImplementedError(
            f"selective_scan: 'pallas_triton' is for NVIDIA GPUs, but JAX runs on {platform}; "
            "name 'chunked', which runs everywhere"
        )
    capability = device.compute_capability()
    if platform == "gpu" and (capability is None or capability < (8, 0)):
        found = "no NVIDIA GPU" if capability is None else "sm_{}{}".format(*capability)
        raise NotImplementedError(
            f"selective_scan: 'pallas_triton' needs an NVIDIA GPU from sm_80 on, but this is "
            f"{found}; name 'chunked', which runs everywhere"
        )


def scan(u, delta, A, B, C, D, z, delta_bias, *, delta_softplus, h0, order, reverse, chunk=None):
    """See `kernels.selective_scan.api.selective_scan`.

    Args:
      chunk: steps between two checkpoints of the state, 4, 8 or 16. Fewer of them keep more
        checkpoints, (batch, length / chunk, state, channels) floats, and leave more registers free.
        None takes the most that fit the registers.
    """
    check(A.shape[1])
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

    def on_one_device(inputs: dict):
        options = _options(inputs, delta_softplus, reverse, chunk)
        arrays = {name: x for name, x in inputs.items() if name != "order"}
        order = {name: x for name, x in inputs.items() if name == "order"}
        return _scan(options, arrays, order)

    mapped = sharding.over_batch(on_one_device, len(u), lambda name: _ARGUMENTS[name][0] == "batch")
    y, last_state = mapped(inputs)
    return y, last_state.mT


def _options(inputs: dict, softplus: bool, reverse: bool, chunk: int | None) -> Options:
    batch, length, channels = inputs["u"].shape
    forward, backward = (
        plan(
            cost,
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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(options: Options, inputs: dict, order: dict):
    """y and the last state (batch, state, channels)."""
    outputs = _forward(options, inputs, order, checkpoints=False)
    return outputs["y"], outputs["last_state"]


def _scan_forward(options, inputs, order):
    outputs = _forward(options, inputs, order, checkpoints=True)
    return (outputs["y"], outputs["last_state"]), (inputs, order, outputs["checkpoints"])


def _scan_backward(options, residuals, cotangents):
    inputs, order, checkpoints = residuals
    ybar, last_state_bar = cotangents
    bars = _backward(
        options,
        inputs | order,
        {"checkpoints": checkpoints, "ybar": ybar, "last_state_bar": last_state_bar},
    )
    # Sums over what the programs had apart: blocks of channels, or sequences.
    for name in ("B", "C"):
        bars[name] = jnp.sum(bars[name][:, :, : ybar.shape[1]], 1)
    for name in ("D", "delta_bias", "A"):
        if name in bars:
            bars[name] = jnp.sum(bars[name], 0)
    bars["A"] *= LN_2
    return {name: bars[name] for name in inputs}, None


_scan.defvjp(_scan_forward, _scan_backward)


# What a kernel reads and writes, by axis. Of "batch" and "blocks" a program has one entry, of
# "channels" its block, of all else everything.
_SEQUENCE = ("batch", "length", "channels")
_STATE = ("batch", "state", "channels")
_ARGUMENTS = {
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
    "checkpoints": ("batch", "chunks", "state", "channels"),
    "ybar": _SEQUENCE,
    "last_state_bar": _STATE,
}
_RESULTS = {
    "y": _SEQUENCE,
    "last_state": _STATE,
    "checkpoints": ("batch", "chunks", "state", "channels"),
}
_GRADIENTS = {
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


def _forward(options: Options, inputs: dict, order: dict, *, checkpoints: bool) -> dict:
    results = {"y": inputs["u"].dtype, "last_state": jnp.float32}
    if checkpoints:
        results["checkpoints"] = jnp.float32
    return _launch(
        "selective_scan",
        triton_forward.forward,
        options,
        options.forward,
        inputs | order,
        _RESULTS,
        results,
    )


def _backward(options: Options, inputs: dict, more: dict) -> dict:
    in_its_dtype = ("u", "delta", "z")
    names = {"h0", *inputs} - {"order"}
    results = {n: inputs[n].dtype if n in in_its_dtype else jnp.float32 for n in names}
    return _launch(
        "selective_scan_backward",
        triton_backward.backward,
        options,
        options.backward,
        inputs | more,
        _GRADIENTS,
        results,
    )


def _launch(
    name: str, body, options: Options, plan: Plan, inputs: dict, axes: dict, dtypes: dict
) -> dict:
    batch, length, channels = inputs["u"].shape
    sizes = {
        "batch": batch,
        "length": length,
        "channels": channels,
        "state": len(inputs["A"]),
        "chunks": pl.cdiv(length, options.chunk),
        "steps": pl.cdiv(length, options.chunk) * options.chunk,
        "blocks": pl.cdiv(channels, plan.channels),
    }

    def spec(axes: tuple[str, ...]) -> pl.BlockSpec:
        shape = {"batch": None, "blocks": None, "channels": plan.channels}
        return pl.BlockSpec(
            tuple(shape.get(axis, sizes[axis]) for axis in axes),
            lambda b, i: tuple({"batch": b, "blocks": i, "channels": i}.get(x, 0) for x in axes),
        )

    def call(interpret: bool, inputs: dict) -> dict:
        layout = Layout(
            length=length,
            channels=channels,
            state=sizes["state"],
            plan=plan,
            chunk=options.chunk,
            softplus=options.softplus,
            reverse=options.reverse,
            arithmetic=Arithmetic(interpret),
        )
        return pl.pallas_call(
            partial(body, layout=layout),
            out_shape={
                name: jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes[name]), dtype)
                for name, dtype in dtypes.items()
            },
            grid=(batch, sizes["blocks"]),
            in_specs=({name: spec(_ARGUMENTS[name]) for name in inputs},),
            out_specs={name: spec(axes[name]) for name in dtypes},
            compiler_params=plt.CompilerParams(num_warps=1, num_stages=1),
            interpret=interpret,
            name=name,
        )(inputs)

    return lax.platform_dependent(inputs, cuda=partial(call, False), default=partial(call, True))
