"""How a kernel is launched, read from what XLA and Mosaic GPU print of it."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Launch:
    grid: tuple[int, int, int]
    threads: int
    """Threads per program."""
    shared: int
    """Bytes of dynamic shared memory."""
    parameters: tuple[int, ...]
    """The place of each of the kernel's parameters among the inputs and outputs."""


def of_triton(thunks: str, entry: str, arrays: int) -> Launch:
    """The launch in XLA's list of thunks, where a kernel gets its inputs and outputs in order."""
    pattern = r" grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), 1, 1\]\s+shared_memory: (\d+)"
    (found,) = re.findall(rf"\b{entry}{pattern}", thunks)
    x, y, z, threads, shared = map(int, found)
    return Launch((x, y, z), threads, shared, tuple(range(arrays)))


def of_mosaic(passes: str) -> Launch:
    """The launch in the printed passes, by evaluating the host's program that prepares it."""
    begin = passes.index("IR Dump Before SCFToControlFlowPass")
    text = passes[begin : passes.index("gpu.module", begin)]
    values = _evaluated(text)
    launch = re.search(
        r"gpu\.launch_func.*?blocks in \((.*?)\) threads in \((.*?)\)"
        r"(?:\s+dynamic_shared_memory_size (%\w+))?\s+args\((.*?)\)",
        text,
    )
    numbers = lambda names: tuple(values[name.strip()] for name in names.split(","))
    threads, *others = numbers(launch[2])
    if others != [1, 1]:
        raise NotImplementedError(f"programs of {threads} x {others} threads")
    names = re.findall(r"(%\w+) : !llvm\.ptr", launch[4])
    return Launch(
        grid=numbers(launch[1]),
        threads=threads,
        shared=values[launch[3]] if launch[3] else 0,
        parameters=numbers(",".join(names)),
    )


def _evaluated(text: str) -> dict[str, int]:
    """Constants by name, and of pointers to inputs and outputs which of them it is.

    The pointers are loaded from a table, which is the function's second argument.
    """
    (table,) = re.findall(r"func\.func @\w+\(%\w+: !llvm\.ptr.*?, (%\w+): !llvm\.ptr", text)
    constants = re.findall(r"(%\w+) = arith\.constant (\d+) :", text)
    places = {table: 0}
    for name, place in re.findall(rf"(%\w+) = llvm\.getelementptr {table}\[(\d+)\] :", text):
        places[name] = int(place)
    loads = re.findall(r"(%\w+) = llvm\.load (%\w+) : !llvm\.ptr -> !llvm\.ptr", text)
    found = {name: int(value) for name, value in constants}
    return found | {name: places[source] for name, source in loads if source in places}
