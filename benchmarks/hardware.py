"""Lower bounds on the time of a scan, from a chip's data sheet.

The bound is the largest of three: one exponential per (step, state) on the special function units,
the better kernel's instructions (counted in machine code) on the schedulers, and moving all bytes
to and from memory once.
"""

from scan_cases import Size, traffic

from sisma_jax.kernels.selective_scan.pallas import mosaic_plan, triton
from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS, EXPONENTIALS, LANES, SCHEDULERS
from sisma_jax.kernels.selective_scan.pallas.plan import Cost

COSTS = dict(
    zip(("forward", "backward"), zip(triton.COSTS, mosaic_plan.COSTS, strict=True), strict=True)
)
"""Instructions of both backends' kernels."""


def bounds(device: str, size: Size, dtype: str, full: bool, orders: int) -> dict[str, float] | None:
    """Lower bounds in microseconds of "forward" and "backward"; None for an unlisted chip."""
    chip = next((chip for name, chip in CHIPS.items() if name in device), None)
    if chip is None:
        return None
    rows = size.batch * size.length * size.channels * orders
    microseconds = lambda operations, per_clock: (
        operations / (chip.multiprocessors * per_clock * chip.gigahertz * 1e3)
    )
    exponentials = microseconds(rows * size.state, EXPONENTIALS)

    def issue(*costs: Cost) -> float:
        fewest = min(count for cost in costs for count in cost.per_state.values())
        return microseconds(rows * size.state * fewest, SCHEDULERS * LANES)

    # Bytes are counted per order, although a cache may hold what orders share.
    memory = {
        kind: orders * count / chip.bytes_per_second * 1e6
        for kind, count in traffic(size, dtype, full).items()
    }
    return {
        "forward": max(exponentials, issue(*COSTS["forward"]), memory["forward"]),
        "backward": max(exponentials, issue(*COSTS["backward"]), memory["backward"]),
    }
