"""Options of sampling: what is refused, and what programs depend on."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.synthesis.options import SamplingOptions, name_fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "^steps is 0: use at least 1$"),
        ({"steps": 2.5}, "^steps is 2.5: give a whole number$"),
        ({"solver": "rk4"}, "^solver 'rk4' is unknown: use one of euler, midpoint, heun, ab2$"),
        ({"guidance": -0.5}, r"^guidance is -0.5: use 0 or more \(1 is the plain model\)$"),
        ({"guidance": float("nan")}, "^guidance is nan: use 0 or more"),
        ({"style_guidance": float("inf")}, "^style guidance is inf: use 0 or more"),
        ({"guidance": [1, 2, -3]}, "^guidance is -3.0 for image 2: use 0 or more"),
        ({"guidance": "much"}, "^guidance is 'much': give a number, or one for each image$"),
        ({"guidance": None}, "^guidance is None: give a number, or one for each image$"),
        (
            {"guidance": np.ones((7, 1))},
            r"^guidance is an array of float64 and shape \(7, 1\): give",
        ),
        ({"guidance": 1e39}, r"^guidance is 1e\+39: use less, since float32 ends at 3\.4e\+38$"),
        ({"style_guidance": [1, 1e39]}, r"^style guidance is 1e\+39 for image 1: use less, since"),
        ({"guidance_interval": (0.8, 0.1)}, r"^guidance interval is \[0.8, 0.1\]: give its first"),
        ({"guidance_interval": (0.1, 1.5)}, r"^guidance interval is \[0.1, 1.5\]: give its first"),
        ({"guidance_interval": 0.5}, "^guidance interval is 0.5: give its first and its last time"),
        ({"guidance_interval": "01"}, "^guidance interval is '01': give its first"),
        ({"guidance_interval": None}, "^guidance interval is None: give its first"),
        ({"guidance_rescale": 1.5}, "^guidance rescale is 1.5: use a share from 0"),
        ({"guidance_rescale": [0.7]}, r"^guidance rescale is \[0.7\]: use a share from 0"),
        ({"times": [0, 0.6, 0.5, 1]}, "^times have 0.5 after 0.6: let them increase"),
        (
            {"times": [0, 0.5, 0.5 + 1e-9, 1]},
            "^times have 0.500000001 after 0.5: let them increase",
        ),
        (
            {"times": [0, 1e-42, 1]},
            "^times have 1e-42 after 0: let them increase by more than 1e-06,",
        ),
        ({"times": [False, True]}, r"^times are \[False, True\]: give at least two numbers"),
        ({"times": [0, 2]}, r"^times have 2: give numbers from 0 \(noise\) to 1 \(data\)$"),
        ({"times": [0, float("nan")]}, "^times have nan: give numbers from 0"),
        ({"times": [0]}, r"^times are \[0\]: give at least two numbers from 0 to 1$"),
        ({"times": [0, 1], "steps": 3}, "^steps is 3, but times are those of 1 steps: leave one"),
        ({"times": [0, 1], "shift": 3}, "^shift is 3, but times are given: leave one of them out$"),
        ({"shift": 0}, "^shift is 0: use more than 0"),
        ({"shift": "3"}, "^shift is '3': use more than 0"),
        ({"shift": True}, "^shift is True: use more than 0"),
        ({"shift": 1e39, "steps": 1}, r"^shift is 1e\+39: with 1 steps times coincide"),
        ({"shift": 1e-40, "steps": 1}, "^shift is 1e-40: with 1 steps times coincide"),
        ({"shift": float("nan")}, "^shift is nan: use more than 0"),
        ({"shift": 1e-9}, "^shift is 1e-09: with 25 steps times coincide, set one nearer 1$"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SamplingOptions(**arguments)
    names = re.match("([a-z ]+?) (?:is|are|have|'rk4')", message.removeprefix("^"))[1]
    for prefix, joint in (("--", "-"), ("samples.", "_")):
        named = prefix + names.replace(" ", joint)
        with pytest.raises(InputError, match=f"^{named} "), name_fields(prefix):
            SamplingOptions(**arguments)


def test_numbers_of_any_kind_are_kept_as_pythons_own():
    options = SamplingOptions(
        steps=np.int64(3), guidance=np.float32(1.5), style_guidance=2, shift=np.int64(2),
        guidance_interval=np.array([0.25, 1]),
    )  # fmt: skip
    assert options == SamplingOptions(
        steps=3, guidance=1.5, style_guidance=2.0, shift=2.0, guidance_interval=(0.25, 1.0)
    )
    kinds = [type(value) for value in dataclasses.asdict(options).values()]
    assert kinds == [int, str, float, float, tuple, type(None), float, float]
    several = SamplingOptions(guidance=np.arange(3), times=jnp.array([0, 0.5, 1]))
    assert several.guidance == (0.0, 1.0, 2.0) and several.times == (0.0, 0.5, 1.0)
    assert SamplingOptions(times=(k / 2 for k in range(3))).times == several.times
    assert several.steps == 2 and dataclasses.replace(several, style_guidance=2).steps == 2
    assert hash(several) is not None and SamplingOptions().steps == 25


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


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"steps": 7, "solver": "heun"}, 0),
        ({"guidance": 1.5, "shift": 3}, 2),
        ({"guidance": 1.5, "guidance_interval": (0.1, 0.8)}, 2),
        ({"style_guidance": 1.5, "guidance_rescale": 0.7}, 2),
        ({"guidance": [1, 2], "style_guidance": [1.0, 0.1], "times": [0, 0.1, 1]}, 3),
        ({"guidance": 1.5, "guidance_interval": (0, 1), "style_guidance": [1.0, 1.0]}, 1),
    ],
)
def test_options_are_the_same_after_they_were_a_tree(arguments, count):
    options = SamplingOptions(**arguments)
    leaves, structure = jax.tree.flatten(options)
    assert len(leaves) == count
    again = jax.tree.unflatten(structure, leaves)
    if "style_guidance" in arguments and not options.style_guided:
        again = dataclasses.replace(again, style_guidance=options.style_guidance)
    assert again == options


def test_times_and_intervals_share_programs_and_defaults_are_no_options():
    structure = lambda **arguments: jax.tree.structure(SamplingOptions(**arguments))
    assert structure(shift=2) == structure(shift=3) != structure(shift=1) == structure()
    assert structure(times=[0, 0.5, 1]) == structure(times=[0, 0.1, 1]) != structure(steps=2)
    within = structure(guidance=2, guidance_interval=(0.1, 0.8))
    assert within == structure(guidance=3, guidance_interval=(0, 0.5))
    assert structure(guidance=2, guidance_interval=(0, 1)) == structure(guidance=2) != within
    assert structure(guidance_interval=(0.1, 0.8)) == structure(), "nothing is guided"
    rescaled = structure(guidance=2, guidance_rescale=0.7)
    assert rescaled == structure(guidance=3, guidance_rescale=0.1) != structure(guidance=2)
    assert structure(guidance_rescale=0.7) == structure(), "nothing is guided"
    traced = jax.jit(lambda options: options.grid)(SamplingOptions(steps=4, shift=3))
    np.testing.assert_allclose(traced, [0, 1 / 10, 1 / 4, 1 / 2, 1], rtol=1e-6)


def test_times_from_noise_to_data_are_asked_for_where_they_are_needed():
    later, earlier = SamplingOptions(times=[0.4, 1]), SamplingOptions(times=[0, 0.7])
    later.check_ends(from_noise=False)
    earlier.check_ends(to_data=False)
    with pytest.raises(
        InputError, match=r"^times begin at 0\.4, where z is no longer noise: begin at 0$"
    ):
        later.check_ends()
    with pytest.raises(InputError, match=r"^times end at 0\.7, where z is still noisy"):
        earlier.check_ends()
