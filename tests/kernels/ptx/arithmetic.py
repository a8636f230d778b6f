"""Instructions that compute: numbers, bits, predicates and conversions.

Every function takes the machine and an instruction, and returns a step (see `machine.Step`). An
instruction or a suffix that is not known raises NotImplementedError.
"""

import re
from collections.abc import Callable

import numpy as np

from . import floats
from .floats import F32
from .memory import UNSIGNED
from .text import Instruction

SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
TYPE = re.compile(r"[bsuf](8|16|32|64)|pred|bf16|bf16x2|f16x2")
_WIDTHS = {"pred": 0, "bf16": 2, "bf16x2": 4, "f16x2": 4}


def type_of(i: Instruction) -> str:
    """The type of an instruction: the last one among its suffixes."""
    return next(part for part in reversed(i.parts) if TYPE.fullmatch(part))


def width_of(kind: str) -> int:
    """Bytes of a type; 0 of a predicate."""
    return _WIDTHS[kind] if kind in _WIDTHS else int(kind[1:]) // 8


def integer(kind: str):
    """NumPy's type of an integer type of PTX; bits count as unsigned."""
    return (SIGNED if kind[0] == "s" else UNSIGNED)[width_of(kind)]


def refuse(i: Instruction, *suffixes: str) -> None:
    if found := [suffix for suffix in suffixes if suffix in i.parts]:
        raise NotImplementedError(f"suffix {found[0]}")


def on_bits(m, i: Instruction, width: int, function: Callable) -> Callable:
    """A step of operands of one width; `function` takes and returns raw bits."""
    target, *sources = i.operands
    target, sources = m.registers.target(target), [m.registers.source(s, width) for s in sources]
    values, write = m.registers.values, m.registers.write
    return lambda mask: write(target, function(*[values[s] for s in sources]), mask)


def computed(m, i: Instruction, on_floats, on_integers) -> Callable:
    """A step by a function of float32, or of integers, of the instruction's type."""
    kind = type_of(i)
    refuse(i, "sat", "cc", "relu")
    if kind == "f32" and on_floats is not None:
        clean = floats.flushed if "ftz" in i.parts else lambda x: x

        def function(*bits):
            result = on_floats(*(clean(x.view(F32)) for x in bits))
            return floats.canonical(clean(result)).view(np.uint32)

        return on_bits(m, i, 4, function)
    if re.fullmatch(r"[bsu]\d+", kind) and on_integers is not None:
        number, raw = integer(kind), UNSIGNED[width_of(kind)]
        function = lambda *bits: on_integers(*(x.view(number) for x in bits)).view(raw)
        return on_bits(m, i, width_of(kind), function)
    raise NotImplementedError(kind)


def _simple(on_floats, on_integers):
    return lambda m, i: computed(m, i, on_floats, on_integers)


def _extremum(on_floats, propagating, on_integers):
    return lambda m, i: computed(m, i, propagating if "NaN" in i.parts else on_floats, on_integers)


def _sign(on_bits_of_floats, on_integers):
    def make(m, i):
        if type_of(i) == "f32":
            return on_bits(m, i, 4, on_bits_of_floats)
        return computed(m, i, None, on_integers)

    return make


def _approximate(name: str):
    def make(m, i):
        if "approx" not in i.parts:
            raise NotImplementedError("exact results")
        return computed(m, i, getattr(m.approximations, name), None)

    return make


def _multiply(m, i):
    if "wide" in i.parts:
        return _wide(m, i)
    if "hi" in i.parts:
        return computed(m, i, None, _high)
    return computed(m, i, np.multiply, np.multiply)


def _high(a, b):
    """The upper half of the product of integers."""
    bits = 8 * a.dtype.itemsize
    return (a.astype(object) * b.astype(object) >> bits).astype(a.dtype)


def _wide(m, i):
    """A product of twice the operands' width, with an addend or without."""
    kind = type_of(i)
    width = width_of(kind)
    narrow, raw = integer(kind), UNSIGNED[2 * width]
    wide = integer(f"{kind[0]}{16 * width}")
    target = m.registers.target(i.operands[0])
    a, b = (m.registers.source(x, width) for x in i.operands[1:3])
    addend = m.registers.source(i.operands[3], 2 * width) if len(i.operands) > 3 else None
    values, write = m.registers.values, m.registers.write

    def step(mask):
        value = values[a].view(narrow).astype(wide) * values[b].view(narrow).astype(wide)
        if addend is not None:
            value = value + values[addend].view(wide)
        write(target, value.view(raw), mask)

    return step


