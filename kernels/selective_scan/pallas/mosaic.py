"""The selective scan as a forward and a backward Pallas kernel for NVIDIA GPUs, by Mosaic GPU.

This backend is to replace Triton's. On a CPU the kernels are interpreted, for tests only.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from . import device, launch
from .launch import (
    Arrays,
    Axes,
    Backend,
    Launch,
    check_platform,
    check_state,
    compiled_or_interpreted,
)
from .mosaic_machine import Interpreted, Warpgroup
from .plan import Cost, Plan

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


def _run(launch: Launch) -> Arrays:
    return compiled_or_interpreted(
        BACKEND.name, LEAST, partial(_compile, launch), partial(_interpret, launch)
    )(launch.inputs)


def _compile(launch: Launch, inputs: Arrays) -> Arrays:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def kernel(*refs, **scratch):
        given = dict(zip(inputs, refs[: len(inputs)], strict=True))
        made = dict(zip(launch.outputs, refs[len(inputs) :], strict=True))
        _program(launch, Warpgroup(launch.layout, scratch), given, made)

    kernel.__name__ = launch.name
    outputs = plgpu.kernel(
        kernel,
        out_type=list(launch.outputs.values()),
        grid=launch.grid,
        grid_names=("sequence", "block"),
        scratch_types=_scratch(launch),
        # Automatic barriers would wait twice per store; the body waits where it must.
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
        grid=launch.grid,
        scratch_shapes=[_scratch(launch)],
        interpret=True,
        name=launch.name,
    )(inputs)


def _program(launch: Launch, machine: Interpreted, inputs: dict, outputs: dict) -> None:
    sequence, block = machine.program()

    def own(ref, axes: Axes):
        index = {"batch": sequence, "blocks": block}
        places = tuple(index[axis] for axis in axes if axis in index)
        return ref.at[places] if places else ref

    inputs = {name: own(ref, launch.input_axes[name]) for name, ref in inputs.items()}
    outputs = {name: own(ref, launch.output_axes[name]) for name, ref in outputs.items()}
    launch.body(inputs, outputs, layout=launch.layout, machine=machine)


def _scratch(launch: Launch) -> dict:
    """Shared memory of the backward kernel; see `mosaic_machine.Chunk`."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if "ybar" not in launch.inputs:
        return {}
    layout = launch.layout
    rows = max(16, 2 * layout.chunk)  # of B and C; a multiple of 16
    shapes = {
        "products": (2, rows, layout.lanes),
        # Padded by four to spread the states of a row over the banks.
        "BC": (layout.state, rows + 4),
        "sums": (layout.state, rows + 4),
    }
    return {name: plgpu.SMEM(shape, jnp.float32) for name, shape in shapes.items()}


BACKEND = Backend(
    name="pallas_mosaic",
    plans=(Plan(1, warps=4), Plan(2, warps=4)),
    forward=Cost(per_state={1: 5.5, 2: 5.25}, per_row=43.0),
    backward=Cost(per_state={1: 20.9, 2: 18.9}, per_row=90.0),
    run=_run,
)
