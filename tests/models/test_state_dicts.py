"""State dicts as they are given: which are arrays, and which are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.models.state_dicts import arrays


def test_lists_and_halves_are_arrays():
    given = {"a": [1.0, 2.0], "b": np.ones(2, np.float16), "c": jnp.ones(2, jnp.bfloat16)}
    found = arrays("file", given)
    assert [(type(x), x.tolist()) for x in found.values()] == [
        (np.ndarray, [1, 2]), (np.ndarray, [1, 1]), (np.ndarray, [1, 1]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weights.safetensors", "file is of type str: give a dict of arrays by their names"),
        ({"a": np.ones(2, int)}, "file has no floats in a: give the trained weights"),
        ({"a": np.array([1.0, np.inf])}, "file holds numbers that are not finite in a"),
    ],
)
def test_what_is_no_state_dict_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        arrays("file", given)