def _multiply_add(m, i):
    if "wide" in i.parts:
        return _wide(m, i)
    if "lo" not in i.parts:
        raise NotImplementedError(i.name)
    return computed(m, i, None, lambda a, b, c: a * b + c)


def _fused(m, i):
    if i.parts[1].startswith("joined"):  # by `contraction`
        p, c = (F32(-1 if f"-{term}" in i.parts[1] else 1) for term in "pc")
        return computed(m, i, lambda x, y, z: floats.fma(p * x, y, c * z), None)
    return computed(m, i, floats.fma, None)


def _bitwise(function):
    return lambda m, i: on_bits(m, i, width_of(type_of(i)), function)


def _shift(function):
    def make(m, i):
        kind = type_of(i)
        width = width_of(kind)
        number, raw, bits = integer(kind), UNSIGNED[width], 8 * width
        target = m.registers.target(i.operands[0])
        a, b = m.registers.source(i.operands[1], width), m.registers.source(i.operands[2], 4)
        values, write = m.registers.values, m.registers.write

        def step(mask):
            x, places = values[a].view(number), values[b]
            value = function(x, np.minimum(places, bits - 1).astype(number))
            if (beyond := places >= bits).any():
                negative = kind[0] == "s" and function is np.right_shift
                rest = x >> number(bits - 1) if negative else number(0)
                value = np.where(beyond, rest, value)
            write(target, value.view(raw), mask)

        return step

    return make


