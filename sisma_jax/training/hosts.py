"""Many processes that train one model: how they meet, which one speaks, and agreeing.

Each process runs the same program on its own devices. Process 0 prints and writes files; what is
wrong on any of them ends all, with one sentence.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sisma_jax.errors import InputError

MESSAGE_BYTES = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which processes train together."""
    group = parser.add_argument_group("many processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="train with the processes that the cluster started: SLURM, TPU pods, Kubernetes, MPI",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, otherwise")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0 on")


def join(args: argparse.Namespace) -> None:
    """Meet the other processes, before anything else asks JAX for a device.

    Where they do not come, JAX gives up after some minutes, by itself and at length.

    Raises:
      InputError: if the options do not say which processes there are, or no cluster does.
    """
    explicit = {name: getattr(args, name) for name in ("coordinator", "processes", "process")}
    given = [value is not None for value in explicit.values()]
    if not any(given) and not args.distributed:
        return
    if any(given) and not all(given):
        missing = next(name for name, value in explicit.items() if value is None)
        raise InputError(
            f"--{missing} is missing: give --coordinator, --processes and --process together, or "
            "--distributed alone where a cluster started the processes"
        )
    if all(given) and not 0 <= args.process < args.processes:
        raise InputError(
            f"--process is {args.process} of --processes {args.processes}: number them from 0 to "
            f"{args.processes - 1}"
        )
    if all(given):
        where = f"process {args.process} of {args.processes} meets the others at {args.coordinator}"
        print(where, file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(*explicit.values())
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the processes did not meet ({reason}): start all of them, under SLURM, on a TPU pod "
            "or in a Kubernetes JobSet with --distributed, elsewhere with --coordinator, "
            "--processes and --process"
        ) from error


def many() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that prints and writes files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print, on one process. Where nobody listens any more, since the terminal or the pipe is gone,
    training goes on unheard: no print may cost a save."""
    if not is_first():
        return
    try:
        print(text, flush=True)
    except (OSError, ValueError):  # ValueError where the stream is closed
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
        try:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        except (OSError, ValueError):  # a stream that is no file, as of a notebook
            sys.stdout = nowhere


@contextmanager
def together() -> Iterator[None]:
    """Do something on every process, whose InputError on any of them is raised on all.

    The body must not wait for other processes; the end of it does.
    """
    error = None
    try:
        yield
    except InputError as caught:
        error = caught
    if many():
        words = "" if error is None else str(error)
        for process, message in enumerate(_everyones(words)):
            if message:
                where = "" if process == 0 else f" (process {process})"
                raise InputError(message + where, shared=True) from error
    if error is not None:
        raise error


def wait_for_all() -> None:
    """Return once every process is here."""
    with together():
        pass


def all_true(value: bool) -> bool:
    """Whether `value` holds on every process."""
    return bool(np.all(multihost_utils.process_allgather(np.array(value)))) if many() else value


def _everyones(words: str) -> list[str]:
    line = np.zeros(MESSAGE_BYTES, np.uint8)
    encoded = np.frombuffer(words.encode(errors="backslashreplace")[:MESSAGE_BYTES], np.uint8)
    line[: len(encoded)] = encoded
    lines = multihost_utils.process_allgather(line)
    return [bytes(one).rstrip(b"\0").decode(errors="ignore") for one in lines]


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yield (step) -> whether to save and stop after it, because of SIGTERM, SIGINT or SIGHUP.

    Alone, a process stops after the step at hand, and a second signal acts as it always does. With
    others, a signal to any of them stops all, after a step that JAX's preemption service agrees on;
    SIGTERM is its own, so that notices by clusters take the same way. SIGHUP, of a terminal that is
    closed, is left alone where it is ignored, as nohup has it; it often comes twice, and the second
    changes nothing.
    """
    received: list[int] = []
    shared = many()

    def handle(number: int, frame: Any) -> None:
        # It may come amidst a print, or from a terminal that takes no more: `stop` speaks.
        received.append(number)
        if number != hangup:
            signal.signal(number, previous[number])
        if shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(step: int) -> bool:
        asked = multihost_utils.reached_preemption_sync_point(step) if shared else bool(received)
        if asked:
            names = [signal.Signals(number).name for number in received] or ["asked to stop"]
            say(f"{names[0]}: saving step {step}, then stopping")
        return asked

    numbers = [signal.SIGINT] if shared else [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
