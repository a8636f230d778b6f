"""What a chip could do at best: the least time of a scan, from its data sheet.

The larger of three: one exponential per (step, state) on the special function units, the kernel's
instructions (counted in machine code, `launch_plan`) on the schedulers, and the bytes that have to
move to and from memory once.
"""

import dataclasses

from scan_cases import ITEM_SIZE, Size

from kernels.selective_scan.launch_plan import BACKWARD, FORWARD, LANES, SCHEDULERS, Cost


@dataclasses.dataclass(frozen=True)
class Chip:
    multiprocessors: int
    gigahertz: float
    bytes_per_second: float
    exponentials_per_clock: int = 16
    """Of one multiprocessor."""


CHIPS = {
    "H200": Chip(132, 1.98, 4.8e12),
    "H100": Chip(132, 1.98, 3.35e12),
    "A100": Chip(108, 1.41, 2.0e12),
    "RTX 4090": Chip(128, 2.52, 1.01e12),
}


def bounds(device: str, size: Size, dtype: str, full: bool, orders: int) -> dict[str, float] | None:
    """Least microseconds of "forward" and "backward", or None for a chip that is not listed."""
    chip = next((chip for name, chip in CHIPS.items() if name in device), None)
    if chip is None:
        return None
    rows = size.batch * size.length * size.channels * orders
    exponentials = (
        rows
        * size.state
        / (chip.multiprocessors * chip.exponentials_per_clock * chip.gigahertz * 1e3)
    )

    def issue(cost: Cost) -> float:
        per_row = min(cost.per_state.values()) * size.state
        lanes = chip.multiprocessors * SCHEDULERS * LANES
        return rows * per_row / (lanes * chip.gigahertz * 1e3)

    def memory(sequences: int) -> float:
        return rows * sequences * ITEM_SIZE[dtype] / chip.bytes_per_second * 1e6

    # u, delta, y; beside them z. Backward: u, delta, ybar, ubar, deltabar; beside them z and zbar.
    return {
        "forward": max(exponentials, issue(FORWARD), memory(3 + full)),
        "backward": max(exponentials, issue(BACKWARD), memory(5 + 2 * full)),
    }
