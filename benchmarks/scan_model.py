"""Cycles and microseconds of the selective scan on GPUs, modelled from machine code, not measured.

One case of a checkout, in some seven seconds:

    python benchmarks/scan_model.py --tree . --implementations pallas_mosaic --plans auto \\
        --chips H200 --passes gradient --options plain --sizes 8,1024,1536,16 --out model.json

Every kernel is compiled for a GPU that need not be there (scan_code.py). One warp is followed
through its machine code, with all loops (sass_trace.py), and a model issues the instructions of the
warps that share a scheduler (latency.py; its `Assumptions` are printed, and set by --assume). Per
kernel it prints instructions and exponentials per step and state, registers, shared memory,
occupancy, cycles per step, and what a lone warp waits for; per case microseconds, which are at
least what the memory's bandwidth allows, and a gradient's temporary memory. Launches and XLA's own
small operations are left out. jax-linear-attention is compiled alike, where it is installed; of
mamba_ssm the table has the counts.

Needs the extra `gpu-check`. No version of jax compiles every implementation: Triton's kernels need
jax before 0.11, Mosaic's 0.11.2 or newer; name other interpreters with --python.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import kernel_model
import report
from latency import Assumptions
from scan_cases import Size, traffic
from scan_code import OURS, RIVAL, Settings

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import check_output_file
from sisma_jax.kernels.selective_scan.pallas import mosaic, triton
from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS

ROOT = Path(__file__).parents[1]
IMPLEMENTATIONS = (*OURS, RIVAL)
SIZES = ("8,1024,1536,16", "64,1024,1536,16", "1,1024,1536,16", "1,4096,1536,16")
HEAD = "modelled, not measured"

PEER = {"forward": 19.1, "backward": 57.0, "backward_atomics": 2}
"""Instructions per step and state, and atomic operations, of mamba_ssm's CUDA kernels for bfloat16,
counted in machine code for sm_90."""


def parse() -> argparse.Namespace:
    parser = report.parser("scan_model.py", __doc__)
    add = parser.add_argument
    add("--tree", type=cli.path, default=ROOT, help="the checkout to model (default: this one)")
    add("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS,
        metavar="NAME", help="(default: %(default)s)")  # fmt: skip
    add("--plans", nargs="+", metavar="PLAN",
        help="places in the backend's list of plans (Mosaic: 0 to 5 for 1 to 32 segments), or auto "
        "for the launch plan's choice "
        "(default: auto, and for the first size every plan)")  # fmt: skip
    add("--chips", nargs="+", choices=CHIPS, default=["H200", "A100", "RTX 4090"], metavar="CHIP",
        help="(default: %(default)s)")  # fmt: skip
    add("--passes", nargs="+", choices=("forward", "gradient"), default=["forward", "gradient"],
        help="gradient: forward and backward (default: %(default)s)")  # fmt: skip
    add("--options", nargs="+", choices=("plain", "full"), default=["plain", "full"],
        help="full: with z, D, delta_bias and softplus (default: %(default)s)")  # fmt: skip
    add("--ordered", action="store_true", help="with a scan order (not by jax-linear-attention)")
    add("--sizes", nargs="+", metavar="B,L,D,N", default=SIZES,
        help="batch, length, channels, states (default: %(default)s)")  # fmt: skip
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="of u, delta, B, C and z (default: %(default)s)")  # fmt: skip
    add("--python", nargs="+", default=[], metavar="NAME=PATH",
        help="interpreters that compile an implementation, by default this one")  # fmt: skip
    add("--assume", nargs="+", default=[], metavar="NAME=CYCLES", help="other assumptions")
    add("--out", type=cli.path, default=report.RESULTS / "scan_model.json",
        help="(default: benchmarks/results/scan_model.json)")  # fmt: skip
    args = parser.parse_args()
    try:
        args.sizes = [Size.parse(text) for text in args.sizes]
        args.plans = args.plans and [_plan(text) for text in args.plans]
        args.assume = _assumptions(args.assume)
        args.python = _interpreters(args.python)
        _check_plans(args)
        check_output_file("--out", args.out)
    except (ValueError, InputError) as error:
        parser.error(str(error))
    if not (args.tree / "benchmarks" / "scan_code.py").exists():
        parser.error(f"--tree {args.tree} is no checkout: it has no benchmarks/scan_code.py")
    return args


def _check_plans(args: argparse.Namespace) -> None:
    counts = {one.name: len(one.plans) for one in (triton.BACKEND, mosaic.BACKEND)}
    for implementation in args.implementations:
        count = counts.get(implementation)
        for plan in args.plans or []:
            if count is not None and plan is not None and plan >= count:
                raise ValueError(
                    f"--plans {plan}: {implementation} has plans 0 to {count - 1}, and auto"
                )


def _plan(text: str) -> int | None:
    if text != "auto" and not text.isdigit():
        raise ValueError(f"--plans {text}: give numbers of plans, or auto")
    return None if text == "auto" else int(text)


def _assumptions(pairs: list[str]) -> Assumptions:
    names = [field.name for field in dataclasses.fields(Assumptions)]
    values = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in names or not value.isdigit():
            raise ValueError(f"--assume {pair}: give NAME=CYCLES with one of {', '.join(names)}")
        values[name] = int(value)
    return Assumptions(**values)


def _interpreters(pairs: list[str]) -> dict[str, str]:
    found = dict.fromkeys(IMPLEMENTATIONS, sys.executable)
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in IMPLEMENTATIONS:
            raise ValueError(f"--python {pair}: give NAME=PATH, NAME one of {IMPLEMENTATIONS}")
        if not shutil.which(path):
            raise ValueError(f"--python {pair}: {path!r} is no program")
        found[name] = path
    return found


def main() -> None:
    args = parse()
    print(f"{HEAD}; {args.assume}", flush=True)
    cases = [
        Settings(
            implementation=implementation, chip=chip, gradient=what == "gradient",
            full=options == "full", ordered=args.ordered, plan=plan,
            size=dataclasses.astuple(size), dtype=args.dtype,
        )
        for chip in args.chips
        for size in args.sizes
        for options in args.options
        for implementation in args.implementations
        if implementation != RIVAL or CHIPS[chip].capability == (9, 0)
        for plan in plans(args, implementation, size)
        for what in args.passes
    ]  # fmt: skip
    rows = [row(case, args, f"{i}/{len(cases)}") for i, case in enumerate(cases, 1)]
    print(summary(rows))
    if all(row["status"] != "modelled" for row in rows):
        raise SystemExit(
            "scan_model.py: nothing was modelled, so nothing is written; the first reason is: "
            f"{rows[0]['reason']}\nIt needs the extra gpu-check and a version of jax that compiles "
            "the implementation; name such an interpreter with --python NAME=PATH"
        )
    assumptions = dataclasses.asdict(args.assume)
    content = {"kind": HEAD, "assumptions": assumptions, "mamba_ssm": PEER, "rows": rounded(rows)}
    report.write(args.out, (), content)


def rounded(value: Any) -> Any:
    """The value with its numbers rounded to the three decimals of the report."""
    if isinstance(value, dict):
        return {name: rounded(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(x) for x in value]
    return round(value, 3) if isinstance(value, float) else value


def plans(args: argparse.Namespace, implementation: str, size: Size) -> list[int | None]:
    """Places of the plans to model in the backend's list; None is the launch plan's choice."""
    if implementation == RIVAL:
        return [None]
    if args.plans:
        return args.plans
    count = len({b.name: b for b in (triton.BACKEND, mosaic.BACKEND)}[implementation].plans)
    return [None, *(range(count) if size == args.sizes[0] else ())]


def row(settings: Settings, args: argparse.Namespace, progress: str) -> dict:
    """The settings, and what is modelled or the reason why nothing is; prints it."""
    print(f"{progress} {title(settings)} ({HEAD})", flush=True)
    result = {**dataclasses.asdict(settings), "status": "modelled"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = compile_case(settings, args, folder)
            kernels = []
            for found in compiled.pop("kernels"):
                kernel = kernel_model.read(found, compiled["tools"], CHIPS[settings.chip])
                kernels.append(
                    kernel_model.model(kernel, CHIPS[settings.chip], settings.size, args.assume)
                )
                print(line(kernels[-1]), flush=True)
        except (RuntimeError, ValueError) as error:
            print(f"    not modelled: {error}", flush=True)
            return result | {"status": "not modelled", "reason": str(error)}
    del compiled["tools"]
    kernels.sort(key=direction, reverse=True)  # forward first
    us = microseconds(settings, kernels)
    total = " + ".join(f"{value:.0f} ({kind})" for kind, value in us.items())
    memory = f", temporaries {compiled['temp_mib']:.0f} MiB" if settings.gradient else ""
    used = f", plans {' and '.join(compiled['plans'])}" if compiled["plans"] else ""
    print(f"    {total} us{memory}{used}", flush=True)
    return result | compiled | {"kernels": kernels, "us": us}


def compile_case(settings: Settings, args: argparse.Namespace, folder: str) -> dict:
    """The output of scan_code.py, whose files lie in `folder`.

    Raises:
      RuntimeError: with the reason, if the case cannot be compiled.
    """
    worker = Path(__file__).with_name("scan_code.py")
    done = subprocess.run(
        [args.python[settings.implementation], worker, json.dumps(dataclasses.asdict(settings)),
         folder],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(args.tree)},
    )  # fmt: skip
    if done.returncode:
        errors = [x for x in done.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", x)]
        raise RuntimeError((errors or done.stderr.splitlines() or ["no message"])[-1][:300])
    return json.loads(done.stdout.splitlines()[-1])


def microseconds(settings: Settings, kernels: list[dict]) -> dict[str, float]:
    """Microseconds of "forward" and, in a gradient, of "backward".

    They are the sum over the kernels, or what moving the bytes takes if that is more.
    """
    size = Size(*settings.size)
    least = traffic(size, settings.dtype, settings.full)
    sums: dict[str, float] = {}
    for kernel in kernels:
        kind = direction(kernel)
        sums[kind] = sums.get(kind, 0.0) + kernel["us"]
    bandwidth = CHIPS[settings.chip].bytes_per_second
    return {kind: max(us, 1e6 * least[kind] / bandwidth) for kind, us in sums.items()}


def direction(kernel: dict) -> str:
    """ "forward" or "backward", by the kernel's name."""
    return "backward" if re.search("backward|bwd|adjoint", kernel["name"]) else "forward"


