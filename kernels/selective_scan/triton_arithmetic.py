"""Arithmetic of the Triton kernels: machine instructions on a GPU, jnp where they are interpreted.

XLA's Triton pipeline neither contracts a product and a sum into an FMA nor flushes denormals in
`exp2`, so a state update costs 13 to 15 instructions where 8 are enough. Inline assembly brings
both; it has no rule on a CPU. Vectors have one element per lane of a warp.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from kernels.selective_scan.arithmetic import Arithmetic
from kernels.selective_scan.chips import LANES


class Interpreted(Arithmetic):
    def swap_lanes(self, x, stride: int):
        """In each lane, the value of the lane whose number differs in the bit `stride`."""
        return x.reshape(-1, 2, stride)[:, ::-1].reshape(LANES)

    def obscured(self, x):
        """The int32 scalar x in each lane, by a way that the compiler does not see through."""
        return jnp.broadcast_to(x, (LANES,))


class Assembly(Arithmetic):
    """The same in PTX."""

    def exp2(self, x):
        return _assembly("ex2.approx.ftz.f32 $0, $1;", x)

    def log2(self, x):
        return _assembly("lg2.approx.ftz.f32 $0, $1;", x)

    def reciprocal(self, x):
        return _assembly("rcp.approx.ftz.f32 $0, $1;", x)

    def fma(self, a, b, c):
        shape = jnp.broadcast_shapes(jnp.shape(a), jnp.shape(b), jnp.shape(c))
        return _assembly(
            "fma.rn.f32 $0, $1, $2, $3;", *(jnp.broadcast_to(x, shape) for x in (a, b, c))
        )

    def swap_lanes(self, x, stride: int):
        return _assembly(f"shfl.sync.bfly.b32 $0, $1, {stride}, 31, -1;", x)

    def obscured(self, x):
        x = jnp.broadcast_to(x, (LANES,))
        return _assembly("shfl.sync.idx.b32 $0, $1, 0, 31, -1;", x)


def _assembly(code: str, *arguments):
    register = "f" if arguments[0].dtype == jnp.float32 else "r"
    (result,) = plt.elementwise_inline_asm(
        code,
        args=arguments,
        constraints=",".join([f"={register}", *register * len(arguments)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(arguments[0].shape, arguments[0].dtype)],
    )
    return result
