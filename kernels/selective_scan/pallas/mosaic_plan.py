"""The plan of Mosaic's kernels: sizes that fit into shared memory, and segments by their latency.

One warp per scheduler waits most of the time, so the time of a launch does not follow from counts
of instructions. `CYCLES` has what a model of the machine code gives for the steps of one and of two
warps on a scheduler (`benchmarks/scan_model.py`): modelled, not measured.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from . import device, launch, sharding
from .chips import LANES as WARP
from .instances import Instances
from .launch import Arrays, Layouts
from .mosaic_layout import Staged
from .mosaic_machine import LANES
from .plan import Cost, Plan

ROWS = ("u", "delta", "z", "ybar")
"""Inputs with a row of channels per step."""

RESERVED = 1024
"""Bytes of shared memory that the driver takes per program."""

CHUNKS = (16, 8, 4)
"""Steps between checkpoints, of which the most that fit are taken."""

SEGMENTS = (1, 2, 4, 8, 16, 32)
"""Candidates for the number of segments of a sequence."""


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Cycles per step of a warp, by the number of warps on its scheduler."""

    kernel: tuple[int, ...]
    ends: tuple[int, ...]
    """The same for the kernel that computes the ends of segments."""


CYCLES = {
    (9, 0): (
        Cycles(kernel=(225, 378), ends=(187, 318)),
        Cycles(kernel=(646, 1102), ends=(208, 363)),
    ),
    (8, 0): (
        Cycles(kernel=(237, 402), ends=(191, 331)),
        Cycles(kernel=(791, 1405), ends=(209, 365)),
    ),
}
"""Cycles of the forward and of the backward kernels by the least compute capability, modelled for
an H200 and an A100, in bfloat16 with 16 states and every option."""

COSTS = (
    Cost(per_state={1: 5.3}, per_row=44.0),
    Cost(per_state={1: 19.4}, per_row=95.0),
)
"""Instructions of the forward and of the backward kernel, counted as for `CYCLES`."""

BETWEEN = 12_000
"""Cycles for the launch of one more kernel and the chain of states between segments; assumed."""

TRAFFIC = 1.3
"""Cycles of a multiprocessor for each state of a segment that it writes or reads six times, by the
bytes per second of an H200."""


