"""The body of Triton's forward kernel. `layout` defines programs, lanes and chunks."""

import jax.numpy as jnp
from jax import lax

from .layout import Layout, Machine, Refs

FAR = 8
"""Steps by which u, delta and z are prefetched: they come from memory, with a latency of about as
many steps of computation."""

NEAR = 32
"""The prefetch distance of B and C in steps, times channels and states of a lane. It is shorter,
because all programs of a sequence read them and they come from a cache."""


def forward(inputs: Refs, outputs: Refs, *, layout: Layout, machine: Machine) -> None:
    """Write y, the last state and, if `outputs` has "checkpoints", the state before each chunk."""
    load, store, fma = machine.load, machine.store, machine.fma
    vectors, states = layout.vectors, range(layout.states)
    channels = machine.channels()
    of_channels = lambda name: [
        load(inputs[name], c).astype(jnp.float32) if name in inputs else None for c in channels
    ]
    of_states = lambda name: [
        [load(inputs[name], machine.state(n), c) for n in states] for c in channels
    ]
    A, D, bias = of_states("A"), of_channels("D"), of_channels("delta_bias")
    sequences = [name for name in ("u", "delta", "z") if name in inputs]
    ordered = "order" in inputs
    far = min(FAR, layout.chunk)
    near = min(max(NEAR // (layout.plan.vectors * layout.states), 1), far)

    def rows_of(start):
        """The rows of `far` steps; past the end, the last rows are read again and discarded."""
        start = jnp.minimum(start, layout.whole_chunks * layout.chunk - far)
        return [layout.row(machine, inputs, start + k) for k in range(far)]

    def load_far(row):
        return {name: [load(inputs[name], row, c) for c in channels] for name in sequences}

    def load_near(row):
        names = {"B": machine.load_B, "C": machine.load_C}
        return {name: [load(inputs, row, n) for n in states] for name, load in names.items()}

    def compute(h, row, far_row, near_row):
        """Compute one step; return the states after it."""
        h = [list(values) for values in h]
        for v in vectors:
            u, delta = (far_row[name][v].astype(jnp.float32) for name in ("u", "delta"))
            delta = machine.step_size(delta, bias[v], layout.softplus)
            x = delta * u
            y = None
            for n in states:
                decay = machine.exp2(delta * A[v][n])
                h[v][n] = fma(decay, h[v][n], x * near_row["B"][n])
                C = near_row["C"][n]
                y = h[v][n] * C if y is None else fma(h[v][n], C, y)
            y = machine.sum_over_states(y)
            if D[v] is not None:
                y = fma(D[v], u, y)
            if "z" in inputs:
                z = far_row["z"][v].astype(jnp.float32)
                y *= z * machine.sigmoid(z)
            store(outputs["y"], (row, channels[v]), y)
        return h

    def several_steps(start, carry):
        """Compute `far` steps while the inputs of the next `far` steps are loaded."""
        h, rows, far_rows, near_rows = carry
        if ordered:  # entries of an order are prefetched one round earlier
            rows_after = rows[far:] + rows_of(start + 2 * far)
        else:
            rows, rows_after = rows_of(start) + rows_of(start + far), []
        far_rows_after, near_rows = [], list(near_rows)
        for k in range(far):
            far_rows_after.append(load_far(rows[far + k]))
            near_rows.append(load_near(rows[near + k]))
            h = compute(h, rows[k], far_rows[k], near_rows.pop(0))
        return h, rows_after, far_rows_after, near_rows

    def one_step(step, h):
        row = layout.row(machine, inputs, step)
        return compute(h, row, load_far(row), load_near(row))

    def store_states(name, place: tuple, h):
        for v in vectors:
            for n in states:
                store(outputs[name], (*place, machine.state(n), channels[v]), h[v][n])

    def chunk(index, carry):
        if "checkpoints" in outputs:
            store_states("checkpoints", (index,), carry[0])
        first = index * layout.chunk
        return lax.fori_loop(
            0, layout.chunk // far, lambda i, carry: several_steps(first + i * far, carry), carry
        )

    h = of_states("h0") if "h0" in inputs else [[machine.zeros() for _ in states] for _ in vectors]
    if layout.whole_chunks:
        rows = rows_of(jnp.int32(0)) + rows_of(jnp.int32(far))
        far_rows, near_rows = [load_far(r) for r in rows[:far]], [load_near(r) for r in rows[:near]]
        carry = h, rows if ordered else [], far_rows, near_rows
        h = lax.fori_loop(0, layout.whole_chunks, chunk, carry)[0]
    if layout.left_over:
        if "checkpoints" in outputs:
            store_states("checkpoints", (layout.whole_chunks,), h)
        h = lax.fori_loop(layout.length - layout.left_over, layout.length, one_step, h)
    store_states("last_state", (), h)
