"""A model of the cycles that warps of one scheduler take for their machine code.

Warps issue in order, one instruction per cycle and scheduler. After an instruction a warp stalls as
its control code says, then waits for scoreboards; a scoreboard is free when all that set it have
finished, so a short operation that shares it with a load from memory waits for the load. Pipes are
shared: special functions by the warps of a scheduler, the path to shared and global memory by the
four schedulers of a multiprocessor, which are taken to do the same work.

A wait for a memory barrier ends when the bulk copies (TMA) that were requested before it have
arrived, which come from device memory.

Not modelled: bandwidth of memory and caches, bank conflicts, the instruction cache, divergence, and
waits of warps for those of other schedulers. Nothing here is measured; see `Assumptions`.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from sass import GLOBAL_LOADS, GLOBAL_STORES, Instruction
from sass_trace import ACCESSES, Trace


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Cycles from the issue of an instruction to its result, and of pipes per warp instruction.

    The order of magnitude is that of published microbenchmarks of Hopper (L2: 200 to 300 cycles,
    device memory: 500 to 800); the values are our choice, for all chips but for `of_chip`.
    """

    dram: int = 650
    """Load of a value that no program has read before."""
    l2: int = 280
    """Load of a value that programs share, or that this one has stored."""
    l1: int = 40
    """Load of a value that this warp has loaded before."""
    bulk: int = 170
    """What a bulk copy (TMA) takes longer than a load from device memory."""
    bulk_store: int = 200
    """Cycles until a bulk store has read its shared memory."""
    lds: int = 26
    shuffle: int = 24
    mufu: int = 18
    constant: int = 40
    special_register: int = 30
    to_uniform: int = 12
    """R2UR."""
    memory_barrier: int = 26
    """SYNCS: operations on a barrier in shared memory, once it is ready."""
    barrier: int = 20
    """BAR, once all warps have arrived."""
    barrier_result: int = 24
    other: int = 12
    """Any other operation that sets a scoreboard."""
    operands_read: int = 12
    """Cycles between the issue of a memory operation and the time its operands have been read."""
    mufu_interval: int = 8
    """Cycles of a scheduler's special function unit for a warp: 16 per cycle and multiprocessor."""
    memory_interval: int = 4
    """Cycles of the path to memory, which four schedulers share, for 32 bits of each lane."""
    integer_interval: int = 2
    """Cycles of a scheduler's integer unit: 16 lanes, which also compare, select and permute."""
    float_interval: int = 1
    """Cycles of a scheduler's floating-point units: 32 lanes, but 16 on sm_80; see `of_chip`."""
    uniform: int = 1
    """Divides these cycles for 64 or 128 bits of shared memory that all lanes read alike. It is
    unknown to us whether the hardware gains by that."""
    memory_queue: int = 8
    """Operations that wait for the path to memory before the warp itself has to."""
    stagger: int = 37
    """Cycles between the starts of a scheduler's warps."""

    def of_chip(self, capability: tuple[int, int]) -> "Assumptions":
        """These assumptions, adapted to a compute capability."""
        return dataclasses.replace(self, float_interval=2) if capability == (8, 0) else self


@dataclasses.dataclass(frozen=True)
class Work:
    """What a warp has to do: its instructions, and the latencies of its accesses to memory."""

    trace: Trace
    latencies: list[tuple[int, str]]
    """Cycles and source ("DRAM", "L2" or "L1") of each of the trace's accesses to global memory;
    those of the other accesses mean nothing."""
    uniform: frozenset[int]
    """Places of LDS with the same address in all lanes."""


