"""The body of the forward kernel; see `triton_layout` for what a program is."""

import jax.numpy as jnp
from jax import lax

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

AHEAD = 2
"""Steps whose rows are loaded while as many before them are computed."""

STAGES = {1: 2, 2: 4}
"""How often that happens in one iteration of the loop, by channels per lane."""


def forward(inputs: Refs, outputs: Refs, *, layout: Layout) -> None:
    """y, the last state, and the state before each chunk where there is a place for it.

    Program (b, i) has one sequence and one block of channels of everything:
    u, delta, z, y (length, width); A, h0, last_state (state, width); B, C (length, state);
    D, delta_bias (width,); order (length,); checkpoints (chunks, state, width).
    """
    math = layout.arithmetic
    stages = min(STAGES[layout.vectors], layout.chunk // AHEAD)
    vectors, states = range(layout.vectors), range(layout.states)
    channel, mask = layout.lane_channels(), layout.lane_channel_exists()
    of_state = lambda name, n, v: load_single(
        inputs[name], (layout.lane_state(n), channel[v]), mask[v]
    )
    A = [[of_state("A", n, v) for n in states] for v in vectors]
    D, bias = (load_channels(layout, inputs, name) for name in ("D", "delta_bias"))
    sequences = [name for name in ("u", "delta", "z") if name in inputs]

    def load_rows(start):
        loaded = []
        for k in range(AHEAD):
            row = layout.row(inputs, start + k)
            rows = {
                name: [load_single(inputs[name], (row, channel[v]), mask[v]) for v in vectors]
                for name in sequences
            }
            for name in ("B", "C"):
                rows[name] = [load(inputs[name], (row, layout.lane_state(n))) for n in states]
            loaded.append((row, rows))
        return loaded

    def compute(start, h, loaded):
        """Steps `start` and following, whose rows are loaded; the states after them."""
        h = [list(values) for values in h]
        for k, (row, rows) in enumerate(loaded):
            exists = layout.exists(start + k)
            for v in vectors:
                u = rows["u"][v]
                delta = step_size(layout, rows["delta"][v], bias[v], exists)
                x = delta * u
                y = jnp.zeros(LANES, jnp.float32)
                for n in states:
                    decay = math.exp2(delta * A[v][n])
                    h[v][n] = math.fma(decay, h[v][n], x * rows["B"][n])
                    y = math.fma(h[v][n], rows["C"][n], y)
                y = layout.sum_groups(y)
                if D[v] is not None:
                    y = math.fma(D[v], u, y)
                if "z" in inputs:
                    z = rows["z"][v]
                    y *= z * math.sigmoid(z)
                store(outputs["y"], (row, channel[v]), y, both(mask[v], exists))
        return h

    def iteration(start, carry):
        h, loaded = carry
        for _ in range(stages):
            # Asked for before they are needed: computing hides the way to memory.
            loaded_next = load_rows(start + AHEAD)
            h = compute(start, h, loaded)
            start, loaded = start + AHEAD, loaded_next
        return h, loaded

    def chunk(index, carry):
        if "checkpoints" in outputs:
            for v in vectors:
                for n in states:
                    place = (index, layout.lane_state(n), channel[v])
                    store(outputs["checkpoints"], place, carry[0][v][n], mask[v])
        size = stages * AHEAD
        first = index * layout.chunk
        return lax.fori_loop(
            0, layout.chunk // size, lambda i, carry: iteration(first + i * size, carry), carry
        )

    if "h0" in inputs:
        h = [[of_state("h0", n, v) for n in states] for v in vectors]
    else:
        h = [[jnp.zeros(LANES, jnp.float32) for _ in states] for _ in vectors]
    h, _ = lax.fori_loop(0, layout.chunks, chunk, (h, load_rows(0)))
    for v in vectors:
        for n in states:
            place = (layout.lane_state(n), channel[v])
            store(outputs["last_state"], place, h[v][n], mask[v])
