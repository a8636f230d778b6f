"""The body of Triton's backward kernel. `layout` defines programs, lanes and chunks.

The equations and their numbers are those of `chunked`.
"""

import jax.numpy as jnp
from jax import lax

from .arithmetic import LN_2
from .chunk_values import Rows, Sums, copied
from .layout import Chunk, Layout, Machine, Refs


def backward(inputs: Refs, outputs: Refs, *, layout: Layout, machine: Machine) -> None:
    """All gradients; the chunks run from last to first.

    Inputs are those of `forward`, its checkpoints, and the cotangents ybar and last_state_bar. The
    gradients of B and C are sums over this program's channels, those of A (without the factor
    ln 2), D and delta_bias sums over this sequence. Until the end, the outputs A and h0 hold
    partial sums and adjoints.

    The row values of a chunk stay in registers while a loop visits the states one at a time: it
    recomputes a state's steps from the checkpoint, then runs its adjoint backwards.
    """
    program = _Program(inputs, outputs, layout, machine)
    program.begin()
    nothing = [machine.zeros() for _ in layout.vectors]
    totals = nothing, nothing
    if layout.left_over:
        totals = program.chunk(layout.whole_chunks, layout.left_over, totals)
    if layout.whole_chunks:
        totals = lax.fori_loop(
            0,
            layout.whole_chunks,
            lambda i, totals: program.chunk(layout.whole_chunks - 1 - i, layout.chunk, totals),
            totals,
        )
    program.store_totals(totals)


