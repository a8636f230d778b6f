"""The `Machine` of Mosaic GPU: a program is a warpgroup, and lanes sum through shared memory.

References are whole arrays, without the axes of which a program has one entry. Only `barrier`
orders accesses to shared memory between lanes.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .arithmetic import Arithmetic
from .chips import LANES
from .layout import Layout, Refs


class Interpreted(Arithmetic):
    """The machine in the interpreter of `pl.pallas_call`."""

    def __init__(self, layout: Layout, scratch: Refs):
        """`scratch`: shared memory, passed to `Chunk`."""
        self.layout, self.scratch = layout, scratch

    def program(self) -> tuple:
        """Indices of the sequence and of the block of channels."""
        return pl.program_id(0), pl.program_id(1)

    def channels(self) -> list:
        first, lanes = self.program()[1] * self.layout.plan.channels, self.layout.lanes
        return [pl.ds(first + v * lanes, lanes) for v in self.layout.vectors]

    def state(self, n):
        return n

    def zeros(self):
        return jnp.zeros(self.layout.lanes, jnp.float32)

    def load(self, ref, *index):
        return ref[index]

    def store(self, ref, index: tuple, value) -> None:
        ref[index] = value.astype(ref.dtype)

    def load_B(self, inputs: Refs, row, n):
        return inputs["B"][row, n]

    def load_C(self, inputs: Refs, row, n):
        return inputs["C"][row, n]

    def sum_over_states(self, x):
        return x

    def obscured(self, x):
        return x

    def chunk(self, inputs: Refs, outputs: Refs, rows: list, start) -> "Chunk":
        return Chunk(self, inputs, outputs, rows, **self.scratch)

    def barrier(self) -> None:
        """Wait until all lanes have arrived."""

    def sum_over_lanes(self, products):
        """Sum shared memory (rows, lanes) to (rows,); rows is a multiple of 16."""
        return jnp.sum(products[...], 1)

    def copy(self, source, target) -> None:
        """Copy one row (one of STATES numbers) between shared and global memory."""
        target[...] = source[...]


class Warpgroup(Interpreted):
    """The machine in `plgpu.kernel`, with lane semantics."""

    def __init__(self, layout: Layout, scratch: Refs):
        from jax.experimental.mosaic import gpu as mosaic
        from jax.experimental.pallas import mosaic_gpu as plgpu

        super().__init__(layout, scratch)
        self.gpu = plgpu
        self.wait = plgpu.inline_mgpu()(lambda context: mosaic.warpgroup_barrier())

    def program(self) -> tuple:
        return lax.axis_index("sequence"), lax.axis_index("block")

    def zeros(self):
        layout = self.gpu.Layout.WG_STRIDED((self.layout.lanes,), vec_size=1)
        return self.gpu.layout_cast(super().zeros(), layout)

    def barrier(self) -> None:
        self.wait()

    def sum_over_lanes(self, products):
        # Eight lanes read 32 adjacent values of a row at once, and a warp reads four rows: there
        # are no bank conflicts, and three exchanges between lanes remain.
        layout = self.gpu.Layout.TILED(
            self.gpu.Tiling(((16, 32), (4, 32), (4,))),
            warp_dims=(-5,),
            lane_dims=(-3, -2),
            vector_dim=-1,
        )
        return jnp.sum(self.gpu.load(products, layout=layout), 1)

    def copy(self, source, target) -> None:
        (count,) = source.shape
        layout = self.gpu.Layout.TILED(
            self.gpu.Tiling(((count,), (1,))),
            warp_dims=(self.gpu.Replicated(4),),
            lane_dims=(self.gpu.Replicated(LANES // count), -2) if count < LANES else (-2,),
            vector_dim=-1,
        )
        values = self.gpu.load(source, layout=layout, optimized=False)
        if hasattr(self.gpu, "store"):
            self.gpu.store(target, values, optimized=False)
        else:  # in jax 0.11 every store to global memory is unoptimised
            target[...] = values


class Chunk:
    """Passes B, C and the products to be summed over lanes through shared memory."""

    def __init__(
        self, machine: Interpreted, inputs: Refs, outputs: Refs, rows: list, products, BC, sums
    ):
        """
        Args:
          products: shared memory (2, rows, lanes), with at least twice the chunk's steps as rows.
            Double-buffered over states: the gradients of C, then B, by step and lane.
          BC: shared memory (state, at least rows): C of the chunk, then B, at addresses that do not
            depend on the order.
          sums: shared memory (state, at least rows): the products summed over lanes.
        """
        self.machine, self.outputs = machine, outputs
        self.products, self.BC, self.sums = products, BC, sums
        self.length = len(rows)
        self.read = None
        for name, t, place in self._places():
            machine.copy(inputs[name].at[rows[t]], BC.at[:, place])
        machine.barrier()

    def _places(self) -> list:
        steps = range(self.length)
        return [
            (name, t, first + t) for name, first in (("C", 0), ("B", self.length)) for t in steps
        ]

    def _values(self, n) -> list:
        """C and then B of all steps, read at once so that one instruction loads several."""
        if self.read is None or self.read[0] is not n:
            self.read = n, [self.BC[n, place] for _, _, place in self._places()]
        return self.read[1]

    def C(self, t: int, n):
        return self._values(n)[t]

    def B(self, t: int, n):
        return self._values(n)[self.length + t]

    def put_C(self, t: int, n, value) -> None:
        self.products[n % 2, t, :] = value

    def C_done(self, n) -> None:
        """Nothing to do: `B_done` sums both."""

    def put_B(self, t: int, n, value) -> None:
        self.products[n % 2, self.length + t, :] = value

    def B_done(self, n) -> None:
        # Double-buffered: the barrier of state n+1 guarantees that all reads of state n are done
        # before state n+2 overwrites its half.
        self.machine.barrier()
        rows = self.products.shape[1]
        self.sums[n, pl.ds(0, rows)] = self.machine.sum_over_lanes(self.products.at[n % 2])

    def done(self, rows: list) -> None:
        self.machine.barrier()
        for name, t, place in self._places():
            self.machine.copy(self.sums.at[:, place], self.outputs[name].at[rows[t]])