def work(
    trace: Trace,
    shared: frozenset[int],
    assumed: Assumptions,
    uniform: frozenset[int] = frozenset(),
) -> Work:
    """The trace with the latencies of its loads.

    Args:
      shared: places of loads whose addresses other programs load as well.
      uniform: see `Work`.
    """
    levels = {"DRAM": assumed.dram, "L2": assumed.l2, "L1": assumed.l1}
    loaded: set[int] = set()
    stored: set[int] = set()
    latencies = []
    addresses = iter(trace.addresses)
    for place in trace.steps:
        x = trace.program.instructions[place] if place >= 0 else None
        if x is not None and x.opcode == "CCTL.IVALL":
            loaded.clear()  # a fence empties the L1 cache
        if x is None or x.name not in ACCESSES:
            continue
        address = next(addresses)
        level = "DRAM"
        if x.name in GLOBAL_LOADS:
            if address in stored or place in shared:
                level = "L2"
            elif address in loaded and address is not None:
                level = "L1"
            loaded.add(address)
        elif x.name in GLOBAL_STORES and address is not None:
            stored.add(address)
        elif x.name == "LDGSTS" and place in shared:
            level = "L2"
        latencies.append((levels[level], level))
    return Work(trace, latencies, uniform)


def same_addresses(trace: Trace, others: Sequence[Trace], names: Sequence[str]) -> frozenset[int]:
    """Places of these operations whose first address is the same in one of the other traces."""
    first = _first_addresses(trace, names)
    return frozenset(
        place
        for other in others
        for place, address in _first_addresses(other, names).items()
        if address is not None and first.get(place) == address
    )


def _first_addresses(trace: Trace, names: Sequence[str]) -> dict[int, int | None]:
    found: dict[int, int | None] = {}
    addresses = iter(trace.addresses)
    for place in trace.steps:
        if place >= 0 and (name := trace.program.instructions[place].name) in ACCESSES:
            address = next(addresses)
            if name in names:
                found.setdefault(place, address)
    return found


@dataclasses.dataclass(frozen=True)
class Result:
    cycles: int
    """The time at which the last warp has finished."""
    waits: dict[str, int]
    """Cycles of the first warp by what it waits for; "stalls" are those in the control codes."""


PIPES = ("special functions", "path to memory", "integer unit", "floating-point unit")
_FLOATING = {"FFMA", "FMUL", "FADD"}
_INTEGER = {"IADD3", "LOP3", "SHF", "LEA", "PRMT", "SEL", "FSEL", "ISETP", "FSETP", "FMNMX",
            "VIMNMX", "IMNMX", "MOV", "PLOP3", "IABS"}  # fmt: skip


# Ways of an instruction through the model.
(_PLAIN, _LOAD, _BULK, _TRY_WAIT, _ASYNC_COPY, _COMMIT, _ARRIVE, _DEPBAR, _BARRIER,
 _BULK_STORE) = range(10)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class _Timing:
    wait: tuple[int, ...]
    write: int | None
    read: int | None
    stall: int
    pipe: int | None
    """Place in `PIPES`."""
    hold: int
    queue: int
    latency: int
    way: int
    label: str
    access: bool
    board: int
    """The scoreboard that a DEPBAR waits for."""
    left: int
    """The operations that may be unfinished when a DEPBAR lets the warp go on."""


def _timings(work: Work, assumed: Assumptions) -> list[_Timing]:
    """The timing of each instruction of the program."""
    instructions = work.trace.program.instructions
    return [_timing(x, place in work.uniform, assumed) for place, x in enumerate(instructions)]


