"""Options of sampling: what is refused, and what programs depend on."""

import dataclasses

import jax
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.synthesis.options import SamplingOptions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "^steps is 0: use at least 1$"),
        ({"steps": 2.5}, "^steps is 2.5: give a whole number$"),
        ({"solver": "rk4"}, "^solver 'rk4' is unknown: use one of euler, midpoint, heun$"),
        ({"guidance": -0.5}, r"^guidance is -0.5: use 0 or more \(1 is the plain model\)$"),
        ({"guidance": float("nan")}, "^guidance is nan: use 0 or more"),
        ({"style_guidance": float("inf")}, "^style guidance is inf: use 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SamplingOptions(**arguments)


def test_numbers_of_any_kind_are_kept_as_pythons_own():
    options = SamplingOptions(steps=np.int64(3), guidance=np.float32(1.5), style_guidance=2)
    assert options == SamplingOptions(steps=3, guidance=1.5, style_guidance=2.0)
    kinds = [type(value) for value in dataclasses.asdict(options).values()]
    assert kinds == [int, str, float, float]


def test_options_share_a_program_unless_they_differ_in_more_than_guidances_other_than_one():
    traced = []

    @jax.jit
    def program(options):
        traced.append(options)
        return options.guidance + (10 * options.style_guidance if options.style_guided else 0)

    assert program(SamplingOptions()) == 1 and not traced[-1].guided
    assert program(SamplingOptions(guidance=2.0)) == 2 and traced[-1].guided
    assert program(SamplingOptions(guidance=0.0)) == 0 and len(traced) == 2
    assert program(SamplingOptions(style_guidance=3.0)) == 31 and not traced[-1].guided
    assert program(SamplingOptions(guidance=4.0, style_guidance=3.0)) == 34 and len(traced) == 4
    for other in (SamplingOptions(steps=7), SamplingOptions(solver="heun")):
        assert program(other) == 1 and dataclasses.asdict(traced[-1]) == dataclasses.asdict(other)
    assert len(traced) == 6


def test_options_are_the_same_after_they_were_a_tree():
    options = SamplingOptions(steps=7, solver="heun", guidance=1.5)
    leaves, structure = jax.tree.flatten(options)
    assert leaves == [1.5] and jax.tree.unflatten(structure, leaves) == options
