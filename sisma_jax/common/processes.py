"""Work in several processes of this machine, which end with their caller."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from sisma_jax.common.errors import InputError, RunError


def cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run(
    work: Callable[[Any], Iterator[Any]], tasks: Sequence[Any], workers: int | None, what: str
) -> Iterator[Any]:
    """Yield what `work(task)` yields for any of the tasks, in order of arrival.

    Args:
      work: a module-level function, since workers import it; its InputError reaches the caller.
      tasks: arguments of `work`, each handled by one worker.
      workers: number of processes, one per core by default; 1 works in this process.
      what: what the workers write, for messages.

    Raises:
      InputError: `workers` is less than 1.
      RunError: a worker was killed.
      RuntimeError: `work` raised another error, whose traceback the worker has printed.
    """
    workers = cores() if workers is None else workers
    if workers < 1:
        raise InputError(f"number of workers is {workers}: give at least 1")
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield from work(task)
        return
    # Spawned, not forked: the caller may hold threads of numerical libraries. A pipe for each
    # worker, not a shared queue: a worker whose caller was killed fails to send and ends.
    context = multiprocessing.get_context("spawn")
    running = {}
    try:
        for k in range(workers):
            reader, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(sender, work, tasks[k::workers]), daemon=True
            )
            process.start()
            sender.close()
            running[reader] = process
        while running:
            for reader in wait(list(running)):
                try:
                    message = reader.recv()
                except EOFError:
                    process = running.pop(reader)
                    process.join()
                    if process.exitcode < 0:
                        raise RunError(
                            f"a worker that writes {what} was killed (signal "
                            f"{-process.exitcode}), perhaps for lack of memory: the same command "
                            "continues where it stopped"
                        ) from None
                    if process.exitcode:
                        raise RuntimeError(
                            f"a worker that writes {what} failed with the error above"
                        ) from None
                    continue
                if isinstance(message, InputError):
                    raise message
                yield message
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _work(sender: Connection, work: Callable[[Any], Iterator[Any]], tasks: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends its workers itself
    with contextlib.suppress(BrokenPipeError):  # the caller was killed
        try:
            for task in tasks:
                for message in work(task):
                    sender.send(message)
        except InputError as error:
            sender.send(error)
    sender.close()
