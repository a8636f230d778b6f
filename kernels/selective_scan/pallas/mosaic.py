"""The selective scan by Pallas kernels for NVIDIA GPUs, by Mosaic GPU.

This backend is to replace Triton's. On a CPU the kernels are interpreted, for tests only.

Inputs are staged in shared memory (`mosaic_ring`). Where a batch has too few sequences to fill the
GPU, sequences are cut into segments that run at the same time: a first kernel computes how each
changes a state that it is given, the states between the segments follow by a short chain, and the
kernel proper starts every segment from its own (`mosaic_plan` says when).
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..ordering import in_rows, in_sequence, visited_rows
from . import device, launch, mosaic_backward, mosaic_forward, mosaic_plan
from .instances import Instances
from .launch import (
    ARGUMENTS,
    GRADIENTS,
    RESULTS,
    Arrays,
    Axes,
    Backend,
    Launch,
    Layouts,
    check_platform,
    check_state,
    compiled_or_interpreted,
    gradient_dtypes,
    launched,
)
from .mosaic_layout import Staged
from .mosaic_machine import GRID, Interpreted, Warpgroup

LEAST_JAX = (0, 11, 2)
LEAST = (7, 5)


def check(state: int) -> None:
    """Raise NotImplementedError, with the reason, if JAX's default device cannot run them."""
    check_kernel(state)
    check_platform(BACKEND.name, device.platform(), LEAST)


def check_kernel(state: int) -> None:
    """Raise NotImplementedError, with the reason, if no device can run them."""
    if jax.__version_info__ < LEAST_JAX:
        raise NotImplementedError(
            f"selective_scan: 'pallas_mosaic' needs jax {'.'.join(map(str, LEAST_JAX))} or newer, "
            f"but this is {jax.__version__}; use implementation='chunked', which has no such limit"
        )
    check_state("pallas_mosaic", state)


def scan(u, delta, A, *arguments, **options):
    """See `launch.scan`."""
    check_kernel(A.shape[1])
    return launch.scan(BACKEND, u, delta, A, *arguments, **options)


_OF_SEGMENT = ("batch", "segments", "state", "channels")
_OF_CHUNK = ("batch", "chunks", "steps of states")
_INPUTS = ARGUMENTS | {"h0": _OF_SEGMENT, "last_state_bar": _OF_SEGMENT}
_RESULTS = RESULTS | {"last_state": _OF_SEGMENT}
_GRADIENTS = GRADIENTS | {
    "A": _OF_SEGMENT,
    "B": ("batch", "blocks", "all steps of states"),
    "C": ("batch", "blocks", "all steps of states"),
    "D": ("batch", "segments", "channels"),
    "delta_bias": ("batch", "segments", "channels"),
}
_ENDS = {"ends": _OF_SEGMENT, "steps": ("batch", "segments", "channels")}
"""Results of the kernels of segment ends. The segment that passes nothing on is left out: the last
one forwards, the first one backwards."""


def _forward(
    layouts: Layouts, inputs: Arrays, with_checkpoints: bool, instances: Instances
) -> Arrays:
    """See `launch.Backend`."""
    layout = mosaic_plan.in_segments(layouts[0], inputs, instances, gradient=False)
    launched = partial(_launched, layout, instances)
    inputs = dict(inputs)
    for name in ("B", "C"):  # where they are not reversed; a tile is read backwards for that
        inputs[name] = in_sequence(inputs[name], inputs.get("order"))
    if layout.segments > 1:
        names = ("u", "delta", "A", "B", "delta_bias", "order")
        ends = launched(
            "selective_scan_ends", mosaic_forward.segment_ends, inputs, names, _ENDS,
            segments=layout.segments - 1,
        )  # fmt: skip
        first = inputs.get("h0", jnp.zeros_like(ends["ends"][:, 0]))
        inputs["h0"] = _chain(first, ends, inputs["A"])
    elif "h0" in inputs:
        inputs["h0"] = inputs["h0"][:, None]
    wanted = {
        name: _RESULTS[name] for name in _RESULTS if with_checkpoints or name != "checkpoints"
    }
    outputs = launched(
        "selective_scan", mosaic_forward.forward, inputs, tuple(inputs), wanted,
        {"y": inputs["u"].dtype},
    )  # fmt: skip
    return outputs | {"last_state": outputs["last_state"][:, -1]}


def _backward(layouts: Layouts, inputs: Arrays, instances: Instances) -> Arrays:
    """See `launch.Backend`."""
    layout = mosaic_plan.in_segments(layouts[1], inputs, instances, gradient=True)
    launched = partial(_launched, layout, instances)
    inputs = {name: x for name, x in inputs.items() if name != "h0"}
    last = inputs["last_state_bar"]
    if layout.segments > 1:
        names = ("delta", "z", "ybar", "A", "C", "delta_bias", "order")
        by_step = inputs | {"C": in_sequence(inputs["C"], inputs.get("order"))}
        ends = launched(
            "selective_scan_backward_ends", mosaic_backward.segment_ends, by_step, names, _ENDS,
            segments=layout.segments - 1,
        )  # fmt: skip
        inputs["last_state_bar"] = _chain(last, ends, inputs["A"], backwards=True)
    else:
        inputs["last_state_bar"] = last[:, None]
    rows = visited_rows(inputs.get("order"), layout.length, layout.reverse)
    for name in ("B", "C"):
        inputs[name] = _by_chunk(layout, in_sequence(inputs[name], rows))
    gradients = {name: _GRADIENTS[name] for name in _GRADIENTS if name in inputs or name == "h0"}
    bars = launched(
        "selective_scan_backward", mosaic_backward.backward, inputs, tuple(inputs), gradients,
        gradient_dtypes(inputs, instances), _INPUTS | {"B": _OF_CHUNK, "C": _OF_CHUNK},
    )  # fmt: skip
    # Sum over programs: blocks of channels, or segments of sequences.
    for name in ("B", "C"):
        bars[name] = in_rows(_by_step(layout, jnp.sum(bars[name], 1)), rows)
    for name in ("D", "delta_bias", "A"):
        if name in bars:
            bars[name] = jnp.sum(bars[name], (0, 1))
    return bars