def shared(
    layout: Staged, dtypes: dict[str, jnp.dtype], gradient: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a kernel in shared memory.

    Args:
      dtypes: dtypes of the kernel's inputs.
      gradient: whether it is the gradient's kernel.
    """
    steps = layout.chunk if gradient else layout.tile
    rows = min(steps, layout.length)
    of = jax.ShapeDtypeStruct
    single = lambda *shape: of(shape, jnp.float32)
    arrays = {
        name: of((layout.stages, rows, LANES), dtypes[name]) for name in ROWS if name in dtypes
    }
    if "order" in dtypes:
        arrays["order"] = of((2 * layout.stages, rows), jnp.int32)
    of_tile = (layout.state * steps,) if gradient else (rows, layout.state)
    arrays |= {name: single(layout.stages, *of_tile) for name in ("B", "C") if name in dtypes}
    if gradient:
        arrays["checkpoints"] = single(layout.stages, layout.state, LANES)
        for name in ("A", "g", "A_bar"):
            arrays[f"kept_{name}"] = single(layout.state, LANES)
        of_channels = [name for name in ("D", "delta_bias") if name in dtypes]
        if of_channels:  # and their gradients
            arrays["kept_of_channels"] = single(2 * len(of_channels), LANES)
        for name in ("B", "C"):
            arrays[f"products_{name}"] = single(layout.together * layout.chunk, LANES)
    return arrays


def size(arrays: dict[str, jax.ShapeDtypeStruct]) -> int:
    """Bytes of shared memory; Mosaic aligns every array to 1,024."""
    aligned = lambda count: -(-count // 1024) * 1024
    return sum(aligned(math.prod(x.shape) * x.dtype.itemsize) for x in arrays.values())


def local_cycles(gradient: bool) -> Cycles:
    """Those of the forward or of the backward kernels on the local GPU (an H200 without one)."""
    capability = device.compute_capability() or (9, 0)
    classes = [least for least in CYCLES if least <= capability]
    return CYCLES[max(classes, default=min(CYCLES))][gradient]


def segments(
    cycles: Cycles,
    *,
    programs: int,
    per_multiprocessor: int,
    multiprocessors: int,
    steps: int,
    state: int,
) -> int:
    """The fastest number of segments by the model.

    Args:
      cycles: those of the kernels.
      programs: programs of the launch with one segment.
      per_multiprocessor: programs that fit on a multiprocessor.
      multiprocessors: SMs of the GPU.
      steps, state: sizes of the scan.
    """

    def time(programs: int, steps: int, of_step: tuple[int, ...]) -> int:
        resident = min(per_multiprocessor, len(of_step))
        rounds, rest = divmod(math.ceil(programs / multiprocessors), resident)
        return steps * (rounds * of_step[resident - 1] + (of_step[rest - 1] if rest else 0))

    def total(segments: int) -> int | float:
        share = math.ceil(steps / segments)
        kernel = time(programs * segments, share, cycles.kernel)
        if segments == 1:
            return kernel
        ends = time(programs * (segments - 1), share, cycles.ends)
        moved = programs * LANES * state * segments / multiprocessors * TRAFFIC
        return kernel + BETWEEN + ends + moved

    return min((s for s in SEGMENTS if s == 1 or s <= steps // 64), key=total)


def layouts(arrays: Arrays, *, softplus: bool, reverse: bool, chunk: int | None) -> Layouts:
    """The layouts of the forward and of the backward kernel for the arguments of a scan.

    They are for one segment; `in_segments` cuts the sequences.

    Raises:
      NotImplementedError: if the GPU has too little shared memory.
    """
    length, state = arrays["u"].shape[1], arrays["A"].shape[1]
    dtypes = {name: x.dtype for name, x in arrays.items() if x is not None}
    dtypes |= {"order": jnp.int32, "ybar": dtypes["u"]}  # there may be an order
    chunks = CHUNKS if chunk is None else (chunk,)
    longest = max(4, pl.next_power_of_2(length))  # longer chunks of a short scan have idle steps

    def first_that_fits(
        fields: list[dict], gradient: bool, programs: tuple[int, ...] = (1,)
    ) -> Staged:
        """The first layout of which so many programs fit on a multiprocessor, or else fewer."""
        plan, limit, needed = Plan(1, warps=LANES // WARP), device.shared_memory(), []
        for count, one in itertools.product(programs, fields):
            layout = Staged(length, state, plan, softplus=softplus, reverse=reverse, **one)
            needed.append(_needed(layout, dtypes, gradient))
            if count * needed[-1] <= limit:
                return layout
        raise NotImplementedError(
            f"selective_scan: 'pallas_mosaic' needs {min(needed)} bytes of shared memory for "
            f"{state} states in {dtypes['u']}, but this GPU has {limit}; use "
            "implementation='chunked', which needs none"
        )

    backward = first_that_fits(
        [
            {"chunk": chunk, "tile": tile, "stages": stages}
            for chunk in chunks
            for stages, tile in ((2, 32), (1, 32), (1, 16))
            if chunk <= max(longest, chunks[-1])
        ],
        gradient=True,
    )
    forward = first_that_fits(
        [
            {"chunk": backward.chunk, "tile": tile, "stages": stages}
            for tile, stages in ((64, 2), (32, 2), (16, 2), (16, 1))
        ],
        gradient=False,
        programs=(2, 1),
    )
    return forward, backward


def in_segments(layout: Staged, inputs: Arrays, instances: Instances, gradient: bool) -> Staged:
    """`layout` with the fastest number of segments for the inputs of a kernel."""
    batch, length, channels = inputs["delta"].shape
    dtypes = {name: x.dtype for name, x in inputs.items()}
    programs = sharding.share(batch) * instances.count * -(-channels // LANES)
    fastest = lambda: segments(
        local_cycles(gradient),
        programs=programs,
        per_multiprocessor=device.shared_memory() // _needed(layout, dtypes, gradient),
        multiprocessors=device.multiprocessors(),
        steps=length,
        state=layout.state,
    )
    count = launch.chosen(SEGMENTS, fastest)
    share = -(-layout.tiles // count)
    return dataclasses.replace(layout, segments=-(-layout.tiles // share))


def _needed(layout: Staged, dtypes: dict[str, jnp.dtype], gradient: bool) -> int:
    """Bytes of shared memory for one program of the forward kernel, or of both backward ones."""
    if not gradient:
        kernels = [({name: x for name, x in dtypes.items() if name != "ybar"}, False)]
    else:
        ends = ("delta", "z", "ybar", "C", "order")
        kernels = [(dtypes, True), ({name: dtypes[name] for name in ends if name in dtypes}, False)]
    return RESERVED + max(size(shared(layout, *kernel)) for kernel in kernels)
