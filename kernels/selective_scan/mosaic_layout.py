"""What the Mosaic kernels share: who has which channel, and which row a step visits.

A program is one warpgroup and scans a block of channels of one sequence. A lane owns one or two
channels with all their states; vectors have one element per lane. Time runs sequentially, a chunk
after the other; what a length leaves over is a shorter chunk at the end, so no step is masked. Step
s of the scan touches row `Layout.row(s)` of the arrays, wherever an order puts it.

References come in dicts by the argument's name in `selective_scan`; optional ones are absent. They
are whole arrays, as `pallas_scan` lists their axes.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.selective_scan.arithmetic import Arithmetic
from kernels.selective_scan.chips import LANES
from kernels.selective_scan.launch_plan import Plan
from kernels.selective_scan.mosaic_machine import Interpreted, Warpgroup

Refs = dict[str, Any]
math = Arithmetic()


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
    machine: Interpreted | Warpgroup

    @property
    def lanes(self) -> int:
        return self.plan.warps * LANES

    @property
    def whole_chunks(self) -> int:
        return self.length // self.chunk

    @property
    def left_over(self) -> int:
        """Steps of the last chunk if it is not a whole one."""
        return self.length % self.chunk

    def channels(self, block) -> list:
        """The channels of each of a lane's vectors, as slices of a whole array."""
        first = block * self.plan.channels
        return [pl.ds(first + v * self.lanes, self.lanes) for v in range(self.plan.vectors)]

    def row(self, inputs: Refs, step):
        """The row that a step visits."""
        if self.reverse:
            step = self.length - 1 - step
        return inputs["order"][step] if "order" in inputs else step

    def step_size(self, raw, bias):
        """delta as the recurrence uses it."""
        raw = single(raw)
        if bias is not None:
            raw += bias
        return math.softplus(raw) if self.softplus else raw


def single(x):
    return x.astype(jnp.float32)


def load_channels(inputs: Refs, name: str, channels: list) -> list:
    """A number of each channel, by vector; None for an argument that is absent."""
    return [inputs[name][c] if name in inputs else None for c in channels]


def store(ref, index: tuple, value) -> None:
    ref[index] = value.astype(ref.dtype)
