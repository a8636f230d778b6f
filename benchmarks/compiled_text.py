"""What a program compiled for a GPU does, read from its text: kernels, operations and bytes.

The text is XLA's after all passes (`jax.stages.Compiled.as_text`). Each instruction of the entry
computation and of the bodies of loops is one kernel, unless it only names memory, and it runs as
often as its loops do. XLA's own count (`Compiled.cost_analysis`) is not available without a GPU,
and it counts the body of a loop once.

Counted for a kernel are
  - the operations of matrix products and convolutions, two per multiply-accumulate, also inside of
    fusions;
  - the elements of exponentials, logarithms, hyperbolic tangents, roots and logistic functions, as
    the special function units compute them;
  - the bytes of its operands and results, each once. Of an operand that is only sliced, and of a
    result that is updated in place, only the slice is counted.
What a custom call computes is unknown here, except for cuBLAS and cuDNN; `Kernel.name` tells.
"""

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property
from math import prod

ITEM_BITS = {
    "pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32,
    "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
SPECIAL = {
    "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "sqrt",
    "rsqrt", "cbrt", "sine", "cosine", "tan", "erf", "power",
}  # fmt: skip
NO_KERNEL = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call",
    "conditional", "after-all", "optimization-barrier", "partition-id", "replica-id",
}  # fmt: skip

_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * ITEM_BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    results: tuple[Array, ...]
    """One array, or those of a flat tuple."""
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found and found[1]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of the program."""

    name: str
    """The opcode, or the target of a custom call and the name of its function."""
    source: str
    """Path of the operation in the traced program."""
    runs: int
    """How often it runs in one call of the program."""
    flops: int
    """Operations of matrix products and convolutions in one run."""
    special: int
    """Exponentials and the like in one run."""
    bytes: int
    """Bytes that one run reads and writes."""


def _parse(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    root, name, rest = found.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].strip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0)
    inside, attributes = rest[: end - 1], rest[end:]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    if opcode == "parameter":
        attributes = f"number={inside}" + attributes
    arrays = tuple(
        Array(dtype, tuple(map(int, sizes.split(","))) if sizes else ())
        for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", shape))
    )
    return Instruction(name, arrays, opcode, operands, attributes, bool(root))


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"unbalanced: {text[:100]}")


class Program:
    """A compiled program.

    Args:
      text: what `Compiled.as_text()` returns.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations.setdefault(head[2], {})
                if head[1]:
                    self.entry = head[2]
            elif instruction := _parse(line):
                current[instruction.name] = instruction

    @cached_property
    def kernels(self) -> list[Kernel]:
        """All kernels in the order of the text."""
        return list(self._kernels(self.entry, 1))

    def _kernels(self, computation: str, runs: int) -> Iterator[Kernel]:
        names = self.computations[computation]
        for i in names.values():
            if i.opcode == "while":
                trips = i.attribute(r'known_trip_count":\{"n":"(\d+)"')
                if trips is None:
                    raise ValueError(f"{i.name}: a loop without a known number of steps")
                yield from self._kernels(i.attribute(r"body=%([\w.\-]+)"), runs * int(trips))
            elif i.opcode == "call":
                yield from self._kernels(i.attribute(r"to_apply=%([\w.\-]+)"), runs)
            elif i.opcode == "conditional":
                raise ValueError(f"{i.name}: a branch, whose cost is not known")
            elif i.opcode not in NO_KERNEL:
                yield self._kernel(i, names, runs)

    def _kernel(self, i: Instruction, names: dict[str, Instruction], runs: int) -> Kernel:
        operands = [names[name].results for name in i.operands]
        called = (
            self.computations[i.attribute(r"calls=%([\w.\-]+)")] if i.opcode == "fusion" else {}
        )
        if called:
            flops, special = _work(called)
            moved = _fusion_bytes(called)
        else:
            flops, special = _work({i.name: i}, names)
            moved = sum(array.bytes for arrays in (*operands, i.results) for array in arrays)
            if i.opcode == "dynamic-update-slice":
                moved = 2 * operands[1][0].bytes
            if i.opcode in ("dynamic-slice", "gather"):
                moved = 2 * sum(array.bytes for array in i.results)
        name = i.opcode
        if name == "custom-call":
            target = i.attribute(r'custom_call_target="([^"]*)"')
            function = i.attribute(r'name = "([^"]*)"') or i.name
            name = f"{target} {function}"
        return Kernel(name, i.attribute(r'op_name="([^"]*)"') or "", runs, flops, special, moved)


def _work(
    computation: dict[str, Instruction], names: dict[str, Instruction] | None = None
) -> tuple[int, int]:
    """Operations of matrix products and convolutions, and elements of special functions."""
    flops = special = 0
    names = names or computation
    for i in computation.values():
        if i.opcode in SPECIAL:
            special += i.results[0].size
        if i.opcode == "dot" or "cublas" in (i.attribute(r'target="([^"]*)"') or ""):
            left = names[i.operands[0]].results[0].shape
            contracted = i.attribute(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)')
            axes = [int(axis) for axis in re.findall(r"\d+", contracted)]
            flops += 2 * i.results[0].size * prod(left[axis] for axis in axes)
        if i.opcode == "convolution" or "__cudnn$conv" in i.attributes:
            flops += _convolution(i, names)
    return flops, special


def _convolution(i: Instruction, names: dict[str, Instruction]) -> int:
    """Two operations for each element of the forward convolution's output and of its window."""
    # The labels are those of the forward convolution, whatever the operands are.
    kernel = re.search(r"dim_labels=\w+_(\w+)->", i.attributes)[1]
    first, second = (names[name].results[0].shape for name in i.operands[:2])
    target = i.attribute(r'target="([^"]*)"') or ""
    if target.endswith("BackwardFilter"):
        weights, made = i.results[0].shape, second
    elif target.endswith("BackwardInput"):
        weights, made = second, first
    else:
        weights, made = second, i.results[0].shape
    return 2 * prod(made) * prod(weights) // weights[kernel.index("o")]


def _fusion_bytes(called: dict[str, Instruction]) -> int:
    """Bytes that a fusion reads and writes."""
    users: dict[str, list[Instruction]] = {name: [] for name in called}
    for i in called.values():
        for name in i.operands:
            users[name].append(i)

    def read(i: Instruction) -> int:
        """Bytes of an operand that are read."""
        whole = i.results[0].bytes
        total = 0
        for user in users[i.name]:
            if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == i.name:
                total += user.results[0].bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == i.name:
                continue
            elif user.opcode in ("bitcast", "reshape"):
                total += read(user)
            else:
                return whole
        return min(whole, total)

    def written(i: Instruction) -> int:
        if i.opcode == "tuple":
            return sum(written(called[name]) for name in i.operands)
        while i.opcode == "bitcast":
            i = called[i.operands[0]]
        if i.opcode == "dynamic-update-slice":
            return called[i.operands[1]].results[0].bytes
        return sum(array.bytes for array in i.results)

    root = next(i for i in called.values() if i.is_root)
    return written(root) + sum(read(i) for i in called.values() if i.opcode == "parameter")
