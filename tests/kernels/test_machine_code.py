"""Machine code for GPUs that are not there: no spills, little memory, few instructions."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import machine_code
import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        tuple(map(int, jax.__version__.split(".")[:2])) > (0, 10),
        reason="newer jax compiles Triton where neither spills nor instructions show",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None,
        reason="needs the CUDA compiler: pip install -e '.[gpu-check]'",
    ),
]


def compile_for(chip, what, vectors, groups, options, batch=8):
    arguments = [str(x) for x in (chip, what, vectors, groups, options, batch)]
    done = subprocess.run(
        [sys.executable, machine_code.__file__, *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("chip", ["H200", "A100", "RTX 4090"])
@pytest.mark.parametrize(
    ("vectors", "groups", "batch"), [(1, 1, 8), (2, 1, 8), (1, 2, 4), (1, 4, 1)]
)
def test_no_register_spills_and_the_gradient_needs_little_memory(chip, vectors, groups, batch):
    """A spill fails the compilation. Parts of a channel are for small batches."""
    assert compile_for(chip, "gradient", vectors, groups, "full", batch)["temp_mib"] < 150


@pytest.mark.parametrize(("vectors", "forward", "backward"), [(1, 8.3, 40), (2, 7.0, 30)])
def test_instructions_of_one_step_and_state(vectors, forward, backward):
    if not (machine_code.tool("ptxas") and machine_code.tool("nvdisasm")):
        pytest.skip("needs ptxas and nvdisasm")
    inner = compile_for("H200", "forward", vectors, 1, "plain")["loops"]["selective_scan"][0]
    # One exponential per step and state, forward; and every value has its own lane.
    assert sum(inner.values()) / inner["MUFU.EX2"] <= forward
    assert not any(name.startswith(("LDG.E.64", "LDG.E.128", "LDS", "STS")) for name in inner)
    inner, outer = compile_for("H200", "gradient", vectors, 1, "plain")["loops"][
        "selective_scan_backward"
    ]
    # The inner loop is one state of a chunk; the outer one has it once, and all that is per row.
    steps = {1: 16, 2: 8}[vectors] * vectors
    whole = sum(outer.values()) + 15 * sum(inner.values())
    assert whole / (16 * steps) <= backward
