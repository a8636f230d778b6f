"""A cost model that assigns the work of a GPU kernel to lanes, warps and schedulers.

A lane has one channel, two channels, or half or a quarter of the states of one channel. Two
channels share the loads common to both. Parts of a channel give more warps where there are too few
to fill the GPU, but repeat the work of a step that does not depend on the state (softplus, gate,
addresses). Time runs sequentially in every warp, so a launch takes

    rounds x steps x instructions of one warp in one step

with rounds = ceil(warps / schedulers); each scheduler issues one instruction per cycle.
"""

import dataclasses
import math

from .chips import CHIPS, LANES, SCHEDULERS

STATES = (4, 8, 16, 32)
"""State sizes that the GPU kernels support."""

MULTIPROCESSORS = CHIPS["H200"].multiprocessors
"""Number of SMs assumed without a local GPU."""

MAX_STATES_PER_LANE = 32
"""Over all channels of the lane: more states and the prefetched rows exceed the registers."""

MAX_ROWS_PER_LANE = 16
"""Steps times channels of a lane whose rows the backward kernel keeps in registers."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The share of work per lane and the size of a program, for one kernel."""

    vectors: int
    """Channels per lane."""
    groups: int = 1
    """Lanes that share the states of one channel; 1 if `vectors` is 2."""
    warps: int = 1
    """Warps per program."""

    @property
    def channels(self) -> int:
        """Channels per program."""
        return self.vectors * self.warps * LANES // self.groups


@dataclasses.dataclass(frozen=True)
class Cost:
    """Instructions per warp and step, counted in sm_90 machine code."""

    per_state: dict[int, float]
    """Instructions per state of a channel, keyed by channels per lane."""
    per_row: float
    """Instructions per channel that do not depend on its states."""


def plan(
    cost: Cost,
    plans: tuple[Plan, ...],
    *,
    batch: int,
    channels: int,
    state: int,
    multiprocessors: int = MULTIPROCESSORS,
) -> Plan:
    """Return the cheapest of `plans`; the length scales all costs alike.

    Args:
      cost: instruction counts of the kernel.
      plans: plans of its backend.
      batch: number of sequences, times the number of scans that `jax.vmap` maps.
      channels, state: sizes of the scan; `state` is one of STATES.
      multiprocessors: SMs of the GPU.
    """

    def cycles(candidate: Plan) -> float:
        warps = batch * -(-channels // candidate.channels) * candidate.warps
        rounds = math.ceil(warps / (SCHEDULERS * multiprocessors))
        states = state / candidate.groups
        per_state = cost.per_state[candidate.vectors]
        return rounds * candidate.vectors * (states * per_state + cost.per_row)

    fitting = (p for p in plans if p.vectors * state // p.groups <= MAX_STATES_PER_LANE)
    return min(fitting, key=cycles)
