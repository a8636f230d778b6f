"""PTX text as a list of instructions: the part of the language that XLA and Mosaic GPU emit."""

import dataclasses
import re
from functools import cached_property


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    """The instruction and all its suffixes."""
    operands: tuple[str, ...]
    """As written: a vector is `{a,b}`, a place in memory `[a+4]`."""
    predicate: str | None
    """The register that guards the instruction, with `!` where it is negated."""
    line: int
    text: str

    @cached_property
    def parts(self) -> list[str]:
        return self.name.split(".")

    @property
    def opcode(self) -> str:
        return self.parts[0]

    @property
    def place(self) -> str:
        """The line and its text, as messages state them."""
        return f"line {self.line}: {self.text}"

    @property
    def sources(self) -> tuple[str, ...]:
        """Operands that are read; in an address, the first one is read too."""
        no_result = ("st", "bra", "bar", "barrier", "cp")
        return self.operands if self.opcode in no_result else self.operands[1:]

    def registers_read(self) -> list[str]:
        guard = [self.predicate.lstrip("!")] if self.predicate else []
        return re.findall(r"%?[\w$@]+", " ".join(self.sources)) + guard


@dataclasses.dataclass(frozen=True)
class Kernel:
    name: str
    parameters: tuple[str, ...]
    """All of them addresses."""
    threads: int | None
    """Threads per program, where the text fixes them."""
    shared: dict[str, tuple[int, int]]
    """Alignment and bytes of variables in shared memory; 0 bytes are what the launch gives."""
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    """Index of the instruction behind each label."""


def kernels(text: str) -> dict[str, Kernel]:
    """All kernels of a PTX module by name."""
    outside = _shared(re.sub(r"\.entry.*?\n}\n", "", text, flags=re.S))
    found = {}
    for match in re.finditer(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\n\{\n(.*?)\n\}", text, re.S):
        name, parameters, attributes, body = match.groups()
        threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", attributes)
        instructions, labels = _body(body, 1 + text[: match.start(4)].count("\n"))
        found[name] = Kernel(
            name=name,
            parameters=tuple(re.findall(r"\.param.*?(\w+)\s*(?:,|$)", parameters, re.M)),
            threads=int(threads[1]) if threads else None,
            shared=outside | _shared(body),
            instructions=tuple(instructions),
            labels=labels,
        )
    return found


def _shared(text: str) -> dict[str, tuple[int, int]]:
    pattern = r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)(?:\[(\d*)\])?\s*;"
    found = re.findall(pattern, text)
    return {name: (int(align), int(size or 0)) for align, name, size in found}


_DIRECTIVE = re.compile(r"^\s*\.(loc|file|section|pragma)\b.*$", re.M)


def _body(body: str, first_line: int) -> tuple[list[Instruction], dict[str, int]]:
    # Comments and directives become empty, but lines keep their numbers.
    body = _DIRECTIVE.sub("", re.sub(r"//.*", "", body))
    statements, labels = [], {}
    scopes, names = [0], [set()]  # numbers of open scopes; the names that each one declares
    line, start, text = first_line, first_line, ""
    for piece in re.split(r"([;{}\n])", body):
        if not text.strip():
            start = line
        if piece == "\n":
            line += 1
            text += " "
        elif piece == "{" and not text.strip():
            scopes.append(len(names))
            names.append(set())
        elif piece == "}" and not text.strip():
            scopes.pop()
        elif piece == ";":
            statement, text = " ".join(text.split()), ""
            if statement.startswith(".reg"):
                declared = re.sub(r"^\.reg\s+\.\w+\s+", "", statement).split(",")
                names[scopes[-1]] |= {name.strip() for name in declared}
            elif statement and not statement.startswith(".shared"):
                statements.append((statement, start, tuple(scopes)))
        else:
            text += piece
            while label := re.match(r"\s*([\w$]+):(?!:)", text):
                text = text[label.end() :]
                names[scopes[-1]].add(label[1])
                labels[_scoped(label[1], scopes[-1])] = len(statements)
    # A scope's names may be used ahead of their declaration: labels are.
    return [_instruction(*statement, names) for statement in statements], labels


def _scoped(name: str, scope: int) -> str:
    """A name of inline assembly, which is one of many of the same name."""
    return f"{name}@{scope}" if scope else name


def _instruction(text: str, line: int, scopes: tuple[int, ...], names: list[set]) -> Instruction:
    if text.startswith("."):
        raise NotImplementedError(f"line {line}: {text}")

    def resolved(word: re.Match) -> str:
        inner = next((s for s in reversed(scopes) if s and word[0] in names[s]), 0)
        return _scoped(word[0], inner)

    def rename(text: str) -> str:
        if len(scopes) == 1:
            return text
        return re.sub(r"(?<![\w%$.])[%\w$]+(?![\w$])", resolved, text)

    rest, predicate = text, None
    if guard := re.match(r"@(!?)([%\w$]+)\s+", text):
        predicate, rest = guard[1] + rename(guard[2]), text[guard.end() :]
    name, _, rest = rest.partition(" ")
    operands = re.split(r",(?![^{]*\}|[^\[]*\])", rest) if rest else []
    return Instruction(
        name=name,
        operands=tuple(re.sub(r"\s+", "", rename(operand)) for operand in operands),
        predicate=predicate,
        line=line,
        text=text,
    )
