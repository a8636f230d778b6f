"""The body of the backward kernel; see `mosaic_layout` for what a program is.

The equations and their numbers are those of `chunked`.
"""

import jax.numpy as jnp
from jax import lax

from kernels.selective_scan.arithmetic import LN_2
from kernels.selective_scan.mosaic_layout import (
    Layout,
    Refs,
    load_channels,
    math,
    single,
    store,
)


def backward(inputs: Refs, outputs: Refs, *, layout: Layout, products, rows_BC, sums) -> None:
    """All gradients, the chunks from the last to the first.

    Beside the inputs of `forward`: its checkpoints, and the cotangents ybar and last_state_bar.
    Of B and C the sums over this program's channels are stored, of A (without the factor ln 2), D
    and delta_bias those over this sequence. A and h0 hold sums and adjoints on the way.

    A chunk's row values stay in registers while the states pass by one at a time: each recomputes
    its steps from the checkpoint, then runs its adjoint backwards. What is to be summed over
    channels for B and C goes through shared memory.

    Args:
      products: shared memory (2, rows, lanes), rows of at least twice the chunk: for one state, and
        in turns for the next, C's and then B's gradient at every step and channel.
      sums: shared memory (state, rows), the same summed over channels.
      rows_BC: shared memory (state, rows), a chunk of C and then of B.
    """
    machine = layout.machine
    sequence, block = machine.program()
    vectors = range(layout.plan.vectors)
    channels = layout.channels(block)
    zero = machine.zeros(layout.lanes)
    D, bias = (load_channels(inputs, name, channels) for name in ("D", "delta_bias"))
    for channel in channels:
        for n in range(layout.state):
            place = (sequence, n, channel)
            store(outputs["h0"], place, inputs["last_state_bar"][place])
            store(outputs["A"], place, zero)

    def one_chunk(index, length: int, totals):
        """The chunk `index`, of so many steps."""
        steps = range(length)
        find_rows = lambda: [layout.row(inputs, index * layout.chunk + t) for t in steps]
        rows = find_rows()
        # By state, so that several steps are read at once, and at addresses known beforehand.
        places = [(name, t, first + t) for name, first in (("C", 0), ("B", length)) for t in steps]
        for name, t, place in places:
            machine.copy(inputs[name].at[sequence, rows[t]], rows_BC.at[:, place])

        def load_row(name, row, v):
            return single(inputs[name][sequence, row, channels[v]])

        delta, x, ybar = ([[] for _ in vectors] for _ in range(3))
        for v in vectors:
            for t in steps:
                u, gradient = load_row("u", rows[t], v), load_row("ybar", rows[t], v)
                delta[v].append(layout.step_size(load_row("delta", rows[t], v), bias[v]))
                x[v].append(delta[v][t] * u)
                if "z" in inputs:
                    z = load_row("z", rows[t], v)
                    gradient *= z * math.sigmoid(z)
                ybar[v].append(gradient)

        machine.barrier()

        def load_state(n):
            """What a state brings along, by vector."""
            names = {"A": inputs["A"], "h": inputs["checkpoints"]}
            names |= {"g": outputs["h0"], "A_bar": outputs["A"]}
            place = {"A": (n,), "h": (sequence, index, n), "g": (sequence, n)}
            place["A_bar"] = place["g"]
            return {k: [ref[(*place[k], c)] for c in channels] for k, ref in names.items()}

        def one_state(n, carry):
            q, wA, y, state = carry
            q, wA, y = ([list(values) for values in part] for part in (q, wA, y))
            # Asked for before it is needed, as in the forward kernel.
            state_after = load_state(jnp.minimum(n + 1, layout.state - 1))
            A, h, g, A_bar = (list(state[name]) for name in ("A", "h", "g", "A_bar"))
            decay, decayed = ([[] for _ in vectors] for _ in range(2))
            turn = n % 2
            for t in steps:
                C, B = rows_BC[n, t], rows_BC[n, length + t]
                C_bar = None
                for v in vectors:
                    decay[v].append(math.exp2(delta[v][t] * A[v]))
                    decayed[v].append(decay[v][t] * h[v])
                    h[v] = math.fma(x[v][t], B, decayed[v][t])
                    if y[v]:
                        y[v][t] = math.fma(h[v], C, y[v][t])
                    product = h[v] * ybar[v][t]
                    C_bar = product if C_bar is None else C_bar + product
                products[turn, t, :] = C_bar
            for t in reversed(steps):
                C, B = rows_BC[n, t], rows_BC[n, length + t]
                B_bar = None
                for v in vectors:
                    h_bar = math.fma(ybar[v][t], C, g[v])
                    q[v][t] = math.fma(h_bar, B, q[v][t])
                    product = h_bar * x[v][t]
                    B_bar = product if B_bar is None else B_bar + product
                    w = h_bar * decayed[v][t]
                    wA[v][t] = math.fma(w, A[v], wA[v][t])
                    A_bar[v] = math.fma(w, delta[v][t], A_bar[v])
                    g[v] = decay[v][t] * h_bar
                products[turn, length + t, :] = B_bar
            for v in vectors:
                store(outputs["h0"], (sequence, n, channels[v]), g[v])
                store(outputs["A"], (sequence, n, channels[v]), A_bar[v])
            # One wait a state: whoever writes the same half again has waited for the next one,
            # and before that everybody has read this one.
            machine.barrier()
            sums[n, :] = machine.sum_over_lanes(products.at[turn])
            return q, wA, y, state_after

        zeros = [[zero] * length for _ in vectors]
        y = zeros if "z" in inputs else [[] for _ in vectors]
        q, wA, y, _ = lax.fori_loop(
            0, layout.state, one_state, (zeros, zeros, y, load_state(jnp.int32(0)))
        )
        # Found anew: else their addresses would be held in registers all the while.
        rows = find_rows()
        machine.barrier()
        for name, t, place in places:
            machine.copy(sums.at[:, place], outputs[name].at[sequence, block, rows[t]])
        D_bar, bias_bar = (list(part) for part in totals)
        for v in vectors:
            for t in steps:
                place = (sequence, rows[t], channels[v])
                u = load_row("u", rows[t], v)
                u_bar = delta[v][t] * q[v][t]
                if D[v] is not None:
                    u_bar = math.fma(D[v], ybar[v][t], u_bar)
                    D_bar[v] = math.fma(u, ybar[v][t], D_bar[v])
                delta_bar = math.fma(u, q[v][t], LN_2 * wA[v][t])
                if layout.softplus:
                    delta_bar *= math.softplus_slope(delta[v][t])
                bias_bar[v] += delta_bar
                store(outputs["u"], place, u_bar)
                store(outputs["delta"], place, delta_bar)
                if "z" in inputs:
                    z = load_row("z", rows[t], v)
                    y_t = y[v][t] if D[v] is None else math.fma(D[v], u, y[v][t])
                    sigmoid = math.sigmoid(z)
                    slope = sigmoid * math.fma(z, 1.0 - sigmoid, 1.0)
                    store(outputs["z"], place, load_row("ybar", rows[t], v) * y_t * slope)
        return D_bar, bias_bar

    nothing = [zero for _ in vectors]
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
                store(outputs[name], (sequence, channels[v]), values[v])
