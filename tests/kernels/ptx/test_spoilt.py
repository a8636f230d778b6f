"""Faults in the PTX of the scan's kernels, one place at a time, are noticed."""

import dataclasses
import functools

import pytest

from .cases import ALL, BACKENDS, HALF, MOSAIC, Case, Check
from .spoiling import FAULTS, spoilt

pytestmark = pytest.mark.slow


@functools.cache
def executed(implementation: str) -> Check:
    """A case with all options: of Mosaic, three whole tiles and two; of Triton, the last plan."""
    if implementation == MOSAIC:
        case = Case(1, 320, 5, 4, segments=2, chunk=None, options=ALL + "x", **HALF)
    else:
        *_, plan = plans = BACKENDS[implementation][0].plans
        case = Case(1, 10, 2 * plan.channels - 3, 8, len(plans) - 1, options=ALL, **HALF)
    check = Check(case, implementation)
    errors, faults, _ = check()
    assert not faults and max(errors.values()) <= 1
    return check


def is_noticed(check: Check) -> bool:
    errors, faults, _ = check()
    return bool(faults) or max(errors.values()) > 1


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("implementation", BACKENDS)
def test_a_fault_in_one_place_is_noticed(compiler, implementation, fault):
    compiler(implementation)
    check = executed(implementation)
    sound, missed, tried = dict(check.program.kernels), [], 0
    # A barrier that is not missed would be one too many. Of the others, some from first to last.
    most = None if fault in ("no barrier", "no wait") else 2
    for equation, kernel in sound.items():
        for line, ptx in spoilt(kernel.ptx, fault, most):
            tried += 1
            check.program.kernels[equation] = dataclasses.replace(kernel, ptx=ptx)
            if not is_noticed(check):
                missed.append(line)
            check.program.kernels[equation] = kernel
    if not tried:
        pytest.skip("the kernels have no such instruction")
    # Some numbers are loaded ahead and not used.
    harmless = tried // 3 if fault == "load elsewhere" else 0
    assert len(missed) <= harmless, f"{len(missed)} of {tried}, lines {missed}"
