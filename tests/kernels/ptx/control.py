"""Instructions that decide where threads go on, and when."""

import dataclasses

import numpy as np

from .memory import Fault
from .text import Instruction


@dataclasses.dataclass(frozen=True)
class Jump:
    threads: np.ndarray | None
    """Which of the active ones jump, (threads,) or (1,) of bool; None means all."""
    target: int | None
    """Where to; None where the threads end or wait."""


def _branch(m, i: Instruction):
    (name,) = i.operands
    target = m.kernel.labels[name]
    return lambda mask: Jump(mask, target)


def _exit(m, i: Instruction):
    def step(mask):
        m.done |= True if mask is None else mask
        for number in np.unique(m.waiting[m.waiting > 0]):
            _release(m, number, None)
        return Jump(mask, None)

    return step


def _release(m, number: int, count: int | None) -> None:
    """Let threads go on if enough of their program wait at a barrier (counted from 1)."""
    shape = m.order.programs, m.order.threads
    at = (m.waiting == number).reshape(shape)
    needed = (~m.done).reshape(shape).sum(1) if count is None else count
    full = at.any(1) & (at.sum(1) == needed)
    for threads in m.by_program(np.flatnonzero(at & full[:, None])) if full.any() else ():
        m.order.meet(threads)
        m.waiting[threads] = 0


def _barrier(m, i: Instruction):
    if "warp" in i.parts:
        return _warp_barrier(m, i)
    if "sync" not in i.parts or "red" in i.parts:
        raise NotImplementedError(i.name)
    number = m.registers.source(i.operands[0], 4)
    count = int(i.operands[1]) if len(i.operands) > 1 else None
    everyone = np.ones(m.order.programs, bool)

    def step(mask):
        threads = m.threads_of(mask)
        numbers = np.broadcast_to(m.registers[number], (m.count,))[threads]
        if (numbers != numbers[0]).any() or numbers[0] >= 16:
            raise Fault(f"threads at different barriers, or at none: {i.place}")
        if mask is None and count in (None, m.order.threads):
            m.order.meet_all(everyone)
            return
        m.waiting[threads] = 1 + numbers[0]
        _release(m, 1 + numbers[0], count)
        # Where all threads are here, those that still wait must not go on.
        return Jump(None, None) if mask is None else None

    return step


def _warp_barrier(m, i: Instruction):
    def step(mask):
        threads = m.threads_of(mask)
        for warp in np.unique(m.warp_first[threads]):
            m.order.meet(threads[m.warp_first[threads] == warp])

    return step


def _fence(m, i: Instruction):
    """Order between threads comes from barriers only."""
    return lambda mask: None


INSTRUCTIONS = {
    "bra": _branch,
    "ret": _exit,
    "bar": _barrier,
    "fence": _fence,
    "griddepcontrol": _fence,
}
