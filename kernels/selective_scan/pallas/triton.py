"""The selective scan as a forward and a backward Pallas kernel for GPUs from sm_80, by Triton.

On a CPU the kernels are interpreted, for tests only.
"""

import dataclasses
import warnings
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
from .plan import Cost, Plan

try:
    from jax.experimental.pallas import triton as plt

    from .triton_machine import Assembly, Interpreted
except ImportError:  # deprecated since jax 0.11.0, to be removed
    plt = None

# Of no use to callers of the scan: Mosaic GPU is to replace this backend.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)


LEAST = (8, 0)


def check(state: int) -> None:
    """Raise NotImplementedError, with the reason, if JAX's default device cannot run them."""
    check_kernel(state)
    check_platform(BACKEND.name, device.platform(), LEAST)


def check_kernel(state: int) -> None:
    """Raise NotImplementedError, with the reason, if no device can run them."""
    if plt is None:
        raise NotImplementedError(
            f"selective_scan: jax {jax.__version__} has no Triton backend of Pallas, which "
            "'pallas_triton' needs; use implementation='pallas_mosaic', or 'chunked', which runs "
            "everywhere"
        )
    check_state("pallas_triton", state)


def scan(u, delta, A, *arguments, **options):
    """See `launch.scan`."""
    check_kernel(A.shape[1])
    return launch.scan(BACKEND, u, delta, A, *arguments, **options)


def _run(launch: Launch) -> Arrays:
    launch = _joined(launch)

    def spec(shape: tuple[int, ...], axes: Axes) -> pl.BlockSpec:
        sizes = {"batch": None, "blocks": None, "channels": launch.layout.plan.channels}
        return pl.BlockSpec(
            tuple(sizes.get(axis, size) for axis, size in zip(axes, shape, strict=True)),
            lambda b, i: tuple({"batch": b, "blocks": i, "channels": i}.get(x, 0) for x in axes),
        )

    def call(interpret: bool, inputs: Arrays) -> Arrays:
        machine = (Interpreted if interpret else Assembly)(launch.layout)
        return pl.pallas_call(
            partial(launch.body, layout=launch.layout, machine=machine),
            out_shape=launch.outputs,
            grid=launch.grid,
            in_specs=({k: spec(x.shape, launch.input_axes[k]) for k, x in inputs.items()},),
            out_specs={k: spec(x.shape, launch.output_axes[k]) for k, x in launch.outputs.items()},
            compiler_params=plt.CompilerParams(num_warps=1, num_stages=1),
            interpret=interpret,
            name=launch.name,
        )(inputs)

    return compiled_or_interpreted(BACKEND.name, LEAST, partial(call, False), partial(call, True))(
        launch.inputs
    )


def _joined(launch: Launch) -> Launch:
    """The launch with B and C joined, as `triton_machine` expects them."""
    inputs = dict(launch.inputs)
    BC = jnp.concatenate([inputs.pop("B"), inputs.pop("C")], -1)
    axes = launch.input_axes | {"BC": ("batch", "length", "states")}
    return dataclasses.replace(launch, inputs=inputs | {"BC": BC}, input_axes=axes)


BACKEND = Backend(
    name="pallas_triton",
    plans=(Plan(1), Plan(2), Plan(1, groups=2), Plan(1, groups=4)),
    forward=Cost(per_state={1: 7.1, 2: 6.1}, per_row=44.0),
    backward=Cost(per_state={1: 28.0, 2: 23.0}, per_row=90.0),
    run=_run,
)