def title(settings: Settings) -> str:
    plan = "" if settings.implementation == RIVAL else f", plan {plan_name(settings.plan)}"
    return (
        f"{settings.implementation}{plan}, {settings.chip}, "
        f"{'gradient' if settings.gradient else 'forward'}, "
        f"{'full' if settings.full else 'plain'}{', ordered' if settings.ordered else ''}, "
        f"{','.join(map(str, settings.size))}, {settings.dtype}"
    )


def plan_name(plan: int | None) -> str:
    return "auto" if plan is None else str(plan)


def line(kernel: dict) -> str:
    waits = list(kernel["waits_per_step_lone_warp"].items())
    text = (
        f"    {kernel['name']}: {kernel['instructions']:.2f} instructions and "
        f"{kernel['exponentials']:.2f} exponentials per (t, n), {kernel['registers']} registers, "
        f"{kernel['shared_kib']:.0f} KiB shared, {kernel['programs']} programs of "
        f"{kernel['warps_per_program']} warps, {kernel['programs_per_multiprocessor']} per SM; "
        f"{kernel['us']:.1f} us\n"
        f"      cycles a step: {kernel['cycles_per_step']:.0f} with "
        f"{kernel['warps_per_scheduler']} per scheduler; lone warp "
        f"{kernel['cycles_per_step_lone_warp']:.0f} = "
        + " + ".join(f"{cycles:.0f} {cause}" for cause, cycles in waits if cycles >= 0.5)
        + "\n      it keeps busy: "
        + ", ".join(f"{name} {cycles:.0f}" for name, cycles in kernel["busy_per_step"].items())
    )
    if undecided := kernel["branches_that_depend_on_data"]:
        text += f"\n      {undecided} branches that depend on data are taken as not taken"
    return text


