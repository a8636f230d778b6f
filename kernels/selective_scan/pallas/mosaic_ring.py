"""Tiles of the inputs in shared memory, copied there ahead of their use.

A program visits tiles of equally many steps, forwards or backwards. While it works on one, the rows
of the next are on their way, so that no step waits for the device's memory. There is one barrier
per tile: behind it, all lanes see the tile that has arrived, and none still reads the tile before,
whose memory the next copies overwrite.
"""

import enum

import jax.numpy as jnp
from jax.experimental import pallas as pl

from .layout import Refs
from .mosaic_layout import Staged


class Stored(enum.Enum):
    """How an input that is staged is stored in the device's memory."""

    BY_ROW = enum.auto()
    """(length, channels): step s is in the row that the scan visits."""
    BY_STEP = enum.auto()
    """(length, state): step s is in row s, or in row length - 1 - s where the scan is reversed."""
    BY_TILE = enum.auto()
    """(tiles, state * steps): all steps of a state are adjacent, in the order of the scan."""
    BEFORE_TILE = enum.auto()
    """(tiles, state, channels): one number per state and channel for each tile."""


class Ring:
    """The tiles that a program visits."""

    def __init__(
        self,
        machine,
        inputs: Refs,
        layout: Staged,
        stored: dict[str, Stored],
        *,
        steps: int,
        tile,
        visits,
    ):
        """
        Args:
          machine: a `mosaic_machine.Interpreted`. Its `scratch` has room for `layout.stages` tiles
            of each input in `stored`, and, if there is an order, for twice as many of it.
          inputs: the references of one sequence.
          steps: steps per tile. The last tile of a sequence may have fewer.
          tile: maps the number of a visit to the number of the tile.
          visits: the number of visits.
        """
        self.machine, self.inputs, self.layout = machine, inputs, layout
        self.stored = {name: how for name, how in stored.items() if name in inputs}
        self.steps, self.tile, self.visits = steps, tile, visits
        self.scratch = machine.scratch
        self.rows = min(steps, layout.length)
        """Rows that are stored per tile."""
        self.ragged = layout.length % self.rows != 0 or self.rows < steps
        """Whether a tile has fewer steps than the others."""
        self.ordered = "order" in inputs
        self.orders = self.scratch["order"].shape[0] if self.ordered else 0

    def begin(self) -> None:
        """Request the first tile."""
        if self.layout.stages == 1:
            return
        if self.ordered:
            self._request_order(0)
            self._request_order(1)
            self._wait()
        self.request(0)

    def arrived(self, i) -> "Tile":
        """The tile of visit i, as soon as it is there. After that, `request` may be called."""
        if self.layout.stages == 1:
            self.machine.barrier()  # behind it, the tile before may be overwritten
            if self.ordered:
                self._request_order(i)
                self._wait()
            self.request(i)
            self._wait()
        else:
            self._wait()
            if self.ordered:
                self._request_order(i + 2)
        return Tile(self, i)

    def request(self, i) -> None:
        """Begin to copy the tile of visit i, of which visit i - 1 has begun.

        Past the last visit its tile is copied again, to memory that is not in use: without a
        condition, the copies can be placed between other instructions.
        """
        k = self._tile_or_last(i)
        slot, row = i % self.layout.stages, self._first_row(k)
        for name, how in self.stored.items():
            source, target = self.inputs[name], self.scratch[name].at[slot]
            if how is Stored.BY_TILE:
                self.machine.copy(source.at[k], target)
            elif how is Stored.BEFORE_TILE:
                self.machine.copy_block(source.at[k], 0, target)
            elif how is Stored.BY_STEP:
                self.machine.copy(source.at[pl.ds(row, self.rows)], target)
            elif self.ordered:
                visited = self.scratch["order"].at[i % self.orders]
                self.machine.gather(source, visited, target)
            else:
                self.machine.copy_block(source, row, target)

    def end(self) -> None:
        """Call when all visits are done: no copy outlives its program."""
        self.machine.wait()

    def _tile_or_last(self, i):
        return self.tile(jnp.minimum(i, self.visits - 1))

    def first(self, k):
        """The first step that is stored with tile k.

        The tile at the end of a sequence is stored with the steps in front of it, so that all tiles
        have the same size.
        """
        return jnp.minimum(k * self.steps, self.layout.length - self.rows)

    def _first_row(self, k):
        first = self.first(k)
        return self.layout.length - self.rows - first if self.layout.reverse else first

    def _wait(self) -> None:
        self.machine.wait()
        self.machine.barrier()

    def _request_order(self, i) -> None:
        first = self._first_row(self._tile_or_last(i))
        entries = self.inputs["order"].at[pl.ds(first, self.rows)]
        target = self.scratch["order"].at[i % self.orders]
        # Its first entry may be any, so only single entries are aligned.
        self.machine.copy(entries, target, piece=4)


class Tile:
    """One tile. t counts its steps; those past the end of the sequence hold its last step."""

    def __init__(self, ring: Ring, i):
        self.ring, self.i, self.layout = ring, i, ring.layout
        self.slot, self.k = i % ring.layout.stages, ring.tile(i)
        self.start = self.k * ring.steps
        self.skipped = self.start - ring.first(self.k) if ring.ragged else 0

    def _place(self, t):
        if self.ring.ragged:
            t = jnp.minimum(t + self.skipped, self.ring.rows - 1)
        return self.ring.rows - 1 - t if self.layout.reverse else t

    def exists(self, t):
        """Whether step t is one of the sequence."""
        return self.start + t < self.layout.length

    def row(self, name: str, t):
        """An input BY_ROW in step t, float32."""
        return self.ring.scratch[name][self.slot, self._place(t), :].astype(jnp.float32)

    def states(self, name: str, t) -> list:
        """An input BY_STEP in step t, by state."""
        place = self._place(t)
        return [self.ring.scratch[name][self.slot, place, n] for n in range(self.layout.state)]

    def steps(self, name: str, n) -> list:
        """An input BY_TILE for state n, by step."""
        steps = self.ring.steps
        return [self.ring.scratch[name][self.slot, n * steps + t] for t in range(steps)]

    def before(self, name: str, n):
        """An input BEFORE_TILE for state n."""
        return self.ring.scratch[name][self.slot, n, :]

    def visited(self, t):
        """The row of step t in the device's memory."""
        if self.ring.ordered:
            return self.ring.scratch["order"][self.i % self.ring.orders, self._place(t)]
        step = self.start + t
        return self.layout.length - 1 - step if self.layout.reverse else step
