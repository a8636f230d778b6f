"""Training one model with many processes: connecting, printing, and agreeing on errors and stops.

Each process runs the same program on its own devices. Process 0 prints and writes files. An error
in any process ends all of them with one sentence.
"""

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sisma_jax.common.errors import InputError

MESSAGE_BYTES = 2000
PATIENCE = 1.0
"""Seconds after a signal until a line says that the process will stop."""
GRACE = 5.0
"""Seconds after a second signal until a process ends that cannot stop by itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that define which processes train together."""
    group = parser.add_argument_group("many processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="train with the processes that the cluster started: SLURM, TPU pods, Kubernetes, MPI",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, without --distributed"
    )
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")


def join(args: argparse.Namespace) -> None:
    """Connect to the other processes; call it before anything else uses a JAX device.

    If they do not start, JAX aborts after some minutes with a long message of its own.

    Raises:
      InputError: if neither the options nor a cluster define the processes.
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
        where = f"process {args.process} of {args.processes} connects to {args.coordinator}"
        print(where, file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(*explicit.values())
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the processes did not connect ({reason}): start all of them, under SLURM, on a TPU "
            "pod or in a Kubernetes JobSet with --distributed, elsewhere with --coordinator, "
            "--processes and --process"
        ) from error


def is_multiprocess() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that prints and writes files."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Print in the first process only. If the terminal or the pipe is closed, later output is
    discarded and training continues: printing must not prevent a save."""
    if not is_first():
        return
    try:
        print(text, flush=True)
    except (OSError, ValueError):  # ValueError if the stream is closed
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until exit
        try:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        except (OSError, ValueError):  # a stream without a file, as in notebooks
            sys.stdout = nowhere


@contextmanager
def together() -> Iterator[None]:
    """Run the body on every process; an InputError on any of them is raised on all.

    The body must not wait for other processes; leaving it does.
    """
    error = None
    try:
        yield
    except InputError as caught:
        error = caught
    if is_multiprocess():
        words = "" if error is None else str(error)
        for process, message in enumerate(_everyones(words)):
            if message:
                where = "" if process == 0 else f" (process {process})"
                raise InputError(message + where, shared=True) from error
    if error is not None:
        raise error


def wait_for_all() -> None:
    """Wait until every process has called this."""
    with together():
        pass


def all_true(value: bool) -> bool:
    """Whether `value` holds on every process."""
    if not is_multiprocess():
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def _everyones(words: str) -> list[str]:
    line = np.zeros(MESSAGE_BYTES, np.uint8)
    encoded = np.frombuffer(words.encode(errors="backslashreplace")[:MESSAGE_BYTES], np.uint8)
    line[: len(encoded)] = encoded
    lines = multihost_utils.process_allgather(line)
    return [bytes(one).rstrip(b"\0").decode(errors="ignore") for one in lines]


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yield (step) -> whether to save and stop after it because of SIGTERM, SIGINT or SIGHUP.

    A single process stops after the current step, which it says after `PATIENCE` if the step lasts
    longer. A second signal has its default effect, during a compilation after `GRACE`. With several
    processes, a signal to any of them stops all, after a step agreed on by JAX's preemption
    service, which also handles the SIGTERM of clusters. SIGHUP, sent when a terminal closes, stays
    ignored if it already is (nohup). It often arrives twice; the second has no effect.
    """
    received: list[int] = []
    answered = threading.Event()
    shared = is_multiprocess()

    def handle(number: int, frame: Any) -> None:
        # May interrupt a print, or the terminal may be closed, so only `stop` prints.
        received.append(number)
        if number != hangup:
            signal.signal(number, previous[number])
        if shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(step: int) -> bool:
        asked = multihost_utils.reached_preemption_sync_point(step) if shared else bool(received)
        if asked:
            answered.set()
            names = [signal.Signals(number).name for number in received] or ["asked to stop"]
            print_once(f"{names[0]}: saving step {step}, then stopping")
        return asked

    numbers = [signal.SIGINT] if shared else [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    acknowledged = nullcontext() if shared else _acknowledged(set(numbers) - {hangup}, answered)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        with acknowledged:
            yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _acknowledged(numbers: Collection[int], answered: threading.Event) -> Iterator[None]:
    """Acknowledge these signals where the main thread cannot: print a line `PATIENCE` after the
    first unless it is `answered`, and end the process `GRACE` after a second one.

    Python calls handlers between instructions of the main thread, which a compilation blocks for
    minutes. Sockets carry the signals to a thread without delay. It never ends the process of a
    notebook, nor one that has left the context in the meantime.
    """
    receiver, sender = socket.socketpair()  # on Windows, pipes cannot be set to not block
    sender.setblocking(False)
    over = threading.Event()

    def listen() -> None:
        received = 0
        while number := int.from_bytes(receiver.recv(1)):
            if number not in numbers:
                continue
            received += 1
            if received == 1:
                if not answered.wait(PATIENCE):
                    name = signal.Signals(number).name
                    with suppress(OSError):  # the terminal may be closed
                        print(f"{name}: stopping after the step or compilation that is running; "
                              "a second signal ends the process", flush=True)  # fmt: skip
            elif not over.wait(GRACE) and "ipykernel" not in sys.modules:
                with suppress(OSError):
                    print("interrupted", file=sys.stderr, flush=True)
                os._exit(128 + number)
        receiver.close()

    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        sender.close()
