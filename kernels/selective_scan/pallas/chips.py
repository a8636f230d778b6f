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
    matmul: float
    """Operations per second of dense matrix products in bfloat16 with float32 sums; T4: float16."""


# By NVIDIA's data sheets of the H200 SXM, H100 SXM, A100 80GB SXM and T4, and by the white paper of
# the Ada architecture for the RTX 4090.
CHIPS = {
    "H200": Chip((9, 0), 132, 1.98, 4.8e12, 50 << 20, 141 << 30, 228 << 10, 2048, 989.5e12),
    "H100": Chip((9, 0), 132, 1.98, 3.35e12, 50 << 20, 80 << 30, 228 << 10, 2048, 989.5e12),
    "A100": Chip((8, 0), 108, 1.41, 2.0e12, 40 << 20, 80 << 30, 164 << 10, 2048, 312e12),
    "T4": Chip((7, 5), 40, 1.59, 3.2e11, 4 << 20, 16 << 30, 64 << 10, 1024, 65e12),
    "RTX 4090": Chip((8, 9), 128, 2.52, 1.01e12, 72 << 20, 24 << 30, 100 << 10, 1536, 165.2e12),
}

LANES = 32
"""Threads per warp."""

SCHEDULERS = 4
"""Warp schedulers per multiprocessor, from sm_80 to sm_120."""

EXPONENTIALS = 16
"""Exponentials per multiprocessor and clock."""

_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""


def target(name: str, memory: int | None = None) -> str:
    """The `target_config` of `jax.experimental.topologies` that compiles for one of CHIPS.

    Args:
      name: key of CHIPS.
      memory: bytes of device memory that the compiler is told, by default the chip's. XLA changes
        programs that need more.
    """
    chip = CHIPS[name]
    major, minor = chip.capability
    return _TARGET.format(
        name=name, major=major, minor=minor, cores=chip.multiprocessors, clock=chip.gigahertz,
        bandwidth=int(chip.bytes_per_second), cache=chip.cache, memory=memory or chip.memory,
        shared=chip.shared, optin=chip.shared - 1024, threads=chip.threads,
    )  # fmt: skip
