"""Products and sums joined to fused multiply-adds, as ptxas may join those without a rounding mode.

Which ones it joins is the compiler's choice. Here it is every product that has one use, in its own
basic block.
"""

import dataclasses
import re
from collections import Counter, defaultdict

from .text import Instruction, Kernel


def contracted(kernel: Kernel) -> Kernel:
    """The kernel with sums of products as `fma.joined`, which `arithmetic` knows."""
    code = list(kernel.instructions)
    uses, written = Counter(), defaultdict(list)
    for k, instruction in enumerate(code):
        uses.update(instruction.registers_read())
        for name in re.findall(r"%[\w$@]+", "".join(instruction.operands[:1])):
            written[name].append(k)
    branches = {k + 1 for k, instruction in enumerate(code) if instruction.opcode == "bra"}
    starts = {*kernel.labels.values(), *branches}
    same_block = lambda first, last: not any(first < start <= last for start in starts)

    def product_of(register: str, before: int) -> Instruction | None:
        places = written[register]
        if len(places) != 1 or uses[register] != 1 or not places[0] < before:
            return None
        product = code[places[0]]
        if not re.fullmatch(r"mul(\.ftz)?\.f32", product.name) or product.predicate:
            return None
        factors_last = all(len(written[factor]) <= 1 for factor in product.operands[1:])
        return product if factors_last and same_block(places[0], before) else None

    for k, total in enumerate(code):
        if not re.fullmatch(r"(add|sub)(\.ftz)?\.f32", total.name) or total.predicate:
            continue
        target, *terms = total.operands
        for place in (0, 1):
            if (product := product_of(terms[place], k)) is None:
                continue
            signs = "".join(
                sign
                for sign, negative in (("-p", place == 1), ("-c", place == 0))
                if negative and total.opcode == "sub"
            )
            operands = (target, *product.operands[1:], terms[1 - place])
            code[k] = dataclasses.replace(total, name=f"fma.joined{signs}.f32", operands=operands)
            break
    return dataclasses.replace(kernel, instructions=tuple(code))
