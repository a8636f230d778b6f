"""Compiles a selective scan for a GPU that is not there: the worker of scan_model.py.

Takes its settings as JSON (the fields of `Settings`) and a folder, where the compiler's files stay,
and prints JSON: the kernels with their launches, temporary memory, and versions. A register that
spills is an error. Needs the extra `gpu-check`; Mosaic needs jax 0.11.2 or newer, and only jax
before 0.11 shows what it compiles of Triton's kernels.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported

RIVAL = "jax-linear-attention"
PACKAGES = ("jax", "jaxlib", "nvidia-cuda-nvcc")
"""Whose versions are reported; the last compiles Triton's kernels again, to be read."""
OURS = ("pallas_mosaic", "pallas_triton")


@dataclasses.dataclass(frozen=True)
class Settings:
    implementation: str
    """"pallas_mosaic", "pallas_triton", or RIVAL."""
    chip: str
    gradient: bool
    full: bool
    """Whether z, D, delta_bias and softplus are used."""
    ordered: bool
    """Whether there is a scan order."""
    plan: int | None
    """The number of the plan among the backend's; None for the launch plan's choice."""
    size: tuple[int, int, int, int]
    """Batch, length, channels, states."""
    dtype: str
    """The dtype of u, delta, B, C and z."""


def compile_scan(settings: Settings, folder: Path) -> dict:
    os.environ["XLA_FLAGS"] = (
        f"--xla_gpu_fail_ptx_compilation_on_register_spilling=true --xla_dump_to={folder}"
    )
    # Triton's kernels are compiled by XLA, Mosaic's by a compiler of their own.
    kinds = ("PTX", "PTXAS", "SASS_CTRL", "HOST_LLVM")
    os.environ |= {f"MOSAIC_GPU_DUMP_{kind}": "1" for kind in kinds}
    os.environ["MOSAIC_GPU_DUMP_TO"] = str(folder)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from sisma_jax.common.install import versions
    from sisma_jax.kernels.selective_scan.pallas import device
    from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS, target
    from tests.lowering import gpu_in_mind

    device.multiprocessors = lambda: CHIPS[settings.chip].multiprocessors
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target(settings.chip), topology="1x1x1"
    )
    replicated = NamedSharding(Mesh(np.array(topology.devices), ("device",)), P())
    b, length, d, n = settings.size

    def shape(*sizes: int, dtype=settings.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=replicated)

    arrays = {
        "u": shape(b, length, d),
        "delta": shape(b, length, d),
        "A": shape(d, n, dtype="float32"),
        "B": shape(b, length, n),
        "C": shape(b, length, n),
        "D": shape(d, dtype="float32") if settings.full else None,
        "z": shape(b, length, d) if settings.full else None,
        "delta_bias": shape(d, dtype="float32") if settings.full else None,
        "order": shape(length, dtype="int32") if settings.ordered else None,
    }
    plans: list = []
    scan = _rival(settings) if settings.implementation == RIVAL else _ours(settings, plans)
    loss = lambda arrays: jnp.sum(scan(arrays).astype(jnp.float32))
    function = jax.grad(loss, allow_int=True) if settings.gradient else scan
    with gpu_in_mind(settings.chip):
        lowered = jax.jit(function).lower(arrays)
    compiled = lowered.compile()
    kernels = [*_mosaic_kernels(folder), *_triton_kernels(folder)]
    if not kernels:
        raise RuntimeError(
            f"jax {jax.__version__} shows no machine code of {settings.implementation}"
        )
    return {
        "kernels": kernels,
        "plans": [str(plan) for plan in plans],
        "temp_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "tools": {name: _tool(name) for name in ("ptxas", "nvdisasm")},
        "versions": versions((*PACKAGES, *([RIVAL] if settings.implementation == RIVAL else []))),
    }


def _ours(settings: Settings, record: list) -> Callable:
    """The scan; the plans that it is traced with are added to `record`."""
    from sisma_jax.kernels.selective_scan.pallas import launch, mosaic, triton

    module = {"pallas_mosaic": mosaic, "pallas_triton": triton}[settings.implementation]
    plans = module.BACKEND.plans
    if settings.plan is not None and settings.plan >= len(plans):
        raise ValueError(f"{settings.implementation} has plans 0 to {len(plans) - 1}")

    def chosen(candidates, choose):
        record.append(choose() if settings.plan is None else plans[settings.plan])
        return record[-1]

    launch.chosen = chosen

    def scan(arrays: dict):
        y, _ = module.scan(**arrays, h0=None, reverse=False, delta_softplus=settings.full)
        return y

    return scan


def _rival(settings: Settings) -> Callable:
    from jla.ops.mosaic_gpu.mamba1 import mamba1

    def scan(arrays: dict):
        y, *_ = mamba1(
            *(arrays[name] for name in ("C", "B", "u", "delta", "A")), d=arrays["D"],
            z=arrays["z"], dt_bias=arrays["delta_bias"], dt_softplus=settings.full,
        )  # fmt: skip
        return y

    return scan


def _tool(name: str) -> str | None:
    """A program of the CUDA toolkit, from the path or from a wheel."""
    wheels = importlib.util.find_spec("nvidia")
    places = map(Path, wheels.submodule_search_locations if wheels else ())
    found = (str(program) for place in places for program in place.glob(f"**/bin/{name}"))
    return shutil.which(name) or next(found, None)


def _mosaic_kernels(folder: Path) -> list[dict]:
    kernels = []
    for log in sorted(folder.glob("*.ptxas")):
        text = log.read_text("utf-8")
        spills = re.findall(r"(\d+) bytes spill", text)
        if not spills or any(map(int, spills)):
            raise RuntimeError(f"{log.stem} spills registers:\n{text}")
        # Three sizes each of the grid, of clusters and of a block, and the shared memory.
        host = log.with_suffix(".ll").read_text("utf-8")
        call = re.search(r"@mosaic_gpu_build_kernel_spec\(ptr %\d+, ((?:i32 \d+, ){10})", host)
        numbers = [int(x) for x in re.findall(r"i32 (\d+)", call[1])]
        kernels.append(
            {
                "name": re.sub(r"_\d+$", "", log.stem),
                "ptx": str(log.with_suffix(".ptx")),
                "sass": str(log.with_suffix(".sass_ctrl")),
                "registers": int(re.search(r"Used (\d+) registers", text)[1]),
                "grid": numbers[:3],
                "block": numbers[6:9],
                "shared": numbers[9],
            }
        )
    return kernels


def _triton_kernels(folder: Path) -> list[dict]:
    """Kernels of the scan that XLA has compiled; their machine code and registers are not there."""
    launches = "\n".join(x.read_text("utf-8") for x in folder.glob("*thunk_sequence.txt"))
    kernels = []
    for ptx in sorted(folder.glob("module_*.ptx")):
        entry = re.search(r"\.entry (selective_scan\w*)", ptx.read_text("utf-8"))
        if entry is None:
            continue
        launch = re.search(
            rf" {entry[1]} grid: \[([\d, ]+)\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+)",
            launches,
        )
        sizes = lambda text: [int(x) for x in text.split(",")]
        kernels.append(
            {
                "name": entry[1],
                "ptx": str(ptx),
                "grid": sizes(launch[1]),
                "block": sizes(launch[2]),
                "shared": int(launch[3]),
            }
        )
    return kernels


if __name__ == "__main__":
    print(json.dumps(compile_scan(Settings(**json.loads(sys.argv[1])), Path(sys.argv[2]))))
