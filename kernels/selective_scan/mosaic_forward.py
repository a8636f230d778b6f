"""The body of the forward kernel; see `mosaic_layout` for what a program is."""

import jax.numpy as jnp
from jax import lax

from kernels.selective_scan.mosaic_layout import (
    Layout,
    Refs,
    load_channels,
    math,
    single,
    store,
)

FAR = 8
"""Steps, times channels of a lane, ahead of their use that u, delta and z are asked for: they come
from memory, which takes about as long as computing that many steps."""

NEAR = 32
"""Steps, times channels and states of a lane, for B and C: they come from a cache, since all
programs of a sequence read them."""


def forward(inputs: Refs, outputs: Refs, *, layout: Layout) -> None:
    """y, the last state, and the state before each chunk where there is a place for it."""
    vectors, states = range(layout.plan.vectors), range(layout.state)
    sequence, block = layout.machine.program()
    channels = layout.channels(block)
    A = [[inputs["A"][n, c] for n in states] for c in channels]
    D, bias = (load_channels(inputs, name, channels) for name in ("D", "delta_bias"))
    sequences = [name for name in ("u", "delta", "z") if name in inputs]
    ordered = "order" in inputs
    far = min(FAR // layout.plan.vectors, layout.chunk)
    near = min(max(NEAR // (layout.plan.vectors * layout.state), 1), far)

    def row(step):
        """Of a step that may lie behind the last one, whose row is then asked for in vain."""
        return layout.row(inputs, jnp.minimum(step, layout.length - 1))

    def load_far(row):
        return {name: [inputs[name][sequence, row, c] for c in channels] for name in sequences}

    def load_near(row):
        return {name: [inputs[name][sequence, row, n] for n in states] for name in ("B", "C")}

    def compute(h, row, far_row, near_row):
        """One step; the states after it."""
        h = [list(values) for values in h]
        for v in vectors:
            u = single(far_row["u"][v])
            delta = layout.step_size(far_row["delta"][v], bias[v])
            x = delta * u
            y = None
            for n in states:
                decay = math.exp2(delta * A[v][n])
                h[v][n] = math.fma(decay, h[v][n], x * near_row["B"][n])
                product = h[v][n] * near_row["C"][n]
                y = product if y is None else y + product
            if D[v] is not None:
                y = math.fma(D[v], u, y)
            if "z" in inputs:
                z = single(far_row["z"][v])
                y *= z * math.sigmoid(z)
            store(outputs["y"], (sequence, row, channels[v]), y)
        return h

    def several_steps(start, carry):
        """`far` steps, while what as many after them need is on its way."""
        h, rows, far_rows, near_rows = carry
        if ordered:  # an order's entries are on their way one round earlier still
            rows_after = [*rows[far:], *(row(start + 2 * far + k) for k in range(far))]
        else:
            rows, rows_after = [row(start + k) for k in range(2 * far)], []
        far_rows_after, near_rows = [], list(near_rows)
        for k in range(far):
            far_rows_after.append(load_far(rows[far + k]))
            near_rows.append(load_near(rows[near + k]))
            h = compute(h, rows[k], far_rows[k], near_rows.pop(0))
        return h, rows_after, far_rows_after, near_rows

    def one_step(step, h):
        return compute(h, row(step), load_far(row(step)), load_near(row(step)))

    def store_checkpoint(index, h):
        if "checkpoints" in outputs:
            for v in vectors:
                for n in states:
                    store(outputs["checkpoints"], (sequence, index, n, channels[v]), h[v][n])

    def chunk(index, carry):
        store_checkpoint(index, carry[0])
        first = index * layout.chunk
        return lax.fori_loop(
            0, layout.chunk // far, lambda i, carry: several_steps(first + i * far, carry), carry
        )

    if "h0" in inputs:
        h = [[inputs["h0"][sequence, n, c] for n in states] for c in channels]
    else:
        h = [[layout.machine.zeros(layout.lanes) for _ in states] for _ in vectors]
    if layout.whole_chunks:
        rows = [row(jnp.int32(k)) for k in range(2 * far)]
        far_rows, near_rows = [load_far(r) for r in rows[:far]], [load_near(r) for r in rows[:near]]
        carry = h, rows if ordered else [], far_rows, near_rows
        h = lax.fori_loop(0, layout.whole_chunks, chunk, carry)[0]
    if layout.left_over:
        store_checkpoint(layout.whole_chunks, h)
        h = lax.fori_loop(layout.length - layout.left_over, layout.length, one_step, h)
    for v in vectors:
        for n in states:
            store(outputs["last_state"], (sequence, n, channels[v]), h[v][n])
