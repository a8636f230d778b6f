"""Memory that reports what a GPU would let pass: accesses out of bounds or misaligned, numbers that
nobody wrote, and races.

A race is two accesses of one place, at least one of them a store, that `order` does not order.
"""

import collections
import dataclasses

import numpy as np

from .order import Accesses, Agents, Order

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
POISON = 0x7FBA_DBAD_7FBA_DBAD
"""What unwritten memory holds: parts of it are quiet NaNs in single and half precision."""
GUARD = 64
"""Bytes behind the end of a buffer that belong to it in the simulation only."""
ALIGNMENT = 256
"""Addresses of buffers are multiples of it, as XLA's are, and of no higher power of two."""
SHARED_UNIT = 4
"""Bytes by which races in shared memory are told apart."""

_ALL = {1: 1, 2: 0x0101, 4: 0x01010101, 8: 0x0101010101010101}


class Fault(Exception):
    """An access or a synchronisation after which execution cannot go on."""


def poison(width: int):
    return UNSIGNED[width](POISON & ((1 << 8 * width) - 1))


@dataclasses.dataclass
class Report:
    """What was noticed during an execution, with the number of times."""

    faults: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """Noticed, and harmless as far as the results are right."""
    instructions: int = 0
    """Executed, each by all of its threads at once."""

    def fault(self, text: str, times: int = 1) -> None:
        self.faults[text] += times

    def note(self, text: str, times: int = 1) -> None:
        self.notes[text] += times


