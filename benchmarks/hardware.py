"""Lower bounds on the time of a scan, from a chip's data sheet.

The bound is the largest of three: one exponential per (step, state) on the special function units,
the better kernel's instructions (counted in machine code) on the schedulers, and moving all bytes
to and from memory once.
"""

from scan_cases import ITEM_SIZE, Size

from sisma_jax.kernels.selective_scan.pallas import mosaic, triton
from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS, EXPONENTIALS, LANES, SCHEDULERS
from sisma_jax.kernels.selective_scan.pallas.plan import Cost

BACKENDS = triton.BACKEND, mosaic.BACKEND


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

    def memory(sequences: int) -> float:
        return rows * sequences * ITEM_SIZE[dtype] / chip.bytes_per_second * 1e6

    # Forward: u, delta, y, with full also z. Backward: u, delta, ybar, ubar, deltabar, with full
    # also z and zbar. All are counted per order, although a cache may hold what orders share.
    return {
        "forward": max(
            exponentials, issue(*(backend.forward for backend in BACKENDS)), memory(3 + full)
        ),
        "backward": max(
            exponentials, issue(*(backend.backward for backend in BACKENDS)), memory(5 + 2 * full)
        ),
    }
