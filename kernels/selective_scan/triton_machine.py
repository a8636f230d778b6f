"""The machine of `kernel_layout` in Triton: a program is a warp, sums go by exchange between lanes.

References hold the program's block of channels. B and C are one array, `BC` (rows, states of B and
then of C), so that a row has one address, and not two to be kept in registers. A vector is one
register per lane; a state is one number in it and the states are a list, because Triton would split
a two-dimensional tile over lanes and synchronise them at each step.

XLA's Triton pipeline neither contracts a product and a sum into an FMA nor flushes denormals in
`exp2`, so a state update would cost 13 to 15 instructions where 8 are enough. Inline assembly
brings both; it has no rule on a CPU, where jnp takes its place.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kernels.selective_scan.arithmetic import Arithmetic
from kernels.selective_scan.chips import LANES
from kernels.selective_scan.kernel_layout import Layout, Refs


class Interpreted(Arithmetic):
    """`plan.groups` lanes side by side share one channel, each with its share of the states; the
    channels of a second vector follow those of all lanes in the first."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.groups = layout.plan.groups

    def lane(self):
        return jnp.arange(LANES, dtype=jnp.int32)

    def channels(self) -> list:
        stride = LANES // self.groups
        return [self.lane() // self.groups + v * stride for v in self.layout.vectors]

    def state(self, n):
        return n if self.groups == 1 else self.lane() % self.groups * self.layout.states + n

    def zeros(self):
        return jnp.zeros(LANES, jnp.float32)

    def load(self, ref, *index):
        return plt.load(_at(ref, index))

    def store(self, ref, index: tuple, value) -> None:
        plt.store(_at(ref, index), value.astype(ref.dtype))

    def load_B(self, inputs: Refs, row, n):
        return self.load(inputs["BC"], row, self.state(n))

    def load_C(self, inputs: Refs, row, n):
        return self.load(inputs["BC"], row, self.state(n) + self.layout.state)

    def chunk(self, inputs: Refs, outputs: Refs, rows: list, start) -> "Chunk":
        return Chunk(self, inputs, outputs, rows, start)

    def swap_lanes(self, x, stride: int):
        """In each lane, the value of the lane whose number differs in the bit `stride`."""
        return x.reshape(-1, 2, stride)[:, ::-1].reshape(LANES)

    def obscured(self, x):
        return jnp.broadcast_to(x, (LANES,))

    def sum_over_states(self, x):
        stride = 1
        while stride < self.groups:
            x += self.swap_lanes(x, stride)
            stride *= 2
        return x

    def sum_over_channels(self, values: Sequence) -> list:
        """Sum each of the values, a power of two of them, spreading the sums over lanes.

        Every exchange between lanes whose number differs in one bit also halves the list: a lane
        hands over the values that its partner goes on with. So 16 sums over 32 lanes take 16
        exchanges, not 80. `summed_steps` says which sum is where.
        """
        values = list(values)
        stride = self.groups
        while stride < LANES:
            swap = lambda x, stride=stride: self.swap_lanes(x, stride)
            if len(values) > 1:
                upper = self.lane() & stride != 0
                half = len(values) // 2
                values = [
                    jnp.where(upper, b, a) + swap(jnp.where(upper, a, b))
                    for a, b in zip(values[:half], values[half:], strict=True)
                ]
            else:
                values = [values[0] + swap(values[0])]
            stride *= 2
        return values

    def summed_steps(self, count: int) -> list:
        """Which of `count` sums each lane has, for every result of `sum_over_channels`."""
        step = jnp.zeros(LANES, jnp.int32)
        stride = self.groups
        while stride < LANES and count > 1:
            count //= 2
            step += jnp.where(self.lane() & stride != 0, count, 0)
            stride *= 2
        return [step + k for k in range(count)]


class Assembly(Interpreted):
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
            "fma.rn.f32 $0, $1, $2, $3;",
            *(jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape) for x in (a, b, c)),
        )

    def swap_lanes(self, x, stride: int):
        return _assembly(f"shfl.sync.bfly.b32 $0, $1, {stride}, 31, -1;", x)

    def obscured(self, x):
        return _assembly("shfl.sync.idx.b32 $0, $1, 0, 31, -1;", jnp.broadcast_to(x, (LANES,)))


class Chunk:
    """B and C are read where they are."""

    def __init__(self, machine: Interpreted, inputs: Refs, outputs: Refs, rows: list, start):
        self.machine, self.inputs, self.outputs, self.rows = machine, inputs, outputs, rows
        self.products: dict = {}
        # Of a chunk that is no power of two, sums of nothing fill it up; their rows are behind
        # the last one.
        self.count = pl.next_power_of_2(len(rows))
        self.sums = []
        length = machine.layout.length
        for step in machine.summed_steps(self.count):
            step += start
            if self.count == len(rows):
                row = machine.layout.row(machine, inputs, step)
            else:
                row = machine.layout.row(machine, inputs, jnp.minimum(step, length - 1))
                row = jnp.where(step < length, row, step)
            self.sums.append(row)

    def B(self, t: int, n):
        return self.machine.load_B(self.inputs, self.rows[t], n)

    def C(self, t: int, n):
        return self.machine.load_C(self.inputs, self.rows[t], n)

    def put_C(self, t: int, n, value) -> None:
        self.products[t] = value

    put_B = put_C

    def C_done(self, n) -> None:
        self._store_sums("C", n)

    def B_done(self, n) -> None:
        self._store_sums("B", n)

    def _store_sums(self, name: str, n) -> None:
        values = [self.products.get(t, self.machine.zeros()) for t in range(self.count)]
        state = jnp.broadcast_to(self.machine.state(n), (LANES,))
        for row, value in zip(self.sums, self.machine.sum_over_channels(values), strict=True):
            self.machine.store(self.outputs[name], (row, state), value)

    def done(self, rows: list) -> None:
        """Everything is in place."""


def _at(ref, index: tuple):
    """The place `index` in a reference; Pallas wants plain numbers as arrays there."""
    return ref.at[tuple(jnp.int32(i) if isinstance(i, int) else i for i in index)]


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
