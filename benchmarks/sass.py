"""NVIDIA machine code (SASS) as the disassembler prints it: instructions, control codes, loops.

Since sm_70 the compiler schedules a warp statically. The upper bits of each 128-bit instruction say
how many cycles to stall after it and which of the warp's six scoreboards it sets and waits for:
instructions of variable latency (memory, special functions) set a scoreboard when their result
arrives (`write`) or when their operands have been read (`read`), and others wait for it.
"""

import dataclasses
import functools
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Instruction:
    guard: str
    """The predicate that it needs, such as "!P0"; "" for none."""
    opcode: str
    """The operation and its modifiers, such as "LDG.E.U16"."""
    operands: tuple[str, ...]
    stall: int
    """Cycles before the warp's next instruction, without waits."""
    wait: tuple[int, ...] = ()
    """Scoreboards that have to be free before it issues."""
    write: int | None = None
    """Scoreboard that is free when the result has arrived."""
    read: int | None = None
    """Scoreboard that is free when the operands have been read."""

    @functools.cached_property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @functools.cached_property
    def width(self) -> int:
        """Bytes that a lane loads or stores."""
        for modifier, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1)):
            if modifier in self.opcode.split(".")[1:]:
                return size
        return 4

    @property
    def target(self) -> str | None:
        """The label that it jumps to."""
        match = re.search(r"\(?(\.L_x_\d+)\)?", self.operands[-1]) if self.operands else None
        return match[1] if match else None


GLOBAL_LOADS = ("LDG", "LD")
GLOBAL_STORES = ("STG", "ST")


@dataclasses.dataclass(frozen=True)
class Loop:
    """The instructions `first` to `last`, of which the last jumps back to the first."""

    first: int
    last: int

    def __contains__(self, other: "Loop") -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


@dataclasses.dataclass(frozen=True)
class Program:
    """A kernel's machine code."""

    name: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    """Places in `instructions` by label."""

    def loops(self) -> list[Loop]:
        """All loops, inner ones first; without waiting loops, which have no arithmetic."""
        found = {}
        for last, instruction in enumerate(self.instructions):
            first = self.labels.get(instruction.target) if instruction.name == "BRA" else None
            if first is None or first >= last:
                continue
            body = self.instructions[first : last + 1]
            if any(x.name in ("FFMA", "FADD", "FMUL", "MUFU", *GLOBAL_LOADS) for x in body):
                found[first] = max(last, found.get(first, 0))
        loops = [Loop(first, last) for first, last in found.items()]
        return sorted(loops, key=lambda loop: (loop.last - loop.first, loop.first))

    def own(self, loop: Loop) -> list[Instruction]:
        """The body without the loops inside of it."""
        inner = [other for other in self.loops() if other in loop]
        return [
            self.instructions[place]
            for place in range(loop.first, loop.last + 1)
            if not any(other.first <= place <= other.last for other in inner)
        ]


def disassemble(nvdisasm: str, cubin: Path) -> list[Program]:
    """The kernels of a compiled file."""
    done = subprocess.run(
        [nvdisasm, "-c", "-hex", cubin], check=True, capture_output=True, text=True
    )
    return parse(done.stdout)


def read_control_listing(name: str, listing: str) -> Program:
    """A kernel as Mosaic GPU writes it (MOSAIC_GPU_DUMP_SASS_CTRL), with decoded control codes."""
    instructions, labels = [], {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _DECODED.match(line):
            wait, read, write, stall, guard, opcode, operands = match.groups()
            board = lambda text: int(text) if text.isdigit() else None
            instructions.append(
                Instruction(
                    guard=guard or "",
                    opcode=opcode,
                    operands=tuple(_split(operands)),
                    stall=int(stall, 16),
                    wait=tuple(int(c) for c in wait if c.isdigit()),
                    write=board(write),
                    read=board(read),
                )
            )
    return Program(name, tuple(instructions), labels)


_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_SECTION = re.compile(r"\s*\.text\.([\w$]+):")
_INSTRUCTION = re.compile(
    r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@(\S+)\s+)?([\w.]+)\s*(.*?)\s*;.*/\* 0x\w+ \*/"
)
_DECODED = re.compile(
    r"\s*([\d&-]*):([\d-]):([\d-]):[Y-]:([0-9a-f]{2})\s+/\*[0-9a-f]{4,}\*/\s+"
    r"(?:@(\S+)\s+)?([\w.]+)\s*(.*?)\s*;?\s*$"
)
_UPPER_BITS = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/\s*$")


