"""Which accesses are ordered before which: barriers, warps, and asynchronous copies.

Accesses are made by *agents*: every thread of a program, and the groups of asynchronous copies of
every thread. For each thread and each agent of its program, `Order.known` holds a time: what the
agent did up to then is over as far as the thread can tell. A barrier gives the threads that meet
there all that one of them knows.

Time is the number of instructions executed so far. Threads of one warp are ordered by barriers
only, as they are since sm_70; agents of different programs are never ordered.
"""

from typing import NamedTuple

import numpy as np

WARP = 32


class Agents(NamedTuple):
    """Agents that access memory at once, one for each entry."""

    thread: np.ndarray
    """Index over the threads of all programs; of a copy, of the thread that issued it."""
    identity: np.ndarray
    """Positive, different for every agent of every program."""
    warp: np.ndarray
    """The warp within the program; the number of warps stands for copies."""


class Order:
    def __init__(self, programs: int, threads: int):
        """`threads`: per program, a multiple of WARP."""
        self.programs, self.threads, self.warps = programs, threads, threads // WARP
        self.columns = 2 * threads
        """Agents of a program: its threads, then their groups."""
        self.now = 1
        self.known = np.zeros((programs * threads, self.columns), np.int64)
        index = np.arange(programs * threads)
        self.program, self.column = index // threads, index % threads
        self.everyone = Agents(
            thread=index,
            identity=1 + self.program * self.columns + self.column,
            warp=self.column // WARP,
        )
        self.groups = Agents(
            thread=index,
            identity=1 + self.program * self.columns + self.group_column(index),
            warp=np.full(len(index), self.warps),
        )
        self._least = None

    def group_column(self, thread):
        """The column of a thread's groups of copies."""
        return self.threads + self.column[thread]

    def selected(self, mask, copies: bool = False) -> Agents:
        """The threads of a mask (None: all), or the groups of their copies."""
        agents = self.groups if copies else self.everyone
        return agents if mask is None else Agents(*(x[mask] for x in agents))

    def is_ordered(self, agents: Agents, identity, time):
        """Whether what an agent did at a time is known to be over: (entries,) of bool.

        What a thread did itself is, but none of its copies.
        """
        program, column = np.divmod(identity - 1, self.columns)
        over = self.known[agents.thread, column] > time
        by_itself = column == self.column[agents.thread]
        return (program == self.program[agents.thread]) & (over | by_itself)

    def is_other(self, agents: Agents, identity):
        """Whether there is an agent that is not the thread itself; quicker than `is_ordered`."""
        return (identity != 0) & (identity != self.everyone.identity[agents.thread])

    def whole_warp_is_ordered(self, agents: Agents, program, warp: int, time):
        """Whether what any thread of a warp did at `time` is known to be over."""
        if self._least is None:
            known = self.known[:, : self.threads].reshape(-1, self.warps, WARP)
            self._least = known.min(2)
        if warp == self.warps:  # several copies: none of them may be running
            least = self.known[agents.thread, self.threads :].min(1)
        else:
            least = self._least[agents.thread, warp]
        return (program == self.program[agents.thread]) & (least > time)

    def released(self, threads: np.ndarray) -> np.ndarray:
        """What some threads of one program know together, with all that they did so far."""
        row = self.known[threads].max(0)
        row[self.column[threads]] = self.now
        return row

    def acquire(self, threads: np.ndarray, row: np.ndarray) -> None:
        self.known[threads] = np.maximum(self.known[threads], row)
        self._least = None

    def meet(self, threads: np.ndarray) -> None:
        """A barrier of some threads of one program."""
        self.acquire(threads, self.released(threads))

    def meet_all(self, programs: np.ndarray) -> None:
        """A barrier of all threads of some programs, (programs,) of bool."""
        whole = self.known.reshape(self.programs, self.threads, self.columns)
        row = whole[programs].max(1)
        row[:, : self.threads] = self.now
        whole[programs] = row[:, None]
        self._least = None


SEVERAL_PROGRAMS = -1


class Accesses:
    """The last store and the last loads of every unit of one buffer."""

    def __init__(self, order: Order, units: int):
        self.order = order
        self.writer = np.zeros(units, np.int32)
        self.write_time = np.zeros(units, np.int32)
        # One entry per warp and one for copies: an agent, or -2 - program where several of one
        # warp read since the last barrier between them, or SEVERAL_PROGRAMS.
        self.reader = np.zeros((units, order.warps + 1), np.int32)
        self.read_time = np.zeros((units, order.warps + 1), np.int32)

    def unordered_stores(self, agents: Agents, units):
        """Where another agent's store is not known to be over."""
        writer = self.writer[units]
        other = self.order.is_other(agents, writer)
        if not other.any():
            return other
        return other & ~self.order.is_ordered(agents, writer, self.write_time[units])

    def unordered_loads(self, agents: Agents, units):
        """Where another agent's load is not known to be over."""
        found = np.zeros(len(units), bool)
        for warp in range(self.order.warps + 1):
            reader = self.reader[units, warp]
            other = self.order.is_other(agents, reader)
            if other.any():
                found |= other & ~self._over(agents, reader, warp, self.read_time[units, warp])
        return found

    def _over(self, agents: Agents, reader, warp: int, time):
        one = self.order.is_ordered(agents, np.maximum(reader, 1), time)
        several = self.order.whole_warp_is_ordered(agents, -2 - reader, warp, time)
        return np.where(reader > 0, one, several)

    def loaded(self, agents: Agents, units) -> None:
        order, place = self.order, (units, agents.warp)
        before = self.reader[place]
        mine = agents.identity.astype(np.int32)
        if (differs := (before != 0) & (before != mine)).any():
            over = np.zeros(len(mine), bool)
            for warp in np.unique(agents.warp[differs]):
                own = agents.warp == warp
                part = Agents(*(x[own] for x in agents))
                time = self.read_time[units[own], warp]
                over[own] = self._over(part, before[own], warp, time)
            program = order.program[agents.thread]
            before_program = np.where(before > 0, (before - 1) // order.columns, -2 - before)
            several = np.where(before_program == program, -2 - program, SEVERAL_PROGRAMS)
            mine = np.where(differs & ~over, several, mine).astype(np.int32)
            mine = np.where(differs & (before_program != program), SEVERAL_PROGRAMS, mine)
        self.reader[place] = mine
        # Of several agents at once the last one was noted.
        if (lost := self.reader[place] != mine).any():
            program = order.program[agents.thread[lost]]
            self.reader[units[lost], agents.warp[lost]] = -2 - program
        self.read_time[place] = order.now

    def stored(self, agents: Agents, units) -> bool:
        """Whether no two agents stored to one unit at once."""
        self.writer[units], self.write_time[units] = agents.identity, self.order.now
        return bool((self.writer[units] == agents.identity).all())
