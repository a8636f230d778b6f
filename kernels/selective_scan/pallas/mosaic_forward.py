"""The bodies of Mosaic's kernels that run forwards: the scan, and the ends of its segments.

A segment of a sequence needs the state that the segment before ends with. Where a sequence is cut
into several, `segment_ends` computes what each makes of a state of zero and how far it lets a state
decay; from these follow the states between the segments, and `forward` runs them all at once.
"""

import jax.numpy as jnp
from jax import lax

from .layout import Refs
from .mosaic_layout import Staged
from .mosaic_ring import Ring, Stored, Tile

STORED = {
    "u": Stored.BY_ROW,
    "delta": Stored.BY_ROW,
    "z": Stored.BY_ROW,
    "B": Stored.BY_STEP,
    "C": Stored.BY_STEP,
}

AHEAD = 2
"""Steps by which shared memory is read ahead, to hide its latency."""


def forward(inputs: Refs, outputs: Refs, *, layout: Staged, machine) -> None:
    """Write y, the last state and, if `outputs` has "checkpoints", the state before each chunk.

    "h0", if given, and "last_state" are those of this segment.
    """
    program = _Program(inputs, outputs, layout, machine)
    h = program.first_states()
    h = program.run(h, program.step)
    program.store_states("last_state", (), h)


def segment_ends(inputs: Refs, outputs: Refs, *, layout: Staged, machine) -> None:
    """Write what a segment makes of a state of zero, "ends", and the sum of delta, "steps".

    The last segment, which passes no state on, has no program.
    """
    program = _Program(inputs, outputs, layout, machine)
    zeros = [machine.zeros() for _ in range(layout.state)]
    *h, total = program.run([*zeros, machine.zeros()], program.step_without_y)
    program.store_states("ends", (), h)
    machine.store(outputs["steps"], (program.channels,), total)


class _Program:
    def __init__(self, inputs: Refs, outputs: Refs, layout: Staged, machine):
        self.inputs, self.outputs, self.layout, self.machine = inputs, outputs, layout, machine
        self.channels = machine.channels()
        of_channels = lambda name: (
            machine.load(inputs[name], self.channels) if name in inputs else None
        )
        self.A = [machine.load(inputs["A"], n, self.channels) for n in range(layout.state)]
        self.D, self.bias = of_channels("D"), of_channels("delta_bias")

    def first_states(self) -> list:
        if "h0" not in self.inputs:
            return [self.machine.zeros() for _ in range(self.layout.state)]
        load = lambda n: self.machine.load(self.inputs["h0"], n, self.channels)
        return [load(n) for n in range(self.layout.state)]

    def run(self, h: list, step) -> list:
        """Return h after `h = step(tile, t, read, h)` for all steps of the segment.

        `read` is the tile's content in step t, by name.
        """
        layout = self.layout
        first, visits = layout.tiles_of(self.machine.program["segments"])
        whole = jnp.minimum(layout.length // layout.tile - first, visits)
        stored = {name: how for name, how in STORED.items() if name in self.needed(step)}
        ring = Ring(
            self.machine, self.inputs, layout, stored, steps=layout.tile,
            tile=lambda i: first + i, visits=visits,
        )  # fmt: skip
        read = lambda tile, t: {
            name: tile.row(name, t) if how is Stored.BY_ROW else tile.states(name, t)
            for name, how in ring.stored.items()
        }

        def block(tile, start, h):
            reads = [read(tile, start + t) for t in range(min(AHEAD, layout.chunk))]
            for t in range(layout.chunk):
                if t + AHEAD < layout.chunk:
                    reads.append(read(tile, start + t + AHEAD))
                h = step(tile, start + t, reads[t], h)
            return h

        def whole_tile(i, h):
            tile = ring.arrived(i)
            if layout.stages > 1:
                ring.request(i + 1)

            def chunk(c, h):
                self.store_checkpoint(tile.k * layout.chunks_per_tile + c, h)
                return block(tile, c * layout.chunk, h)

            return lax.fori_loop(0, layout.chunks_per_tile, chunk, h)

        def last_tile(i, h):
            """The tile at the end of the sequence, which has fewer steps."""
            tile, left_over = ring.arrived(i), layout.length % layout.tile
            one_step = lambda t, h: step(tile, t, read(tile, t), h)
            for start in range(0, left_over, layout.chunk):
                self.store_checkpoint(tile.k * layout.chunks_per_tile + start // layout.chunk, h)
                h = lax.fori_loop(start, min(start + layout.chunk, left_over), one_step, h)
            return h

        ring.begin()
        if layout.length >= layout.tile:
            h = lax.fori_loop(0, whole, whole_tile, h)
        if layout.length % layout.tile:
            h = lax.fori_loop(whole, visits, last_tile, h)
        ring.end()
        return h

    def needed(self, step) -> tuple[str, ...]:
        """The inputs that a step reads."""
        return tuple(STORED) if step == self.step else ("u", "delta", "B")

    def step(self, tile: Tile, t, now: dict, h: list) -> list:
        machine, fma = self.machine, self.machine.fma
        h = list(h)
        u, B, C = now["u"], now["B"], now["C"]
        delta = machine.step_size(now["delta"], self.bias, self.layout.softplus)
        x = delta * u
        y = None
        for n in range(self.layout.state):
            decay = machine.exp2(delta * self.A[n])
            h[n] = fma(decay, h[n], x * B[n])
            y = h[n] * C[n] if y is None else fma(h[n], C[n], y)
        if self.D is not None:
            y = fma(self.D, u, y)
        if "z" in now:
            z = now["z"]
            y *= z * machine.sigmoid(z)
        machine.store(self.outputs["y"], (tile.visited(t), self.channels), y)
        return h

    def step_without_y(self, tile: Tile, t, now: dict, h: list) -> list:
        """The states after a step, and the sum of delta."""
        machine = self.machine
        *h, total = h
        delta = machine.step_size(now["delta"], self.bias, self.layout.softplus)
        x = delta * now["u"]
        for n in range(self.layout.state):
            decay = machine.exp2(delta * self.A[n])
            h[n] = machine.fma(decay, h[n], x * now["B"][n])
        return [*h, total + delta]

    def store_checkpoint(self, index, h: list) -> None:
        if "checkpoints" in self.outputs:
            self.store_states("checkpoints", (index,), h)

    def store_states(self, name: str, place: tuple, h: list) -> None:
        for n, value in enumerate(h):
            self.machine.store(self.outputs[name], (*place, n, self.channels), value)