def _chain(first: jax.Array, ends: Arrays, A: jax.Array, backwards: bool = False) -> jax.Array:
    """What each segment is given, (batch, segments, state, channels).

    Args:
      first: what the first segment is given; backwards, the last.
      ends: results of a kernel of segment ends, for all segments that pass something on.
      A: (state, channels), times log2 e.
    """
    given, order = [first], range(ends["steps"].shape[1])
    for i in reversed(order) if backwards else order:
        decay = jnp.exp2(A[None] * ends["steps"][:, i, None])
        given.append(decay * given[-1] + ends["ends"][:, i])
    return jnp.stack(given[::-1] if backwards else given, 1)


def _by_chunk(layout: Staged, x: jax.Array) -> jax.Array:
    """(batch, length, state) as (batch, chunks, state * chunk), filled up with zeros."""
    missing = layout.chunks * layout.chunk - layout.length
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
    x = x.reshape(len(x), layout.chunks, layout.chunk, layout.state).mT
    return x.reshape(len(x), layout.chunks, -1)


def _by_step(layout: Staged, x: jax.Array) -> jax.Array:
    """The inverse of `_by_chunk`."""
    x = x.reshape(len(x), layout.chunks, layout.state, layout.chunk).mT
    return x.reshape(len(x), -1, layout.state)[:, : layout.length]


def _launched(
    layout: Staged,
    instances: Instances,
    name: str,
    body: Callable,
    inputs: Arrays,
    names: tuple[str, ...],
    output_axes: dict[str, Axes],
    dtypes: dict[str, jnp.dtype] | None = None,
    input_axes: dict[str, Axes] = _INPUTS,
    segments: int | None = None,
) -> Arrays:
    """Launch a kernel; see `launch.launched`. By default it has a program for every segment."""
    return launched(
        "pallas_mosaic",
        name,
        body,
        _run,
        layout,
        {name: inputs[name] for name in names if name in inputs},
        output_axes,
        dtypes or {},
        sizes={
            "segments": segments or layout.segments,
            "steps of states": layout.state * layout.chunk,
            "all steps of states": layout.state * layout.chunk * layout.chunks,
        },
        grid=GRID,
        instances=instances,
        input_axes=input_axes,
    )


def _run(launch: Launch) -> Arrays:
    return compiled_or_interpreted(
        BACKEND.name, LEAST, partial(_compile, launch), partial(_interpret, launch)
    )(launch.inputs)


def _compile(launch: Launch, inputs: Arrays) -> Arrays:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    capability = device.compute_capability() or launch.layout.capability
    layout = dataclasses.replace(launch.layout, capability=capability)
    launch = dataclasses.replace(launch, layout=layout)

    def kernel(*refs, **scratch):
        given = dict(zip(inputs, refs[: len(inputs)], strict=True))
        made = dict(zip(launch.outputs, refs[len(inputs) :], strict=True))
        _program(launch, Warpgroup(layout, scratch), given, made)

    kernel.__name__ = launch.name
    outputs = plgpu.kernel(
        kernel,
        out_type=list(launch.outputs.values()),
        grid=tuple(launch.grid.values()),
        grid_names=tuple(launch.grid),
        scratch_types=_scratch(launch),
        # Automatic barriers would wait twice per store; the bodies wait where they must.
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            unsafe_no_auto_barriers=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )(*inputs.values())
    return dict(zip(launch.outputs, outputs, strict=True))


def _interpret(launch: Launch, inputs: Arrays) -> Arrays:
    def kernel(inputs: dict, outputs: dict, scratch: dict):
        _program(launch, Interpreted(launch.layout, scratch), inputs, outputs)

    return pl.pallas_call(
        kernel,
        out_shape=launch.outputs,
        grid=tuple(launch.grid.values()),
        scratch_shapes=[_scratch(launch)],
        interpret=True,
        name=launch.name,
    )(inputs)


def _program(launch: Launch, machine: Interpreted, inputs: dict, outputs: dict) -> None:
    def own(ref, axes: Axes):
        # "blocks" of channels are cut out by the machine.
        places = tuple(machine.program[axis] for axis in axes if axis in GRID)
        return ref.at[places] if places else ref

    inputs = {name: own(ref, launch.input_axes[name]) for name, ref in inputs.items()}
    outputs = {name: own(ref, launch.output_axes[name]) for name, ref in outputs.items()}
    launch.body(inputs, outputs, layout=launch.layout, machine=machine)


def _scratch(launch: Launch) -> dict:
    """Shared memory, with the names and shapes of `mosaic_plan.shared`."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    dtypes = {name: x.dtype for name, x in launch.inputs.items()}
    shapes = mosaic_plan.shared(launch.layout, dtypes, gradient="checkpoints" in dtypes)
    return {name: plgpu.SMEM(x.shape, x.dtype) for name, x in shapes.items()}


BACKEND = Backend(
    name="pallas_mosaic",
    plans=mosaic_plan.SEGMENTS,
    layouts=mosaic_plan.layouts,
    forward=_forward,
    backward=_backward,
)
