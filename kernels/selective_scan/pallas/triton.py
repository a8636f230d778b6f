"""The selective scan as a forward and a backward Pallas kernel for GPUs from sm_80, by Triton.

On a CPU the kernels are interpreted, for tests only.
"""

import dataclasses
import warnings
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from . import device, launch, sharding, triton_backward, triton_forward
from .instances import Instances
from .launch import (
    GRADIENTS,
    RESULTS,
    STATE,
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
from .layout import Layout
from .plan import MAX_ROWS_PER_LANE, Cost, Plan, plan

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


PLANS = (Plan(1), Plan(2), Plan(1, groups=2), Plan(1, groups=4))
COSTS = (
    Cost(per_state={1: 7.1, 2: 6.1}, per_row=44.0),
    Cost(per_state={1: 28.0, 2: 23.0}, per_row=90.0),
)
"""Instructions of the forward and of the backward kernel."""

GRID = ("batch", "blocks")
_GRADIENTS = GRADIENTS | {
    "A": STATE,
    "B": ("batch", "blocks", "steps", "state"),
    "C": ("batch", "blocks", "steps", "state"),
    "D": ("batch", "channels"),
    "delta_bias": ("batch", "channels"),
}


def longest_chunk(backward: Plan) -> int:
    """The most steps per chunk whose rows fit into the backward kernel's registers."""
    # Lanes that share a channel hold separate addresses of B and C, in two registers each.
    return MAX_ROWS_PER_LANE // (backward.vectors if backward.groups == 1 else 2)


def _layouts(
    arrays: Arrays,
    *,
    softplus: bool,
    reverse: bool,
    chunk: int | None,
) -> Layouts:
    """The layouts of the cheapest of PLANS for the forward and for the backward kernel."""
    batch, length, channels = arrays["u"].shape
    state = arrays["A"].shape[1]
    forward, backward = (
        _plan(cost, PLANS, sharding.share(batch), channels, state) for cost in COSTS
    )
    if chunk is None:
        # Avoids steps past the end of a short scan.
        chunk = min(longest_chunk(backward), max(4, pl.next_power_of_2(length)))
    of_plan = lambda plan: Layout(length, state, plan, chunk, softplus, reverse)
    return of_plan(forward), of_plan(backward)


def _plan(cost: Cost, plans: tuple[Plan, ...], batch: int, channels: int, state: int) -> Plan:
    sizes = dict(batch=batch, channels=channels, state=state)
    cheapest = lambda: plan(cost, plans, **sizes, multiprocessors=device.multiprocessors())
    return launch.chosen(plans, cheapest)


def _replanned(
    cost: Cost, plans: tuple[Plan, ...], layout: Layout, inputs: Arrays, instances: Instances
) -> Layout:
    """`layout` with the plan for several instances; the chunk, once chosen, remains."""
    if instances.count == 1:
        return layout
    batch, _, channels = inputs["u"].shape
    sequences = sharding.share(batch) * instances.count
    return dataclasses.replace(layout, plan=_plan(cost, plans, sequences, channels, layout.state))


def _forward(
    layouts: Layouts,
    inputs: Arrays,
    with_checkpoints: bool,
    instances: Instances,
) -> Arrays:
    """See `launch.Backend`."""
    wanted = [result for result in RESULTS if with_checkpoints or result != "checkpoints"]
    return launched(
        BACKEND.name,
        "selective_scan",
        triton_forward.forward,
        _run,
        _replanned(COSTS[0], PLANS, layouts[0], inputs, instances),
        inputs,
        {result: RESULTS[result] for result in wanted},
        {"y": inputs["u"].dtype},
        sizes={},
        grid=GRID,
        instances=instances,
    )


def _backward(
    layouts: Layouts,
    inputs: Arrays,
    instances: Instances,
) -> Arrays:
    """See `launch.Backend`."""
    _, layout = layouts
    fitting = tuple(p for p in PLANS if p == layout.plan or layout.chunk <= longest_chunk(p))
    layout = _replanned(COSTS[1], fitting, layout, inputs, instances)
    axes: dict[str, Axes] = {
        name: axes for name, axes in _GRADIENTS.items() if name in inputs or name == "h0"
    }
    bars = launched(
        BACKEND.name,
        "selective_scan_backward",
        triton_backward.backward,
        _run,
        layout,
        inputs,
        axes,
        gradient_dtypes(inputs, instances),
        sizes={"steps": layout.chunks * layout.chunk},
        grid=GRID,
        instances=instances,
    )
    # Sum over programs: blocks of channels, or sequences. Rows past the last step are not all
    # written, so they are cut off ahead of the sum.
    for name in ("B", "C"):
        bars[name] = jnp.sum(bars[name][:, :, : layout.length], 1)
    for name in ("D", "delta_bias", "A"):
        if name in bars:
            bars[name] = jnp.sum(bars[name], 0)
    return bars


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
            grid=tuple(launch.grid.values()),
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
    plans=PLANS,
    layouts=_layouts,
    forward=_forward,
    backward=_backward,
)
