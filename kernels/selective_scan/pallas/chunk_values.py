"""Values of one chunk in the backward kernels. The numbers of equations are those of `chunked`.

In Mosaic's kernel they are lists by step, in Triton's lists by vector and step.
"""

from typing import NamedTuple, TypeVar

Values = TypeVar("Values", bound=tuple)


class Rows(NamedTuple):
    """Row values, shared by all states."""

    delta: list
    x: list
    """delta u."""
    ybar: list
    """The cotangent of y before the gate."""


class Sums(NamedTuple):
    """Sums over states."""

    q: list
    wA: list
    """The sum in (7), without the factor ln 2."""
    y: list
    """(2) without the skip; empty where there is no gate."""


def copied(values: Values) -> Values:
    """A copy of a named tuple of lists whose lists can be changed."""
    copy = lambda part: [copy(x) for x in part] if isinstance(part, list) else part
    return type(values)(*map(copy, values))
