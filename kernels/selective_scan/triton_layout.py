"""What the Triton kernels share: who has which channel, state and row, and how it is read.

A program is one warp and scans a few channels of one sequence. A lane owns one or two channels with
all their states, or a share of one channel's states; a state is one number per lane, and the states
are a Python list, because a two-dimensional tile would be split over lanes and synchronised at each
step. Time runs sequentially. Step s of the scan touches row `Layout.row(s)` of the arrays, wherever
an order puts it, so no permuted copy exists. Steps past the end (the last chunk may overhang) have
delta = 0: they leave the state as it is, and nothing of them is stored.

References come in dicts by the argument's name in `selective_scan`; optional ones are absent. A is
(state, channels), times log2(e), so that exp(delta A) is one exp2.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kernels.selective_scan.chips import LANES
from kernels.selective_scan.launch_plan import Plan
from kernels.selective_scan.triton_arithmetic import Assembly, Interpreted

Refs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which channel and which states a lane has, and which row a step visits.

    `plan.groups` lanes side by side share one channel, each with state / groups of its states; and
    a lane has `plan.vectors` channels, a vector of lanes apart.
    """

    length: int
    channels: int
    state: int
    plan: Plan
    chunk: int
    """Steps between two checkpoints of the state, 4, 8 or 16."""
    softplus: bool
    reverse: bool
    arithmetic: Assembly | Interpreted

    @property
    def vectors(self) -> int:
        return self.plan.vectors

    @property
    def groups(self) -> int:
        return self.plan.groups

    @property
    def states(self) -> int:
        """States of one lane."""
        return self.state // self.groups

    @property
    def chunks(self) -> int:
        return pl.cdiv(self.length, self.chunk)

    @property
    def overhangs(self) -> bool:
        """Whether the last chunk has steps past the end."""
        return self.length % self.chunk != 0

    def lane_channels(self) -> list:
        """For each vector, the channel of each lane, counted within the program's block."""
        lane = jnp.arange(LANES, dtype=jnp.int32)
        return [lane // self.groups + v * (LANES // self.groups) for v in range(self.vectors)]

    def lane_channel_exists(self) -> list:
        """For each vector, the lanes whose channel exists; None where all do."""
        if self.channels % self.plan.channels == 0:
            return [None] * self.vectors
        first = pl.program_id(1) * self.plan.channels
        return [first + channel < self.channels for channel in self.lane_channels()]

    def lane_state(self, n):
        """Each lane's n-th state, counted over all groups; a scalar where there is one group."""
        if self.groups == 1:
            return n
        lane = jnp.arange(LANES, dtype=jnp.int32)
        return lane % self.groups * self.states + n

    def row(self, inputs: Refs, step):
        """The row that a step visits; for steps past the end, a row that exists."""
        if self.overhangs:
            step = jnp.minimum(step, self.length - 1)
        if self.reverse:
            step = self.length - 1 - step
        return load(inputs["order"], (step,)) if "order" in inputs else step

    def row_or_own(self, inputs: Refs, step):
        """The row that a step visits; for steps past the end, a row of its own behind the last."""
        row = self.row(inputs, step)
        return jnp.where(step < self.length, row, step) if self.overhangs else row

    def exists(self, step):
        """Whether a step is none past the end; None where all are."""
        return step < self.length if self.overhangs else None

    def sum_groups(self, x):
        """The sum over the lanes that share a channel, in each of them."""
        stride = 1
        while stride < self.groups:
            x += self.arithmetic.swap_lanes(x, stride)
            stride *= 2
        return x

    def sum_channels(self, values: Sequence) -> list:
        """Sum each of a chunk's values over the lanes' channels, spreading the sums over lanes.

        Every exchange between lanes whose number differs in one bit also halves the list: a lane
        hands over the values that its partner goes on with. So 16 sums over 32 lanes take 16
        exchanges, not 80. `lane_steps` says which sum is where.
        """
        values = list(values)
        lane = jnp.arange(LANES, dtype=jnp.int32)
        stride = self.groups
        while stride < LANES:
            swap = lambda x, stride=stride: self.arithmetic.swap_lanes(x, stride)
            if len(values) > 1:
                upper = lane & stride != 0
                half = len(values) // 2
                values = [
                    jnp.where(upper, b, a) + swap(jnp.where(upper, a, b))
                    for a, b in zip(values[:half], values[half:], strict=True)
                ]
            else:
                values = [values[0] + swap(values[0])]
            stride *= 2
        return values

    def lane_steps(self) -> list:
        """Which of a chunk's sums each lane has, for every value of `sum_channels`."""
        lane = jnp.arange(LANES, dtype=jnp.int32)
        step = jnp.zeros(LANES, jnp.int32)
        left, stride = self.chunk, self.groups
        while stride < LANES and left > 1:
            left //= 2
            step += jnp.where(lane & stride != 0, left, 0)
            stride *= 2
        return [step + k for k in range(left)]


def _at(ref, index: tuple):
    """The place `index` in a reference; Pallas wants plain numbers as arrays there."""
    return ref.at[tuple(jnp.int32(i) if isinstance(i, int) else i for i in index)]


def load(ref, index: tuple, mask=None):
    return plt.load(_at(ref, index), mask=mask, other=None if mask is None else 0.0)


def load_single(ref, index: tuple, mask=None):
    return load(ref, index, mask).astype(jnp.float32)


def store(ref, index: tuple, value, mask=None):
    plt.store(_at(ref, index), value.astype(ref.dtype), mask=mask)


def both(a, b):
    """Both of two masks, of which None is everything and a scalar counts for all lanes."""
    if a is None or b is None:
        mask = b if a is None else a
        return mask if mask is None else jnp.broadcast_to(mask, (LANES,))
    return a & b


def load_channels(layout: Layout, inputs: Refs, name: str) -> list:
    """For each vector, a number of each lane's channel; None for an argument that is absent."""
    if name not in inputs:
        return [None] * layout.vectors
    places = zip(layout.lane_channels(), layout.lane_channel_exists(), strict=True)
    return [load_single(inputs[name], (channel,), mask) for channel, mask in places]


def step_size(layout: Layout, raw, bias, exists):
    """delta as the recurrence uses it; 0 past the end."""
    if bias is not None:
        raw += bias
    delta = layout.arithmetic.softplus(raw) if layout.softplus else raw
    return delta if exists is None else jnp.where(exists, delta, 0.0)
