"""Kernels with a fault in one place, as a compiler's or a programmer's mistake could leave them."""

import re
from collections.abc import Iterator

_R = r"(%r\d+)"
_ADDRESS = r"\[ *(%rd\d+)(?: *\+ *\d+)? *\]"
FAULTS = {
    "no exchange": (rf"shfl\.sync\.bfly\.b32\s+{_R}, {_R}, \d+, 31, -1;", r"mov.b32 \1, \2;"),
    "load elsewhere": (rf"(ld\.global\.b(?:32|16)\s+[^;]*?){_ADDRESS}", r"\1[\2+4]"),
    "store elsewhere": (rf"(st\.global\.b32\s*){_ADDRESS}", r"\1[\2+4]"),
    "operands exchanged": (
        rf"fma\.rn\.f32\s+{_R}, {_R}, {_R}, {_R};",
        r"fma.rn.f32 \1, \2, \4, \3;",
    ),
    "other sign": (rf"add\.(?:rn\.)?f32\s+{_R}, {_R}, {_R};", r"sub.f32 \1, \2, \3;"),
    "truncated": (rf"cvt\.rn\.bf16\.f32\s+(%rs\d+), {_R};", r"mov.b32 {_, \1}, \2;"),
    "other choice": (
        rf"selp\.([fb])32\s+{_R}, ([^,]+), ([^,]+), (%p\d+);",
        r"selp.\g<1>32 \2, \4, \3, \5;",
    ),
    "no barrier": (r"bar\.sync\s+%\w+, \d+;", ""),
    "no wait": (r"cp\.async\.wait_group\s+\d+;", ""),
    "copy from elsewhere": (r"(cp\.async\.c[ag]\.shared[^;]*?\], \[ *%rd\d+)", r"\1+16"),
    "no copy": (r"@inside cp\.async\.c[ag]\b[^;]*;", ""),
}
"""Patterns of an instruction, and what replaces it."""


def spoilt(ptx: str, fault: str, most: int | None = None) -> Iterator[tuple[int, str]]:
    """(line, PTX with the fault there) for all places of a fault, or for `most` evenly spread."""
    pattern, replacement = FAULTS[fault]
    # The high terms of a polynomial, as softplus has one, do not show within the tolerance.
    constants = {*re.findall(r"mov\.b32\s+(%r\d+), (?:0f|\d)", ptx)}
    found = [m for m in re.finditer(pattern, ptx) if not constants & {*m.groups()}]
    if most is not None and len(found) > most:
        found = [found[k * (len(found) - 1) // (most - 1)] for k in range(most)]
    for match in found:
        line = 1 + ptx[: match.start()].count("\n")
        yield line, ptx[: match.start()] + match.expand(replacement) + ptx[match.end() :]
