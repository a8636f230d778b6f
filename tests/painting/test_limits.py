"""Numbers and places that visitors may send."""

import math

import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.painting import limits


@pytest.mark.parametrize("value", [0, 5, 2.5, 0.0])
def test_numbers_in_range_pass(value):
    assert limits.number("guidance", value, 0, 5.0) == value


@pytest.mark.parametrize("value", [1, 16, 3.0])
def test_whole_numbers_in_range_pass_also_as_floats(value):
    whole = limits.integer("count", value, 1, 16)
    assert whole == value and isinstance(whole, int)


WRONG = [None, "3", True, [3], math.nan, math.inf, -math.inf, -1, 10**400]


@pytest.mark.parametrize("value", WRONG)
def test_other_numbers_are_refused_in_a_short_sentence(value):
    with pytest.raises(InputError, match=r"^guidance is .*: use 0 to 5$") as error:
        limits.number("guidance", value, 0, 5.0)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize("value", [*WRONG, 0, 17, 2.5])
def test_other_whole_numbers_are_refused_in_a_short_sentence(value):
    with pytest.raises(InputError, match=r"^count is .*: use a whole number from 1 to 16$"):
        limits.integer("count", value, 1, 16)


@pytest.mark.parametrize("value", [-1, 3, None, "0", 1.0, [0, 1]])
def test_places_where_nothing_is_are_refused(value):
    assert limits.place("face", 2, 3) == 2
    with pytest.raises(InputError, match=r"there is no face number .*: click one that is shown"):
        limits.place("face", value, 3)


def test_a_message_has_room_for_the_canvas_of_any_size():
    for size in (32, 256, 2048):
        assert limits.most_message(size) > 2 * 4 * (size**2 + 2) / 3 + 2**19
