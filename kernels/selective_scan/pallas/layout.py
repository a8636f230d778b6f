"""Static parameters of a kernel, and what Triton's kernel bodies are written against.

A program scans a block of channels of one sequence. A lane owns one or two channels with all their
states, or a share of one channel's states. Vectors have one element per lane, and the states are a
Python list of vectors. Time runs sequentially, chunk by chunk. The steps that remain at the end
form a shorter chunk, so nothing is masked. Step s of the scan accesses row `Layout.row(s)` of the
arrays, wherever an order puts it, so there are no permuted copies.

The bodies run on a `Machine`, which is compiled or interpreted. References are passed in dicts
keyed by argument names of `selective_scan`, without entries for absent arguments. Their axes are
those listed in `launch` without "batch" and "blocks", of which a program has one entry. Their
number of channels is a multiple of the plan's.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from .chips import LANES
from .plan import Plan

Refs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static parameters of a kernel."""

    length: int
    state: int
    plan: Plan
    chunk: int
    """Steps between checkpoints of the state."""
    softplus: bool
    reverse: bool

    @property
    def lanes(self) -> int:
        return self.plan.warps * LANES

    @property
    def vectors(self) -> range:
        """Indices of a lane's channels."""
        return range(self.plan.vectors)

    @property
    def states(self) -> int:
        """States per channel in one lane."""
        return self.state // self.plan.groups

    @property
    def whole_chunks(self) -> int:
        return self.length // self.chunk

    @property
    def chunks(self) -> int:
        """Number of chunks, including a shorter one at the end."""
        return -(-self.length // self.chunk)

    @property
    def left_over(self) -> int:
        """Steps of the last, partial chunk; 0 without one."""
        return self.length % self.chunk

    def row(self, machine: "Machine", inputs: Refs, step):
        """The row that `step` visits."""
        if self.reverse:
            step = self.length - 1 - step
        return machine.load(inputs["order"], step) if "order" in inputs else step


@runtime_checkable
class Machine(Protocol):
    """A backend's indices, memory access, and arithmetic on vectors of one float32 per lane."""

    def channels(self) -> list:
        """The channel index of each of a lane's vectors."""

    def state(self, n):
        """The index of each lane's n-th state."""

    def zeros(self): ...

    def load(self, ref, *index):
        """A scalar, or a vector if an index is a vector, in the dtype of the reference."""

    def store(self, ref, index: tuple, value) -> None:
        """Store `value`, cast to the dtype of the reference."""

    def load_B(self, inputs: Refs, row, n):
        """B of each lane's n-th state."""

    def load_C(self, inputs: Refs, row, n): ...

    # See `arithmetic.Arithmetic`.
    def exp2(self, x): ...
    def fma(self, a, b, c): ...
    def sigmoid(self, x): ...
    def softplus(self, x): ...
    def softplus_slope(self, softplus): ...

    def sum_over_states(self, x):
        """The sum over the lanes that share a channel, returned in each of them."""

    def obscured(self, x):
        """The int32 scalar x, hidden from the compiler's optimisation."""

    def chunk(self, inputs: Refs, outputs: Refs, rows: list, start) -> "Chunk": ...


@runtime_checkable
class Chunk(Protocol):
    """B and C of one chunk, and the sums of their gradients over the program's channels.

    The calls for one state are `put_C` for all steps, `C_done`, `put_B` for all steps, `B_done`.
    After all states, `done` is called.
    """

    def B(self, t: int, n): ...
    def C(self, t: int, n): ...
    def put_C(self, t: int, n, value) -> None: ...
    def C_done(self, n) -> None: ...
    def put_B(self, t: int, n, value) -> None: ...
    def B_done(self, n) -> None: ...
    def done(self, rows: list) -> None: ...
