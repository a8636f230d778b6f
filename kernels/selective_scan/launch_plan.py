"""How the work of a GPU kernel is laid over lanes, warps and schedulers: one cost formula.

A lane may have one channel, two of them, or a half or a quarter of one channel's states. Two
channels share what is read for both; parts of a channel bring more warps where there are too few
to fill the GPU, at the price of doing a step's work beside the states (softplus, gate, addresses)
more than once. Time runs sequentially in every warp, so a launch takes

    rounds x steps x instructions of one warp in one step

with rounds = ceil(warps / schedulers), each scheduler issuing one instruction a cycle.
"""

import dataclasses
import math

from kernels.selective_scan.chips import CHIPS, LANES, SCHEDULERS

STATES = (4, 8, 16, 32)
"""Numbers of states that the GPU kernels take."""

MULTIPROCESSORS = CHIPS["H200"].multiprocessors
"""What is planned for where no GPU is at hand."""

MAX_STATES_PER_LANE = 32
"""Of all its channels: more, with the rows that are read ahead, do not fit the registers."""

MAX_ROWS_PER_LANE = 16
"""Steps times channels of one lane whose rows the backward kernel keeps in registers."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One kernel's share of work per lane, and the size of its programs."""

    vectors: int
    """Channels of one lane."""
    groups: int = 1
    """Lanes that share one channel's states; 1 where `vectors` is 2."""
    warps: int = 1
    """Of one program."""

    @property
    def channels(self) -> int:
        """Channels of one program."""
        return self.vectors * self.warps * LANES // self.groups


@dataclasses.dataclass(frozen=True)
class Cost:
    """Instructions of one warp and step, counted in machine code for sm_90."""

    per_state: dict[int, float]
    """For one state of one channel, by channels per lane."""
    per_row: float
    """For what a channel costs beside its states."""


def plan(
    cost: Cost,
    plans: tuple[Plan, ...],
    *,
    batch: int,
    channels: int,
    state: int,
    multiprocessors: int = MULTIPROCESSORS,
) -> Plan:
    """Return the cheapest of `plans`; the length multiplies all alike.

    Args:
      cost: of the kernel.
      plans: those that its backend has.
      batch: sequences. Orders that `jax.vmap` adds are not known when a scan is planned.
      channels, state: of the scan; `state` one of STATES.
      multiprocessors: of the GPU.
    """

    def cycles(candidate: Plan) -> float:
        warps = batch * -(-channels // candidate.channels) * candidate.warps
        rounds = math.ceil(warps / (SCHEDULERS * multiprocessors))
        states = state / candidate.groups
        per_state = cost.per_state[candidate.vectors]
        return rounds * candidate.vectors * (states * per_state + cost.per_row)

    fitting = (p for p in plans if p.vectors * state // p.groups <= MAX_STATES_PER_LANE)
    return min(fitting, key=cycles)
