"""Groups of asynchronous copies (`cp.async`), for which the thread that issued them waits."""

import numpy as np

from .memory import Report
from .order import Order


class Groups:
    """The groups of all threads."""

    def __init__(self, order: Order):
        self.order = order
        self.committed: dict[int, list[int | None]] = {}
        """Groups of a thread that may be running: the time of their last copy."""
        self.uncommitted: dict[int, int] = {}
        """Time of a thread's last copy that is in no group."""
        self.last_copies: dict[int, int] = {}
        """Times of the threads' last copies."""

    def copied(self, threads: np.ndarray) -> None:
        for thread in map(int, threads):
            self.uncommitted[thread] = self.last_copies[thread] = self.order.now

    def commit(self, thread: int) -> None:
        self.committed.setdefault(thread, []).append(self.uncommitted.pop(thread, None))

    def wait(self, thread: int, remaining: int) -> None:
        """Wait until at most `remaining` of the thread's groups are running."""
        groups = self.committed.get(thread, [])
        over = groups[: max(0, len(groups) - remaining)]
        self.committed[thread] = groups[len(over) :]
        if copies := [time for time in over if time is not None]:
            row = np.zeros(self.order.columns, np.int64)
            row[self.order.group_column(thread)] = copies[-1] + 1
            self.order.acquire(np.array([thread]), row)

    def check_all_waited_for(self, report: Report) -> None:
        """Report copies that are still running at the end of a kernel."""
        for thread, time in self.last_copies.items():
            if time >= self.order.known[thread, self.order.group_column(thread)]:
                report.fault("copies that no thread waited for")
