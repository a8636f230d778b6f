"""The backend-independent part of a selective scan by a pair of Pallas kernels.

For a gradient, the forward kernel stores the state before every `chunk` steps and the backward
kernel recomputes the others, so the residuals are the arguments and (batch, length / chunk, state,
channels) floats. There are no atomics: two runs give the same bits.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..by_platform import PLATFORMS, by_platform
from ..checkpoints import named
from . import device, kernel_backward, kernel_forward, sharding
from .arithmetic import LN_2, LOG2_E
from .layout import Layout
from .plan import (
    MAX_ROWS_PER_LANE,
    STATES,
    Cost,
    Plan,
    plan,
)

Arrays = dict[str, jax.Array]
"""Arrays by argument name of `selective_scan`, without entries for absent ones."""

Axes = tuple[str, ...]

CHUNKS = (4, 8, 16)
"""Supported numbers of steps between checkpoints of the state."""


Layouts = tuple[Layout, Layout]
"""Layouts of the forward and the backward kernel."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel with its inputs and outputs."""

    name: str
    body: Callable
    """Called with (inputs, outputs), references by name, and `layout=` and `machine=`; see
    `layout`."""
    layout: Layout
    inputs: Arrays
    """Arrays whose number of channels is a multiple of the plan's."""
    input_axes: dict[str, Axes]
    outputs: dict[str, jax.ShapeDtypeStruct]
    output_axes: dict[str, Axes]
    grid: tuple[int, int]
    """Numbers of sequences and of blocks of channels."""


@dataclasses.dataclass(frozen=True)
class Backend:
    name: str
    """Name of the implementation."""
    plans: tuple[Plan, ...]
    """Candidates, of which the cheapest is used."""
    forward: Cost
    backward: Cost
    run: Callable[[Launch], Arrays]
    """Returns the outputs by name."""


def longest_chunk(backward: Plan) -> int:
    """The most steps per chunk whose rows fit into the backward kernel's registers."""
    # Lanes that share a channel hold separate addresses of B and C, in two registers each.
    return MAX_ROWS_PER_LANE // (backward.vectors if backward.groups == 1 else 2)


def check_state(name: str, state: int) -> None:
    """Raise NotImplementedError unless `state` is one of STATES."""
    if state not in STATES:
        raise NotImplementedError(
            f"selective_scan: {name!r} supports {', '.join(map(str, STATES))} states, but A "
            f"has {state}; use implementation='chunked', which supports any state size"
        )


def check_platform(name: str, platform: str, least: tuple[int, int]) -> None:
    """Raise NotImplementedError if programs for `platform` cannot run the kernels.

    On "cpu" the kernels are interpreted. On "cuda" the local GPU, if there is one, needs at least
    the compute capability `least`.
    """
    if platform not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"selective_scan: {name!r} is for NVIDIA GPUs, but JAX runs on {platform}, no "
            "NVIDIA GPU; use implementation='chunked', which runs everywhere"
        )
    capability = device.compute_capability()
    if platform == "cuda" and capability is not None and capability < least:
        architecture = "sm_{}{}".format(*capability)
        raise NotImplementedError(
            f"selective_scan: {name!r} needs an NVIDIA GPU from sm_{least[0]}{least[1]} on, but "
            f"this is {architecture}; use implementation='chunked', which runs everywhere"
        )


def compiled_or_interpreted(
    name: str, least: tuple[int, int], compiled: Callable, interpreted: Callable
) -> Callable[[Arrays], Arrays]:
    """A kernel that is compiled for NVIDIA GPUs, interpreted on CPUs, and refused elsewhere."""

    def checked(platform: str) -> Callable[[Arrays], Arrays]:
        def run(inputs: Arrays) -> Arrays:
            check_platform(name, platform, least)
            return compiled(inputs)

        return run

    others = {platform: checked(platform) for platform in PLATFORMS if platform != "cpu"}
    return by_platform(interpreted, **others)


