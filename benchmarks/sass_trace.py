"""The instructions that one warp executes, in order, found by executing its integer arithmetic.

Loop counters, addresses and the predicates of branches of a scan's kernels depend on sizes, on the
block and on the thread, not on data, and the sizes are constants of the machine code. So one lane
of a warp is executed on integers, whatever comes from memory or from floating-point arithmetic is
unknown, and the way through the program follows: trip counts of loops, the roles of warps, and the
address of every access, without any knowledge of the kernel's source.

Pointers among the kernel's parameters get invented values, far apart. A 32-bit value loaded from
global memory is taken for its own index in its array, so a table of rows is the identity. A wait
for a memory barrier succeeds at once. An instruction whose guard depends on data is executed, and a
branch that does is not taken.
"""

import dataclasses
import itertools
import re
import struct
from collections.abc import Callable

from sass import Instruction, Program

MASK = 0xFFFFFFFF
_UNIFORM, _ZERO, _PREDICATES, _UNIFORM_PREDICATES = 256, 512, 520, 528
"""Places of registers in the state: R0 and on, UR0 and on, a zero, P0 and on, UP0 and on."""
_SIZE = 536
ARRAY_BITS = 36
"""Invented pointers are multiples of 2**ARRAY_BITS."""
LONGEST = 30_000_000
"""Instructions of a warp after which it is taken for one that does not end."""

ACCESSES = ("LDG", "LD", "LDS", "STG", "ST", "LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP", "RED",
            "ATOMG", "ATOM", "ARRIVES", "SYNCS")  # fmt: skip
"""Opcodes whose addresses a trace records."""


@dataclasses.dataclass(frozen=True)
class Launch:
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Trace:
    program: Program
    steps: list[int]
    """Places of the executed instructions; ~place for one that its guard switches off."""
    addresses: list[int | None]
    """The address of each executed instruction of ACCESSES in turn; None if it depends on data. A
    bulk copy to shared memory has that of the barrier that it reports to."""
    undecided: frozenset[int]
    """Places of branches and exits that depend on data, and were not taken."""


def trace(
    program: Program, launch: Launch, *, cta: tuple[int, int, int], warp: int, lane: int = 0
) -> Trace:
    """Execute one lane of a warp; of lanes of which one is elected, it is that one.

    Raises:
      ValueError: if the program returns from a function, or does not end within LONGEST
        instructions.
    """
    state: list[int | None] = [None] * _SIZE
    state[_ZERO] = 0
    for base in (_PREDICATES, _UNIFORM_PREDICATES):
        state[base + 7] = 1
    special = {
        "SR_TID.X": 32 * warp % launch.block[0] + lane,
        "SR_TID.Y": 32 * warp // launch.block[0] % launch.block[1],
        "SR_TID.Z": 32 * warp // (launch.block[0] * launch.block[1]),
        "SR_LANEID": lane,
        "SR_CgaCtaId": 0,
        **{f"SR_CTAID.{axis}": place for axis, place in zip("XYZ", cta, strict=True)},
    }
    blocks = _blocks(program, _constants(launch), special)
    steps: list[int] = []
    addresses: list[int | None] = []
    undecided: set[int] = set()
    place: int | None = 0
    while place is not None:
        if len(steps) > LONGEST:
            raise ValueError(f"{program.name}: no end after {LONGEST} instructions of a warp")
        place = blocks[place](state, steps, addresses, undecided)
    return Trace(program, steps, addresses, frozenset(undecided))


def _constants(launch: Launch) -> Callable[[int], int]:
    """The 32-bit word at an offset of the constant bank of parameters."""
    sizes = dict(zip(range(0, 24, 4), (*launch.block, *launch.grid), strict=True))
    pointer = lambda offset: (offset >> 3) << ARRAY_BITS
    return lambda offset: sizes.get(offset, pointer(offset) >> 32 * (offset >> 2 & 1) & MASK)


