"""The latency model of machine code, on programs whose cycles are counted by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LISTING = """
//--------------------- .text.scan --------------------------
.text.scan:
.L_x_1:
        /*06c0*/                   LOP3.LUT R0, R87, 0x3f, RZ, 0x3c, !PT ;        /* 0x0000003f57007812 */
                                                                                  /* 0x008fe200078e3cff */
        /*0780*/                   LD.E R5, desc[UR8][R2.64] ;                    /* 0x0000000802057980 */
                                                                                  /* 0x000ea8000c101900 */
        /*0790*/                   STS [R90], R5 ;                                /* 0x000000055a007388 */
                                                                                  /* 0x0045e80000000800 */
        /*3770*/               @P0 BRA `(.L_x_1) ;                                /* 0xffffffcc00d00947 */
                                                                                  /* 0x000fea000383ffff */
"""  # noqa: E501
"""Four instructions of a kernel of this project, as `nvdisasm -c -hex` prints them for sm_90a."""

COUNTED = """
-:-:-:Y:01 MOV R0, RZ
.L_x_0:
-:-:-:Y:01 MOV R1, 0x3
-:-:-:Y:01 IMAD R8, R0, 0x40, RZ
.L_x_1:
-:-:-:Y:01 IMAD.WIDE.U32 R2, R1, 0x4, c[0x0][0x210]
-:-:-:Y:01 IADD3 R2, P1, R2, R8, RZ
-:-:-:Y:01 IADD3.X R3, RZ, R3, RZ, P1, !PT
-:-:0:Y:01 LDG.E R4, desc[UR4][R2.64+0x100]
0:-:-:Y:01 FADD R5, R5, R4
-:-:-:Y:01 IADD3 R1, R1, -0x1, RZ
-:-:-:Y:01 ISETP.NE.AND P0, PT, R1, RZ, PT
-:-:-:Y:01 @P0 BRA `(.L_x_1)
-:-:-:Y:01 IADD3 R0, R0, 0x1, RZ
-:-:-:Y:01 ISETP.GE.U32.AND P0, PT, R0, 0x2, PT
-:-:-:Y:01 @!P0 BRA `(.L_x_0)
-:-:-:Y:01 ISETP.NE.AND P2, PT, R0, 0x2, PT
-:-:-:Y:01 @P2 STG.E desc[UR4][R2.64], R5
-:-:-:Y:01 EXIT
"""
"""Two rounds of a loop of three."""


@pytest.fixture
def model(benchmark):
    return Model(benchmark)


class Model:
    """The modules, and shorthands for programs of a few lines."""

    def __init__(self, benchmark):
        self.sass, self.traces = benchmark("sass"), benchmark("sass_trace")
        self.latency = benchmark("latency")
        self.assumed = self.latency.Assumptions(
            dram=600,
            l2=300,
            l1=40,
            mufu=20,
            mufu_interval=8,
            lds=30,
            bulk=100,
            barrier=20,
            stagger=0,
        )

    def program(self, text):
        """Lines "waits:read:write:Y:stall instruction" and labels."""
        lines = []
        for line in text.strip().splitlines():
            control, _, rest = line.partition(" ")
            lines.append(line if line.startswith(".") else f"  {control}   /*0000*/   {rest} ;")
        return self.sass.read_control_listing("scan", "\n".join(lines))

    def trace(self, text, *, warp=0, cta=(0, 0, 0), lane=0):
        launch = self.traces.Launch((8, 1, 1), (64, 1, 1))
        return self.traces.trace(self.program(text), launch, cta=cta, warp=warp, lane=lane)

    def cycles(self, text, *, warps=1, ctas=1, shared=()):
        trace = self.trace(text)
        work = self.latency.work(trace, frozenset(shared), self.assumed)
        return self.latency.simulate([[work] * warps] * ctas, self.assumed)


def test_instructions_and_control_codes_are_read(model):
    (program,) = model.sass.parse(LISTING)
    first, load, store, branch = program.instructions
    assert program.name == "scan" and program.labels == {".L_x_1": 0}
    assert (first.opcode, first.stall, first.wait) == ("LOP3.LUT", 1, (3,))
    assert (load.opcode, load.write, load.read, load.stall) == ("LD.E", 2, None, 4)
    assert load.operands == ("R5", "desc[UR8][R2.64]")
    assert (store.wait, store.write, store.read) == ((2,), None, 2)
    assert (branch.guard, branch.target) == ("P0", ".L_x_1")
    decoded = model.sass.read_control_listing(
        "scan",
        """.L_x_1:
   3:-:-:Y:01        /*06c0*/                   LOP3.LUT R0, R87, 0x3f, RZ, 0x3c, !PT
   -:-:2:Y:04        /*0780*/                   LD.E R5, desc[UR8][R2.64]
   2:2:-:Y:04        /*0790*/                   STS [R90], R5
   -:-:-:Y:05        /*3770*/               @P0 BRA `(.L_x_1) """,
    )
    assert decoded == program


def test_nested_loops_are_found(model):
    program = model.program(COUNTED)
    inner, outer = program.loops()
    assert (inner.first, inner.last, outer.first, outer.last) == (3, 10, 1, 13)
    assert inner in outer and outer not in inner
    assert [x.name for x in program.own(outer)] == ["MOV", "IMAD", "IADD3", "ISETP", "BRA"]


def test_a_warp_is_followed_through_its_loops(model):
    trace = model.trace(COUNTED)
    assert trace.steps.count(6) == 2 * 3  # the load
    assert trace.steps[-3:] == [14, ~15, 16]  # the guard of the store is false
    array = 0x210 >> 3 << model.traces.ARRAY_BITS
    offsets = [0x100 + 64 * i + 4 * j for i in range(2) for j in (3, 2, 1)]
    assert trace.addresses == [array + offset for offset in offsets]


def test_what_depends_on_the_thread_and_the_block_is_followed(model):
    text = """
