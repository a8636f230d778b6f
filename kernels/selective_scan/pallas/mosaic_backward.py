"""The bodies of Mosaic's kernels that run backwards: the gradient, and the ends of its segments.

The equations and their numbers are those of `chunked`. Segments of a sequence are as in
`mosaic_forward`, but an adjoint of the state passes through them from last to first.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .arithmetic import LN_2
from .chunk_values import Rows, Sums, copied
from .layout import Refs
from .mosaic_layout import Staged
from .mosaic_ring import Ring, Stored, Tile

STORED = {
    "u": Stored.BY_ROW,
    "delta": Stored.BY_ROW,
    "z": Stored.BY_ROW,
    "ybar": Stored.BY_ROW,
    "B": Stored.BY_TILE,
    "C": Stored.BY_TILE,
    "checkpoints": Stored.BEFORE_TILE,
}


def backward(inputs: Refs, outputs: Refs, *, layout: Staged, machine) -> None:
    """All gradients; the chunks of a segment run from last to first.

    Inputs are those of `forward`, its checkpoints, and the cotangents ybar and last_state_bar, the
    adjoint of the state behind the segment. The gradients of B and C are sums over this program's
    channels, those of A (without the factor ln 2), D and delta_bias sums over this segment; that of
    h0 is the adjoint of the state ahead of the segment.

    The rows of a chunk stay in registers while a loop visits the states, several at once so that
    one computes while another waits: it recomputes their steps from the checkpoint, then runs their
    adjoints backwards.
    """
    first, visits = layout.chunks_of(machine.program["segments"])
    ring = Ring(
        machine, inputs, layout, STORED, steps=layout.chunk,
        tile=lambda i: first + visits - 1 - i, visits=visits,
    )  # fmt: skip
    program = _Program(inputs, outputs, layout, machine, ring)
    program.begin()
    lax.fori_loop(0, visits, lambda i, _: program.chunk(i), None)
    program.end()


class _States(NamedTuple):
    """Values of the states that are visited at once, by state."""

    A: list
    h: list
    """The state before the chunk."""
    g: list
    """The second term of (3), and (10) after the first step of a sequence."""
    A_bar: list


class _Program:
    """One program: the gradients of a block of channels in one segment."""

    def __init__(self, inputs: Refs, outputs: Refs, layout: Staged, machine, ring: Ring):
        self.inputs, self.outputs, self.layout, self.machine = inputs, outputs, layout, machine
        self.ring = ring
        self.steps = range(layout.chunk)
        self.channels = machine.channels()
        # Each lane accesses its own column only.
        self.kept = {name: machine.scratch[f"kept_{name}"] for name in ("A", "g", "A_bar")}
        self.of_channels = {}
        for name in ("D", "delta_bias"):
            if name in inputs:
                for kind in (name, f"{name}_bar"):
                    row = len(self.of_channels)
                    self.of_channels[kind] = machine.scratch["kept_of_channels"].at[row]

    def begin(self) -> None:
        """Initialise what is kept in shared memory, and request the first tile."""
        self.ring.begin()
        zeros = self.machine.zeros()
        for n in range(self.layout.state):
            of_state = lambda name, n=n: self.machine.load(self.inputs[name], n, self.channels)
            self.kept["A"][n, :] = of_state("A")
            self.kept["g"][n, :] = of_state("last_state_bar")
            self.kept["A_bar"][n, :] = zeros
        for name in ("D", "delta_bias"):
            if name in self.inputs:
                self.of_channels[name][...] = self.machine.load(self.inputs[name], self.channels)
                self.of_channels[f"{name}_bar"][...] = zeros
        for row in range(self.layout.together * self.layout.chunk):
            self.machine.scratch["products_B"][row, :] = zeros

    def end(self) -> None:
        """Store what remains in shared memory: sums over all chunks, and the adjoint."""
        self.ring.end()
        first = self.ring.tile(self.ring.visits - 1)
        self._store_sums("B", self.place(first, self.layout.state - self.layout.together))
        for n in range(self.layout.state):
            self.machine.store(self.outputs["A"], (n, self.channels), self.kept["A_bar"][n, :])
        for name in ("D", "delta_bias"):
            if name in self.outputs:
                total = self.of_channels[f"{name}_bar"][...]
                self.machine.store(self.outputs[name], (self.channels,), total)

        @pl.when(self.machine.program["segments"] == 0)
        def _():
            for n in range(self.layout.state):
                self.machine.store(self.outputs["h0"], (n, self.channels), self.kept["g"][n, :])

    def chunk(self, i) -> None:
        """Process the chunk of visit i: read rows, visit the states, store rows."""
        tile = self.ring.arrived(i)
        if self.layout.stages > 1:
            self.ring.request(i + 1)
        rows = self.read_rows(tile)

        together = self.layout.together
        # Without a gate there are registers left to read the states one visit ahead.
        ahead = "z" not in self.inputs

        def visit(j, carry):
            sums, states, pending = carry
            sums = copied(sums)
            n = j * together
            after = None
            if ahead:
                after = self.read_states(
                    tile, jnp.minimum(n + together, self.layout.state - together)
                )
            else:
                states = self.read_states(tile, n)
            self.visit(tile, n, rows, copied(states), sums, pending)
            return sums, after, self.place(tile.k, n)

        zeros = [self.machine.zeros()] * self.layout.chunk
        sums = Sums(q=zeros, wA=zeros, y=[] if ahead else zeros)
        first = self.read_states(tile, jnp.int32(0)) if ahead else None
        # Ahead of the first visit of all there are none: what is stored then is overwritten later.
        before = jnp.minimum(tile.k + 1, self.ring.tile(0))
        pending = self.place(before, self.layout.state - together)
        carry = sums, first, pending
        sums, _, _ = lax.fori_loop(0, self.layout.state // together, visit, carry)
        self.store_rows(tile, rows, sums)

    def read_rows(self, tile: Tile) -> Rows:
        delta, x, ybar = [], [], []
        bias = self.of_channels["delta_bias"][...] if "delta_bias" in self.inputs else None
        for t in self.steps:
            u, gradient, raw = (tile.row(name, t) for name in ("u", "ybar", "delta"))
            step = self.machine.step_size(raw, bias, self.layout.softplus)
            if "z" in self.inputs:
                z = tile.row("z", t)
                gradient *= z * self.machine.sigmoid(z)
            step, gradient = (self._if_it_exists(tile, t, v) for v in (step, gradient))
            delta.append(step)
            x.append(step * u)
            ybar.append(gradient)
        return Rows(delta, x, ybar)

    def _if_it_exists(self, tile: Tile, t, value):
        """`value`, or 0 in a step past the end of the sequence, which then changes nothing."""
        return jnp.where(tile.exists(t), value, 0.0) if tile.ring.ragged else value

    def read_states(self, tile: Tile, n) -> _States:
        """The values of the states from n on."""
        numbers = [n + j for j in range(self.layout.together)]
        kept = lambda name: [self.kept[name][n, :] for n in numbers]
        h = [tile.before("checkpoints", n) for n in numbers]
        return _States(A=kept("A"), h=h, g=kept("g"), A_bar=kept("A_bar"))

    def visit(self, tile: Tile, n, rows: Rows, states: _States, sums: Sums, pending) -> None:
        """Process the states from n on: add to `sums`, and store what belongs to the states.

        Args:
          pending: the `place` of the gradient of B whose products the visit before has left.
        """
        together = self.layout.together
        numbers = [n + j for j in range(together)]
        B, C = ([tile.steps(name, n) for n in numbers] for name in ("B", "C"))
        # The sums of B of the visit before: the recomputation hides their latency.
        self._store_sums("B", pending)
        decay, decayed = self._recompute(rows, states, B, C, sums)
        self.machine.barrier()
        self._store_sums("C", self.place(tile.k, n))
        self._run_adjoint(rows, states, B, C, decay, decayed, sums)
        for j, number in enumerate(numbers):
            self.kept["g"][number, :] = states.g[j]
            self.kept["A_bar"][number, :] = states.A_bar[j]
        self.machine.barrier()

    def _recompute(self, rows: Rows, states: _States, B, C, sums: Sums):
        """(1), (2) and (4), from the states before the chunk.

        Returns:
          a_l and a_l h_{l-1}, by state and step.
        """
        machine, fma = self.machine, self.machine.fma
        h = states.h
        decay, decayed = ([[] for _ in h] for _ in range(2))
        for t in self.steps:
            for j in range(len(h)):
                decay[j].append(machine.exp2(rows.delta[t] * states.A[j]))
                decayed[j].append(decay[j][t] * h[j])
                h[j] = fma(rows.x[t], B[j][t], decayed[j][t])
                if sums.y:
                    sums.y[t] = fma(h[j], C[j][t], sums.y[t])
                self._put_product("C", j, t, h[j] * rows.ybar[t])
        return decay, decayed

    def _run_adjoint(self, rows: Rows, states: _States, B, C, decay, decayed, sums: Sums) -> None:
        """(3), (5), (8) and the sums of (6) and (7), from the last step to the first."""
        fma = self.machine.fma
        A, _, g, A_bar = states
        for t in reversed(self.steps):
            for j in range(len(g)):
                h_bar = fma(rows.ybar[t], C[j][t], g[j])
                sums.q[t] = fma(h_bar, B[j][t], sums.q[t])
                self._put_product("B", j, t, h_bar * rows.x[t])
                w = h_bar * decayed[j][t]
                sums.wA[t] = fma(w, A[j], sums.wA[t])
                A_bar[j] = fma(w, rows.delta[t], A_bar[j])
                g[j] = decay[j][t] * h_bar

    def _put_product(self, name: str, j: int, t: int, value) -> None:
        self.machine.scratch[f"products_{name}"][j * self.layout.chunk + t, :] = value

    def place(self, k, n):
        """Where the gradients of B and C of chunk k begin for the states from n on."""
        return (k * self.layout.state + n) * self.layout.chunk

    def _store_sums(self, name: str, place) -> None:
        """Store the gradient of B or C for the states of a visit, summed over lanes.

        The products of B and of C have memory of their own, so one barrier each suffices: a lane
        that passes the barrier of one has read all that it sums of the other.
        """
        sums = self.outputs[name].at[pl.ds(place, self.layout.together * self.layout.chunk)]
        self.machine.store_sums(self.machine.scratch[f"products_{name}"], sums)

    def store_rows(self, tile: Tile, rows: Rows, sums: Sums) -> None:
        """(6), (7), (9) and the gate's gradient."""
        machine, fma = self.machine, self.machine.fma
        D = self.of_channels["D"][...] if "D" in self.inputs else None
        D_bar = bias_bar = machine.zeros()
        # Hidden, so that the loop over states keeps no addresses of the gradients in registers.
        channels = machine.channels(machine.obscured(machine.program["blocks"]))
        for t in self.steps:
            delta, ybar, q = rows.delta[t], rows.ybar[t], sums.q[t]
            u = tile.row("u", t)
            bars = {"u": delta * q}
            if D is not None:
                bars["u"] = fma(D, ybar, bars["u"])
                D_bar = fma(u, ybar, D_bar)
            delta_bar = fma(u, q, LN_2 * sums.wA[t])
            if self.layout.softplus:
                delta_bar *= machine.softplus_slope(delta)
            else:
                delta_bar = self._if_it_exists(tile, t, delta_bar)
            bias_bar += delta_bar
            bars["delta"] = delta_bar
            if "z" in self.inputs:
                z, y = tile.row("z", t), sums.y[t]
                if D is not None:
                    y = fma(D, u, y)
                sigmoid = machine.sigmoid(z)
                slope = sigmoid * fma(z, 1.0 - sigmoid, 1.0)
                bars["z"] = tile.row("ybar", t) * y * slope
            self._store_row(tile, t, bars, channels)
        for name, total in (("D", D_bar), ("delta_bias", bias_bar)):
            if name in self.inputs:
                self.of_channels[f"{name}_bar"][...] += total

    def _store_row(self, tile: Tile, t: int, bars: dict, channels) -> None:
        def store():
            row = tile.visited(t)
            for name, value in bars.items():
                self.machine.store(self.outputs[name], (row, channels), value)

        if tile.ring.ragged:
            pl.when(tile.exists(t))(store)
        else:
            store()


