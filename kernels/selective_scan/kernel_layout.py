"""What the bodies of the Pallas kernels, which are written once for all backends, are given.

A program scans a block of channels of one sequence. A lane owns one or two channels with all their
states, or a share of one channel's states; vectors have one element per lane, and the states are a
Python list of them. Time runs sequentially, a chunk after the other; what a length leaves over is a
shorter chunk at the end, so nothing is masked. Step s of the scan touches row `Layout.row(s)` of
the arrays, wherever an order puts it, so no permuted copy exists.

References come in dicts by the argument's name in `selective_scan`; optional ones are absent. They
have the axes that `pallas_scan` lists, but "batch" and "blocks", of which a program has one entry.
Their number of channels is a multiple of the plan's.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from kernels.selective_scan.chips import LANES
from kernels.selective_scan.launch_plan import Plan

Refs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a kernel is traced for."""

    length: int
    state: int
    plan: Plan
    chunk: int
    """Steps between two checkpoints of the state."""
    softplus: bool
    reverse: bool

    @property
    def lanes(self) -> int:
        return self.plan.warps * LANES

    @property
    def vectors(self) -> range:
        """Of a lane's channels."""
        return range(self.plan.vectors)

    @property
    def states(self) -> int:
        """Of one channel in one lane."""
        return self.state // self.plan.groups

    @property
    def whole_chunks(self) -> int:
        return self.length // self.chunk

    @property
    def left_over(self) -> int:
        """Steps of the last chunk if it is not a whole one."""
        return self.length % self.chunk

    def row(self, machine: "Machine", inputs: Refs, step):
        """The row that a step visits."""
        if self.reverse:
            step = self.length - 1 - step
        return machine.load(inputs["order"], step) if "order" in inputs else step


@runtime_checkable
class Machine(Protocol):
    """What a backend brings: indices, memory, and arithmetic on vectors with one float32 a lane."""

    def channels(self) -> list:
        """For each of a lane's vectors, the index of its channels."""

    def state(self, n):
        """The index of each lane's n-th state."""

    def zeros(self): ...

    def load(self, ref, *index):
        """A number, or a vector where an index is one; in the reference's dtype."""

    def store(self, ref, index: tuple, value) -> None:
        """Any value, in the reference's dtype."""

    def load_B(self, inputs: Refs, row, n):
        """Of each lane's n-th state."""

    def load_C(self, inputs: Refs, row, n): ...

    # See `arithmetic.Arithmetic`.
    def exp2(self, x): ...
    def fma(self, a, b, c): ...
    def sigmoid(self, x): ...
    def softplus(self, x): ...
    def softplus_slope(self, softplus): ...

    def sum_over_states(self, x):
        """The sum over lanes that share a channel, in each of them."""

    def obscured(self, x):
        """The int32 scalar x, by a way that the compiler does not see through."""

    def chunk(self, inputs: Refs, outputs: Refs, rows: list, start) -> "Chunk": ...


@runtime_checkable
class Chunk(Protocol):
    """A chunk of B and C, and where their gradients are summed over the program's channels.

    A state at a time: `put_C` for all steps, `C_done`, `put_B` for all steps, `B_done`; when all
    states have passed, `done`.
    """

    def B(self, t: int, n): ...
    def C(self, t: int, n): ...
    def put_C(self, t: int, n, value) -> None: ...
    def C_done(self, n) -> None: ...
    def put_B(self, t: int, n, value) -> None: ...
    def B_done(self, n) -> None: ...
    def done(self, rows: list) -> None: ...