-:-:0:Y:01 S2R R0, SR_TID.X
-:-:1:Y:01 S2UR UR5, SR_CTAID.X
0:-:-:Y:01 SHF.R.U32.HI R1, RZ, 0x5, R0
1:-:-:Y:01 ISETP.EQ.U32.AND P0, PT, R1, UR5, PT
-:-:-:Y:01 @P0 BRA `(.L_x_0)
-:-:-:Y:01 EXIT
.L_x_0:
-:-:-:Y:01 LEA R2, R0, 0x400, 0x2
-:-:2:Y:01 SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R2+0x8], R4
2:-:-:Y:01 @!P1 BRA `(.L_x_0)
-:-:-:Y:01 EXIT
"""
    assert model.trace(text, warp=1).steps[-1] == 5
    taken = model.trace(text, warp=1, cta=(1, 0, 0))
    assert taken.steps[-1] == 9 and taken.addresses == [0x400 + 4 * 32 + 8]


@pytest.mark.parametrize(
    "lines",
    [
        # Sums of 64 bits by their carries, and differences.
        "MOV R0, 0xffffffff\nIADD3 R2, P0, P1, R0, 0x1, R0\nIADD3.X R2, RZ, RZ, RZ, P0, P1",
        "MOV R0, 0x5\nIADD3 R2, P0, R0, -0x5, RZ\nIADD3.X R2, R2, 0x0, RZ, P0, !PT",
        "UMOV UR4, 0x80000000\nLEA R1, P0, R3, UR4, 0x1\nLEA.HI.X R2, R3, RZ, RZ, 0x1, P0",
        "IMAD.WIDE R0, R3, -0x1, RZ\nIADD3 R2, R1, 0x1, RZ",
        # Logic and bytes.
        "LOP3.LUT R0, R3, 0x40000000, RZ, 0x3c, !PT\nSHF.R.U32.HI R2, RZ, 0x1f, R0",
        "PRMT R0, R3, 0x7773, RZ\nSHF.R.U32.HI R2, RZ, 0x7, R0",
        "HFMA2.MMA R0, -RZ, RZ, 0, 5.9604644775390625e-08\nMOV R2, R0",
        # Comparisons, signed and not, and what predicates choose.
        "ISETP.LT.AND P0, P1, R3, RZ, PT\nSEL R0, RZ, 0x1, P1\nSEL R2, 0x1, R0, P0",
        "ISETP.GT.U32.AND P0, PT, R3, RZ, PT\nPLOP3.LUT P1, PT, P0, PT, PT, 0x80, 0x0\n"
        "SEL R2, 0x1, RZ, P1",
        "ISETP.NE.AND P0, PT, R3, RZ, PT\nVOTEU.ANY UP1, P0\nUSEL UR4, 0x1, URZ, UP1\nMOV R2, UR4",
        "VIMNMX R0, R3, 0x1, !PT\nVIMNMX.U32 R2, R0, R3, PT",
    ],
)
def test_integer_arithmetic(model, lines):
    """Each program leaves 1 in R2, from 0x80000001 in R3."""
    text = "\n".join(f"-:-:-:Y:01 {x}" for x in ["MOV R3, 0x80000001", *lines.splitlines()])
    text += """
