"""The machine of `kernel_layout` in Mosaic GPU: a program is a warpgroup, sums go by shared memory.

References are whole arrays but for the axes that a program has one entry of. Shared memory is
ordered between lanes by `barrier` alone.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.selective_scan.arithmetic import Arithmetic
from kernels.selective_scan.chips import LANES
from kernels.selective_scan.kernel_layout import Layout, Refs


class Interpreted(Arithmetic):
    """In the interpreter of `pl.pallas_call`."""

    def __init__(self, layout: Layout, scratch: Refs):
        """`scratch`: the shared memory that `Chunk` is given."""
        self.layout, self.scratch = layout, scratch

    def program(self) -> tuple:
        """The sequence and the block of channels."""
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
        """Waits until all lanes have come here."""

    def sum_over_lanes(self, products):
        """Shared memory (rows, lanes) -> (rows,), where 16 divides the rows."""
        return jnp.sum(products[...], 1)

    def copy(self, source, target) -> None:
        """A few numbers, one of STATES, from shared memory to global memory or back."""
        target[...] = source[...]


class Warpgroup(Interpreted):
    """In `plgpu.kernel`, for lane semantics."""

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
        # Eight lanes read 32 neighbours of a row at once, four rows a warp: no two meet in a bank
        # of shared memory, and three exchanges between lanes are left to do.
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
        else:  # jax 0.11, where every store to global memory is such a one
            target[...] = values


class Chunk:
    """B and C, and the products to be summed over lanes, pass through shared memory."""

    def __init__(
        self, machine: Interpreted, inputs: Refs, outputs: Refs, rows: list, products, BC, sums
    ):
        """
        Args:
          products: shared memory (2, rows, lanes), rows of at least twice the chunk: for one state,
            and in turns for the next, C's and then B's gradient at every step and lane.
          BC: shared memory (state, rows or more), the chunk's C and then its B, at addresses known
            beforehand whatever the order.
          sums: shared memory (state, rows or more), the products summed over lanes.
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
        """C and then B of all steps: all at once, so that one instruction reads several."""
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
        """Both are summed at once."""

    def put_B(self, t: int, n, value) -> None:
        self.products[n % 2, self.length + t, :] = value

    def B_done(self, n) -> None:
        # One wait a state: whoever writes the same half again has waited for the next state, and
        # before that everybody has read this one.
        self.machine.barrier()
        rows = self.products.shape[1]
        self.sums[n, pl.ds(0, rows)] = self.machine.sum_over_lanes(self.products.at[n % 2])

    def done(self, rows: list) -> None:
        self.machine.barrier()
        for name, t, place in self._places():
            self.machine.copy(self.sums.at[:, place], self.outputs[name].at[rows[t]])
