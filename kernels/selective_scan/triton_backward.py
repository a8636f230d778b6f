"""The body of the backward kernel; see `triton_layout` for what a program is.

The equations and their numbers are those of `chunked`.
"""

import jax.numpy as jnp
from jax import lax

from kernels.selective_scan.arithmetic import LN_2
from kernels.selective_scan.chips import LANES
from kernels.selective_scan.triton_layout import (
    Layout,
    Refs,
    both,
    load,
    load_channels,
    load_single,
    step_size,
    store,
)


def backward(inputs: Refs, outputs: Refs, *, layout: Layout) -> None:
    """All gradients, the chunks from the last to the first.

    Beside the inputs of `forward`, and shaped like there: its checkpoints, and the cotangents ybar
    and last_state_bar. Outputs: u, delta, z like those; B, C (chunks * chunk, state), the sums over
    this program's channels; A (without the factor ln 2), h0 (state, width); D, delta_bias (width,),
    the sums over this sequence. A and h0 hold sums and adjoints on the way.

    A chunk's row values stay in registers while the states pass by one at a time: each recomputes
    its steps from the checkpoint, then runs its adjoint backwards.
    """
    math = layout.arithmetic
    vectors, steps = range(layout.vectors), range(layout.chunk)
    channel, mask = layout.lane_channels(), layout.lane_channel_exists()
    zero = jnp.zeros(LANES, jnp.float32)
    D, bias = (load_channels(layout, inputs, name) for name in ("D", "delta_bias"))
    for v in vectors:
        for n in range(layout.states):
            place = (layout.lane_state(n), channel[v])
            last_state_bar = load(inputs["last_state_bar"], place, mask[v])
            store(outputs["h0"], place, last_state_bar, mask[v])
            store(outputs["A"], place, zero, mask[v])

    def one_chunk(countdown, sums):
        index = layout.chunks - 1 - countdown
        start = index * layout.chunk
        exists = [layout.exists(start + t) for t in steps]
        rows = [layout.row(inputs, start + t) for t in steps]
        masks = [[both(mask[v], e) for e in exists] for v in vectors]
        summed_rows = [layout.row_or_own(inputs, start + t) for t in layout.lane_steps()]

        def load_row(name, row, v, t):
            return load_single(inputs[name], (row, channel[v]), masks[v][t])

        delta, x, ybar, y = ([[] for _ in vectors] for _ in range(4))
        for v in vectors:
            for t in steps:
                u, gradient = load_row("u", rows[t], v, t), load_row("ybar", rows[t], v, t)
                delta[v].append(
                    step_size(layout, load_row("delta", rows[t], v, t), bias[v], exists[t])
                )
                x[v].append(delta[v][t] * u)
                if "z" in inputs:
                    z = load_row("z", rows[t], v, t)
                    gradient *= z * math.sigmoid(z)
                    y[v].append(zero)
                ybar[v].append(gradient)

        def sum_and_store(name, n, values):
            """Over channels: `values[v][t]` by lane."""
            own = [sum(column[1:], column[0]) for column in zip(*values, strict=True)]
            state = jnp.broadcast_to(layout.lane_state(n), (LANES,))
            for row, value in zip(summed_rows, layout.sum_channels(own), strict=True):
                store(outputs[name], (row, state), value)

        def one_state(n, carry):
            q, wA, y = ([list(values) for values in part] for part in carry)
            place = [(layout.lane_state(n), channel[v]) for v in vectors]
            A = [load(inputs["A"], place[v], mask[v]) for v in vectors]
            decay, decayed, C_bar, B_bar = ([[] for _ in vectors] for _ in range(4))
            h = [load(inputs["checkpoints"], (index, *place[v]), mask[v]) for v in vectors]
            for t in steps:
                B, C = (load(inputs[name], (rows[t], layout.lane_state(n))) for name in "BC")
                for v in vectors:
                    decay[v].append(math.exp2(delta[v][t] * A[v]))
                    decayed[v].append(decay[v][t] * h[v])
                    h[v] = math.fma(x[v][t], B, decayed[v][t])
                    if y[v]:
                        y[v][t] = math.fma(h[v], C, y[v][t])
                    C_bar[v].append(h[v] * ybar[v][t])
            sum_and_store("C", n, C_bar)
            g = [load(outputs["h0"], place[v], mask[v]) for v in vectors]
            A_bar = [load(outputs["A"], place[v], mask[v]) for v in vectors]
            for t in reversed(steps):
                B, C = (load(inputs[name], (rows[t], layout.lane_state(n))) for name in "BC")
                for v in vectors:
                    h_bar = math.fma(ybar[v][t], C, g[v])
                    q[v][t] = math.fma(h_bar, B, q[v][t])
                    B_bar[v].append(h_bar * x[v][t])
                    w = h_bar * decayed[v][t]
                    wA[v][t] = math.fma(w, A[v], wA[v][t])
                    A_bar[v] = math.fma(w, delta[v][t], A_bar[v])
                    g[v] = decay[v][t] * h_bar
            sum_and_store("B", n, [values[::-1] for values in B_bar])
            for v in vectors:
                store(outputs["h0"], place[v], g[v], mask[v])
                store(outputs["A"], place[v], A_bar[v], mask[v])
            return q, wA, y

        zeros = [[zero] * layout.chunk for _ in vectors]
        q, wA, y = lax.fori_loop(0, layout.states, one_state, (zeros, zeros, y))
        # Else the compiler would hold on to the rows' addresses, two registers each, all the while.
        rows = [layout.row(inputs, math.obscured(start) + t) for t in steps]
        D_bar, bias_bar = (list(part) for part in sums)
        for v in vectors:
            for t in steps:
                place = (rows[t], channel[v])
                u, q_t = load_row("u", rows[t], v, t), layout.sum_groups(q[v][t])
                u_bar = delta[v][t] * q_t
                if D[v] is not None:
                    u_bar = math.fma(D[v], ybar[v][t], u_bar)
                    D_bar[v] = math.fma(u, ybar[v][t], D_bar[v])
                delta_bar = math.fma(u, q_t, LN_2 * layout.sum_groups(wA[v][t]))
                if layout.softplus:
                    delta_bar *= math.softplus_slope(delta[v][t])
                if exists[t] is not None:
                    delta_bar = jnp.where(exists[t], delta_bar, 0.0)
                bias_bar[v] += delta_bar
                store(outputs["u"], place, u_bar, masks[v][t])
                store(outputs["delta"], place, delta_bar, masks[v][t])
                if "z" in inputs:
                    z, y_t = load_row("z", rows[t], v, t), layout.sum_groups(y[v][t])
                    if D[v] is not None:
                        y_t = math.fma(D[v], u, y_t)
                    sigmoid = math.sigmoid(z)
                    slope = sigmoid * math.fma(z, 1.0 - sigmoid, 1.0)
                    z_bar = load_row("ybar", rows[t], v, t) * y_t * slope
                    store(outputs["z"], place, z_bar, masks[v][t])
        return D_bar, bias_bar

    nothing = [zero for _ in vectors]
    D_bar, bias_bar = lax.fori_loop(0, layout.chunks, one_chunk, (nothing, nothing))
    for name, values in (("D", D_bar), ("delta_bias", bias_bar)):
        if name in outputs:
            for v in vectors:
                store(outputs[name], (channel[v],), values[v], mask[v])
