"""One kernel's counts, occupancy and modelled time, from its machine code and its launch.

Nothing here is measured; `latency` says what is modelled.
"""

import dataclasses
import functools
import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import latency
import sass
import sass_trace

from sisma_jax.kernels.selective_scan.pallas.chips import LANES, SCHEDULERS, Chip

REGISTERS = 1 << 16
"""32-bit registers of a multiprocessor."""
REGISTERS_AT_ONCE = 256
"""Registers are given to a warp in multiples of this."""
RESIDENT = 32
"""Programs that a multiprocessor holds at most."""
RESERVED = 1024
"""Bytes of shared memory that a program takes beside its own, from sm_80 on."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled kernel and its launch."""

    name: str
    program: sass.Program
    registers: int
    """Per thread."""
    launch: sass_trace.Launch
    shared: int
    """Bytes of shared memory of a program."""

    @property
    def threads(self) -> int:
        return math.prod(self.launch.block)

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return -(-self.threads // LANES)

    @property
    def programs(self) -> int:
        return math.prod(self.launch.grid)


def read(compiled: dict, tools: dict[str, str], chip: Chip) -> Kernel:
    """A kernel of scan_code.py's output."""
    name = compiled["name"]
    if "sass" in compiled:
        text = Path(compiled["sass"]).read_text("utf-8")
        program, registers = sass.read_control_listing(name, text), compiled["registers"]
    else:
        cubin = Path(compiled["ptx"]).with_suffix(".assembled.cubin")
        suffix = "a" if chip.capability >= (9, 0) else ""
        done = subprocess.run(
            [tools["ptxas"], "-v", "-arch", "sm_{}{}{}".format(*chip.capability, suffix),
             compiled["ptx"], "-o", cubin],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        registers = int(re.search(r"Used (\d+) registers", done.stdout + done.stderr)[1])
        (program,) = sass.disassemble(tools["nvdisasm"], cubin)
    launch = sass_trace.Launch(tuple(compiled["grid"]), tuple(compiled["block"]))
    return Kernel(name, program, registers, launch, compiled["shared"])


def residency(kernel: Kernel, chip: Chip) -> int:
    """Programs that a multiprocessor holds at once."""
    per_warp = -(-kernel.registers * LANES // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    warps = REGISTERS // SCHEDULERS // per_warp * SCHEDULERS
    return min(
        warps // kernel.warps,
        chip.shared // (kernel.shared + RESERVED),
        chip.threads // (kernel.warps * LANES),
        RESIDENT,
    )


def model(
    kernel: Kernel, chip: Chip, size: Sequence[int], assumed: latency.Assumptions
) -> dict[str, object]:
    """Counts, occupancy, cycles and microseconds of a kernel.

    The program in the middle of the grid stands for all. A multiprocessor runs its share of the
    programs in rounds of as many as fit at once, and each of its schedulers is taken to do the
    work of the first.

    Args:
      size: batch, length, channels and states of the scan. A "step" is one step of the scan for one
        channel per lane, and a warp has as many as there are in the scan for each warp of the
        kernel. A kernel with two channels per lane has two per step of its own. A kernel of segment
        ends has no program for one of S segments, so S / (S - 1) for each of its own.
    """
    assumed = assumed.of_chip(chip.capability)
    batch, length, channels, state = size
    work = functools.cache(lambda warp: _work(kernel, warp, assumed))

    @functools.cache
    def together(programs: int) -> latency.Result:
        """Several programs at once, on one scheduler."""
        members: list[list[latency.Work]] = [[] for _ in range(programs)]
        for slot in range(0, programs * kernel.warps, SCHEDULERS):
            members[slot // kernel.warps].append(work(slot % kernel.warps))
        return latency.simulate(members, assumed)

    resident = residency(kernel, chip)
    if not resident:
        raise ValueError(f"{kernel.name} does not fit into a multiprocessor")
    share = math.ceil(kernel.programs / chip.multiprocessors)
    rounds, rest = divmod(share, resident)
    busy = min(share, resident)
    cycles = rounds * together(resident).cycles if rounds else 0
    cycles += together(rest).cycles if rest else 0
    lone = latency.simulate([[work(0)]], assumed)

    steps = batch * length * channels / (kernel.programs * kernel.threads)
    executed = [
        kernel.program.instructions[place if place >= 0 else ~place]
        for warp in range(kernel.warps)
        for place in _trace(kernel, warp).steps
    ]
    updates = steps * state * kernel.threads / LANES
    waits = sorted(lone.waits.items(), key=lambda item: -item[1])
    return {
        "name": kernel.name,
        "instructions": len(executed) / updates,
        "exponentials": sum(x.opcode.startswith("MUFU.EX2") for x in executed) / updates,
        "registers": kernel.registers,
        "shared_kib": kernel.shared / 1024,
        "programs": kernel.programs,
        "warps_per_program": kernel.warps,
        "programs_per_multiprocessor": resident,
        "warps_per_multiprocessor": resident * kernel.warps,
        "steps_per_warp": steps,
        "cycles_per_step_lone_warp": lone.cycles / steps,
        "warps_per_scheduler": math.ceil(busy * kernel.warps / SCHEDULERS),
        "cycles_per_step": together(busy).cycles / steps,
        "us": cycles / (chip.gigahertz * 1e3),
        "busy_per_step": {
            name: cycles / steps for name, cycles in latency.busy(work(0), assumed).items()
        },
        "waits_per_step_lone_warp": {name: cycles / steps for name, cycles in waits},
        "branches_that_depend_on_data": len(work(0).trace.undecided),
    }


def _trace(
    kernel: Kernel, warp: int, cta: tuple[int, int, int] | None = None, lane: int = 0
) -> sass_trace.Trace:
    """A warp of a program, by default of that in the middle of the grid."""
    cta = cta or tuple(size // 2 for size in kernel.launch.grid)
    return sass_trace.trace(kernel.program, kernel.launch, cta=cta, warp=warp, lane=lane)


def _work(kernel: Kernel, warp: int, assumed: latency.Assumptions) -> latency.Work:
    """What a warp of the program in the middle of the grid has to do."""
    middle = tuple(size // 2 for size in kernel.launch.grid)
    neighbours = []
    for axis, size in enumerate(kernel.launch.grid):
        if size > 1:
            other = middle[axis] + 1 if middle[axis] + 1 < size else middle[axis] - 1
            cta = (*middle[:axis], other, *middle[axis + 1 :])
            neighbours.append(_trace(kernel, warp, cta))
    trace = _trace(kernel, warp)
    shared = latency.same_addresses(trace, neighbours, (*sass.GLOBAL_LOADS, "LDGSTS"))
    uniform = latency.same_addresses(trace, [_trace(kernel, warp, lane=1)], ["LDS"])
    return latency.work(trace, shared, assumed, uniform)
