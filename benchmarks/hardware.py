"""What a chip could do at best: the least time of a scan, from its data sheet.

The larger of three: one exponential per (step, state) on the special function units, the kernel's
instructions (counted in machine code, `launch_plan`) on the schedulers, and the bytes that have to
move to and from memory once.
"""

from scan_cases import ITEM_SIZE, Size

from kernels.selective_scan.chips import CHIPS, EXPONENTIALS, LANES, SCHEDULERS
from kernels.selective_scan.launch_plan import BACKWARD, FORWARD, Cost


def bounds(device: str, size: Size, dtype: str, full: bool, orders: int) -> dict[str, float] | None:
    """Least microseconds of "forward" and "backward", or None for a chip that is not listed."""
    chip = next((chip for name, chip in CHIPS.items() if name in device), None)
    if chip is None:
        return None
    rows = size.batch * size.length * size.channels * orders
    microseconds = lambda operations, per_clock: (
        operations / (chip.multiprocessors * per_clock * chip.gigahertz * 1e3)
    )
    exponentials = microseconds(rows * size.state, EXPONENTIALS)

    def issue(cost: Cost) -> float:
        instructions = rows * size.state * min(cost.per_state.values())
        return microseconds(instructions, SCHEDULERS * LANES)

    def memory(sequences: int) -> float:
        return rows * sequences * ITEM_SIZE[dtype] / chip.bytes_per_second * 1e6

    # u, delta, y; beside them z. Backward: u, delta, ybar, ubar, deltabar; beside them z and zbar.
    return {
        "forward": max(exponentials, issue(FORWARD), memory(3 + full)),
        "backward": max(exponentials, issue(BACKWARD), memory(5 + 2 * full)),
    }
