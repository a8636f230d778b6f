"""What the Mosaic kernels ask of the machine beyond jnp: a warpgroup, or its stand-in on a CPU.

Shared memory comes as references to float32 arrays. Between lanes it is ordered by `barrier` alone.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.selective_scan.chips import LANES


class Interpreted:
    """In the interpreter of `pl.pallas_call`."""

    def program(self) -> tuple:
        """The sequence and the block of channels."""
        return pl.program_id(0), pl.program_id(1)

    def zeros(self, lanes: int):
        return jnp.zeros(lanes, jnp.float32)

    def barrier(self) -> None:
        """Waits until all lanes have come here."""

    def sum_over_lanes(self, products):
        """Shared memory (rows, lanes) -> (rows,), where 16 divides the rows."""
        return jnp.sum(products[...], 1)

    def copy(self, source, target) -> None:
        """A few numbers, one of STATES, from shared memory to global memory or back."""
        target[...] = source[...]


class Warpgroup:
    """In `plgpu.kernel`, for lane semantics."""

    def __init__(self):
        from jax.experimental.mosaic import gpu as mosaic
        from jax.experimental.pallas import mosaic_gpu as plgpu

        self.gpu = plgpu
        self.wait = plgpu.inline_mgpu()(lambda context: mosaic.warpgroup_barrier())

    def program(self) -> tuple:
        return lax.axis_index("sequence"), lax.axis_index("block")

    def zeros(self, lanes: int):
        layout = self.gpu.Layout.WG_STRIDED((lanes,), vec_size=1)
        return self.gpu.layout_cast(jnp.zeros(lanes, jnp.float32), layout)

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
        self.gpu.store(target, values, optimized=False)