def scan(
    backend: Backend,
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
    """See `selective_scan` in `api.py`.

    Args:
      backend: the kernels to run, already checked.
      chunk: steps between checkpoints of the state, one of CHUNKS. Fewer steps store more
        checkpoints, (batch, length / chunk, state, channels) floats, and use fewer registers. None
        selects the most that fit into the registers.

    Raises:
      ValueError: if `chunk` is not one of CHUNKS.
    """
    if chunk not in (None, *CHUNKS):
        raise ValueError(
            f"selective_scan: chunk is {chunk}: choose {', '.join(map(str, CHUNKS))}, or None"
        )
    arrays = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, h0=h0)
    layouts = _layouts(backend, arrays, delta_softplus, reverse, chunk)
    y, last_state = _scan(backend, layouts, _inputs(arrays), _table(order))
    return y, last_state.mT


# Forward and backward pass for callers with a custom VJP; arrays are the arguments of `scan`.


def checkpoints(backend: Backend, arrays: Arrays, **switches: bool) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the checkpoints that `forward` returns."""
    layout, _ = _layouts(backend, arrays, **switches)
    batch, _, channels = arrays["u"].shape
    shape = (batch, layout.chunks, layout.state, channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def forward(backend: Backend, arrays: Arrays, order, **switches: bool):
    """((y, last_state), checkpoints of the state)."""
    layouts = _layouts(backend, arrays, **switches)
    outputs, residuals = _scan_forward(backend, layouts, _inputs(arrays), _table(order))
    y, last_state = outputs
    return (y, last_state.mT), residuals[-1]


def backward(backend: Backend, arrays: Arrays, order, checkpoints, cotangents, **switches: bool):
    """The gradients of `arrays`."""
    layouts = _layouts(backend, arrays, **switches)
    inputs, pull_back = jax.vjp(_inputs, arrays)
    ybar, last_state_bar = cotangents
    residuals = inputs, _table(order), checkpoints
    bars, _ = _scan_backward(backend, layouts, residuals, (ybar, last_state_bar.mT))
    return pull_back(bars)[0]


def _inputs(arrays: Arrays) -> Arrays:
    """The inputs of the kernels, without the order."""
    single = lambda x: None if x is None else x.astype(jnp.float32)
    turned = lambda x: None if x is None else single(x).mT
    inputs = {
        "u": arrays["u"],
        "delta": arrays["delta"],
        "A": LOG2_E * turned(arrays["A"]),
        "B": single(arrays["B"]),
        "C": single(arrays["C"]),
        "D": single(arrays["D"]),
        "z": arrays["z"],
        "delta_bias": single(arrays["delta_bias"]),
        "h0": turned(arrays["h0"]),
    }
    return {name: x for name, x in inputs.items() if x is not None}


def _table(order) -> Arrays:
    return {} if order is None else {"order": order}


def _layouts(
    backend: Backend,
    arrays: Arrays,
    delta_softplus: bool,
    reverse: bool,
    chunk: int | None = None,
) -> Layouts:
    batch, length, channels = arrays["u"].shape
    state = arrays["A"].shape[1]
    forward, backward = (
        plan(
            cost,
            backend.plans,
            batch=sharding.share(batch),
            channels=channels,
            state=state,
            multiprocessors=device.multiprocessors(),
        )
        for cost in (backend.forward, backend.backward)
    )
    if chunk is None:
        # Avoids steps past the end of a short scan.
        chunk = min(longest_chunk(backward), max(4, pl.next_power_of_2(length)))
    of_plan = lambda plan: Layout(length, state, plan, chunk, delta_softplus, reverse)
    return of_plan(forward), of_plan(backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(backend: Backend, layouts: Layouts, inputs: Arrays, order: Arrays):
    """y and the last state, (batch, state, channels)."""
    outputs = _forward(backend, layouts, inputs | order, ("y", "last_state"))
    return outputs["y"], outputs["last_state"]


def _scan_forward(backend, layouts, inputs, order):
    outputs = _forward(backend, layouts, inputs | order, ("y", "last_state", "checkpoints"))
    residuals = inputs, order, named(outputs["checkpoints"])
    return (outputs["y"], outputs["last_state"]), residuals


def _scan_backward(backend, layouts, residuals, cotangents):
    inputs, order, checkpoints = residuals
    ybar, last_state_bar = cotangents
    more = {"checkpoints": checkpoints, "ybar": ybar, "last_state_bar": last_state_bar}
    bars = _backward(backend, layouts, inputs | order | more)
    # Sum over programs: blocks of channels, or sequences.
    for name in ("B", "C"):
        bars[name] = jnp.sum(bars[name][:, :, : ybar.shape[1]], 1)
    for name in ("D", "delta_bias", "A"):
        if name in bars:
            bars[name] = jnp.sum(bars[name], 0)
    bars["A"] *= LN_2
    return {name: bars[name] for name in inputs}, None


_scan.defvjp(_scan_forward, _scan_backward)


# Axes of the kernels' inputs and outputs.
_SEQUENCE = ("batch", "length", "channels")
_STATE = ("batch", "state", "channels")
_CHECKPOINTS = ("batch", "chunks", "state", "channels")
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
    "checkpoints": _CHECKPOINTS,
    "ybar": _SEQUENCE,
    "last_state_bar": _STATE,
}
_RESULTS = {"y": _SEQUENCE, "last_state": _STATE, "checkpoints": _CHECKPOINTS}
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


def _forward(backend: Backend, layouts: Layouts, inputs: Arrays, wanted: tuple[str, ...]) -> Arrays:
    axes = {name: _RESULTS[name] for name in wanted}
    body, dtypes = kernel_forward.forward, {"y": inputs["u"].dtype}
    return _run(backend, "selective_scan", body, layouts[0], inputs, axes, dtypes)


def _backward(backend: Backend, layouts: Layouts, inputs: Arrays) -> Arrays:
    """Gradients of all inputs, and always of h0."""
    axes = {name: axes for name, axes in _GRADIENTS.items() if name in inputs or name == "h0"}
    dtypes = {name: inputs[name].dtype for name in ("u", "delta", "z") if name in inputs}
    name, body = "selective_scan_backward", kernel_backward.backward
    return _run(backend, name, body, layouts[1], inputs, axes, dtypes)


def _run(
    backend: Backend,
    name: str,
    body: Callable,
    layout: Layout,
    inputs: Arrays,
    output_axes: dict[str, Axes],
    dtypes: dict[str, jnp.dtype],
) -> Arrays:
    """Launch a kernel; `dtypes` defaults to float32 for each output."""
    channels, multiple = inputs["u"].shape[2], layout.plan.channels

    def on_one_device(inputs: Arrays) -> Arrays:
        inputs = {k: _padded(x, _ARGUMENTS[k], multiple) for k, x in inputs.items()}
        batch, _, padded_channels = inputs["u"].shape
        sizes = {
            "batch": batch,
            "length": layout.length,
            "channels": padded_channels,
            "state": layout.state,
            "chunks": layout.chunks,
            "steps": layout.chunks * layout.chunk,
            "blocks": padded_channels // multiple,
        }
        launch = Launch(
            name=name,
            body=body,
            layout=layout,
            inputs=inputs,
            input_axes={k: _ARGUMENTS[k] for k in inputs},
            outputs={
                k: jax.ShapeDtypeStruct(tuple(sizes[a] for a in axes), dtypes.get(k, jnp.float32))
                for k, axes in output_axes.items()
            },
            output_axes=output_axes,
            grid=(batch, sizes["blocks"]),
        )
        cut = lambda x, axes: x[..., :channels] if axes[-1] == "channels" else x
        return {k: cut(x, output_axes[k]) for k, x in _launched(backend, launch).items()}

    mapped = sharding.over_batch(
        on_one_device, len(inputs["u"]), lambda name: _ARGUMENTS[name][0] == "batch"
    )
    return mapped(inputs)


def _launched(backend: Backend, launch: Launch) -> Arrays:
    @jax.custom_jvp
    def run(inputs: Arrays) -> Arrays:
        return backend.run(dataclasses.replace(launch, inputs=inputs))

    @run.defjvp
    def differentiate_again(primals, tangents):
        raise NotImplementedError(
            f"selective_scan: {backend.name!r} has first derivatives only; use "
            "implementation='sequential' or 'associative' for higher ones"
        )

    return run(launch.inputs)


def _padded(x: jax.Array, axes: Axes, multiple: int) -> jax.Array:
    missing = -x.shape[-1] % multiple
    if axes[-1] != "channels" or not missing:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