def _permute(m, i):
    """prmt: any four of the eight bytes of two words, or their signs."""
    if len(i.parts) > 2:
        raise NotImplementedError(i.name)

    def function(a, b, choices):
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        result = np.uint32(0)
        for k in range(4):
            choice = choices >> np.uint32(4 * k) & np.uint32(15)
            shift = (choice & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = (both >> shift & np.uint64(255)).astype(np.uint32)
            sign = np.where(byte >> np.uint32(7) != 0, np.uint32(255), np.uint32(0))
            byte = np.where(choice & np.uint32(8) != 0, sign, byte)
            result = result | byte << np.uint32(8 * k)
        return result

    return on_bits(m, i, 4, function)


def _extract(m, i):
    """bfe: some adjacent bits."""
    if type_of(i) != "u32":
        raise NotImplementedError(i.name)
    byte = np.uint32(255)

    def function(a, start, length):
        shift = np.minimum(start & byte, 63).astype(np.uint64)
        keep = (np.uint64(1) << np.minimum(length & byte, 32).astype(np.uint64)) - np.uint64(1)
        return (a.astype(np.uint64) >> shift & keep).astype(np.uint32)

    return on_bits(m, i, 4, function)


def _select(m, i):
    width = width_of(type_of(i))
    target = m.registers.target(i.operands[0])
    a, b = (m.registers.source(x, width) for x in i.operands[1:3])
    condition = m.registers.source(i.operands[3], 0)
    values, write = m.registers.values, m.registers.write
    return lambda mask: write(target, np.where(values[condition], values[a], values[b]), mask)


_COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_FLOATS = {"f16": np.float16, "bf16": floats.BF16, "f32": F32, "f64": np.float64}
_COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(name: str, is_float: bool) -> Callable:
    """The comparison of this name; those that end in `u` hold for NaN too."""
    if not is_float:
        return _COMPARISONS[name]
    nan = lambda x, y: np.isnan(x) | np.isnan(y)
    if name in ("nan", "num"):
        return nan if name == "nan" else lambda x, y: ~nan(x, y)
    if name[:-1] in _COMPARISONS and name.endswith("u"):
        return lambda x, y: _COMPARISONS[name[:-1]](x, y) | nan(x, y)
    return lambda x, y: _COMPARISONS[name](x, y) & ~nan(x, y)


def _compare(m, i):
    kind, name = type_of(i), i.parts[1]
    combination = [part for part in i.parts[2:] if part not in (kind, "ftz")]
    if "|" in i.operands[0] or len(combination) > 1:
        raise NotImplementedError(i.name)
    compare = _comparison(name, kind in _FLOATS)
    number = _FLOATS[kind] if kind in _FLOATS else integer(kind)
    target = m.registers.target(i.operands[0])
    a, b = (m.registers.source(x, width_of(kind)) for x in i.operands[1:3])
    values, write = m.registers.values, m.registers.write
    result = lambda: compare(values[a].view(number), values[b].view(number))
    if not combination:
        return lambda mask: write(target, result(), mask)
    combine, negated = _COMBINATIONS[combination[0]], i.operands[3].startswith("!")
    other = m.registers.source(i.operands[3].lstrip("!"), 0)
    return lambda mask: write(target, combine(result(), values[other] ^ negated), mask)


def _move(m, i):
    width = width_of(type_of(i))
    target, source = i.operands
    if source.startswith("{"):
        return _pack(m, target, source.strip("{}").split(","), width)
    if target.startswith("{"):
        return _unpack(m, target.strip("{}").split(","), source, width)
    to, value = m.registers.target(target), m.registers.source(source, width)
    values, write = m.registers.values, m.registers.write
    return lambda mask: write(to, values[value], mask)


def _pack(m, target: str, parts: list[str], width: int):
    narrow, wide = width // len(parts), UNSIGNED[width]
    sources = [m.registers.source(part, narrow) for part in parts]
    to, values, write = m.registers.target(target), m.registers.values, m.registers.write

    def step(mask):
        value = wide(0)
        for k, source in enumerate(sources):
            value = value | values[source].astype(wide) << wide(8 * narrow * k)
        write(to, value, mask)

    return step


def _unpack(m, parts: list[str], source: str, width: int):
    narrow, wide = width // len(parts), UNSIGNED[width]
    targets = [None if part == "_" else m.registers.target(part) for part in parts]
    value, values, write = m.registers.source(source, width), m.registers.values, m.registers.write

    def step(mask):
        for k, target in enumerate(targets):
            if target is not None:
                bits = values[value] >> wide(8 * narrow * k)
                write(target, bits.astype(UNSIGNED[narrow]), mask)

    return step


def register_width(name: str, width: int) -> int:
    """Bytes of a register by the names that compilers give; `width` of one with another name."""
    found = re.fullmatch(r"%(rs|rd|r)\d+", name)
    return {"rs": 2, "r": 4, "rd": 8}[found[1]] if found else width


def widened(value: np.ndarray, kind: str, width: int) -> np.ndarray:
    """A value of a type in a register of more bytes."""
    if width <= width_of(kind):
        return value
    return value.view(integer(kind)).astype(UNSIGNED[width])


def _convert(m, i):
    to, source = (part for part in i.parts if TYPE.fullmatch(part))
    modes = set(i.parts[1:]) - {to, source}
    if to == "bf16x2" and source == "f32" and modes == {"rn"}:
        half = lambda x: floats.to_bf16(x.view(F32)).astype(np.uint32)
        return on_bits(m, i, 4, lambda high, low: half(high) << np.uint32(16) | half(low))
    function = _conversion(to, source, modes)
    width = width_of(source)
    target, value = m.registers.target(i.operands[0]), m.registers.source(i.operands[1], width)
    room = register_width(i.operands[0], width_of(to))
    values, write = m.registers.values, m.registers.write

    def step(mask):
        bits = values[value].astype(UNSIGNED[width], copy=False)
        write(target, widened(function(bits), to, room), mask)

    return step


_HALVES = {
    "bf16": (floats.to_bf16, floats.from_bf16),
    "f16": (floats.to_f16, floats.from_f16),
}


def _conversion(to: str, source: str, modes: set) -> Callable:
    is_float = lambda kind: kind in _FLOATS
    if source in _HALVES and to == "f32" and not modes:
        return lambda x: _HALVES[source][1](x).view(np.uint32)
    if to in _HALVES and source == "f32" and modes == {"rn"}:
        return lambda x: _HALVES[to][0](x.view(F32))
    if not is_float(to) and not is_float(source) and not modes:
        return lambda x: x.view(integer(source)).astype(UNSIGNED[width_of(to)])
    if to == "f32" and not is_float(source) and modes == {"rn"}:
        return lambda x: x.view(integer(source)).astype(F32).view(np.uint32)
    raise NotImplementedError(f"{source} to {to}, {modes}")


_SIGN = np.uint32(1 << 31)
INSTRUCTIONS = {
    "add": _simple(np.add, np.add),
    "sub": _simple(np.subtract, np.subtract),
    "mul": _multiply,
    "mad": _multiply_add,
    "fma": _fused,
    "min": _extremum(np.fmin, np.minimum, np.minimum),
    "max": _extremum(np.fmax, np.maximum, np.maximum),
    "neg": _sign(lambda x: x ^ _SIGN, np.negative),
    "abs": _sign(lambda x: x & ~_SIGN, np.abs),
    "ex2": _approximate("ex2"),
    "lg2": _approximate("lg2"),
    "rcp": _approximate("rcp"),
    "and": _bitwise(np.bitwise_and),
    "or": _bitwise(np.bitwise_or),
    "xor": _bitwise(np.bitwise_xor),
    "not": _bitwise(np.invert),
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "prmt": _permute,
    "bfe": _extract,
    "selp": _select,
    "setp": _compare,
    "mov": _move,
    "cvt": _convert,
}
