"""Errors that a command reports to its user in one sentence."""

import difflib
import operator
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one sentence, without capital letter and full stop, that names the offending
    value, where it stands and what to do about it. Commands print it after "error:", without a
    traceback, and exit with status 2 (`sisma_jax.common.cli`).

    Attributes:
      shared: whether every process of a run raises it, so that only the first prints it.
      page: page of the documentation that explains it; "" for that of the command.
    """

    def __init__(self, message: str, *, shared: bool = False, page: str = "") -> None:
        super().__init__(message)
        self.shared = shared
        self.page = page


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put `place`, such as an option, and a colon before the message of an InputError."""
    try:
        yield
    except InputError as error:
        named = f"{place}: {error}"
        raise InputError(named, shared=error.shared, page=error.page) from error


def nearest(word: str, known: Collection[str], least: float = 0.6) -> str | None:
    """The known name that is the most similar to `word`, if the similarity is at least `least`."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=least)), None)


def did_you_mean(word: str, known: Collection[str], otherwise: str) -> str:
    """The remedy for an unknown name: the known one that is similar, or `otherwise`."""
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else otherwise


def counted(number: int, noun: str) -> str:
    """A number and its noun, whose plural ends in s: "1 mask", "2 masks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def whole_number(value: Any, name: str) -> int:
    """Return an integer (also NumPy's or JAX's, or a 0-d array) as a Python int.

    Raises:
      InputError: if it is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}: give a whole number") from None


class RunError(RuntimeError):
    """A valid run cannot continue: numbers diverge, a disk is full, a process is lost.

    The message is like that of `InputError` and says what is kept; commands exit with status 1.

    Attributes:
      shared: as in `InputError`.
    """

    def __init__(self, message: str, *, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared
