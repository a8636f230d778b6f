"""The checks for GPUs, on a CPU: what they cover, and that they find errors."""

import itertools
import json

import jax
import pytest

from sisma_jax.kernels.selective_scan.api import IMPLEMENTATIONS
from sisma_jax.kernels.selective_scan.pallas.plan import STATES
from tests.kernels import checks
from tests.kernels.backends import PALLAS
from tests.kernels.checks import (
    DEVICE_CASES,
    TOLERANCE,
    check_against_oracle,
    check_device_case,
    check_same_bits,
    make_arrays,
    small_parts,
    use_plan,
)
from tests.kernels.test_on_gpu import BACKENDS, measured, write_times


def test_cases_for_a_device_pair_what_can_go_wrong_together():
    pairs = lambda first, second: {(first(case), second(case)) for case in DEVICE_CASES}
    plan, state = (lambda case: case.plan), (lambda case: case.state)
    assert pairs(plan, state) == {*itertools.product(range(4), STATES)}
    for one in (plan, state):
        assert len(pairs(one, lambda case: case.dtype)) == 4 * len(TOLERANCE)
        assert len(pairs(one, lambda case: case.length)) == 4 * 4
    assert len(pairs(lambda case: case.dtype, lambda case: case.length)) == len(TOLERANCE) * 4
    for switch in range(7):
        setting = lambda case: case.switches[switch]  # noqa: B023
        assert len(pairs(plan, setting)) == 4 * 2
        assert len(pairs(state, setting)) == (4 * 2 if switch else 4)


@pytest.mark.parametrize("implementation", PALLAS)
def test_a_case_runs_interpreted(implementation, monkeypatch):
    case = next(case for case in DEVICE_CASES if case.length == 1 and case.state == 8)
    plan = use_plan(monkeypatch, BACKENDS[implementation], case)
    check_device_case(implementation, case, plan)


@pytest.fixture
def spoil(monkeypatch):
    """Puts an error into the results of "chunked"."""
    right = IMPLEMENTATIONS["chunked"]

    def spoil(change):
        wrong = lambda **arguments: change(*right(**arguments))
        monkeypatch.setitem(IMPLEMENTATIONS, "chunked", wrong)
        checks.compiled.cache_clear()

    yield spoil
    checks.compiled.cache_clear()


def test_parts_of_a_large_scan_are_compared(spoil):
    arrays = make_arrays(9, batch=3, channels=24)
    check = lambda: check_against_oracle("chunked", arrays, parts=small_parts(arrays))
    check()
    spoil(lambda y, last_state: (y.at[0, 4, 23].add(1), last_state))
    with pytest.raises(AssertionError, match=r"^y: relative error"):
        check()
    spoil(lambda y, last_state: (y, last_state.at[1, 0, 2].add(1)))
    with pytest.raises(AssertionError, match=r"^last_state: relative error"):
        check()


def test_a_wrong_gradient_of_one_part_is_found(spoil):
    @jax.custom_vjp
    def negated(y):
        return y

    negated.defvjp(lambda y: (y, None), lambda _, ybar: (ybar.at[-1, :, 5].multiply(-1),))
    arrays = make_arrays(9, batch=3, channels=24)
    spoil(lambda y, last_state: (negated(y), last_state))
    with pytest.raises(AssertionError, match=r"^gradient of "):
        check_against_oracle("chunked", arrays, parts=small_parts(arrays, channels=2))


def test_launches_that_differ_are_found(monkeypatch):
    arrays = make_arrays(5)
    check_same_bits("chunked", arrays)
    count = itertools.count()
    monkeypatch.setattr(checks, "compiled", lambda name: lambda *arguments: 1e-7 * next(count))
    with pytest.raises(AssertionError, match="not equal"):
        check_same_bits("chunked", arrays)


def test_times_are_written_like_those_of_the_benchmark(benchmark, tmp_path):
    rows = measured(benchmark, ["chunked"], [("2,8,4,4", 2)], repeats=1)
    write_times(benchmark, tmp_path / "times.json", ["-m", "gpu", "--times", "times.json"], rows)
    report = json.loads((tmp_path / "times.json").read_text())
    assert report["command"].endswith("python -m pytest -m gpu --times times.json")
    assert {"date", "hardware", "versions", "rows", "over_length"} <= report.keys()
    (row,) = report["rows"]
    assert (row["status"], row["orders"]) == ("measured", 2)
    assert row["device_us"]["both"] > 0
