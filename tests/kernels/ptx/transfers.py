"""Instructions that move numbers: loads, stores, and exchanges between the lanes of a warp."""

import re
from collections.abc import Callable

import numpy as np

from .arithmetic import on_bits, register_width, type_of, widened, width_of
from .memory import UNSIGNED, Fault
from .order import WARP
from .text import Instruction


def address_of(m, operand: str) -> Callable[[], np.ndarray]:
    """The addresses of an operand `[register+offset]` or `[variable+offset]`."""
    found = re.fullmatch(r"\[([%\w$.@]+)(?:\+(-?\w+))?\]", operand)
    if not found:
        raise NotImplementedError(f"address {operand}")
    offset = int(found[2] or "0", 0)
    if found[1] in m.registers.known:
        constant = m.registers.known[found[1]].astype(np.int64) + offset
        return lambda: constant
    register, values = m.registers.target(found[1]), m.registers.values
    return lambda: values[register].astype(np.int64) + offset


def space_of(i: Instruction) -> str:
    spaces = ("global", "shared", "param", "local", "const")
    return next((p.split("::")[0] for p in i.parts if p.split("::")[0] in spaces), "generic")


def _count(i: Instruction) -> int:
    return next((int(part[1:]) for part in i.parts if re.fullmatch(r"v[248]", part)), 1)


def _load(m, i: Instruction):
    kind, space = type_of(i), space_of(i)
    names = i.operands[0].strip("{}").split(",")
    targets = [None if name == "_" else m.registers.target(name) for name in names]
    write = m.registers.write
    if space == "param":
        value = m.parameters[i.operands[1].strip("[]")]
        return lambda mask: write(targets[0], value, mask)
    if space in ("local", "const") or len(names) != _count(i):
        raise NotImplementedError(space)
    used = [name in m.read_somewhere for name in names]
    width, memory, address = width_of(kind), m.memory, address_of(m, i.operands[1])
    unchanging = "nc" in i.parts
    rooms = [register_width(name, width) for name in names]

    def step(mask):
        loaded = memory.load(space, address(), width, len(names), mask, i.place, used, unchanging)
        for target, value, room in zip(targets, loaded, rooms, strict=True):
            if target is not None:
                write(target, widened(value, kind, room), mask)

    return step


def _store(m, i: Instruction):
    space, width = space_of(i), width_of(type_of(i))
    names = i.operands[1].strip("{}").split(",")
    if space in ("local", "param", "const") or len(names) != _count(i):
        raise NotImplementedError(space)
    sources = [m.registers.source(name, width) for name in names]
    memory, address, values = m.memory, address_of(m, i.operands[0]), m.registers.values

    def step(mask):
        numbers = [values[source].astype(UNSIGNED[width], copy=False) for source in sources]
        memory.store(space, address(), width, numbers, mask, i.place)

    return step


def _convert_address(m, i: Instruction):
    if space_of(i) == "shared":
        raise NotImplementedError("generic addresses of shared memory")
    return on_bits(m, i, 8, lambda x: x)


_SOURCES = {
    "bfly": lambda lane, b, segment: lane ^ b,
    "idx": lambda lane, b, segment: lane & segment | b & ~segment & 31,
    "up": lambda lane, b, segment: lane - b,
    "down": lambda lane, b, segment: lane + b,
}


def whole_warps(mask) -> bool:
    """Whether a mask has all lanes of a warp or none."""
    if mask is None:
        return True
    lanes = mask.reshape(-1, WARP)
    return bool((lanes.any(1) == lanes.all(1)).all())


def _shuffle(m, i: Instruction):
    if i.parts[1] != "sync" or "|" in i.operands[0]:
        raise NotImplementedError(i.name)
    mode = i.parts[2]
    target = m.registers.target(i.operands[0])
    a, b, c, members = (m.registers.source(x, 4) for x in i.operands[1:5])

    def step(mask):
        if (m.registers[members] != 0xFFFFFFFF).any():
            raise NotImplementedError("an exchange between some lanes of a warp")
        if not whole_warps(mask):
            raise Fault(f"not all lanes of a warp come to the exchange: {i.place}")
        limits = m.registers[c].astype(np.int64)
        clamp, segment = limits & 31, limits >> 8 & 31
        source = _SOURCES[mode](m.lane, m.registers[b].astype(np.int64), segment)
        last = m.lane & segment | clamp & ~segment
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, m.lane)
        value = np.broadcast_to(m.registers[a], (m.count,))[m.warp_first + source]
        m.registers.write(target, value, mask)

    return step


def _elect(m, i: Instruction):
    """One lane of every warp; lane 0 here, any on a GPU."""
    lane, chosen = (m.registers.target(name) for name in i.operands[0].split("|"))
    if i.operands[1] != "-1":
        raise NotImplementedError("an election among some lanes of a warp")

    def step(mask):
        if not whole_warps(mask):
            raise Fault(f"not all lanes of a warp come to the election: {i.place}")
        m.registers.write(lane, np.zeros(1, np.uint32), mask)
        m.registers.write(chosen, m.lane == 0, mask)

    return step


INSTRUCTIONS = {
    "ld": _load,
    "st": _store,
    "cvta": _convert_address,
    "shfl": _shuffle,
    "elect": _elect,
}
