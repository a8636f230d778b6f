"""Arithmetic of the Triton kernels: machine instructions on a GPU, jnp where they are interpreted.

XLA's Triton pipeline neither contracts a product and a sum into an FMA nor flushes denormals in
`exp2`, so a state update costs 13 to 15 instructions where 8 are enough. Inline assembly brings
both; it has no rule on a CPU.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from kernels.selective_scan.chips import LANES

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Functions of float32 vectors, one register per lane."""

    interpret: bool

    def exp2(self, x):
        return jnp.exp2(x) if self.interpret else _assembly("ex2.approx.ftz.f32 $0, $1;", x)

    def log2(self, x):
        return jnp.log2(x) if self.interpret else _assembly("lg2.approx.ftz.f32 $0, $1;", x)

    def reciprocal(self, x):
        return 1.0 / x if self.interpret else _assembly("rcp.approx.ftz.f32 $0, $1;", x)

    def fma(self, a, b, c):
        """a b + c; scalars are broadcast."""
        if self.interpret:
            return a * b + c
        shape = jnp.broadcast_shapes(jnp.shape(a), jnp.shape(b), jnp.shape(c))
        return _assembly(
            "fma.rn.f32 $0, $1, $2, $3;", *(jnp.broadcast_to(x, shape) for x in (a, b, c))
        )

    def softplus(self, x):
        """log(1 + exp(x)), to float32's relative accuracy also where it vanishes."""
        e = self.exp2(-LOG2_E * jnp.abs(x))
        series = e * (1.0 - e * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5)))))
        return jnp.maximum(x, 0.0) + jnp.where(e < 0.03, series, LN_2 * self.log2(1.0 + e))

    def sigmoid(self, x):
        return self.reciprocal(1.0 + self.exp2(-LOG2_E * x))

    def softplus_slope(self, softplus):
        """sigmoid(x) = 1 - exp(-s) from s = softplus(x); by its series where s is small."""
        s = softplus
        series = s * (1.0 - s * (1 / 2 - s * (1 / 6 - s * (1 / 24))))
        return jnp.where(s < 0.03, series, 1.0 - self.exp2(-LOG2_E * s))

    def swap_lanes(self, x, stride: int):
        """In each lane, the value of the lane whose number differs in the bit `stride`."""
        if self.interpret:
            return x.reshape(-1, 2, stride)[:, ::-1].reshape(LANES)
        return _assembly(f"shfl.sync.bfly.b32 $0, $1, {stride}, 31, -1;", x)

    def obscured(self, x):
        """The int32 scalar x in each lane, by a way that the compiler does not see through."""
        x = jnp.broadcast_to(x, (LANES,))
        return x if self.interpret else _assembly("shfl.sync.idx.b32 $0, $1, 0, 31, -1;", x)


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
