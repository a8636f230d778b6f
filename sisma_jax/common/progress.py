"""Progress of long work: a moving bar on a terminal and in a notebook, lines in a log.

tqdm overwrites its line ten times a second. In a file that gives one line of thousands of updates,
so a separate line is printed there every `EVERY` seconds and at the end.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any, TypeVar

from tqdm import tqdm

EVERY = 10.0
"""Seconds between lines of a log."""
LINE = "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"
LAST_LINE = "{desc}: {n_fmt}/{total_fmt} in {elapsed}, {rate_fmt}"
T = TypeVar("T")


def bar(
    *, total: int, unit: str, desc: str, initial: int = 0, leave: bool = True
) -> "tqdm | Lines":
    """A bar on standard error; use it as a context manager.

    Args:
      total: number of units.
      unit: name of what is counted.
      desc: label ahead of the numbers.
      initial: units that were done before; they do not count for the rate.
      leave: whether a moving bar stays when it is full; a log keeps its lines.
    """
    options = dict(total=total, unit=unit, desc=desc, initial=initial)
    if moves(sys.stderr):
        return tqdm(**options, leave=leave)
    return Lines(sys.stderr, **options)


def over(items: Sequence[T], *, unit: str, desc: str) -> Iterator[T]:
    """Yield the items, with a bar that disappears at the end."""
    with bar(total=len(items), unit=unit, desc=desc, leave=False) as progress:
        for item in items:
            yield item
            progress.update()


def moves(stream: Any) -> bool:
    """Whether a stream can overwrite its last line: a terminal or the output of a cell."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")


class Lines:
    """The part of tqdm's interface that is used here, printing lines."""

    def __init__(self, stream: Any, *, total: int, unit: str, desc: str, initial: int) -> None:
        self._stream, self._total, self._unit, self._desc = stream, total, unit, desc
        self._initial = self._done = initial
        self._began = self._printed = monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self._print(LAST_LINE)

    def update(self, n: int = 1) -> None:
        self._done += n
        if monotonic() - self._printed >= EVERY:
            self._print(LINE)

    def set_description(self, desc: str) -> None:
        self._desc = desc

    def _print(self, line: str) -> None:
        self._printed = monotonic()
        shown = tqdm.format_meter(
            self._done,
            self._total,
            self._printed - self._began,
            prefix=self._desc,
            unit=self._unit,
            initial=self._initial,
            bar_format=line,
        )
        with contextlib.suppress(OSError):  # the reader is gone; the work goes on
            print(shown, file=self._stream, flush=True)
