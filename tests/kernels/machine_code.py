"""Compiles the Pallas kernels to machine code for a GPU that is not there.

    python tests/kernels/machine_code.py IMPLEMENTATION CHIP forward|gradient PLAN plain|full BATCH

for sequences of 1024 steps, 1536 channels and 16 states in bfloat16; PLAN counts the
implementation's, and `full` has every option but h0. Prints JSON: temporary memory, and where ptxas
and nvdisasm are at hand the instructions of each kernel's loops. A register that spills is an
error. Needs the extra `gpu-check`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported

from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS, target


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, from the path or from a wheel."""
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    return shutil.which(name) or next(map(str, wheels.glob(f"**/bin/{name}")), None)


def loops(ptx: Path, capability: tuple[int, int]) -> list[dict[str, int]]:
    """Instructions of each backward branch's body by kind, innermost first."""
    suffix = "a" if capability >= (9, 0) else ""
    cubin = ptx.with_suffix(".cubin")
    architecture = "sm_{}{}{}".format(*capability, suffix)
    subprocess.run([tool("ptxas"), "-arch", architecture, ptx, "-o", cubin], check=True)
    listing = subprocess.run(
        [tool("nvdisasm"), "-c", cubin], check=True, capture_output=True, text=True
    ).stdout
    labels, instructions, found = {}, [], []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1].strip())
            branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            body = instructions[labels.get(branch[1], len(instructions)) :] if branch else []
            if len(body) > 1:  # programs end in a jump to itself
                names = [re.sub(r"^@!?U?P\w+ ", "", i).split()[0] for i in body]
                found.append({name: names.count(name) for name in dict.fromkeys(names)})
    return found


def main() -> None:
    implementation, chip, what, number, options, batch = sys.argv[1:]
    dump = Path(tempfile.mkdtemp())
    # Triton's kernels are compiled by XLA, Mosaic's by a compiler of their own.
    os.environ["XLA_FLAGS"] = (
        f"--xla_gpu_fail_ptx_compilation_on_register_spilling=true --xla_dump_to={dump}"
    )
    os.environ |= {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_PTXAS": "1"}
    os.environ["MOSAIC_GPU_DUMP_TO"] = str(dump)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from sisma_jax.kernels.selective_scan.pallas import launch, mosaic, triton
    from tests.lowering import gpu_in_mind

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target(chip), topology="1x1x1"
    )
    replicated = NamedSharding(Mesh(np.array(topology.devices), ("device",)), P())
    b, length, d, n = int(batch), 1024, 1536, 16
    shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
        sizes, dtype, sharding=replicated
    )
    arrays = {
        "u": shape(b, length, d),
        "delta": shape(b, length, d),
        "A": shape(d, n, dtype=jnp.float32),
        "B": shape(b, length, n),
        "C": shape(b, length, n),
        "D": None,
        "z": None,
        "delta_bias": None,
        "order": None,
    }
    if options == "full":
        arrays["z"] = arrays["u"]
        arrays["D"] = arrays["delta_bias"] = shape(d, dtype=jnp.float32)
        arrays["order"] = shape(length, dtype=jnp.int32)
    module = {"pallas_triton": triton, "pallas_mosaic": mosaic}[implementation]
    launch.plan = lambda cost, plans, **sizes: plans[int(number)]

    def scan(arrays: dict) -> jax.Array:
        y, _ = module.scan(**arrays, h0=None, reverse=False, delta_softplus=options == "full")
        return y

    loss = lambda arrays: jnp.sum(scan(arrays).astype(jnp.float32))
    gradient = jax.grad(loss, allow_int=True)
    with gpu_in_mind(chip):
        lowered = jax.jit(scan if what == "forward" else gradient).lower(arrays)
    compiled = lowered.compile()
    logs = [*dump.glob("*.ptxas")]
    assert implementation != "pallas_mosaic" or len(logs) == 1 + (what == "gradient")
    for log in logs:
        spills = re.findall(r"(\d+) bytes spill", log.read_text())
        assert spills and not any(map(int, spills)), log.read_text()
    result = {"temp_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20}
    if tool("ptxas") and tool("nvdisasm"):
        result["loops"] = {
            name[1].removesuffix("_mosaic_gpu_kernel"): loops(ptx, CHIPS[chip].capability)
            for ptx in dump.glob("*.ptx")
            if (name := re.search(r"\.entry (selective_scan\w*)", ptx.read_text()))
        }
    shutil.rmtree(dump)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