-:-:-:Y:01 ISETP.EQ.U32.AND P6, PT, R2, 0x1, PT
-:-:-:Y:01 @!P6 EXIT
-:-:-:Y:01 EXIT"""
    trace = model.trace(text)
    assert trace.steps[-2] == ~(trace.steps[-1] - 1)  # the guard is false


def test_a_branch_on_data_is_reported(model):
    text = """
.L_x_0:
-:-:0:Y:01 LDG.E.64 R0, desc[UR4][R2.64]
0:-:-:Y:01 ISETP.NE.AND P0, PT, R0, RZ, PT
-:-:-:Y:01 @P0 BRA `(.L_x_0)
-:-:-:Y:01 EXIT
"""
    trace = model.trace(text)
    assert trace.undecided == {2} and trace.steps == [0, 1, 2, 3]


CHAIN = "-:-:0:Y:01 MUFU.EX2 R1, R1\n" + 3 * "0:-:0:Y:01 MUFU.EX2 R1, R1\n" + "-:-:-:Y:01 EXIT"
INDEPENDENT = 4 * "-:-:0:Y:01 MUFU.EX2 R1, R1\n" + "0:-:-:Y:01 EXIT"
SHARED_BOARD = """
-:-:0:Y:01 LDG.E R0, desc[UR4][R2.64]
-:-:0:Y:01 MUFU.EX2 R1, R1
0:-:-:Y:04 FADD R1, R1, R1
-:-:-:Y:01 EXIT
"""
OWN_BOARDS = SHARED_BOARD.replace("0:Y:01 MUFU", "1:Y:01 MUFU").replace("0:-:-:Y:04", "1:-:-:Y:04")
WAITING = """
-:-:0:Y:01 LDG.E R0, desc[UR4][R2.64]
0:-:-:Y:01 FADD R1, R0, R1
-:-:-:Y:0f FADD R1, R1, R1
-:-:-:Y:0f FADD R1, R1, R1
-:-:-:Y:01 EXIT
"""


@pytest.mark.parametrize(
    ("text", "cycles"),
    [
        (CHAIN, 3 * 20 + 2),  # each waits for the result before
        (INDEPENDENT, 3 * 8 + 20 + 1),  # one starts every eight cycles
        (SHARED_BOARD, 600 + 4 + 1),  # the sum needs the exponential, and waits for the load
        (OWN_BOARDS, 1 + 20 + 4 + 1),
        (WAITING, 600 + 1 + 15 + 15 + 1),
    ],
)
def test_cycles_of_one_warp(model, text, cycles):
    assert model.cycles(text).cycles == cycles


def test_warps_hide_each_others_waits_but_share_the_special_function_unit(model):
    alone = model.cycles(WAITING).cycles
    # The second load waits 4 cycles for the path to memory; then one instruction is issued a cycle.
    assert model.cycles(WAITING, ctas=2).cycles - alone in range(1, 6)
    independent = "-:-:0:Y:01 MUFU.EX2 R1, R1\n" * 50 + "-:-:-:Y:01 EXIT"
    assert model.cycles(independent).cycles == 49 * 8 + 2
    assert model.cycles(independent, ctas=2).cycles in range(99 * 8, 99 * 8 + 10)


def test_the_use_of_pipes_is_counted(model):
    text = """
-:-:0:Y:01 MUFU.EX2 R1, R1
-:-:0:Y:01 LDS.128 R4, [R0]
-:-:-:Y:01 IADD3 R0, R0, 0x1, RZ
-:-:-:Y:01 FADD R2, R2, R2
-:-:-:Y:01 EXIT
"""
    work = model.latency.work(model.trace(text), frozenset(), model.assumed)
    assert model.latency.busy(work, model.assumed) == {
        "issue": 5, "special functions": 8, "path to memory": 4 * 4, "integer unit": 2,
        "floating-point unit": 1,
    }  # fmt: skip


def test_waits_are_named(model):
    waits = model.cycles(WAITING).waits
    assert waits == {"LDG from DRAM": 599, "stalls": 1 + 1 + 15 + 15 + 1}


def test_loads_come_from_where_their_value_is(model):
    text = """
-:-:0:Y:01 LDG.E R0, desc[UR4][R2.64]
-:-:0:Y:01 LDG.E R1, desc[UR4][R2.64]
-:-:-:Y:01 STG.E desc[UR4][R2.64], R1
-:-:0:Y:01 LDG.E R1, desc[UR4][R2.64]
-:-:0:Y:01 LDG.E R1, desc[UR4][R2.64+0x40]
-:-:-:Y:01 EXIT
"""
    start = "-:-:-:Y:01 MOV R2, 0x100\n-:-:-:Y:01 MOV R3, RZ\n"
    trace = model.trace(start + text.strip())
    work = model.latency.work(trace, frozenset({6}), model.assumed)
    assert [level for _, level in work.latencies] == ["DRAM", "L1", "DRAM", "L2", "L2"]


def test_loads_that_neighbours_share_are_found(model):
    text = """
-:-:0:Y:01 S2R R0, SR_CTAID.X
-:-:-:Y:01 MOV R3, RZ
0:-:-:Y:01 MOV R2, R0
-:-:1:Y:01 LDG.E R4, desc[UR4][R2.64]
-:-:1:Y:01 LDG.E R5, desc[UR4][R6.64]
-:-:-:Y:01 MOV R2, 0x40
-:-:1:Y:01 LDG.E R5, desc[UR4][R2.64]
-:-:-:Y:01 EXIT
"""
    one, other = model.trace(text), model.trace(text, cta=(1, 0, 0))
    assert model.latency.same_addresses(one, [other], ["LDG"]) == {6}


def test_uniform_reads_of_shared_memory_are_found(model):
    text = """
-:-:0:Y:01 S2R R0, SR_TID.X
0:-:-:Y:01 LEA R1, R0, 0x400, 0x4
-:-:0:Y:01 LDS.128 R4, [R1]
-:-:0:Y:01 LDS.128 R4, [0x500]
-:-:-:Y:01 EXIT
"""
    one, other = model.trace(text), model.trace(text, lane=1)
    uniform = model.latency.same_addresses(one, [other], ["LDS"])
    assert uniform == {3}
    path = []
    for divisor in (1, 2):
        assumed = model.latency.Assumptions(uniform=divisor)
        work = model.latency.work(one, frozenset(), assumed, uniform)
        path.append(model.latency.busy(work, assumed)["path to memory"])
    assert path == [16 + 16, 16 + 8]


def tile(work):
    """A bulk copy that reports to the barrier at 0x508, arithmetic, and the wait for it."""
    return f"""
-:-:-:Y:01 UMOV UR8, 0x800
-:-:-:Y:01 UMOV UR9, 0x508
-:-:-:Y:01 MOV R0, 0x500
-:-:-:Y:01 UTMALDG.3D [UR8], [UR4]
{work}
-:-:0:Y:01 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0+0x8], R4
-:-:-:Y:01 EXIT
"""


def test_a_tile_is_waited_for_only_if_it_was_requested_too_late(model):
    early = "\n".join(["-:-:-:Y:0f FADD R1, R1, R1"] * 60)
    assert model.cycles(tile("-:-:-:Y:01 FADD R1, R1, R1")).cycles == 3 + 600 + 100 + 2
    assert model.cycles(tile(early)).cycles == 4 + 60 * 15 + 2


def test_groups_of_asynchronous_copies_are_waited_for_in_order(model):
    text = """
-:-:-:Y:01 LDGSTS.E [R0], desc[UR4][R2.64]
-:0:-:Y:01 LDGDEPBAR
-:-:-:Y:0f FADD R1, R1, R1
-:-:-:Y:01 LDGSTS.E [R0], desc[UR4][R2.64]
-:0:-:Y:01 LDGDEPBAR
-:-:-:Y:01 DEPBAR.LE SB0, 0x{left}
-:-:-:Y:01 EXIT
"""
    assert model.cycles(text.format(left=1)).cycles == 600 + 2
    assert model.cycles(text.format(left=0)).cycles == 17 + 600 + 2


def test_warps_of_a_program_meet_at_barriers(model):
    text = WAITING.replace("-:-:-:Y:01 EXIT", "-:-:-:Y:01 BAR.SYNC 0x0\n-:-:-:Y:01 EXIT")
    one = model.cycles(text)
    assert one.cycles == model.cycles(WAITING).cycles + 1 + 20
    assert model.cycles(text, warps=2).cycles - one.cycles in range(1, 6)


def test_a_warp_that_ends_does_not_hold_up_a_barrier(model):
    text = "-:-:-:Y:01 BAR.SYNC 0x0\n" + WAITING.strip()
    works = [
        model.latency.work(model.trace(t), frozenset(), model.assumed) for t in (text, WAITING)
    ]
    # The second warp issues first (the youngest); the first goes on once it has finished.
    assert model.latency.simulate([works], model.assumed).cycles in range(632 + 21, 2 * 632 + 22)


def test_serial_loads_are_found(model):
    copy = "-:-:0:Y:04 LD.E R5, desc[UR8][R2.64]\n0:1:-:Y:04 STS [R90], R5\n"
    loads = "-:-:0:Y:04 LDG.E R5, desc[UR8][R2.64]\n"
    together = 8 * loads + "0:1:-:Y:04 STS [R90], R5\n"
    serial = lambda text: model.sass.serial_loads(model.program(text).instructions)
    assert serial(8 * copy) == 8
    assert serial(4 * copy + together + 2 * copy) == 4
    assert serial(together) == 0
    assert model.sass.loads_in_flight(model.program(together + copy).instructions) == [8, 1]


def test_the_first_wait_on_a_shared_scoreboard_counts(model):
    body = model.program("""
-:-:0:Y:01 LDG.E.U16 R0, desc[UR4][R2.64]
-:-:0:Y:01 MUFU.EX2 R1, R1
-:-:-:Y:05 FADD R2, R2, R2
0:-:-:Y:04 FADD R1, R1, R1
-:-:1:Y:02 LDG.E.U16 R9, desc[UR4][R2.64]
-:-:-:Y:05 FADD R2, R2, R0
""").instructions
    far = lambda x: x.opcode == "LDG.E.U16"
    # The second load is waited for by nobody in two rounds of the loop.
    assert model.sass.cycles_to_first_wait(body, far) == [1 + 1 + 5, 2 + 5 + 18]


def command(*arguments):
    script = ROOT / "benchmarks" / "scan_model.py"
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "8,8"], "size '8,8': give batch,length,channels,state"),
        (["--assume", "dram=fast"], "--assume dram=fast: give NAME=CYCLES with one of dram, l2"),
        (["--python", "pallas_mosaic=/nowhere"], "'/nowhere' is no program"),
        (["--plans", "99"], "--plans 99: pallas_mosaic has plans 0 to 5, and auto"),
        (["--tree", "/"], "--tree / is no checkout"),
        (["--out", "README.md/model.json"], "--out README.md/model.json cannot be written"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.slow
def test_where_nothing_is_modelled_nothing_is_written(tmp_path):
    out = tmp_path / "model.json"
    done = command(
        "--implementations", "jax-linear-attention", "--chips", "H200", "--passes", "forward",
        "--options", "plain", "--out", out, "--sizes", "1,16,128,16",
    )  # fmt: skip
    assert done.returncode == 1 and not out.exists()
    assert "nothing was modelled" in done.stderr and "--python NAME=PATH" in done.stderr