def _blocks(program: Program, constant: Callable[[int], int], special: dict[str, int]) -> dict:
    """A function for each basic block by its first place; it returns that of the next block."""
    instructions = program.instructions
    ends = [
        i for i, x in enumerate(instructions) if x.name in (*_JUMPS, "EXIT", "RET", "BRX", "JMX")
    ]
    firsts = sorted({0, *program.labels.values(), *(i + 1 for i in ends)})
    lines = []
    for number, first in enumerate(firsts):
        if first >= len(instructions):
            continue
        after = firsts[number + 1] if number + 1 < len(firsts) else len(instructions)
        lines.append(f"def block_{first}(s, steps, addresses, undecided):")
        lines += ["    " + x for x in _Writer(program, constant, special).block(first, after)]
    namespace = {"signed": _signed, "prmt": _prmt, "lop3": _lop3, "index": _index, "M": MASK}
    exec("\n".join(lines), namespace)
    return {first: namespace[f"block_{first}"] for first in firsts if first < len(instructions)}


def _signed(x: int) -> int:
    return x - (x >> 31 << 32)


def _index(first: int, count: int) -> int:
    """Consecutive 32-bit numbers."""
    return sum((first + i & MASK) << 32 * i for i in range(count))


def _lop3(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for bit in range(8):
        if table >> bit & 1:
            terms = (a if bit & 4 else ~a), (b if bit & 2 else ~b), (c if bit & 1 else ~c)
            result |= terms[0] & terms[1] & terms[2]
    return result & MASK


def _prmt(a: int, selectors: int, b: int) -> int:
    both, result = a | b << 32, 0
    for i in range(4):
        selector = selectors >> 4 * i & 15
        byte = both >> 8 * (selector & 7) & 255
        if selector & 8:
            byte = 255 * (byte >> 7)
        result |= byte << 8 * i
    return result


_JUMPS = ("BRA", "JMP", "CALL")
"""Calls among them: without functions, the compiler leaves loops by CALL.REL.NOINC on sm_80."""
_COMPARISONS = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!="}
_PREDICATE = re.compile(r"!?U?P(\d|T)$")
_NO_RESULT = {"NOP", "BAR", "DEPBAR", "MEMBAR", "FENCE", "CCTL", "UTMACCTL", "UTMACMDFLUSH", "BSSY",
              "BSYNC", "WARPSYNC", "NANOSLEEP", "LDGDEPBAR", "ERRBAR", "YIELD", "STS", "STL", "BPT",
              "STG", "ST", "LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP", "RED", "ARRIVES",
              "UCGABAR_ARV", "UCGABAR_WAIT", "ACQBULK", "PREEXIT", "USETMAXREG",
              "UTMAREDG"}  # fmt: skip


class _Writer:
    """Writes instructions as Python; arithmetic on an unknown value (None) raises TypeError."""

    def __init__(self, program: Program, constant: Callable[[int], int], special: dict[str, int]):
        self.program, self.constant, self.special = program, constant, special

    def block(self, first: int, after: int) -> list[str]:
        lines: list[str] = []
        for place in range(first, after):
            x = self.program.instructions[place]
            if x.name in _JUMPS:
                return [*lines, *self.branch(place, x)]
            if x.name == "EXIT":
                return [*lines, *self.exit(place, x)]
            if x.name in ("RET", "BRX", "JMX"):
                problem = f"{self.program.name}: {x.opcode} at instruction {place} is not supported"
                return [*lines, f"raise ValueError({problem!r})"]
            done = [f"steps.append({place})", *self.instruction(x)]
            if x.guard:
                index, negated = self.predicate(x.guard)
                lines.append(f"if s[{index}] == {1 if negated else 0}: steps.append({~place})")
                lines += ["else:", *("    " + line for line in done)]
            else:
                lines += done
        return [*lines, f"return {after}"]

    def exit(self, place: int, x: Instruction) -> list[str]:
        end = f"steps.append({place}); return None"
        if not x.guard:
            return [end]
        index, negated = self.predicate(x.guard)
        return [
            f"if s[{index}] == {0 if negated else 1}: {end}",
            f"if s[{index}] is None: undecided.add({place})",
            f"steps.append({~place}); return {place + 1}",
        ]

    def branch(self, place: int, x: Instruction) -> list[str]:
        target, after = self.program.labels[x.target], place + 1
        conditions = [c for c in (x.guard, *x.operands[:-1]) if _PREDICATE.match(c)]
        if "DIV" in x.opcode.split("."):  # lanes diverged: they do not
            return [f"steps.append({place})", f"return {after}"]
        lines = [f"steps.append({place})"]
        if conditions:
            known = [self.predicate(c) for c in conditions]
            lines.append(f"if None in ({', '.join(f's[{i}]' for i, _ in known)},):")
            lines.append(f"    undecided.add({place}); return {after}")
            false = " or ".join(f"s[{i}] == {1 if negated else 0}" for i, negated in known)
            lines.append(f"if {false}: return {after}")
        return [*lines, f"return {target}"]

    # Operands

    def predicate(self, text: str) -> tuple[int, bool]:
        """Place in the state, and whether it is negated."""
        name = text.lstrip("!")
        base = _UNIFORM_PREDICATES if name.startswith("U") else _PREDICATES
        return base + (7 if name.endswith("T") else int(name[-1])), text.startswith("!")

    def register(self, text: str) -> int | None:
        """Place of a register in the state."""
        match = re.fullmatch(r"(U?)R(\d+|Z)", text.split(".")[0])
        if match is None:
            return None
        if match[2] == "Z":
            return _ZERO
        return int(match[2]) + (_UNIFORM if match[1] else 0)

    def operand(self, text: str, high: bool = False) -> str:
        """An expression of a source; `high`: of the second register of a pair."""
        if _PREDICATE.match(text):
            index, negated = self.predicate(text)
            return f"(1 - s[{index}])" if negated else f"s[{index}]"
        if text[0] == "~":
            return f"({self.operand(text[1:], high)} ^ M)"
        if text[0] == "|":
            return f"abs(signed({self.operand(text.strip('|'), high)}))"
        index = self.register(text.lstrip("-"))
        if index is not None:
            shifted = index + (high and index != _ZERO)
            return f"(0x100000000 - s[{shifted}])" if text[0] == "-" else f"s[{shifted}]"
        if match := re.fullmatch(r"c\[0x0\]\[0x([0-9a-f]+)\]", text):
            return str(self.constant(int(match[1], 16) + 4 * high))
        try:
            return "0" if high else str(int(text, 0) & MASK)
        except ValueError:
            return "None"

    def pair(self, text: str) -> str:
        """An expression of a 64-bit source."""
        return f"({self.operand(text)} | {self.operand(text, high=True)} << 32)"

    def address(self, text: str, wide: bool) -> str:
        """An expression of the address in "desc[UR4][R2.64+0x10]" or "[R5+UR8+-0x10]"."""
        inner = re.findall(r"\[([^\]]*)\]", text)[-1]
        parts = []
        for part in inner.split("+"):
            register = self.register(part)
            if register is None:
                parts.append(str(int(part, 0)))
            elif wide and (".64" in part or part.startswith("U")):
                parts.append(self.pair(part.split(".")[0]))
            else:
                parts.append(f"s[{register}]")
        return " + ".join(parts)

    # Instructions

    def instruction(self, x: Instruction) -> list[str]:
        """Python that updates the state and records an address."""
        lines = []
        if x.name in ACCESSES:
            lines = self._try("addresses.append({})", self.accessed(x), "addresses.append(None)")
        if x.name in _NO_RESULT or not x.operands:
            return lines
        if x.name == "SYNCS":
            taken = [p for p in x.operands if _PREDICATE.match(p)]
            return lines + [f"s[{self.predicate(p)[0]}] = 1" for p in taken]
        if x.name in ("VOTE", "VOTEU"):
            if _PREDICATE.match(x.operands[0]):
                return self.results(x, None, [x.operands[0]], [x.operands[-1]])
            return self.results(x, self.register(x.operands[0]), [], [])
        if x.name == "R2P":
            value, mask = self.operand(x.operands[1]), int(x.operands[2], 0)
            return [f"s[{_PREDICATES + i}] = None if {value} is None else {value} >> {i} & 1"
                    for i in range(7) if mask >> i & 1]  # fmt: skip
        results = self.leading(x)
        registers = [name for name in results if not _PREDICATE.match(name)]
        target = self.register(registers[0]) if registers else None
        outs = [name for name in results if _PREDICATE.match(name)]
        return lines + self.results(x, target, outs, list(x.operands[len(results) :]))

    def leading(self, x: Instruction) -> list[str]:
        """The operands that are results: a register, and predicates before and after it."""
        if x.name in _TO_PREDICATE:
            names = itertools.takewhile(_PREDICATE.match, x.operands[:2])
            return [name for name in names if not name.startswith("!")]
        found: list[str] = []
        for name in x.operands:
            if _PREDICATE.match(name):
                result = not name.startswith("!")
            else:
                result = self.register(name) is not None and all(map(_PREDICATE.match, found))
            if not result:
                break
            found.append(name)
        return found

    def accessed(self, x: Instruction) -> str:
        places = [
            operand for operand in x.operands if "[" in operand and not operand.startswith("c[")
        ]
        if x.name in ("UTMALDG", "UBLKCP") and ".G.S" not in x.opcode:
            # The register after that of the address in shared memory holds the barrier's.
            return f"s[{self.register(places[0].strip('[]')) + 1}]"
        if x.name in ("LDS", "SYNCS", "ARRIVES", "UTMASTG", "UBLKCP"):
            return self.address(places[0], wide=False)
        return self.address(places[-1], wide=True)

    def _try(self, statement: str, expression: str, otherwise: str) -> list[str]:
        return ["try: " + statement.format(expression), f"except TypeError: {otherwise}"]

    def results(
        self, x: Instruction, target: int | None, predicates: list[str], sources: list[str]
    ) -> list[str]:
        """Assignments to a register and to predicates."""
        true = (_PREDICATES + 7, _UNIFORM_PREDICATES + 7)
        outs = [(i, self.predicate(name)[0]) for i, name in enumerate(predicates)]
        outs = [(i, index) for i, index in outs if index not in true]
        target = None if target == _ZERO else target
        unknown = [f"s[{index}] = None" for _, index in outs]
        if target is not None:
            unknown += [f"s[{target + i}] = None" for i in range(_registers(x))]
        expression = self.expression(x, sources)
        if expression is None:
            return unknown or ["pass"]
        lines = [f"v = {expression}"]
        count = _registers(x)
        if target is not None:
            lines += [f"s[{target + i}] = v >> {32 * i} & M" for i in range(count)]
        for i, index in outs:
            if x.name in _TO_PREDICATE:  # the second is the complement
                lines.append(f"s[{index}] = v & 1 ^ {i}")
            elif x.name in ("LOP3", "ULOP3"):
                lines.append(f"s[{index}] = int(v & M != 0)")
            else:  # carries, which the sum of the upper words adds
                lines.append(f"s[{index}] = int(v >> {32 * count} > {i})")
        return ["try:", *("    " + line for line in lines), "except TypeError:",
                *("    " + line for line in unknown or ["pass"])]  # fmt: skip

    def expression(self, x: Instruction, sources: list[str]) -> str | None:
        """A Python expression of the result; None for one that is unknown anyway."""
        name = x.name[1:] if x.name in _UNIFORM_NAMES else x.name
        modifiers = x.opcode.split(".")[1:]
        carried = [p for p in sources if _PREDICATE.match(p)]
        numbers = [p for p in sources if not _PREDICATE.match(p)]
        value = [self.operand(p) for p in numbers]
        carry = "".join(f" + {self.operand(p)}" for p in carried) if "X" in modifiers else ""
        match name:
            case "MOV" | "R2UR":
                return value[0]
            case "CS2R":
                return "0" if numbers == ["SRZ"] else None
            case "S2R" | "S2UR":
                return str(self.special[numbers[0]]) if numbers[0] in self.special else None
            case "LDC":
                if not re.fullmatch(r"c\[0x0\]\[0x[0-9a-f]+\]", numbers[0]):
                    return None
                return self.pair(numbers[0]) if "64" in modifiers else value[0]
            case "LDG" | "LD":
                if x.width < 4:
                    return None
                index = f"({self.address(numbers[-1], wide=True)} & {(1 << ARRAY_BITS) - 1}) >> 2"
                return f"index({index}, {x.width // 4})"
            case "IMAD":
                if "MOV" in modifiers:
                    return value[-1]
                if "WIDE" in modifiers:
                    if "U32" not in modifiers:
                        value = [f"signed({v})" for v in value[:2]]
                    total = f"{value[0]} * {value[1]} + {self.pair(numbers[2])}"
                    return total + carry
                if "HI" in modifiers:
                    return f"({value[0]} * {value[1]} >> 32) + {value[2]}"
                return f"{value[0]} * {value[1]} + {value[2]}" + carry
            case "VIADDMNMX":
                a, b = (f"signed({v} & M)" for v in (f"({value[0]} + {value[1]})", value[2]))
                return f"min({a}, {b}) if {self.operand(carried[-1])} + 0 else max({a}, {b})"
            case "IADD3" | "VIADD":
                return " + ".join(value) + carry
            case "LEA":
                shift = numbers[-1]
                if "HI" in modifiers:
                    upper = value[2] if len(value) > 3 else "0"
                    if "SX32" in modifiers:
                        upper, base = f"(-({value[0]} >> 31) & M)", value[1]
                    else:
                        base = value[1]
                    return f"((({value[0]} | {upper} << 32) << {shift}) >> 32 & M) + {base}" + carry
                return f"(({value[0]} << {shift}) & M) + {value[1]}"
            case "SHF":
                amount = f"({value[1]} & 63)"
                both = f"({value[0]} | {value[2]} << 32)"
                if "L" in modifiers:
                    if "HI" in modifiers:
                        return f"({both} << {amount}) >> 32"
                    return f"{value[0]} << {amount}"
                if "S32" in modifiers:
                    return f"signed({value[2]}) >> {amount}"
                if "HI" in modifiers:
                    return f"{value[2]} >> {amount}"
                return f"{both} >> {amount}"
            case "LOP3":
                return f"lop3({', '.join(value[:3])}, {numbers[3]})"
            case "PLOP3":
                terms = ", ".join(self.operand(p) for p in carried[:3])
                return f"lop3({terms}, {numbers[0]})"
            case "ISETP":
                ordered = value if "U32" in modifiers else [f"signed({v} & M)" for v in value]
                sign = _COMPARISONS[modifiers[0]]
                result = f"int(({ordered[0]}) {sign} ({ordered[1]}))"
                if "EX" in modifiers:
                    lower, equal = self.operand(carried[1]), f"int({value[0]} == {value[1]})"
                    strict = {"<=": "<", ">=": ">"}.get(sign, sign)
                    result = f"(int(({ordered[0]}) {strict} ({ordered[1]})) | {equal} & {lower})"
                    if sign == "==":
                        result = f"({equal} & {lower})"
                joined = {"AND": "&", "OR": "|", "XOR": "^"}
                how = next(joined[m] for m in modifiers if m in joined)
                return f"{result} {how} {self.operand(carried[0])}"
            case "SEL":
                return f"{value[0]} if {self.operand(carried[0])} + 0 else {value[1]}"
            case "VIMNMX" | "IMNMX":
                ordered = value if "U32" in modifiers else [f"signed({v})" for v in value]
                a, b = ordered[:2]
                return f"min({a}, {b}) if {self.operand(carried[-1])} + 0 else max({a}, {b})"
            case "PRMT":
                return f"prmt({value[0]}, {value[1]}, {value[2]})"
            case "HFMA2":
                try:
                    halves = [float(numbers[-2]), float(numbers[-1])]
                except ValueError:
                    return None
                if numbers[1:3] != ["RZ", "RZ"] and numbers[:2] != ["-RZ", "RZ"]:
                    return None
                return str(int.from_bytes(struct.pack("<ee", halves[1], halves[0]), "little"))
            case "SHFL":
                return value[0] if "IDX" in modifiers else None
            case "ELECT":
                return "1"
            case "VOTE" | "VOTEU":
                return self.operand(carried[0]) if carried and not numbers else None
            case "SGXT":
                low = f"({value[0]} & ((1 << {value[1]}) - 1))"
                if "U32" in modifiers:
                    return low
                return f"{low} - (({value[0]} >> {value[1]} - 1 & 1) << {value[1]})"
            case "IABS":
                return f"abs(signed({value[0]}))"
        return None


_TO_PREDICATE = {"ISETP", "UISETP", "PLOP3", "UPLOP3", "FSETP", "ELECT", "VOTE", "VOTEU", "DSETP",
                 "HSETP2", "FCHK"}  # fmt: skip
_UNIFORM_NAMES = {"UMOV", "UIMAD", "UIADD3", "ULEA", "USHF", "ULOP3", "UPLOP3", "UISETP", "USEL",
                  "UPRMT", "ULDC", "USGXT"}  # fmt: skip


def _registers(x: Instruction) -> int:
    """32-bit registers of the result."""
    modifiers = set(x.opcode.split(".")[1:])
    if "128" in modifiers:
        return 4
    return 2 if modifiers & {"WIDE", "64"} or (x.name == "CS2R" and "32" not in modifiers) else 1
