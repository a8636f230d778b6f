"""The machine of Mosaic's kernels: a program is a warpgroup, and lanes sum in shared memory.

References are those of one sequence, with all channels. Only `barrier` orders accesses of different
lanes to shared memory, and only `wait` the copies that a lane has begun before its own accesses.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .arithmetic import Arithmetic
from .layout import Refs
from .mosaic_layout import Staged

GRID = ("segments", "batch", "blocks")
"""Axes of the grid: CUDA's z, y and x."""

LANES = 128
"""Threads of a warpgroup."""

PIECE = 16
"""Bytes that a thread copies at once. The source is aligned to as many."""

QUAD = 4
"""Numbers of float32 that a thread reads at once."""


class Interpreted(Arithmetic):
    """The machine in the interpreter of `pl.pallas_call`, where copies are immediate."""

    def __init__(self, layout: Staged, scratch: Refs):
        """`scratch`: shared memory by name."""
        self.layout, self.scratch = layout, scratch
        self.program = {axis: self._index(axis) for axis in GRID}
        """The program's indices by axis of the grid."""

    def _index(self, axis: str):
        return pl.program_id(GRID.index(axis))

    def channels(self, block=None):
        """The indices of the lanes' channels, or of those of another block."""
        return pl.ds((self.program["blocks"] if block is None else block) * LANES, LANES)

    def zeros(self):
        return jnp.zeros(LANES, jnp.float32)

    def load(self, ref, *index):
        return ref[index].astype(jnp.float32)

    def store(self, ref, index: tuple, value) -> None:
        """Store `value`, cast to the dtype of the reference."""
        ref[index] = value.astype(ref.dtype)

    def copy(self, source, target, piece: int = PIECE) -> None:
        """Begin to copy contiguous memory of the same shape to shared memory.

        Args:
          piece: bytes that a thread copies at once, 4 or 16; the source is aligned to as many.
        """
        target[...] = source[...]

    def copy_block(self, source, row, target) -> None:
        """Begin to copy the lanes' channels in as many rows as `target` has, from `row` on."""
        target[...] = source[pl.ds(row, target.shape[0]), self.channels()]

    def gather(self, source, rows, target) -> None:
        """Begin to copy the lanes' channels in the rows listed in shared memory."""
        for i in range(target.shape[0]):
            target[i, :] = source[rows[i], self.channels()]

    def wait(self) -> None:
        """Wait for the copies that this lane has begun."""

    def barrier(self) -> None:
        """Wait until all lanes have arrived."""

    def obscured(self, x):
        """The int32 scalar x, hidden from the compiler's optimisation."""
        return x

    def store_sums(self, products, target) -> None:
        """Store the sums over lanes of shared memory (rows, lanes); rows is 16 or 32."""
        target[...] = jnp.sum(products[...], 1)


