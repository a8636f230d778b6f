"""Lower bounds on the time of a compiled program, kernel by kernel, from a chip's data sheet.

A kernel takes at least the longest of
  - its matrix products at the chip's rate for bfloat16, or at half of it for float32 (TF32),
  - its exponentials, logarithms and the like on the special function units,
  - its bytes at the memory's bandwidth,
  - and, for the scan's kernels, its instructions on the schedulers (`hardware`).
Kernels run one after the other, so the bound of a program is the sum over its kernels. It leaves
out launches, waiting, arithmetic beside these, and everything that keeps a kernel from its bound.
"""

import dataclasses
from collections.abc import Iterable

from compiled_text import Kernel
from hardware import COSTS

from sisma_jax.kernels.selective_scan.pallas.chips import EXPONENTIALS, LANES, SCHEDULERS, Chip

SCANS = {"selective_scan": "forward", "selective_scan_backward": "backward"}
"""The scan's kernels by the ends of their names."""


def scan_kind(kernel: Kernel) -> str | None:
    """ "forward" or "backward" for a kernel of the scan, else None."""
    return SCANS.get(kernel.name.rpartition(" ")[2])


def with_scans(kernels: Iterable[Kernel], updates: int) -> list[Kernel]:
    """The kernels with the exponentials of the scans, which their text does not show.

    Args:
      updates: steps x channels x states of one scan; each takes one exponential in either pass.
    """
    special = lambda kernel: kernel.special + updates * (scan_kind(kernel) is not None)
    return [dataclasses.replace(kernel, special=special(kernel)) for kernel in kernels]


def matmul_rate(chip: Chip, dtype: str) -> float:
    """Operations a second of matrix products with inputs of a model's compute type.

    For float32 it is the rate of TF32, which JAX uses by default on these chips.
    """
    return chip.matmul * {"bfloat16": 1.0, "float32": 0.5}[dtype]


def seconds(
    kernels: Iterable[Kernel], chip: Chip, updates: int, dtype: str = "bfloat16"
) -> dict[str, float]:
    """Return "roofline", the bound of the program, and the totals that it is composed of.

    The totals are "matmul", "exponentials", "memory" and "instructions" (of the scans).

    Args:
      kernels: those of the program.
      chip: what it runs on.
      updates: as in `with_scans`.
      dtype: the compute type of the model.
    """
    rate = matmul_rate(chip, dtype)
    clocks = chip.multiprocessors * chip.gigahertz * 1e9
    totals = dict.fromkeys(("roofline", "matmul", "exponentials", "memory", "instructions"), 0.0)
    for kernel in kernels:
        kind = scan_kind(kernel)
        issued = updates * _instructions(kind) if kind else 0.0
        parts = {
            "matmul": kernel.flops / rate,
            "exponentials": kernel.special / (clocks * EXPONENTIALS),
            "memory": kernel.bytes / chip.bytes_per_second,
            "instructions": issued / (clocks * SCHEDULERS * LANES),
        }
        for name, time in (parts | {"roofline": max(parts.values())}).items():
            totals[name] += kernel.runs * time
    return totals


def _instructions(kind: str) -> float:
    """Fewest instructions of a lane for one state in one step."""
    return min(count for cost in COSTS[kind] for count in cost.per_state.values())