ENDS = {"delta": Stored.BY_ROW, "z": Stored.BY_ROW, "ybar": Stored.BY_ROW, "C": Stored.BY_STEP}


def segment_ends(inputs: Refs, outputs: Refs, *, layout: Staged, machine) -> None:
    """Write the adjoint that a segment makes of one of zero, "ends", and the sum of delta, "steps".

    The adjoint is that of the state ahead of the segment. The first segment, which passes none on,
    has no program: program 0 is for segment 1.
    """
    channels = machine.channels()
    A = [machine.load(inputs["A"], n, channels) for n in range(layout.state)]
    bias = machine.load(inputs["delta_bias"], channels) if "delta_bias" in inputs else None
    first, visits = layout.tiles_of(machine.program["segments"] + 1)
    ring = Ring(
        machine, inputs, layout, ENDS, steps=layout.tile,
        tile=lambda i: first + visits - 1 - i, visits=visits,
    )  # fmt: skip

    def step(tile: Tile, t, carry: list) -> list:
        *g, total = carry
        delta = machine.step_size(tile.row("delta", t), bias, layout.softplus)
        gradient = tile.row("ybar", t)
        if "z" in inputs:
            z = tile.row("z", t)
            gradient *= z * machine.sigmoid(z)
        C = tile.states("C", t)
        for n in range(layout.state):
            g[n] = machine.exp2(delta * A[n]) * machine.fma(gradient, C[n], g[n])
        return [*g, total + delta]

    def visit(i, carry: list) -> list:
        tile = ring.arrived(i)
        if layout.stages > 1:
            ring.request(i + 1)
        if ring.ragged:  # only the last tile of a sequence
            left_over = jnp.minimum(layout.length - tile.start, layout.tile)
            one_step = lambda t, carry: step(tile, left_over - 1 - t, carry)
            return lax.fori_loop(0, left_over, one_step, carry)

        def block(j, carry: list) -> list:
            start = layout.tile - (j + 1) * layout.chunk
            for t in reversed(range(layout.chunk)):
                carry = step(tile, start + t, carry)
            return carry

        return lax.fori_loop(0, layout.tile // layout.chunk, block, carry)

    ring.begin()
    *g, total = lax.fori_loop(0, visits, visit, [machine.zeros() for _ in range(layout.state + 1)])
    ring.end()
    for n in range(layout.state):
        machine.store(outputs["ends"], (n, channels), g[n])
    machine.store(outputs["steps"], (channels,), total)