def _timing(x: Instruction, uniform: bool, assumed: Assumptions) -> _Timing:
    name, words = x.name, max(x.width // 4, 1)
    pipe, hold, latency, way, board, left = None, 0, assumed.other, _PLAIN, 0, 0
    label = name
    memory = assumed.memory_interval * words
    if name == "MUFU":
        pipe, hold, latency = 0, assumed.mufu_interval, assumed.mufu
    elif name in _FLOATING:
        pipe, hold = 3, assumed.float_interval
    elif name in _INTEGER:
        pipe, hold = 2, assumed.integer_interval
    elif name in ("LDS", "LDSM"):
        pipe, latency = 1, assumed.lds + words
        hold = max(memory // assumed.uniform, assumed.memory_interval) if uniform else memory
    elif name == "STS":
        pipe, hold, latency = 1, memory, assumed.lds
    elif name == "SHFL":
        pipe, hold, latency = 1, assumed.memory_interval, assumed.shuffle
    elif name in GLOBAL_LOADS:
        pipe, hold, way = 1, memory, _LOAD
    elif name in GLOBAL_STORES or name in ("LDL", "STL"):
        pipe, hold, latency = 1, memory, assumed.l1
    elif name in ("RED", "ATOM", "ATOMG", "ATOMS"):
        pipe, hold, latency = 1, memory, assumed.l2
    elif name == "LDGSTS":
        pipe, hold, way = 1, memory, _ASYNC_COPY
    elif name == "LDGDEPBAR":
        way = _COMMIT
    elif name == "ARRIVES":
        way = _ARRIVE
    elif name == "DEPBAR" and len(x.operands) == 2:
        way, board, left = _DEPBAR, int(x.operands[0].removeprefix("SB")), int(x.operands[1], 0)
    elif name in ("UTMALDG", "UBLKCP") and ".G.S" not in x.opcode:
        way = _BULK
    elif name in ("UTMASTG", "UBLKCP", "UTMAREDG"):
        way = _BULK_STORE
    elif name == "SYNCS":
        latency, label = assumed.memory_barrier, "memory barrier"
        way = _TRY_WAIT if "PHASECHK" in x.opcode else _PLAIN
    elif name == "R2UR":
        latency = assumed.to_uniform
    elif name in ("S2R", "S2UR"):
        latency = assumed.special_register
    elif name in ("LDC", "ULDC", "LDCU"):
        latency = assumed.constant
    elif name == "BAR":
        latency, way = assumed.barrier_result, _BARRIER
    return _Timing(
        wait=x.wait, write=x.write, read=x.read, stall=max(x.stall, 1), pipe=pipe, hold=hold,
        queue=assumed.memory_queue * hold if pipe == 1 else 0, latency=latency, way=way,
        label=label, access=name in ACCESSES, board=board, left=left,
    )  # fmt: skip


def busy(work: Work, assumed: Assumptions) -> dict[str, int]:
    """Cycles for which a warp keeps its scheduler and each pipe busy: a bound of several warps."""
    timings, steps = _timings(work, assumed), work.trace.steps
    cycles = {"issue": len(steps)}
    for place, count in Counter(place for place in steps if place >= 0).items():
        if (pipe := timings[place].pipe) is not None:
            cycles[PIPES[pipe]] = cycles.get(PIPES[pipe], 0) + count * timings[place].hold
    return cycles


class _Warp:
    def __init__(self, work: Work, cta: int, start: int, tiles: dict, timings: list[_Timing]):
        self.steps, self.addresses = work.trace.steps, work.trace.addresses
        self.latencies, self.cta, self.timings = work.latencies, cta, timings
        self.tiles = tiles
        """When the copies that report to a barrier have arrived, by its address; of the CTA."""
        self.next = self.access = 0
        self.time = start
        self.busy = [0] * 6
        """Cycle from which a scoreboard is free."""
        self.by = [""] * 6
        """What it is busy with."""
        self.copies = 0
        self.groups: list[int] = []
        self.at_barrier = False
        self.waits: Counter[str] = Counter()
        self.fetch()

    def fetch(self) -> None:
        """Look at the next instruction; `ready` is when its scoreboards are free."""
        place = self.steps[self.next]
        timing = self.timings[place if place >= 0 else ~place]
        self.off = place < 0
        self.timing = timing
        ready, why = self.time, None
        for board in timing.wait:
            if self.busy[board] > ready:
                ready, why = self.busy[board], self.by[board]
        if timing.way == _DEPBAR and not self.off:
            if timing.left < len(self.groups):
                done = self.groups[len(self.groups) - timing.left - 1]
                if done > ready:
                    ready, why = done, "asynchronous copy"
            elif not self.groups and not timing.left and self.busy[timing.board] > ready:
                ready, why = self.busy[timing.board], self.by[timing.board]
        elif timing.way == _TRY_WAIT and not self.off:
            arrived = self.tiles.get(self.addresses[self.access], 0)
            if arrived > ready:
                ready, why = arrived, "bulk copy"
        if why is not None:
            self.waits[why] += ready - self.time
        self.ready = ready


def simulate(ctas: Sequence[Sequence[Work]], assumed: Assumptions) -> Result:
    """The cycles of a scheduler's warps.

    Args:
      ctas: the warps of each resident program that this scheduler has.
    """
    timings: dict[int, list[_Timing]] = {}
    warps: list[_Warp] = []
    for cta, members in enumerate(ctas):
        tiles: dict[int | None, int] = {}
        for member in members:
            program = member.trace.program
            if id(program) not in timings:
                timings[id(program)] = _timings(member, assumed)
            start = assumed.stagger * len(warps)
            warps.append(_Warp(member, cta, start, tiles, timings[id(program)]))
    running = list(warps)
    free = [0] * len(PIPES)
    clock, last = 0, None
    while running:
        # Greedy, then youngest, as Huerta et al. find in modern GPUs (arXiv:2503.20481): the warp
        # that issued last goes on as long as it can; else the youngest of those that can first.
        chosen, issue = None, 0
        for warp in running:
            if warp.at_barrier:
                continue
            ready, timing = warp.ready, warp.timing
            if timing.pipe is not None and not warp.off:
                ready = max(ready, free[timing.pipe] - timing.queue)
            ready = max(ready, clock)
            if chosen is None or ready < issue or (ready == issue and chosen is not last):
                chosen, issue = warp, ready
        if chosen is None:  # those that do not come to the barrier have finished
            _release(running)
            continue
        last = chosen
        warp, timing = chosen, chosen.timing
        clock = issue + 1
        if issue > warp.ready:
            pipe = timing.pipe if not warp.off else None
            warp.waits["other warps" if pipe is None else PIPES[pipe]] += issue - warp.ready
        warp.waits["stalls"] += timing.stall
        warp.time = issue + timing.stall
        if not warp.off:
            _execute(warp, timing, issue, free, assumed)
        warp.next += 1
        if warp.next == len(warp.steps):
            running.remove(warp)
        elif timing.way == _BARRIER and not warp.off:
            warp.time += assumed.barrier
            warp.waits["barrier"] += assumed.barrier
            warp.at_barrier = True
            members = [other for other in running if other.cta == warp.cta]
            if all(other.at_barrier for other in members):
                _release(members)
        else:
            warp.fetch()
    return Result(max(warp.time for warp in warps), dict(warps[0].waits))


def _release(warps: Sequence[_Warp]) -> None:
    """Let the warps go on from a barrier."""
    latest = max(warp.time for warp in warps)
    for warp in warps:
        warp.waits["barrier"] += latest - warp.time
        warp.time, warp.at_barrier = latest, False
        warp.fetch()


def _execute(
    warp: _Warp, timing: _Timing, issue: int, free: list[int], assumed: Assumptions
) -> None:
    start = issue
    if timing.pipe is not None:
        start = max(issue, free[timing.pipe])
        free[timing.pipe] = start + timing.hold
    latency, label = timing.latency, timing.label
    if timing.access:
        address = warp.addresses[warp.access]
        of_memory, level = warp.latencies[warp.access]
        warp.access += 1
        if timing.way == _LOAD:
            latency, label = of_memory, f"{label} from {level}"
        elif timing.way == _BULK:
            warp.tiles[address] = max(warp.tiles.get(address, 0), start + of_memory + assumed.bulk)
        elif timing.way == _ASYNC_COPY:
            warp.copies = max(warp.copies, start + of_memory)
        elif timing.way == _ARRIVE:
            warp.tiles[address] = max(warp.tiles.get(address, 0), warp.copies)
        elif timing.way == _BULK_STORE:
            warp.copies = start + assumed.bulk_store
    if timing.way == _COMMIT:
        warp.groups.append(warp.copies)
    elif timing.label == "UTMACMDFLUSH" and timing.read is not None:
        warp.busy[timing.read] = max(warp.busy[timing.read], warp.copies)
        warp.by[timing.read] = "bulk store"
    if timing.write is not None and start + latency > warp.busy[timing.write]:
        warp.busy[timing.write] = start + latency
        warp.by[timing.write] = label
    if timing.read is not None and start + assumed.operands_read > warp.busy[timing.read]:
        warp.busy[timing.read] = start + assumed.operands_read
        warp.by[timing.read] = f"operands of {label.split()[0]}"
