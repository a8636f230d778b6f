"""The compiled PTX of the kernels, executed on a CPU, against float64."""

import pytest

from .cases import BACKENDS, Check, covering, further
from .programs import Execution

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("implementation", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case}", marks=marks)
        for cases, marks in ((covering, ()), (further, pytest.mark.night))
        for name in BACKENDS
        for case in cases(name)
    ],
)
def test_results_are_those_in_float64_and_no_access_is_at_fault(compiler, implementation, case):
    compiler(implementation)
    check = Check(case, implementation)
    # As it is written, and as ptxas may fuse it with the errors that PTX allows.
    for execution in (Execution(), Execution(seed=0, contract=True)):
        errors, faults, _ = check(execution)
        assert not faults
        assert max(errors.values()) <= 1, errors