class Buffer:
    """A buffer in global memory, or the shared memory of all programs one after the other."""

    def __init__(self, name: str, size: int, unit: int = 1, *, contents: np.ndarray | None = None):
        """
        Args:
          size: in bytes.
          unit: bytes of its smallest number, by which races are told apart.
          contents: of a buffer that no program may store to; None means unwritten memory.
        """
        self.name, self.size, self.unit = name, size, unit
        room = -(-size // 16) * 16 + GUARD
        self.bytes = np.zeros(room, np.uint8)
        self.views = {width: self.bytes.view(kind) for width, kind in UNSIGNED.items()}
        self.read_only = contents is not None
        self.accesses: Accesses | None = None
        if self.read_only:
            raw = np.ascontiguousarray(contents).view(np.uint8).reshape(-1)
            self.bytes[: raw.size] = raw
        else:
            self.views[8][:] = POISON
            self.written = np.zeros(room, np.uint8)
            self.written_views = {w: self.written.view(kind) for w, kind in UNSIGNED.items()}

    def watch(self, order: Order) -> None:
        if not self.read_only:
            self.accesses = Accesses(order, len(self.bytes) // self.unit)

    def unwritten(self, offsets, width: int):
        return self.written_views[width][offsets // width] != _ALL[width]

    def units(self, offsets, width: int) -> list:
        """Units of numbers of `width` bytes at `offsets`."""
        return [offsets // self.unit + k for k in range(max(1, width // self.unit))]


class Memory:
    """Global memory of all programs, and shared memory of each."""

    def __init__(self, order: Order, shared: int, report: Report):
        """`shared`: bytes of shared memory of each program."""
        self.order, self.report = order, report
        self.buffers: list[Buffer] = []
        self.shared_size, self.shared_stride = shared, -(-shared // 256) * 256
        self.shared = Buffer("shared memory", self.shared_stride * order.programs, SHARED_UNIT)
        self.shared.watch(order)
        self.shared_first = order.program * self.shared_stride

    def add(self, buffer: Buffer) -> int:
        """The address of a new buffer in global memory."""
        self.buffers.append(buffer)
        buffer.watch(self.order)
        return self._base(len(self.buffers) - 1)

    def _base(self, index: int) -> int:
        return ((index + 1) << 40) + ALIGNMENT

    def buffer_at(self, address: int, place: str) -> tuple[Buffer, int]:
        """The buffer that holds a global address, and the offset in it."""
        index = (address >> 40) - 1
        if not 0 <= index < len(self.buffers):
            raise Fault(f"no buffer at {address:#x}: {place}")
        return self.buffers[index], address - self._base(index)

    def load(
        self, where: str, address, width: int, count: int, mask, place: str,
        used: list[bool] | None = None, unchanging: bool = False,
    ) -> list[np.ndarray]:  # fmt: skip
        """`count` numbers of `width` bytes for every thread, as arrays of raw bits.

        Args:
          where: the state space; generic addresses are global ones.
          address: (threads,), or (1,) where it is the same for all.
          mask: (threads,) of bool, of those that load; None means all.
          place: the instruction, for reports.
          used: for each number, whether any instruction reads it. Compilers make wide loads of
            several narrow ones, of which parts may be unused, and out of bounds.
          unchanging: whether the loads are correct only where nobody stores (`.nc`).
        """
        used = used or [True] * count
        needed = width * max((k + 1 for k in range(count) if used[k]), default=1)
        buffer, offset, mask = self._located(where, address, width * count, needed, mask, place)
        if unchanging and not buffer.read_only:
            self.report.fault(f"loads of {buffer.name} that may be out of date: {place}")
        results = []
        for k in range(count):
            own = offset + k * width
            value = buffer.views[width][own // width]
            if mask is not None:
                value = np.where(mask, value, poison(width))
            if used[k] and not buffer.read_only:
                self._watch_load(buffer, own, width, mask, place)
            results.append(value)
        return results

    def store(
        self, where: str, address, width: int, values: list, mask, place: str, copies: bool = False
    ) -> None:
        """Store numbers of `width` bytes one behind the other.

        Args:
          copies: whether they are stored by copies that belong to the threads' groups.
          others: see `load`.
        """
        shape = (len(self.order.program),)
        address = np.broadcast_to(address, shape)
        size = width * len(values)
        buffer, offset, mask = self._located(where, address, size, size, mask, place)
        if buffer.read_only:
            raise Fault(f"a store to {buffer.name}, which is read-only: {place}")
        agents = self.order.selected(mask, copies)
        offset = offset if mask is None else offset[mask]
        for k, value in enumerate(values):
            value = np.broadcast_to(value, shape)
            value = value if mask is None else value[mask]
            self._watch_store(buffer, agents, offset + k * width, width, value, place)
            index = (offset + k * width) // width
            buffer.views[width][index] = value
            buffer.written_views[width][index] = _ALL[width]
            if (lost := buffer.views[width][index] != value).any():
                self.report.fault(
                    f"several threads store different values at once in {buffer.name}: {place}",
                    int(lost.sum()),
                )

    def _located(self, where, address, size: int, needed: int, mask, place: str):
        """(buffer, offsets, mask) of the valid accesses; the others are reported and masked."""
        address = address.astype(np.int64)
        if where == "shared":
            buffer, offset = self.shared, address + self.shared_first
            outside = (address < 0) | (address > self.shared_size - needed)
            outside = np.broadcast_to(outside, offset.shape)
        else:
            active = np.argmax(mask) if mask is not None and address.size > 1 else 0
            first = int(address.flat[active])
            buffer, offset = self.buffer_at(first, place)
            offset = address - (first - offset)
            outside = (offset < 0) | (offset > buffer.size - needed)
            if needed < size and (offset > buffer.size - size).any():
                self.report.note(f"unused bytes behind {buffer.name} are loaded: {place}")
        active = True if mask is None else mask
        if ((offset & (size - 1) != 0) & active).any():
            raise Fault(f"misaligned in {buffer.name}: {place}")
        if (wrong := outside & active).any():
            self.report.fault(
                f"out of bounds of {buffer.name} ({buffer.size} bytes), offsets "
                f"{offset[outside].min()} to {offset[outside].max()}: {place}",
                int(wrong.sum()),
            )
            mask = np.broadcast_to(active & ~outside, self.order.program.shape)
        return buffer, offset if mask is None else np.where(mask, offset, 0), mask

    def _watch_load(self, buffer: Buffer, offset, width: int, mask, place: str) -> None:
        offset = np.broadcast_to(offset, self.order.program.shape)
        offset = offset if mask is None else offset[mask]
        if (unwritten := buffer.unwritten(offset, width)).any():
            # In shared memory it may be harmless: poison that goes nowhere.
            tell = self.report.note if buffer is self.shared else self.report.fault
            tell(f"numbers of {buffer.name} that nobody wrote: {place}", int(unwritten.sum()))
        agents = self.order.selected(mask)
        for units in buffer.units(offset, width):
            if (racing := buffer.accesses.unordered_stores(agents, units)).any():
                self.race(buffer, "a load may overtake a store or copy", racing, place)
            buffer.accesses.loaded(agents, units)

    def _watch_store(self, buffer, agents: Agents, offset, width: int, value, place: str) -> None:
        unchanged = (buffer.views[width][offset // width] == value) & ~buffer.unwritten(
            offset, width
        )
        for units in buffer.units(offset, width):
            racing = buffer.accesses.unordered_stores(agents, units)
            if (racing & ~unchanged).any():
                self.race(buffer, "a store may overtake another", racing & ~unchanged, place)
            elif racing.any():
                self.report.note(f"several threads store the same value in {buffer.name}")
            if (racing := buffer.accesses.unordered_loads(agents, units)).any():
                self.race(buffer, "a store may overtake a load", racing, place)
            if not buffer.accesses.stored(agents, units):
                self.report.note(f"several threads store to one place of {buffer.name} at once")

    def race(self, buffer: Buffer, what: str, racing, place: str) -> None:
        self.report.fault(f"race in {buffer.name}: {what}: {place}", int(racing.sum()))
