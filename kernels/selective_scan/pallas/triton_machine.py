"""The `Machine` of Triton: a program is a warp, and lanes sum by exchanging registers.

References hold the program's block of channels. B and C are one array, `BC` (rows, states of B,
then of C), so that a row needs one address register instead of two. A vector is one register per
lane. The states are a list of vectors, because Triton would split a two-dimensional tile over lanes
and synchronise them at each step.

XLA's Triton pipeline neither fuses a product and a sum into an FMA nor flushes denormals in `exp2`,
so a state update would take 13 to 15 instructions instead of 8. Inline assembly does both. It has
no rule on a CPU, where jnp replaces it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from .arithmetic import Arithmetic
from .chips import LANES
from .layout import Layout, Refs


class Interpreted(Arithmetic):
    """The machine in jnp. `plan.groups` adjacent lanes share one channel, each with a part of its
    states; the channels of a second vector follow those of the first."""

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
        """In each lane, x of the lane whose index differs in bit `stride`."""
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
        """Sum each of 2^k values over lanes; the sums are spread over the lanes.

        Every exchange between lanes whose index differs in one bit also halves the list: a lane
        sends the values that its partner continues with. So 16 sums over 32 lanes take 16
        exchanges instead of 80. `summed_steps` returns which lane holds which sum.
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
        """The index among `count` sums in each lane, for every result of `sum_over_channels`."""
        step = jnp.zeros(LANES, jnp.int32)
        stride = self.groups
        while stride < LANES and count > 1:
            count //= 2
            step += jnp.where(self.lane() & stride != 0, count, 0)
            stride *= 2
        return [step + k for k in range(count)]


class Assembly(Interpreted):
    """The machine in PTX."""

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
    """Reads B and C in place."""

    def __init__(self, machine: Interpreted, inputs: Refs, outputs: Refs, rows: list, start):
        self.machine, self.inputs, self.outputs, self.rows = machine, inputs, outputs, rows
        self.products: dict = {}
        # A chunk whose length is not a power of two is padded with zero sums, which are stored in
        # rows past the last one.
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
        """Nothing to do: the sums are stored already."""


def _at(ref, index: tuple):
    """The element or vector of `ref` at `index`; Pallas needs Python integers as arrays."""
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
