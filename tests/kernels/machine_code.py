"""The kernels of a scan compiled to machine code for a GPU that is not there."""

import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS

ROOT = Path(__file__).parents[2]
SIZE = (1024, 1536, 16)
"""Length, channels and states of the compiled scans."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    temp_mib: float
    """Temporary memory."""
    kernels: dict[str, Any]
    """Each a `kernel_model.Kernel`, by name; empty where their machine code cannot be read."""
    chip: str
    batch: int

    def model(self, name: str) -> dict[str, Any]:
        """The kernel's counts and modelled cycles."""
        kernel_model, latency = _benchmark("kernel_model"), _benchmark("latency")
        size = (self.batch, *SIZE)
        return kernel_model.model(self.kernels[name], CHIPS[self.chip], size, latency.Assumptions())


@functools.cache
def compiled(
    implementation: str,
    chip: str,
    *,
    plan: int,
    full: bool,
    ordered: bool = False,
    batch: int = 8,
) -> Compiled:
    """The gradient of a scan in bfloat16. A register that spills is an error.

    Args:
      plan: its place in the backend's list of plans.
      full: with z, D, delta_bias and softplus.
    """
    kernel_model = _benchmark("kernel_model")
    settings = {
        "implementation": implementation, "chip": chip, "gradient": True, "full": full,
        "ordered": ordered, "plan": plan, "size": (batch, *SIZE), "dtype": "bfloat16",
    }  # fmt: skip
    worker = ROOT / "benchmarks" / "scan_code.py"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, worker, json.dumps(settings), folder],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout.splitlines()[-1])
        kernels = {}
        if all(found["tools"].values()):
            for kernel in found["kernels"]:
                kernels[kernel["name"]] = kernel_model.read(kernel, found["tools"], CHIPS[chip])
    return Compiled(found["temp_mib"], kernels, chip, batch)


def _benchmark(name: str) -> Any:
    """A module of benchmarks/, which import each other by their bare names."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