def parse(listing: str) -> list[Program]:
    """The kernels in the output of `nvdisasm -c -hex`."""
    programs: list[tuple[str, list, dict]] = []
    pending = None
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            programs.append((section[1], [], {}))
        elif not programs:
            continue
        elif label := _LABEL.match(line):
            programs[-1][2][label[1]] = len(programs[-1][1])
        elif instruction := _INSTRUCTION.match(line):
            guard, opcode, operands = instruction.groups()
            operands = tuple(_split(operands))
            pending = {"guard": guard or "", "opcode": opcode, "operands": operands}
        elif pending and (bits := _UPPER_BITS.match(line)):
            programs[-1][1].append(Instruction(**pending, **control(int(bits[1], 16))))
            pending = None
    return [
        Program(name, tuple(instructions), labels)
        for name, instructions, labels in programs
        if instructions
    ]


def control(upper: int) -> dict:
    """Stall, scoreboards waited for, and those set, of the upper 64 bits of an instruction.

    The bits are undocumented; their meaning is that of published microbenchmarks (Jia et al.,
    "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking", arXiv:1804.06826).
    """
    code = upper >> 41
    barrier = lambda bits: None if bits == 7 else bits
    return {
        "stall": code & 15,
        "write": barrier(code >> 5 & 7),
        "read": barrier(code >> 8 & 7),
        "wait": tuple(i for i in range(6) if code >> 11 + i & 1),
    }


def _split(operands: str) -> Iterator[str]:
    for operand in operands.split(","):
        if operand.strip():
            yield operand.strip()


# How the loads of a piece of code are waited for.


def serial_loads(instructions: Sequence[Instruction], names: Sequence[str] = GLOBAL_LOADS) -> int:
    """The longest run of loads of which each is the only one in flight when it is waited for.

    Their latencies add up. Copies that load a value, wait for it and store it are such a run, and
    so is arithmetic between the wait and the next load.
    """
    longest = run = 0
    for count in loads_in_flight(instructions, names):
        run = run + 1 if count == 1 else 0
        longest = max(longest, run)
    return longest


def loads_in_flight(
    instructions: Sequence[Instruction], names: Sequence[str] = GLOBAL_LOADS
) -> list[int]:
    """How many loads are in flight, issued and not waited for, at each wait for one of them."""
    flying: Counter[int] = Counter()
    found = []
    for x in instructions:
        if any(flying[board] for board in x.wait):
            found.append(sum(flying.values()))
            for board in x.wait:
                flying[board] = 0
        if x.name in names and x.write is not None:
            flying[x.write] += 1
    return found


def cycles_to_first_wait(
    body: Sequence[Instruction], chosen: Callable[[Instruction], bool]
) -> list[int]:
    """The cycles from each chosen load of a loop's body to the first wait on its scoreboard.

    The wait may be in the next round of the loop. Cycles of other waits are not counted. Loads that
    share a scoreboard are waited for together, so the first wait may come long before the loaded
    value is used.
    """
    found = []
    twice = [*body, *body]
    for place, load in enumerate(body):
        if load.write is None or not chosen(load):
            continue
        cycles = max(load.stall, 1)
        for x in twice[place + 1 :]:
            if load.write in x.wait:
                break
            cycles += max(x.stall, 1)
        found.append(cycles)
    return found
