"""Asynchronous copies from global to shared memory.

A copy is carried out when it is issued. That it may come later on a GPU shows in `order`: until the
thread has waited for the copy, the places that it writes are in use by another agent.
"""

import re

from .text import Instruction
from .transfers import address_of


def _copy_piece(m, i: Instruction):
    """Every thread copies 4, 8 or 16 bytes."""
    if len(i.operands) > 3:
        raise NotImplementedError("a copy that is filled up with zeros")
    size = int(i.operands[2], 0)
    width = min(size, 8)
    target, source = address_of(m, i.operands[0]), address_of(m, i.operands[1])

    def step(mask):
        values = m.memory.load("global", source(), width, size // width, mask, i.place)
        m.memory.store("shared", target(), width, values, mask, i.place, copies=True)
        m.groups.copied(m.threads_of(mask))

    return step


def _commit(m, i: Instruction):
    def step(mask):
        for thread in m.threads_of(mask):
            m.groups.commit(int(thread))

    return step


def _wait(m, i: Instruction):
    remaining = int(i.operands[0])

    def step(mask):
        for thread in map(int, m.threads_of(mask)):
            m.groups.wait(thread, remaining)

    return step


_COPIES = (
    (r"commit_group", _commit),
    (r"wait_group", _wait),
    (r"c[ag]\.shared\.global", _copy_piece),
)
"""What an instruction does, by the pattern of its name after `cp.async.`."""


def _copy(m, i: Instruction):
    name = i.name.removeprefix("cp.async.")
    for pattern, make in _COPIES:
        if re.fullmatch(pattern, name):
            return make(m, i)
    raise NotImplementedError(i.name)


INSTRUCTIONS = {"cp": _copy}
