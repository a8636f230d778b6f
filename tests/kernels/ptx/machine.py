"""Executes a kernel's PTX, all threads of all programs at once: one NumPy operation an instruction.

Threads that part at a branch go on separately, those with the furthest way to go first, and meet
again where their ways do. Programs run side by side, in one of many possible orders; which one is
of no consequence as long as no race is reported.
"""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from . import arithmetic, control, copies, transfers
from .floats import Approximations
from .groups import Groups
from .launches import Launch
from .memory import POISON, UNSIGNED, Buffer, Fault, Memory, Report
from .order import WARP, Order
from .text import Instruction, Kernel

INSTRUCTIONS = (
    arithmetic.INSTRUCTIONS | transfers.INSTRUCTIONS | control.INSTRUCTIONS | copies.INSTRUCTIONS
)

Step = Callable
"""Executes one instruction for the threads of a mask (None: all), and returns None or a `Jump`."""


class Registers:
    """Registers as arrays of raw bits: (threads,), or (1,) where known to be the same for all.

    Predicates are arrays of bool.
    """

    def __init__(self, known: dict[str, np.ndarray]):
        """`known`: values of special registers, and addresses of variables."""
        self.known = known
        self.values: list = []
        self._index: dict[str, int] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[index]

    def target(self, name: str) -> int:
        """The index of a register that is written."""
        if name not in self._index:
            self._index[name] = len(self.values)
            self.values.append(None)
        return self._index[name]

    def source(self, operand: str, width: int) -> int:
        """The index of an operand of `width` bytes; 0 stands for a predicate."""
        if operand in self.known:
            return self._constant(self.known[operand].astype(UNSIGNED[width]))
        if operand.startswith("%") or "@" in operand:
            return self.target(operand)
        if width == 0:
            return self._constant(np.full(1, int(operand, 0) != 0))
        if bits := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand):
            return self._constant(np.full(1, int(bits[1] or bits[2], 16), UNSIGNED[width]))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            value = int(operand.rstrip("U"), 0) & ((1 << 8 * width) - 1)
            return self._constant(np.full(1, value, UNSIGNED[width]))
        raise NotImplementedError(f"operand {operand}")

    def _constant(self, value: np.ndarray) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def write(self, index: int, value: np.ndarray, mask) -> None:
        if mask is not None:
            old = self.values[index]
            if old is None:
                bits = 8 * value.dtype.itemsize
                blank = False if value.dtype == np.bool_ else POISON & ((1 << bits) - 1)
                old = np.full(1, blank, value.dtype)
            value = np.where(mask, value, old)
        self.values[index] = value


