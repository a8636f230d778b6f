"""GPU data sheets, for launch planning, roofline bounds, and compiling without a GPU."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    capability: tuple[int, int]
    multiprocessors: int
    gigahertz: float
    bytes_per_second: float
    cache: int
    """Bytes of the L2 cache."""
    memory: int
    """Bytes of device memory."""
    shared: int
    """Bytes of shared memory per multiprocessor."""
    threads: int
    """Resident threads per multiprocessor."""


CHIPS = {
    "H200": Chip((9, 0), 132, 1.98, 4.8e12, 50 << 20, 141 << 30, 228 << 10, 2048),
    "H100": Chip((9, 0), 132, 1.98, 3.35e12, 50 << 20, 80 << 30, 228 << 10, 2048),
    "A100": Chip((8, 0), 108, 1.41, 2.0e12, 40 << 20, 80 << 30, 164 << 10, 2048),
    "T4": Chip((7, 5), 40, 1.59, 3.2e11, 4 << 20, 16 << 30, 64 << 10, 1024),
    "RTX 4090": Chip((8, 9), 128, 2.52, 1.01e12, 72 << 20, 24 << 30, 100 << 10, 1536),
}

LANES = 32
"""Threads per warp."""

SCHEDULERS = 4
"""Warp schedulers per multiprocessor, from sm_80 to sm_120."""

EXPONENTIALS = 16
"""Exponentials per multiprocessor and clock."""
