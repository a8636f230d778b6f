"""The body of the backward kernel. `layout` defines programs, lanes and chunks.

The equations and their numbers are those of `chunked`.
"""

import jax.numpy as jnp
from jax import lax

from .arithmetic import LN_2
from .kernel_forward import step_size
from .layout import Layout, Machine, Refs


def backward(inputs: Refs, outputs: Refs, *, layout: Layout, machine: Machine) -> None:
    """All gradients; the chunks run from last to first.

    Inputs are those of `forward`, its checkpoints, and the cotangents ybar and last_state_bar. The
    gradients of B and C are sums over this program's channels, those of A (without the factor
    ln 2), D and delta_bias sums over this sequence. Until the end, the outputs A and h0 hold
    partial sums and adjoints.

    The row values of a chunk stay in registers while a loop visits the states one at a time: it
    recomputes a state's steps from the checkpoint, then runs its adjoint backwards.
    """
    load, store, fma = machine.load, machine.store, machine.fma
    vectors = layout.vectors
    channels = machine.channels()
    of_channels = lambda name: [
        load(inputs[name], c).astype(jnp.float32) if name in inputs else None for c in channels
    ]
    D, bias = of_channels("D"), of_channels("delta_bias")
    for channel in channels:
        for n in range(layout.states):
            place = machine.state(n), channel
            store(outputs["h0"], place, load(inputs["last_state_bar"], *place))
            store(outputs["A"], place, machine.zeros())

    def one_chunk(index, length: int, totals):
        """Process chunk `index`, of `length` steps."""
        steps = range(length)
        start = index * layout.chunk
        rows = [layout.row(machine, inputs, start + t) for t in steps]
        chunk = machine.chunk(inputs, outputs, rows, start)

        def load_row(name, row, v):
            return load(inputs[name], row, channels[v]).astype(jnp.float32)

        delta, x, ybar = ([[] for _ in vectors] for _ in range(3))
        for v in vectors:
            for t in steps:
                u, gradient = load_row("u", rows[t], v), load_row("ybar", rows[t], v)
                raw = load_row("delta", rows[t], v)
                delta[v].append(step_size(layout, machine, raw, bias[v]))
                x[v].append(delta[v][t] * u)
                if "z" in inputs:
                    z = load_row("z", rows[t], v)
                    gradient *= z * machine.sigmoid(z)
                ybar[v].append(gradient)

        def load_state(n):
            """A, checkpoint, adjoint and sum for A of state n, by vector."""
            refs = inputs["A"], inputs["checkpoints"], outputs["h0"], outputs["A"]
            before = (), (index,), (), ()
            return [
                [load(ref, *place, machine.state(n), c) for c in channels]
                for ref, place in zip(refs, before, strict=True)
            ]

        def one_state(n, carry):
            q, wA, y, state = carry
            q, wA, y = ([list(values) for values in part] for part in (q, wA, y))
            # Prefetch the next state, as in the forward kernel.
            state_after = load_state(jnp.minimum(n + 1, layout.states - 1))
            A, h, g, A_bar = (list(values) for values in state)
            decay, decayed = ([[] for _ in vectors] for _ in range(2))
            for t in steps:
                B, C = chunk.B(t, n), chunk.C(t, n)
                C_bar = None
                for v in vectors:
                    decay[v].append(machine.exp2(delta[v][t] * A[v]))
                    decayed[v].append(decay[v][t] * h[v])
                    h[v] = fma(x[v][t], B, decayed[v][t])
                    if y[v]:
                        y[v][t] = fma(h[v], C, y[v][t])
                    C_bar = h[v] * ybar[v][t] if v == 0 else fma(h[v], ybar[v][t], C_bar)
                chunk.put_C(t, n, C_bar)
            chunk.C_done(n)
            for t in reversed(steps):
                B, C = chunk.B(t, n), chunk.C(t, n)
                B_bar = None
                for v in vectors:
                    h_bar = fma(ybar[v][t], C, g[v])
                    q[v][t] = fma(h_bar, B, q[v][t])
                    B_bar = h_bar * x[v][t] if v == 0 else fma(h_bar, x[v][t], B_bar)
                    w = h_bar * decayed[v][t]
                    wA[v][t] = fma(w, A[v], wA[v][t])
                    A_bar[v] = fma(w, delta[v][t], A_bar[v])
                    g[v] = decay[v][t] * h_bar
                chunk.put_B(t, n, B_bar)
            for v in vectors:
                store(outputs["h0"], (machine.state(n), channels[v]), g[v])
                store(outputs["A"], (machine.state(n), channels[v]), A_bar[v])
            chunk.B_done(n)
            return q, wA, y, state_after

        zeros = [[machine.zeros()] * length for _ in vectors]
        y = zeros if "z" in inputs else [[] for _ in vectors]
        carry = zeros, zeros, y, load_state(jnp.int32(0))
        q, wA, y, _ = lax.fori_loop(0, layout.states, one_state, carry)
        # Recomputed, so that the loop above need not keep their addresses in registers.
        start = machine.obscured(start)
        rows = [layout.row(machine, inputs, start + t) for t in steps]
        chunk.done(rows)
        D_bar, bias_bar = (list(part) for part in totals)
        for v in vectors:
            for t in steps:
                place = rows[t], channels[v]
                u, q_t = load_row("u", rows[t], v), machine.sum_over_states(q[v][t])
                u_bar = delta[v][t] * q_t
                if D[v] is not None:
                    u_bar = fma(D[v], ybar[v][t], u_bar)
                    D_bar[v] = fma(u, ybar[v][t], D_bar[v])
                delta_bar = fma(u, q_t, LN_2 * machine.sum_over_states(wA[v][t]))
                if layout.softplus:
                    delta_bar *= machine.softplus_slope(delta[v][t])
                bias_bar[v] += delta_bar
                store(outputs["u"], place, u_bar)
                store(outputs["delta"], place, delta_bar)
                if "z" in inputs:
                    z, y_t = load_row("z", rows[t], v), machine.sum_over_states(y[v][t])
                    if D[v] is not None:
                        y_t = fma(D[v], u, y_t)
                    sigmoid = machine.sigmoid(z)
                    slope = sigmoid * fma(z, 1.0 - sigmoid, 1.0)
                    store(outputs["z"], place, load_row("ybar", rows[t], v) * y_t * slope)
        return D_bar, bias_bar

    nothing = [machine.zeros() for _ in vectors]
    totals = nothing, nothing
    if layout.left_over:
        totals = one_chunk(layout.whole_chunks, layout.left_over, totals)
    if layout.whole_chunks:
        totals = lax.fori_loop(
            0,
            layout.whole_chunks,
            lambda i, totals: one_chunk(layout.whole_chunks - 1 - i, layout.chunk, totals),
            totals,
        )
    for name, values in zip(("D", "delta_bias"), totals, strict=True):
        if name in outputs:
            for v in vectors:
                store(outputs[name], (channels[v],), values[v])