class Machine:
    """One launch of a kernel."""

    def __init__(
        self,
        kernel: Kernel,
        launch: Launch,
        arrays: Sequence[Buffer],
        approximations: Approximations | None = None,
    ):
        """`arrays`: the inputs and then the outputs."""
        grid, threads = launch.grid, launch.threads
        if kernel.threads not in (None, threads):
            raise ValueError(f"{kernel.name} is for {kernel.threads} threads, not {threads}")
        if len(launch.parameters) != len(kernel.parameters):
            raise ValueError(f"{launch.parameters} for the parameters {kernel.parameters}")
        self.kernel, self.report = kernel, Report()
        programs = np.array([*itertools.product(*map(range, grid))])
        self.count = len(programs) * threads
        self.order = Order(len(programs), threads)
        places, static = _placed(kernel.shared)
        self.memory = Memory(self.order, static + launch.shared, self.report)
        self.groups = Groups(self.order)
        self.approximations = approximations or Approximations()
        self.registers = Registers(_special(programs, grid, threads) | places)
        addresses = [np.full(1, self.memory.add(array), np.uint64) for array in arrays]
        self.parameters = {
            name: addresses[array]
            for name, array in zip(kernel.parameters, launch.parameters, strict=True)
        }
        self.lane = self.order.column % WARP
        self.warp_first = np.arange(self.count) - self.lane
        self.read_somewhere = {name for i in kernel.instructions for name in i.registers_read()}
        self.code = [self._decoded(i) for i in kernel.instructions]

    def _decoded(self, i: Instruction) -> Step:
        try:
            if i.opcode not in INSTRUCTIONS:
                raise NotImplementedError(f"no instruction {i.name}")
            step = INSTRUCTIONS[i.opcode](self, i)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise NotImplementedError(f"{i.place}: {error!r}") from error
        if i.predicate is None:
            return step
        negated = i.predicate.startswith("!")
        guard = self.registers.source(i.predicate.lstrip("!"), 0)
        is_branch = i.opcode == "bra"

        def guarded(mask):
            chosen = self.registers[guard] ^ negated
            if not chosen.any():
                return None
            if chosen.all():
                return step(mask)
            if mask is not None:
                chosen = chosen & mask
            if is_branch:
                return step(chosen)
            chosen = np.broadcast_to(chosen, (self.count,))
            return step(chosen) if chosen.any() else None

        return guarded

    def run(self) -> Report:
        """Execute the kernel, to its end or to where it cannot go on."""
        try:
            with np.errstate(all="ignore"):
                self._run()
            self.groups.check_all_waited_for(self.report)
        except Fault as fault:
            self.report.fault(str(fault))
        self.report.instructions = self.order.now
        return self.report

    def _run(self) -> None:
        """`at` is the place of the threads in `mask`, or of all; `place` has that of the others."""
        place = np.zeros(self.count, np.int64)
        self.done = np.zeros(self.count, bool)
        self.waiting = np.zeros(self.count, int)
        """The barrier at which each thread waits, counted from 1; 0 stands for none."""
        at, mask = 0, None
        while True:
            self.order.now += 1
            try:
                jump = self.code[at](mask)
            except (ValueError, TypeError, AttributeError, IndexError) as error:
                raise Fault(f"{self.kernel.instructions[at].place}: {error!r}") from error
            if mask is None and jump is None:
                at += 1
                continue
            if (
                mask is None
                and jump.target is not None
                and (jump.threads is None or jump.threads.all())
            ):
                at = jump.target
                continue
            active = np.ones(self.count, bool) if mask is None else mask
            place[active] = at + 1
            if jump is not None and jump.target is not None:
                jumping = active if jump.threads is None else active & jump.threads
                place[jumping] = jump.target
            if self.done.all():
                return
            # Those that have the furthest way to go come first.
            ready = ~self.done & (self.waiting == 0)
            if not ready.any():
                raise Fault("all threads wait, and none is left that could release them")
            at = int(place[ready].min())
            mask = ready & (place == at)
            if mask.all():
                mask = None

    def threads_of(self, mask) -> np.ndarray:
        """Indices of the threads of a mask."""
        return np.arange(self.count) if mask is None else np.flatnonzero(mask)

    def by_program(self, threads: np.ndarray) -> list[np.ndarray]:
        """Threads, program by program."""
        edges = np.flatnonzero(np.diff(self.order.program[threads])) + 1
        return np.split(threads, edges)


def _placed(shared: dict[str, tuple[int, int]]) -> tuple[dict[str, np.ndarray], int]:
    """Addresses of the variables in shared memory, and how much they take."""
    end, places = 0, {}
    # Dynamic shared memory, of 0 bytes, comes last.
    for name, (align, size) in sorted(shared.items(), key=lambda item: -item[1][1]):
        end = -(-end // align) * align
        places[name] = np.full(1, end, np.uint64)
        end += size
    return places, end


def _special(programs, grid, threads: int) -> dict[str, np.ndarray]:
    """Values of the special registers."""
    one = lambda value: np.full(1, value, np.uint32)
    thread = np.tile(np.arange(threads), len(programs)).astype(np.uint32)
    special = {
        "%tid.x": thread, "%tid.y": one(0), "%tid.z": one(0),
        "%ntid.x": one(threads), "%ntid.y": one(1), "%ntid.z": one(1),
        "%laneid": thread % WARP, "%warpid": thread // WARP,
    }  # fmt: skip
    for axis, letter in enumerate("xyz"):
        special[f"%ctaid.{letter}"] = np.repeat(programs[:, axis], threads).astype(np.uint32)
        special[f"%nctaid.{letter}"] = one(grid[axis])
    return special