class Warpgroup(Interpreted):
    """The machine in `plgpu.kernel`, with lane semantics."""

    def __init__(self, layout: Staged, scratch: Refs):
        from jax.experimental.mosaic.gpu import utils
        from jax.experimental.pallas import mosaic_gpu as plgpu

        super().__init__(layout, scratch)
        self.gpu, self.utils = plgpu, utils

    def _index(self, axis: str):
        return lax.axis_index(axis)

    def _inline(self, function, *refs) -> None:
        """Call `function` with the references as values of MLIR, while the kernel is lowered."""

        @self.gpu.inline_mgpu(arg_types=[self.gpu.RefType()] * len(refs))
        def call(context, *refs) -> None:
            function(*refs)

        call(*refs)

    def zeros(self):
        layout = self.gpu.Layout.WG_STRIDED((LANES,), vec_size=1)
        return self.gpu.layout_cast(super().zeros(), layout)

    def copy(self, source, target, piece: int = PIECE) -> None:
        self._inline(partial(self._copy_pieces, size=piece), source, target)

    def copy_block(self, source, row, target) -> None:
        block = source.at[pl.ds(row, target.shape[0]), self.channels()]
        self._inline(self._copy_pieces, block, target)

    def gather(self, source, rows, target) -> None:
        self._inline(self._copy_pieces, source.at[:, self.channels()], target, rows)

    def _copy_pieces(self, source, target, rows=None, size: int = PIECE) -> None:
        """Copy `size` bytes per lane and instruction.

        Args:
          source: values of MLIR in device memory; one axis, or rows of adjacent values.
          target: shared memory of the same shape, adjacent throughout.
          rows: shared memory with the rows of `source` to copy; by default, all in order.
        """
        from jaxlib.mlir import ir
        from jaxlib.mlir.dialects import arith, llvm, memref

        utils = self.utils
        i32, i64, byte = (ir.IntegerType.get_signless(bits) for bits in (32, 64, 8))
        index = ir.IndexType.get()
        number = lambda value: arith.constant(i32, value)
        target_type = ir.MemRefType(target.type)
        source_type = ir.MemRefType(source.type)
        width = utils.bytewidth(target_type.element_type)
        per_row = target_type.shape[-1] * width // size
        pieces = per_row * (target_type.shape[0] if target_type.rank == 2 else 1)
        strides, _ = source_type.get_strides_and_offset()
        stride = strides[0] * width if source_type.rank == 2 else 0
        global_memory = llvm.PointerType.get(1)
        source = llvm.addrspacecast(global_memory, utils.memref_ptr(source))
        target = utils.memref_ptr(target)
        cache = "cg" if size == PIECE else "ca"  # of the two, only this one has small copies
        lane = arith.remui(utils.thread_idx(), number(LANES))
        if self.layout.capability < (9, 0):
            # Hidden from the compiler, which would keep addresses in registers between tiles; they
            # are too few there.
            lane = llvm.inline_asm(i32, [], "mov.u32 $0, %tid.x;", "=r", has_side_effects=True)

        def copy(piece, inside):
            row = arith.divui(piece, number(per_row))
            column = arith.muli(arith.remui(piece, number(per_row)), number(size))
            if rows is not None:
                if pieces % LANES:  # lanes without a piece read some row, too
                    row = arith.minui(row, number(target_type.shape[0] - 1))
                row = memref.load(rows, [arith.index_cast(index, row)])
            row = arith.extui(i64, row)
            place = arith.addi(
                arith.muli(row, arith.constant(i64, stride)), arith.extui(i64, column)
            )
            here = utils.getelementptr(source, [place], byte)
            there = utils.getelementptr(target, [arith.muli(piece, number(size))], byte)
            if self.layout.asynchronous:
                # A predicate, not a branch: the instruction can be placed between others.
                llvm.inline_asm(
                    ir.Type.parse("!llvm.void"),
                    [there, here, arith.extui(i32, inside)],
                    "{ .reg .pred inside; setp.ne.b32 inside, $2, 0; "
                    f"@inside cp.async.{cache}.shared.global [$0], [$1], {size}; }}",
                    "r,l,r",
                    has_side_effects=True,
                )
            else:
                vector = ir.VectorType.get((size // 4,), i32)
                llvm.store(llvm.load(vector, here), there)

        for begin in range(0, pieces, LANES):
            piece = arith.addi(lane, number(begin))
            inside = arith.cmpi(arith.CmpIPredicate.ult, piece, number(pieces))
            if self.layout.asynchronous:
                copy(piece, inside)
            else:
                with utils.when(inside):
                    copy(piece, inside)

    def wait(self) -> None:
        from jaxlib.mlir.dialects import nvvm

        if self.layout.asynchronous:

            def wait_for_all() -> None:
                nvvm.cp_async_commit_group()
                nvvm.cp_async_wait_group(0)

            self._inline(wait_for_all)

    def barrier(self) -> None:
        self._inline(self.utils.warpgroup_barrier)

    def obscured(self, x):
        from jax.experimental.mosaic.gpu import FragmentedArray
        from jaxlib.mlir import ir
        from jaxlib.mlir.dialects import llvm

        scalar = self.gpu.Layout.WG_SPLAT(())

        @self.gpu.inline_mgpu(
            arg_types=[scalar],
            return_type=self.gpu.ShapeDtypeStruct((), jnp.int32, layout=scalar),
        )
        def moved(context, x):
            i32 = ir.IntegerType.get_signless(32)
            value = [x.registers.item()]
            hidden = llvm.inline_asm(i32, value, "mov.b32 $0, $1;", "=r,r", has_side_effects=True)
            return FragmentedArray.splat(hidden, (), is_signed=True)

        return moved(jnp.int32(x))

    def store_sums(self, products, target) -> None:
        self.gpu.inline_mgpu(arg_types=[self.gpu.RefType()] * 2)(self._sum_rows)(products, target)

    def _sum_rows(self, context, products, target) -> None:
        """Sum the rows of shared memory, each by adjacent lanes, and store the sums.

        A lane reads four numbers at once. Quarters of a warp access shared memory together; where
        such lanes belong to two rows, those of the second read the halves of 32 numbers in the
        other order, so that all banks are used.
        """
        from jaxlib.mlir import ir
        from jaxlib.mlir.dialects import arith, llvm

        utils = self.utils
        i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()
        number = lambda value: arith.constant(i32, value)
        rows, columns = ir.MemRefType(products.type).shape
        per_row = LANES // rows
        lane = arith.remui(utils.thread_idx(), number(LANES))
        row, place = (op(lane, number(per_row)) for op in (arith.divui, arith.remui))
        first = arith.addi(arith.muli(row, number(columns)), arith.muli(place, number(QUAD)))
        step = per_row * QUAD  # numbers that the lanes of a row read at once
        starts = [first, first]
        if per_row < 8:
            shift = arith.muli(arith.remui(row, number(2)), number(step))
            starts = [arith.addi(first, shift), arith.subi(first, shift)]
        memory, quad = utils.memref_ptr(products), ir.VectorType.get((QUAD,), f32)
        total = None
        for i in range(columns // step):
            there = utils.getelementptr(memory, [starts[i % 2]], f32)
            there = utils.getelementptr(there, [i * step], f32)
            values = llvm.load(quad, there)
            for k in range(QUAD):
                value = llvm.extractelement(values, number(k))
                total = value if total is None else arith.addf(total, value)
        distance = per_row // 2
        while distance:
            total = arith.addf(total, utils.shfl_bfly(total, distance))
            distance //= 2
        out = llvm.addrspacecast(llvm.PointerType.get(1), utils.memref_ptr(target))
        chosen = arith.cmpi(arith.CmpIPredicate.eq, place, number(0))
        llvm.inline_asm(
            ir.Type.parse("!llvm.void"),
            [utils.getelementptr(out, [row], f32), total, arith.extui(i32, chosen)],
            "{ .reg .pred chosen; setp.ne.b32 chosen, $2, 0; @chosen st.global.f32 [$0], $1; }",
            "l,f,r",
            has_side_effects=True,
        )