class _Program:
    """One program: the gradients of a block of channels of one sequence."""

    def __init__(self, inputs: Refs, outputs: Refs, layout: Layout, machine: Machine):
        self.inputs, self.outputs = inputs, outputs
        self.layout, self.machine = layout, machine
        self.channels = machine.channels()
        self.D, self.bias = self._of_channels("D"), self._of_channels("delta_bias")

    def _of_channels(self, name: str) -> list:
        return [
            self.machine.load(self.inputs[name], c).astype(jnp.float32)
            if name in self.inputs
            else None
            for c in self.channels
        ]

    def begin(self) -> None:
        """Initialise the adjoint of the last state and the gradient of A."""
        for channel in self.channels:
            for n in range(self.layout.states):
                place = self.machine.state(n), channel
                last = self.machine.load(self.inputs["last_state_bar"], *place)
                self.machine.store(self.outputs["h0"], place, last)
                self.machine.store(self.outputs["A"], place, self.machine.zeros())

    def chunk(self, index, length: int, totals):
        """Process chunk `index`, of `length` steps: load rows, visit the states, store rows.

        Args:
          totals: gradients of D and delta_bias by vector, summed over the later chunks.

        Returns:
          `totals` including this chunk.
        """
        start = index * self.layout.chunk
        places = self._places(start, length)
        chunk = self.machine.chunk(self.inputs, self.outputs, places, start)
        rows = self.load_rows(places)

        def one_state(n, carry):
            sums, loaded = carry
            sums = copied(sums)
            # Prefetch the next state, as in the forward kernel.
            loaded_after = self.load_state(jnp.minimum(n + 1, self.layout.states - 1), index)
            self.state(chunk, n, rows, loaded, sums)
            return sums, loaded_after

        zeros = [[self.machine.zeros()] * length for _ in self.layout.vectors]
        y = zeros if "z" in self.inputs else [[] for _ in self.layout.vectors]
        carry = Sums(q=zeros, wA=zeros, y=y), self.load_state(jnp.int32(0), index)
        sums, _ = lax.fori_loop(0, self.layout.states, one_state, carry)
        # Recomputed, so that the loop above need not keep their addresses in registers.
        places = self._places(self.machine.obscured(start), length)
        chunk.done(places)
        return self.store_rows(places, rows, sums, totals)

    def _places(self, start, length: int) -> list:
        """The rows that the steps visit, in the order of the scan."""
        return [self.layout.row(self.machine, self.inputs, start + t) for t in range(length)]

    def _load_row(self, name: str, row, v: int):
        return self.machine.load(self.inputs[name], row, self.channels[v]).astype(jnp.float32)

    def load_rows(self, places: list) -> Rows:
        delta, x, ybar = ([[] for _ in self.layout.vectors] for _ in range(3))
        for v in self.layout.vectors:
            for row in places:
                u, gradient = self._load_row("u", row, v), self._load_row("ybar", row, v)
                raw = self._load_row("delta", row, v)
                delta[v].append(self.machine.step_size(raw, self.bias[v], self.layout.softplus))
                x[v].append(delta[v][-1] * u)
                if "z" in self.inputs:
                    z = self._load_row("z", row, v)
                    gradient *= z * self.machine.sigmoid(z)
                ybar[v].append(gradient)
        return Rows(delta, x, ybar)

    def load_state(self, n, index) -> list:
        """A, checkpoint, adjoint and partial gradient of A for state n, by vector."""
        refs = self.inputs["A"], self.inputs["checkpoints"], self.outputs["h0"], self.outputs["A"]
        before = (), (index,), (), ()
        return [
            [self.machine.load(ref, *place, self.machine.state(n), c) for c in self.channels]
            for ref, place in zip(refs, before, strict=True)
        ]

    def state(self, chunk: Chunk, n, rows: Rows, loaded: list, sums: Sums) -> None:
        """Process one state: add to `sums`, and store the gradients of the state."""
        A, h, g, A_bar = (list(values) for values in loaded)
        decay, decayed = self._recompute(chunk, n, rows, A, h, sums)
        self._run_adjoint(chunk, n, rows, A, decay, decayed, g, A_bar, sums)
        for v in self.layout.vectors:
            for name, value in (("h0", g[v]), ("A", A_bar[v])):
                place = self.machine.state(n), self.channels[v]
                self.machine.store(self.outputs[name], place, value)
        chunk.B_done(n)

    def _recompute(self, chunk: Chunk, n, rows: Rows, A: list, h: list, sums: Sums):
        """(1), (2) and (4), from the state `h` before the chunk, updated to the one after it.

        Returns:
          a_l and a_l h_{l-1}, by vector and step.
        """
        fma = self.machine.fma
        decay, decayed = ([[] for _ in self.layout.vectors] for _ in range(2))
        for t in range(len(rows.x[0])):
            B, C = chunk.B(t, n), chunk.C(t, n)
            C_bar = None
            for v in self.layout.vectors:
                decay[v].append(self.machine.exp2(rows.delta[v][t] * A[v]))
                decayed[v].append(decay[v][t] * h[v])
                h[v] = fma(rows.x[v][t], B, decayed[v][t])
                if sums.y[v]:
                    sums.y[v][t] = fma(h[v], C, sums.y[v][t])
                ybar = rows.ybar[v][t]
                C_bar = h[v] * ybar if v == 0 else fma(h[v], ybar, C_bar)
            chunk.put_C(t, n, C_bar)
        chunk.C_done(n)
        return decay, decayed

    def _run_adjoint(
        self,
        chunk: Chunk,
        n,
        rows: Rows,
        A: list,
        decay: list,
        decayed: list,
        g: list,
        A_bar: list,
        sums: Sums,
    ) -> None:
        """(3), (5), (8) and the sums of (6) and (7), from the last step to the first.

        `g` is the second term of (3), and (10) after the first step of a sequence. `g` and `A_bar`
        are updated in place.
        """
        fma = self.machine.fma
        for t in reversed(range(len(rows.x[0]))):
            B, C = chunk.B(t, n), chunk.C(t, n)
            B_bar = None
            for v in self.layout.vectors:
                h_bar = fma(rows.ybar[v][t], C, g[v])
                sums.q[v][t] = fma(h_bar, B, sums.q[v][t])
                x = rows.x[v][t]
                B_bar = h_bar * x if v == 0 else fma(h_bar, x, B_bar)
                w = h_bar * decayed[v][t]
                sums.wA[v][t] = fma(w, A[v], sums.wA[v][t])
                A_bar[v] = fma(w, rows.delta[v][t], A_bar[v])
                g[v] = decay[v][t] * h_bar
            chunk.put_B(t, n, B_bar)

    def store_rows(self, places: list, rows: Rows, sums: Sums, totals):
        """(6), (7), (9) and the gate's gradient; return `totals` including this chunk."""
        machine, fma = self.machine, self.machine.fma
        D_bar, bias_bar = (list(part) for part in totals)
        for v in self.layout.vectors:
            D = self.D[v]
            for t, row in enumerate(places):
                delta, ybar = rows.delta[v][t], rows.ybar[v][t]
                place = row, self.channels[v]
                u, q = self._load_row("u", row, v), machine.sum_over_states(sums.q[v][t])
                u_bar = delta * q
                if D is not None:
                    u_bar = fma(D, ybar, u_bar)
                    D_bar[v] = fma(u, ybar, D_bar[v])
                delta_bar = fma(u, q, LN_2 * machine.sum_over_states(sums.wA[v][t]))
                if self.layout.softplus:
                    delta_bar *= machine.softplus_slope(delta)
                bias_bar[v] += delta_bar
                machine.store(self.outputs["u"], place, u_bar)
                machine.store(self.outputs["delta"], place, delta_bar)
                if "z" in self.inputs:
                    z, y = self._load_row("z", row, v), machine.sum_over_states(sums.y[v][t])
                    if D is not None:
                        y = fma(D, u, y)
                    sigmoid = machine.sigmoid(z)
                    slope = sigmoid * fma(z, 1.0 - sigmoid, 1.0)
                    machine.store(
                        self.outputs["z"], place, self._load_row("ybar", row, v) * y * slope
                    )
        return D_bar, bias_bar

    def store_totals(self, totals) -> None:
        """Store the gradients of D and delta_bias, summed over all chunks."""
        for name, values in zip(("D", "delta_bias"), totals, strict=True):
            if name in self.outputs:
                for v in self.layout.vectors:
                    self.machine.store(self.outputs[name], (self.channels[v],), values[v])