def summary(rows: list[dict]) -> str:
    """A table of all cases, with the counts of mamba_ssm."""
    lines = [
        "",
        f"{HEAD}: instructions per (t, n), microseconds, temporary memory",
        f"{'implementation':>20} {'plan':>4} {'chip':>8} {'size':>15} {'options':>7} {'pass':>8} "
        f"{'instr fwd':>9} {'bwd':>5} {'us fwd':>7} {'bwd':>6} {'sum':>6} {'MiB':>6}",
    ]
    for row in rows:
        start = (
            f"{row['implementation']:>20} {plan_name(row['plan']):>4} {row['chip']:>8} "
            f"{','.join(map(str, row['size'])):>15} {'full' if row['full'] else 'plain':>7} "
            f"{'gradient' if row['gradient'] else 'forward':>8} "
        )
        if row["status"] != "modelled":
            lines.append(start + f"not modelled: {row['reason'][:60]}")
            continue
        count = {
            kind: sum(k["instructions"] for k in row["kernels"] if direction(k) == kind)
            for kind in ("forward", "backward")
        }
        us = row["us"]
        backward = (f"{count['backward']:.1f}", f"{us.get('backward', 0):.0f}")
        backward = backward if row["gradient"] else ("-", "-")
        lines.append(
            f"{start}{count['forward']:>9.1f} {backward[0]:>5} {us['forward']:>7.0f} "
            f"{backward[1]:>6} {sum(us.values()):>6.0f} {row['temp_mib']:>6.0f}"
        )
    lines.append(
        f"{'mamba_ssm':>20} {'':>4} {'sm_90':>8} {'':>15} {'':>7} {'gradient':>8} "
        f"{PEER['forward']:>9} {PEER['backward']:>5.0f}  and {PEER['backward_atomics']} atomic "
        "operations backward; only counted"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
