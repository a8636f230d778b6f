"""Small kernels in PTX, and the faults that are found in them."""

import numpy as np
import pytest

from .launches import Launch
from .machine import Machine
from .memory import Buffer
from .text import kernels

THREADS = 64
PROGRAMS = 2
NUMBERS = THREADS * PROGRAMS


HEAD = f"""
.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .u64 kernel_param_1
)
.reqntid {THREADS}, 1, 1
{{
	.reg .pred %p<9>;
	.reg .b32 %r<99>;
	.reg .b64 %rd<99>;
	.shared .align 128 .b8 memory[{4 * THREADS}];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	mad.lo.s32 %r3, %r2, {THREADS}, %r1;
	mul.wide.u32 %rd4, %r3, 4;
	ld.param.b64 %rd5, [kernel_param_0];
	ld.param.b64 %rd6, [kernel_param_1];
	add.s64 %rd1, %rd5, %rd4;
	add.s64 %rd2, %rd6, %rd4;
	mov.b64 %rd7, memory;
	mul.wide.u32 %rd8, %r1, 4;
	add.s64 %rd3, %rd7, %rd8;
	xor.b32 %r4, %r1, {THREADS // 2};
	mul.wide.u32 %rd9, %r4, 4;
	add.s64 %rd9, %rd7, %rd9;
"""
"""A thread has its number in the program in %r1, among all threads in %r3, and the addresses of its
number in the input (%rd1), in the output (%rd2), in shared memory (%rd3), and of the number of a
thread in the other warp (%rd9)."""


def execute(body: str):
    """(output, report): an input of 0, 1, 2... and an output of one number per thread."""
    (kernel,) = kernels(f"{HEAD}{body}\nret;\n}}").values()
    source = Buffer("input", 4 * NUMBERS, 4, contents=np.arange(NUMBERS, dtype=np.float32))
    output = Buffer("output", 4 * NUMBERS, 4)
    launch = Launch(grid=(PROGRAMS, 1, 1), threads=THREADS, shared=0, parameters=(0, 1))
    report = Machine(kernel, launch, [source, output]).run()
    return output.bytes[: 4 * NUMBERS].view(np.float32), report


EXCHANGE = """
	ld.global.b32 %r10, [%rd1];
	st.shared.b32 [%rd3], %r10;
	bar.sync 0;
	ld.shared.b32 %r11, [%rd9];
	bar.sync 1;
	st.shared.b32 [%rd3], %r11;
	st.global.b32 [%rd2], %r11;
"""
"""Two warps exchange their numbers."""

BY_GROUPS = """
	cp.async.ca.shared.global [%rd3], [%rd1], 4;
	cp.async.commit_group;
	cp.async.wait_group 0;
	bar.sync 0;
	ld.shared.b32 %r11, [%rd9];
	st.global.b32 [%rd2], %r11;
"""
"""The same with a copy of every thread, which waits for its own."""

KERNELS = {"exchange": EXCHANGE, "groups": BY_GROUPS}


@pytest.mark.parametrize("name", KERNELS)
def test_exchanges_between_warps(name):
    output, report = execute(KERNELS[name])
    np.testing.assert_array_equal(output, np.arange(NUMBERS) ^ THREADS // 2)
    assert not report.faults


SPOILT = {
    "no barrier ahead of the load": (EXCHANGE, "bar.sync 0;", "", "a load may overtake a store"),
    "no barrier behind the load": (EXCHANGE, "bar.sync 1;", "", "a store may overtake a load"),
    "load out of bounds": (EXCHANGE, "[%rd1]", "[%rd1+4]", "out of bounds of input"),
    "store out of bounds": (EXCHANGE, "[%rd2]", "[%rd2+-4]", "out of bounds of output"),
    "shared memory out of bounds": (EXCHANGE, "[%rd9]", "[%rd9+16]", "out of bounds of shared"),
    "out of date": (
        EXCHANGE,
        "ld.global.b32 %r10, [%rd1]",
        "ld.global.nc.b32 %r10, [%rd2]",
        "date",
    ),
    "unwritten number": (EXCHANGE, "[%rd1]", "[%rd2]", "numbers of output that nobody wrote"),
    "misaligned": (EXCHANGE, "[%rd2]", "[%rd2+2]", "misaligned in output"),
    "store to an input": (EXCHANGE, "[%rd2]", "[%rd1]", "a store to input"),
    "programs meet": (EXCHANGE, "[%rd2], %r11", "[%rd6], %r3", "different values at once"),
    "different barriers": (EXCHANGE, "bar.sync 0", "bar.sync %r1", "threads at different barriers"),
    "group not waited for": (BY_GROUPS, "wait_group 0", "wait_group 1", "a load may overtake"),
    "group without a barrier": (BY_GROUPS, "bar.sync 0;", "", "a load may overtake"),
    "group never waited for": (BY_GROUPS, "cp.async.wait_group 0;", "", "that no thread waited"),
    "misaligned copy": (BY_GROUPS, "[%rd1], 4", "[%rd1], 8", "misaligned"),
    "copy from elsewhere": (BY_GROUPS, "[%rd1], 4", "[%rd2], 4", "that nobody wrote"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_faults_are_found(name):
    kernel, old, new, fault = SPOILT[name]
    assert old in kernel
    _, report = execute(kernel.replace(old, new))
    assert any(fault in text for text in report.faults), report.faults


def test_a_copy_onto_memory_that_is_in_use():
    found = lambda between: " ".join(execute(BY_GROUPS + between + BY_GROUPS)[1].faults)
    assert "a store may overtake a load" in found("")
    assert not found("bar.sync 0;")


def test_threads_part_and_meet():
    output, report = execute("""
	and.b32 %r10, %r1, 1;
	setp.ne.s32 %p2, %r10, 0;
	mov.b32 %r11, 0f3F800000;
	@%p2 bra ODD;
	mov.b32 %r11, 0f40000000;
	setp.eq.s32 %p3, %r1, 2;
	@%p3 bra ODD;
	mov.b32 %r11, 0f40400000;
ODD:
	shfl.sync.bfly.b32 %r12, %r11, 1, 31, -1;
	st.global.b32 [%rd2], %r12;
""")
    lanes = np.arange(NUMBERS) % THREADS ^ 1
    expected = np.where(lanes % 2, 1, np.where(lanes == 2, 2, 3))
    np.testing.assert_array_equal(output, expected)
    assert not report.faults


def test_an_unknown_instruction_is_named_with_its_line():
    with pytest.raises(NotImplementedError, match=r"line \d+: sin\.approx\.f32 %r10, %r10"):
        execute("sin.approx.f32 %r10, %r10;")
