"""What a command tells its user when it cannot go on."""

import operator
from typing import Any


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one sentence, without capital letter and full stop, that names the offending
    value, where it stands and what to do about it. Commands print it behind "error:", without a
    traceback, and exit with status 2 (`sisma_jax.cli`).

    Attributes:
      shared: every process of a run raises it, so that one has to say it.
    """

    def __init__(self, message: str, *, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared


def whole_number(value: Any, name: str) -> int:
    """A count, a number of steps or a seed as Python's int; NumPy's and JAX's, alone or as an array
    without axes, are as good.

    Raises:
      InputError: if it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}: give a whole number") from None


class RunError(RuntimeError):
    """What was begun well cannot go on: numbers diverge, a disk is full, a process is lost.

    The message is like that of `InputError`, and says what is kept; commands exit with status 1.

    Attributes:
      shared: as of `InputError`.
    """

    def __init__(self, message: str, *, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared
