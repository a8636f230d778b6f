"""The backend-independent part of a selective scan by a pair of Pallas kernels.

For a gradient, the forward kernel stores the state before every `chunk` steps and the backward
kernel recomputes the others, so the residuals are the arguments and (batch, length / chunk, state,
channels) floats. There are no atomics: two runs give the same bits.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..by_platform import PLATFORMS, by_platform
from ..checkpoints import named
from ..wide import widened
from . import device, sharding
from .arithmetic import LN_2, LOG2_E
from .grid import check_grid
from .instances import Instances, with_instances
from .layout import Layout
from .plan import STATES

Arrays = dict[str, jax.Array]
"""Arrays by argument name of `selective_scan`, without entries for absent ones."""

Axes = tuple[str, ...]

CHUNKS = (4, 8, 16)
"""Supported numbers of steps between checkpoints of the state."""

ORDER_MULTIPLE = 4
"""A table of an order is padded to a multiple of this: kernels load up to four entries at once."""

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
    grid: dict[str, int]
    """Numbers of programs by axis: "batch", "segments" where sequences are cut, and "blocks" of
    channels. Of inputs and outputs with such an axis, a program has one entry."""


Choice = TypeVar("Choice")


def chosen(candidates: tuple[Choice, ...], choose: Callable[[], Choice]) -> Choice:
    """The plan of a launch: what `choose` returns, one of `candidates`.

    All plans pass through here, so tests and benchmarks replace this function to run a certain one.
    """
    return choose()


@dataclasses.dataclass(frozen=True)
class Backend:
    name: str
    """Name of the implementation."""
    plans: tuple
    """Candidates for the distribution of the work; see `chosen`."""
    layouts: Callable[..., Layouts]
    """Called with the arguments of a scan and, by name, `softplus`, `reverse` and `chunk` (None for
    the longest that fits)."""
    forward: Callable[[Layouts, Arrays, bool, Instances], Arrays]
    """Called with the layouts, the kernels' inputs, whether checkpoints are wanted, and the mapped
    axes around; returns "y", "last_state" and "checkpoints"."""
    backward: Callable[[Layouts, Arrays, Instances], Arrays]
    """Called with the layouts, the kernels' inputs with the checkpoints and the cotangents "ybar"
    and "last_state_bar", and the mapped axes around. Returns the gradients of the inputs, and
    always of h0; that of A is without the factor ln 2, and those of inputs that an axis shares are
    float32."""


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
    inputs = _inputs(arrays)
    y, last_state = _scan(backend, layouts, inputs, widened(inputs), _table(order))
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
    outputs, residuals = _scan_forward(backend, layouts, _inputs(arrays), None, _table(order))
    y, last_state = outputs
    return (y, last_state.mT), residuals[-1]


def backward(backend: Backend, arrays: Arrays, order, checkpoints, cotangents, **switches: bool):
    """The gradients of `arrays`, in float32."""
    layouts = _layouts(backend, arrays, **switches)
    _, pull_back = jax.vjp(_inputs, widened(arrays))
    ybar, last_state_bar = cotangents
    residuals = _inputs(arrays), _table(order), checkpoints
    _, bars, _ = _scan_backward(backend, layouts, residuals, (ybar, last_state_bar.mT))
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
    backend: Backend, arrays: Arrays, delta_softplus: bool, reverse: bool, chunk: int | None = None
) -> Layouts:
    return backend.layouts(arrays, softplus=delta_softplus, reverse=reverse, chunk=chunk)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(backend: Backend, layouts: Layouts, inputs: Arrays, wide: Arrays, order: Arrays):
    """y and the last state, (batch, state, channels); `wide` has the gradients of `inputs`."""
    outputs = _run_forward(backend, layouts, inputs | order, with_checkpoints=False)
    return outputs["y"], outputs["last_state"]


def _scan_forward(backend, layouts, inputs, wide, order):
    outputs = _run_forward(backend, layouts, inputs | order, with_checkpoints=True)
    residuals = inputs, order, named(outputs["checkpoints"])
    return (outputs["y"], outputs["last_state"]), residuals


def _run_forward(
    backend: Backend, layouts: Layouts, inputs: Arrays, with_checkpoints: bool
) -> Arrays:
    run = lambda instances, inputs: backend.forward(layouts, inputs, with_checkpoints, instances)
    return with_instances(run)(inputs)


def _scan_backward(backend, layouts, residuals, cotangents):
    inputs, order, checkpoints = residuals
    ybar, last_state_bar = cotangents
    more = {"checkpoints": checkpoints, "ybar": ybar, "last_state_bar": last_state_bar}
    run = lambda instances, inputs: widened(backend.backward(layouts, inputs, instances))
    bars = with_instances(run)(inputs | order | more)
    bars["A"] *= LN_2
    return None, {name: bars[name] for name in inputs}, None


_scan.defvjp(_scan_forward, _scan_backward)


SEQUENCE = ("batch", "length", "channels")
STATE = ("batch", "state", "channels")
ARGUMENTS = {
    "u": SEQUENCE,
    "delta": SEQUENCE,
    "A": ("state", "channels"),
    "B": ("batch", "length", "state"),
    "C": ("batch", "length", "state"),
    "D": ("channels",),
    "z": SEQUENCE,
    "delta_bias": ("channels",),
    "h0": STATE,
    "order": ("length",),
    "checkpoints": ("batch", "chunks", "state", "channels"),
    "ybar": SEQUENCE,
    "last_state_bar": STATE,
}
"""Axes of the inputs of a kernel, unless it is launched with others."""

RESULTS = {"y": SEQUENCE, "last_state": STATE, "checkpoints": ARGUMENTS["checkpoints"]}
"""Axes of the outputs of a forward kernel, unless it divides them among more programs."""

GRADIENTS = {name: ARGUMENTS[name] for name in ("u", "delta", "z", "h0")}
"""Axes of the outputs of a backward kernel that are no sums over programs."""


def launched(
    implementation: str,
    name: str,
    body: Callable,
    run: Callable[[Launch], Arrays],
    layout: Layout,
    inputs: Arrays,
    output_axes: dict[str, Axes],
    dtypes: dict[str, jnp.dtype],
    *,
    sizes: dict[str, int],
    grid: tuple[str, ...],
    instances: Instances,
    input_axes: dict[str, Axes] = ARGUMENTS,
) -> Arrays:
    """Launch a kernel.

    Args:
      implementation: its name.
      name: the kernel's name.
      body, layout: see `Launch`.
      run: runs a launch, and returns the outputs by name.
      inputs: arrays by name.
      output_axes: names and axes of the outputs.
      dtypes: their dtypes, by default float32.
      sizes: sizes of axes besides those of the arguments, the chunks and the blocks.
      grid: axes of the grid.
      instances: the mapped axes around.
    """
    channels, multiple = inputs["delta"].shape[2], layout.plan.channels
    input_axes = {k: input_axes[k] for k in inputs}

    def on_one_device(inputs: Arrays) -> Arrays:
        inputs = {k: _padded(x, input_axes[k], multiple) for k, x in inputs.items()}
        batch, _, padded_channels = inputs["delta"].shape
        every = sizes | {
            "batch": batch,
            "length": layout.length,
            "channels": padded_channels,
            "state": layout.state,
            "chunks": layout.chunks,
            "blocks": padded_channels // multiple,
        }
        launch = Launch(
            name=name,
            body=body,
            layout=layout,
            inputs=inputs,
            input_axes=input_axes,
            outputs={
                k: jax.ShapeDtypeStruct(tuple(every[a] for a in axes), dtypes.get(k, jnp.float32))
                for k, axes in output_axes.items()
            },
            output_axes=output_axes,
            grid={axis: every[axis] for axis in grid},
        )
        segments = launch.grid.get("segments", 1)
        check_grid(implementation, batch, every["blocks"], segments * instances.count)
        cut = lambda x, axes: x[..., :channels] if axes[-1] == "channels" else x
        outputs = _first_derivatives_only(implementation, run, launch)
        return {k: cut(x, output_axes[k]) for k, x in outputs.items()}

    mapped = sharding.over_batch(
        on_one_device, len(inputs["delta"]), lambda name: input_axes[name][0] == "batch"
    )
    return mapped(inputs)


def gradient_dtypes(inputs: Arrays, instances: Instances) -> dict[str, jnp.dtype]:
    """The dtypes in which a kernel writes the gradients of u, delta and z.

    Terms of a sum over instances are written in float32, all others as what they become.
    """
    return {
        name: inputs[name].dtype
        for name in ("u", "delta", "z")
        if name in inputs and name not in instances.shared
    }


def _first_derivatives_only(implementation: str, run: Callable, launch: Launch) -> Arrays:
    @jax.custom_jvp
    def of_inputs(inputs: Arrays) -> Arrays:
        return _traced_once(run, _Frozen(dataclasses.replace(launch, inputs={})), inputs)

    @of_inputs.defjvp
    def differentiate_again(primals, tangents):
        raise NotImplementedError(
            f"selective_scan: {implementation!r} has first derivatives only; use "
            "implementation='sequential' or 'associative' for higher ones"
        )

    return of_inputs(launch.inputs)


class _Frozen:
    """A launch without inputs, hashable as a static argument of `jax.jit`."""

    def __init__(self, launch: Launch):
        self.launch = launch
        self.key = tuple(
            tuple(value.items()) if isinstance(value, dict) else value
            for value in vars(launch).values()
        )

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Frozen) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@partial(jax.jit, static_argnums=(0, 1))
def _traced_once(run: Callable, frozen: _Frozen, inputs: Arrays) -> Arrays:
    """The outputs of a launch; equal launches of a program are traced and lowered once."""
    return run(dataclasses.replace(frozen.launch, inputs=inputs))


def _padded(x: jax.Array, axes: Axes, multiple: int) -> jax.Array:
    """Pads the channels to whole blocks, and an order to whole loads of four numbers."""
    multiple = {"channels": multiple, "length": ORDER_MULTIPLE}.get(axes[-1], 1)
    missing = -x.shape[-1] % multiple
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
