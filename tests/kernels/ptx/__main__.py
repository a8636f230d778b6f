import argparse
import dataclasses
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported

from .cases import BACKENDS, Case, Check, covering
from .programs import Execution


def case(text: str) -> Case:
    """A case from `field=value,...`."""
    kinds = {field.name: field.type for field in dataclasses.fields(Case)}
    values = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise argparse.ArgumentTypeError(f"no field {name!r}; choose {', '.join(kinds)}")
        if kinds[name] is str:
            values[name] = value
        elif value == "None":
            values[name] = None
        else:
            values[name] = int(value)
    return Case(**values)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.ptx")
    parser.add_argument("implementation", choices=BACKENDS)
    parser.add_argument("case", type=case, nargs="*", help="batch=1,length=37,channels=5,state=4")
    parser.add_argument("--seed", type=int, help="of the errors of approximate instructions")
    parser.add_argument("--contract", action="store_true", help="fuse products and sums")
    parser.add_argument("--notes", action="store_true", help="print what is harmless, too")
    options = parser.parse_args()
    wrong = 0
    for one in options.case or covering(options.implementation):
        start = time.monotonic()
        check = Check(one, options.implementation)
        errors, faults, notes = check(Execution(seed=options.seed, contract=options.contract))
        name, worst = max(errors.items(), key=lambda item: item[1])
        bad = worst > 1 or bool(faults)
        wrong += bad
        print(
            f"{'WRONG' if bad else 'right'} {one}: error of {name} {worst:.2f} of what is allowed, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
        for text, times in {**faults, **(notes if options.notes else {})}.items():
            print(f"  {times} x {text}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
