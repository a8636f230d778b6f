"""Machine code for GPUs that are not there: no spills, little memory, few instructions."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sisma_jax.kernels.selective_scan.pallas import mosaic, triton
from tests.kernels import machine_code
from tests.kernels.backends import PALLAS

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None,
        reason="needs the CUDA compiler: pip install -e '.[gpu-check]'",
    ),
]


@pytest.fixture(params=PALLAS)
def implementation(request):
    if request.param == "pallas_triton" and jax.__version_info__ >= (0, 11):
        pytest.skip("newer jax compiles Triton where neither spills nor instructions show")
    return request.param


def compile_for(implementation, chip, what, plan, options, batch=8):
    backend = {b.name: b for b in (triton.BACKEND, mosaic.BACKEND)}[implementation]
    if plan >= len(backend.plans):
        pytest.skip("has fewer plans")
    arguments = [str(x) for x in (implementation, chip, what, plan, options, batch)]
    done = subprocess.run(
        [sys.executable, machine_code.__file__, *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


BATCHES = (8, 8, 4, 1)
"""Batch size for each plan; plans that cut a channel into parts are for small batches."""


ALWAYS = {*(("H200", plan) for plan in range(4)), ("A100", 0), ("A100", 3), ("RTX 4090", 2)}
"""Chips and plans that are compiled in every run of the slow tests; the others at night."""


@pytest.mark.parametrize(
    ("chip", "plan"),
    [
        pytest.param(chip, plan, marks=() if (chip, plan) in ALWAYS else pytest.mark.night)
        for chip in ("H200", "A100", "RTX 4090")
        for plan in range(4)
    ],
)
def test_no_register_spills_and_the_gradient_needs_little_memory(implementation, chip, plan):
    """A spill fails the compilation."""
    compiled = compile_for(implementation, chip, "gradient", plan, "full", BATCHES[plan])
    assert compiled["temp_mib"] < 150


@pytest.mark.parametrize(("vectors", "forward", "backward"), [(1, 8.3, 40), (2, 7.0, 30)])
def test_instructions_of_one_step_and_state(implementation, vectors, forward, backward):
    if not (machine_code.tool("ptxas") and machine_code.tool("nvdisasm")):
        pytest.skip("needs ptxas and nvdisasm")
    compiled = lambda what: compile_for(implementation, "H200", what, vectors - 1, "plain")["loops"]
    inner = compiled("forward")["selective_scan"][0]
    # One exponential per step and state, forward; and every value has its own lane.
    assert sum(inner.values()) / inner["MUFU.EX2"] <= forward
    assert not any(name.startswith(("LDS", "STS")) for name in inner)
    inner, outer = compiled("gradient")["selective_scan_backward"]
    # The inner loop is one state of a chunk; the outer one has it once, and all that is per row.
    whole = sum(outer.values()) + 15 * sum(inner.values())
    assert whole / (16 * 16) <= backward
