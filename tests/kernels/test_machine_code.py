"""Machine code for GPUs that are not there: no spills, little memory, few instructions, and loads
that are on their way while others are waited for."""

import importlib.util
from typing import NamedTuple

import jax
import pytest

from sisma_jax.kernels.selective_scan.pallas import mosaic, triton
from tests.kernels import machine_code
from tests.kernels.backends import PALLAS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None,
        reason="needs the CUDA compiler: pip install -e '.[gpu-check]'",
    ),
]

MOSAIC = PALLAS[1]
TRITON = pytest.param(
    triton.BACKEND.name,
    marks=pytest.mark.skipif(
        jax.__version_info__ >= (0, 11),
        reason="newer jax compiles Triton where neither spills nor instructions show",
    ),
)
EITHER = pytest.mark.parametrize("implementation", [TRITON, MOSAIC])

BATCHES = (8, 8, 4, 1)
"""Batch size for each of Triton's plans; those that cut a channel into parts are for small ones."""

SEGMENTS = [mosaic.BACKEND.plans.index(count) for count in (1, 8)]
"""Plans of Mosaic: without kernels of segment ends, and with them."""

ALWAYS = {*(("H200", plan) for plan in range(4)), ("A100", 0), ("A100", 3), ("RTX 4090", 2)}
"""Chips and plans of Triton that are compiled in every run of the slow tests; others at night."""

CHIPS = ("H200", "A100", "RTX 4090")


@pytest.mark.parametrize("implementation", [TRITON])
@pytest.mark.parametrize(
    ("chip", "plan"),
    [
        pytest.param(chip, plan, marks=() if (chip, plan) in ALWAYS else pytest.mark.night)
        for chip in CHIPS
        for plan in range(len(triton.BACKEND.plans))
    ],
)
def test_no_register_of_triton_spills(implementation, chip, plan):
    """A spill fails the compilation."""
    compiled = machine_code.compiled(
        implementation, chip, plan=plan, full=True, ordered=True, batch=BATCHES[plan]
    )
    assert compiled.temp_mib < 150


@pytest.mark.parametrize("implementation", [MOSAIC])
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("plan", SEGMENTS)
def test_no_register_of_mosaic_spills(implementation, chip, plan):
    """A spill fails the compilation."""
    compiled = machine_code.compiled(implementation, chip, plan=plan, full=True, ordered=True)
    assert compiled.temp_mib < 100


class Promise(NamedTuple):
    """What holds for a kernel's machine code for an H200, with one channel per lane.

    Cycles are those of a lone warp per step: modelled, not measured.
    """

    instructions: float
    """The most instructions per step and state, without options."""
    plain: float
    """The most cycles of a lone warp per step, without options."""
    full: float
    """The most cycles of a lone warp per step, with every option but an order."""
    memory: float
    """The most cycles of waiting for the device's memory and its caches, without options."""
    in_flight: int = 0
    """The fewest loads from global memory in flight when one of them is waited for."""
    distance: int = 0
    """The fewest cycles between the load of a row and the first wait on its scoreboard."""


# For Mosaic, other versions of the compiler may need 3 % more cycles than these products state.
PROMISES = {
    ("pallas_mosaic", "selective_scan"): Promise(6.5, 1.03 * 180, 1.03 * 225, memory=5),
    ("pallas_mosaic", "selective_scan_ends"): Promise(4.4, 1.03 * 150, 1.03 * 168, memory=6),
    ("pallas_mosaic", "selective_scan_backward"): Promise(22, 1.03 * 680, 1.03 * 850, memory=5),
    ("pallas_mosaic", "selective_scan_backward_ends"): Promise(
        4.4, 1.03 * 152, 1.03 * 188, memory=6
    ),
    ("pallas_triton", "selective_scan"): Promise(
        8.6, 575, 575, memory=280, in_flight=33, distance=140
    ),
    ("pallas_triton", "selective_scan_backward"): Promise(28, 1920, 2320, memory=800, in_flight=5),
}
"""A kernel of the ends of eight segments has programs for seven: its figures are 7/8 of those per
step of its own."""


def kernels_of(implementation, full):
    """All kernels for an H200, as (`Compiled`, name): those of segment ends, and the others of one
    segment or one channel per lane."""
    plans = SEGMENTS if implementation == mosaic.BACKEND.name else (0,)
    found = {}
    for plan in reversed(plans):
        compiled = machine_code.compiled(implementation, "H200", plan=plan, full=full)
        if not compiled.kernels:
            pytest.skip("needs ptxas and nvdisasm")
        found |= {name: compiled for name in compiled.kernels}
    assert {(implementation, name) for name in found} == {
        x for x in PROMISES if x[0] == implementation
    }
    return [(compiled, name) for name, compiled in found.items()]


@EITHER
@pytest.mark.parametrize("full", [False, True])
def test_few_instructions_and_cycles(implementation, full):
    for compiled, name in kernels_of(implementation, full):
        promise, model = PROMISES[implementation, name], compiled.model(name)
        assert model["cycles_per_step_lone_warp"] <= (promise.full if full else promise.plain), name
        assert not model["branches_that_depend_on_data"]
        if not full:
            assert model["instructions"] <= promise.instructions, name
            assert 0.8 < model["exponentials"] < 1.1


@pytest.mark.parametrize("implementation", [TRITON])
def test_two_channels_per_lane_take_fewer_instructions(implementation):
    two = machine_code.compiled(implementation, "H200", plan=1, full=False)
    for one, name in kernels_of(implementation, full=False):
        assert two.model(name)["instructions"] < 0.95 * one.model(name)["instructions"]


@EITHER
def test_loads_are_not_waited_for_one_by_one(implementation, benchmark):
    sass = benchmark("sass")
    for compiled, name in kernels_of(implementation, full=False):
        program, promise = compiled.kernels[name].program, PROMISES[implementation, name]
        for loop in program.loops():
            body = program.own(loop)
            assert sass.serial_loads(body) <= 2, name
            assert sass.serial_loads(body, ["LDS"]) <= 2, name
            assert min(sass.loads_in_flight(body), default=promise.in_flight) >= promise.in_flight
            rows = sass.cycles_to_first_wait(body, lambda x: x.name == "LDG" and x.width == 2)
            assert min(rows, default=promise.distance) >= promise.distance, name
        waits = compiled.model(name)["waits_per_step_lone_warp"]
        memory = [waits[x] for x in waits if x.startswith(("LDG from", "asynchronous copy"))]
        assert sum(memory) <= promise.memory, name
