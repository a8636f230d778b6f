"""Plans of training steps on GPUs that are not there: memory, arithmetic, bytes, a bound on time.

    python benchmarks/plan_bench.py

Nothing is measured. The whole step (draws, loss, gradient, clip, AdamW, average) of the variants of
configs/celeba.py, from cached latents, and of configs/ca2sis.py, with its discriminator and VGG-19,
is compiled for an H200 as far as XLA's final program: its buffers are assigned, its kernels are
known, and the machine code is left out, which would take four fifths of the time. From it are read

  temporaries, arguments   bytes of the buffers besides the state, and of the state and the batch
  flops, special, bytes    by `compiled_text`, with loops as often as they run
  kernels, launches        kernels of the program, and how many run in a step
  roofline                 a lower bound on the time on each card, by `roofline`

XLA is told of unlimited memory, so that no program is changed to need less. Workspaces of cuBLAS
and cuDNN are chosen on the card and are not contained.

SISMA's blocks are a loop, so these figures are linear in the batch and in the tokens of an image,
and what remains at batch 0 is proportional to the parameters. So only these are compiled: `large`
at two batches with each `model.remat`, and `small`, `base` and `xlarge` at one batch with "dots".
The other batches, 512 and 1024 are derived, and so are the other policies of the other variants,
whose ratios to `large` are taken to be those with "dots". The checks compile some of the derived
steps, the same step for the other cards, and once also the machine code, and give the differences
(`--checks`). Of CA2-SIS nothing is derived: the variant `ca2sis` is its published batch of 16 with
each `model.remat`, and with the policy of its config in some numbers of parts.

A plan fits a card if temporaries and arguments are at most the share of its memory that JAX takes
by default, 75 %.

Compiled steps are kept in the JSON file and are not compiled again; --again compiles them anew.
Needs the extra `gpu-check`. Half a minute of one core for each step on an idle machine.
"""

import functools
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import jax
import report
from compiled_text import Program
from plan_case import CA2SIS, config_of, model_config
from roofline import matmul_rate, scan_kind, seconds, with_scans

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import check_output_file, read_json
from sisma_jax.configs import celeba
from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS
from sisma_jax.models import SISMAConfig
from sisma_jax.models.ca2sis.config import REMATS
from sisma_jax.models.generators import Config, generator
from sisma_jax.models.sisma.config import REMAT_POLICIES
from sisma_jax.models.sisma.model import init_params

CARDS = {"H200": "H200", "A100-80": "A100", "RTX 4090": "RTX 4090"}
"""Names of the cards in `CHIPS`."""
VARIANTS = ("small", "base", "large", "xlarge", "512", "1024", CA2SIS)
BATCHES = (16, 32, 64, 128, 256)
LOW, HIGH = 16, 64
"""The batches of `large` that are compiled; the others are compiled at HIGH."""
DERIVED = ("512", "1024")
PARTS = (2, 4)
"""Values of `train.accumulate` besides 1 with which CA2-SIS's step is compiled."""
POLICY = "dots"
"""The policy at which `small`, `base` and `xlarge` are compiled."""
Figure = Callable[[dict], float]
"""A figure of a compiled row."""
SHARE = 0.75
"""The share of a card's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION is set."""
STATE = 16
"""Bytes of the state for each parameter: itself, two moments and the average, in float32."""
CASE = Path(__file__).with_name("plan_case.py")
CASE_NAMES = ("variant", "card", "remat", "batch", "accumulate")
LINEAR = ("temporaries", "flops", "special", "bytes")


def parse():
    parser = report.parser("plan_bench.py", __doc__)
    add = parser.add_argument
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
        help=f"variants of configs/celeba.py, of which `large` is always compiled, and {CA2SIS}"
        )  # fmt: skip
    add("--remat", nargs="+", choices=REMAT_POLICIES, default=list(REMAT_POLICIES),
        metavar="POLICY")  # fmt: skip
    add("--batches", nargs="+", type=int, default=list(BATCHES), metavar="N",
        help="batches to print; the file has these and the default ones")  # fmt: skip
    add("--checks", action="store_true", help="also compile what the other figures rest on")
    add("--again", action="store_true", help="compile again what the JSON file has")
    add("--out", type=cli.path, default=report.RESULTS / "plan.json",
        help="JSON file (default: results/plan.json)")  # fmt: skip
    args = parser.parse_args()
    if min(args.batches) < 1:
        parser.error(f"--batches {args.batches}: give numbers above 0")
    try:
        check_output_file("--out", args.out)
    except InputError as error:
        parser.error(str(error))
    if args.out.exists() and compiled_rows(args.out) is None:
        parser.error(f"--out {args.out} is no report of plan_bench.py: name another file")
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        parser.error("compiling for a GPU needs its compiler: pip install -e '.[gpu-check]'")
    return args


def compiled_rows(path: Path) -> list[dict] | None:
    """The compiled steps of a report of this benchmark; None if the file is anything else."""
    content = read_json(path)
    rows = content.get("compiled") if isinstance(content, dict) else None
    return rows if isinstance(rows, list) else None


def compiled(case: dict, whole: bool = False) -> dict:
    """Compile a step in another process, and read its plan.

    Args:
      case: arguments of `plan_case.main`.
      whole: with the machine code; otherwise the process is ended when the program is planned.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        dump, said = Path(folder), Path(folder, "said")
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_step"
        if case["variant"] == CA2SIS:
            # Without a card XLA gives all its Triton products one tile, which fits not all here.
            flags += " --xla_gpu_enable_triton_gemm=false"
        process = subprocess.Popen(
            [sys.executable, str(CASE), json.dumps(case)],
            stdout=subprocess.PIPE if whole else subprocess.DEVNULL, text=True,
            stderr=said.open("w", encoding="utf-8"),
            env=os.environ | {"XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        # The first kernel's code is written after the plan.
        planned = lambda: any(dump.glob("*jit_step*.ll")) or any(dump.glob("*jit_step*.ptx"))
        while process.poll() is None and (whole or not planned()):
            time.sleep(0.2)
        if process.poll() is None:
            process.kill()
        told = process.communicate()[0]
        buffers = next(dump.glob("*after_optimizations-buffer-assignment.txt"), None)
        if buffers is None:
            lines = [line for line in said.read_text("utf-8").splitlines() if line.strip()]
            raise SystemExit(f"{case} was not compiled: {lines[-1] if lines else 'no message'}")
        text = buffers.read_text("utf-8").split("Used values:")[0]
        program = next(dump.glob("*gpu_after_optimizations.txt")).read_text("utf-8")
    sizes = lambda kind: sum(
        map(int, re.findall(rf"^allocation \d+: size (\d+), {kind}", text, re.MULTILINE))
    )
    config = model_config(case["variant"], case["remat"])
    updates = 0
    if isinstance(config, SISMAConfig):  # of one scan of one pass
        rows = case["batch"] // case.get("accumulate", 1)
        updates = rows * prod(config.grid) * config.expand * config.width * config.state
    kernels = with_scans(Program(program).kernels, updates)
    total = lambda name: sum(kernel.runs * getattr(kernel, name) for kernel in kernels)
    scans = lambda kind: sum(kernel.runs for kernel in kernels if scan_kind(kernel) == kind)
    return {
        **case,
        "temporaries": sizes("preallocated-temp"),
        "arguments": sizes("parameter"),
        "flops": total("flops"),
        "special": total("special"),
        "bytes": total("bytes"),
        "kernels": len(kernels),
        "launches": sum(kernel.runs for kernel in kernels),
        "scans_forward": scans("forward"),
        "scans_backward": scans("backward"),
        "bounds_ms": {
            card: {
                name: round(1e3 * value, 3)
                for name, value in seconds(kernels, CHIPS[chip], updates, config.dtype).items()
            }
            for card, chip in CARDS.items()
        },
        "wall_seconds": round(time.perf_counter() - began, 1),
        **({"by_memory_analysis": json.loads(told.splitlines()[-1])} if whole else {}),
    }


@functools.cache
def parameters(variant: str) -> int:
    config = model_config(variant, "none")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def arguments(variant: str, config: SISMAConfig, batch: int) -> int:
    moments = 2 * 2 * config.latent_channels * config.latent_size**2
    return STATE * parameters(variant) + batch * (moments + config.image_size**2)


class Plans:
    """Figures of any variant and batch, from the compiled ones."""

    def __init__(self, rows: list[dict]) -> None:
        key = lambda row: (row["variant"], row["remat"], row["batch"])
        bases = cases(VARIANTS, REMAT_POLICIES)
        planned = [row for row in rows if is_planned(row) and case_of(row) in bases]
        self.rows = {key(row): row for row in planned if row["variant"] != CA2SIS}
        self.of_ca2sis = [row for row in planned if row["variant"] == CA2SIS]

    def exact(self) -> list[dict]:
        """The rows of CA2-SIS, each from its own compiled step."""
        rows = []
        for row in self.of_ca2sis:
            config = model_config(row["variant"], row["remat"])
            needed = row["temporaries"] + row["arguments"]
            exact = lambda figure, row=row: figure(row)
            figures = {name: row[name] for name in (*LINEAR, "arguments")}
            figures["cards"] = {
                card: self._card(card, chip, config, row["batch"], needed, exact)
                for card, chip in CARDS.items()
            }
            case = {name: value for name, value in case_of(row).items() if name != "card"}
            rows.append(case | {"from": "compiled"} | figures)
        return rows

    def at(self, variant: str, remat: str, batch: int) -> dict | None:
        """One row of SISMA's, or None if what it is derived from is not compiled."""
        low, high = (self.rows.get(("large", remat, count)) for count in (LOW, HIGH))
        if low is None or high is None:
            return None
        config = model_config(variant, remat)
        size = parameters(variant) / parameters("large")
        tokens = prod(config.grid) / prod(model_config("large", remat).grid)
        rates = tokens if variant in DERIVED else self._rates(variant, size)
        if rates is None:
            return None

        def line(figure) -> float:
            rate = (figure(high) - figure(low)) / (HIGH - LOW)
            fixed = size * (figure(low) - LOW * rate)
            return fixed + batch * rate * (rates if variant in DERIVED else rates(figure))

        exact = (variant, remat, batch) in self.rows
        found = {name: round(line(lambda row, name=name: row[name])) for name in LINEAR}
        found |= {"arguments": arguments(variant, config, batch)}
        needed = found["temporaries"] + found["arguments"]
        found["cards"] = {
            card: self._card(card, chip, config, batch, needed, line)
            for card, chip in CARDS.items()
        }
        case = {"variant": variant, "remat": remat, "batch": batch}
        return case | {"from": "compiled" if exact else "derived"} | found

    def _rates(self, variant: str, size: float) -> Callable[[Figure], float] | None:
        """Return a function of a figure: the ratio of what one image adds to it, to `large`'s."""
        needed = (("large", LOW), ("large", HIGH), (variant, HIGH))
        low, high, own = (self.rows.get((name, POLICY, batch)) for name, batch in needed)
        if low is None or high is None or own is None:
            return None

        def ratio(figure: Figure) -> float:
            rate = (figure(high) - figure(low)) / (HIGH - LOW)
            fixed = size * (figure(low) - LOW * rate)
            return (figure(own) - fixed) / HIGH / rate

        return ratio

    @staticmethod
    def _card(card: str, chip: str, config: Config, batch: int, needed: int, line) -> dict:
        bounds = {
            name: line(lambda row, name=name: row["bounds_ms"][card][name])
            for name in ("roofline", "matmul", "exponentials", "memory", "instructions")
        }
        rate = 1e3 * batch / bounds["roofline"]
        return {
            "fits": needed <= SHARE * CHIPS[chip].memory,
            **{f"{name}_ms": round(value, 1) for name, value in bounds.items()},
            "images_per_second": round(rate, 1),
            "mfu": round(
                6 * sum(generator(config).macs()) * rate / matmul_rate(CHIPS[chip], config.dtype), 3
            ),
        }

    def needed(self, variant: str, remat: str, batch: int, accumulate: int) -> int | None:
        """Bytes of a step in `accumulate` parts; their gradients are summed in float32."""
        row = self.at(variant, remat, batch // accumulate)
        if row is None:
            return None
        whole = arguments(variant, model_config(variant, remat), batch)
        return row["temporaries"] + whole + 4 * parameters(variant) * (accumulate > 1)

    def defaults(self) -> list[dict]:
        """Whether the defaults of configs/celeba.py fit the cards that it names."""
        rows = []
        for variant, parts in celeba.ACCUMULATE.items():
            config = celeba.get_config(variant)
            for card, accumulate in parts.items():
                plan = (config.model.remat, config.train.batch_size, accumulate)
                if (needed := self.needed(variant, *plan)) is not None:
                    case = dict(zip(("remat", "batch", "accumulate"), plan, strict=True))
                    limit = round(SHARE * CHIPS[CARDS[card]].memory)
                    sizes = {"needed": needed, "limit": limit, "fits": needed <= limit}
                    rows.append({"variant": variant, "card": card} | case | sizes)
        return rows

    def checked(self, rows: list[dict]) -> list[dict]:
        """Compiled checks beside what is derived for them."""
        found = []
        for row in rows:
            parts = row.get("accumulate", 1)
            if row["variant"] == CA2SIS or row in self.rows.values():
                continue
            derived = self.at(row["variant"], row["remat"], row["batch"] // parts)
            if derived is None:
                continue
            temporaries = derived["temporaries"] + 4 * parameters(row["variant"]) * (parts > 1)
            pairs = {"temporaries": (temporaries, row["temporaries"])}
            if whole := row.get("by_memory_analysis"):
                pairs["memory_analysis"] = (temporaries, whole["temporaries"])
            if parts == 1:
                pairs |= {name: (derived[name], row[name]) for name in ("flops", "bytes")}
            found.append(
                case_of(row)
                | {
                    name: {"derived": a, "compiled": b, "difference": round(a / b - 1, 4)}
                    for name, (a, b) in pairs.items()
                }
            )
        return found


def is_planned(row: dict) -> bool:
    """Whether a row's step was compiled as far as its plan only."""
    return "by_memory_analysis" not in row


def case_of(row: dict) -> dict:
    """The arguments of `plan_case.main` that a row was compiled with."""
    return {name: row[name] for name in CASE_NAMES if name in row}


def cases(variants: Sequence[str], remat: Sequence[str]) -> list[dict]:
    """The steps that the table is made from."""
    found = [("large", policy, batch) for policy in remat for batch in (HIGH, LOW)]
    if others := [name for name in variants if name not in ("large", *DERIVED, CA2SIS)]:
        found += [("large", POLICY, HIGH), ("large", POLICY, LOW)]
        found += [(name, POLICY, HIGH) for name in others]
    of_sisma = [
        {"variant": variant, "card": "H200", "remat": policy, "batch": batch}
        for variant, policy, batch in dict.fromkeys(found)
    ]
    return of_sisma + (cases_of_ca2sis(remat) if CA2SIS in variants else [])


def cases_of_ca2sis(remat: Sequence[str]) -> list[dict]:
    config = config_of(CA2SIS)
    step = {"variant": CA2SIS, "card": "H200", "batch": config.train.batch_size}
    found = [step | {"remat": policy} for policy in REMATS if policy in remat]
    default = config.model.remat
    parts = [step | {"remat": default, "accumulate": count} for count in PARTS]
    return found + (parts if default in remat else [])


def checks() -> list[tuple[dict, bool]]:
    """The steps that show what the table rests on, and whether they are compiled to the end."""
    default = celeba.get_config("large").model.remat
    large = {"variant": "large", "card": "H200", "remat": default, "batch": HIGH}
    return [
        (large | {"variant": "512", "batch": 8}, False),
        (large | {"variant": "base", "remat": "names"}, False),
        (large | {"variant": "small", "remat": "names"}, False),
        (large | {"variant": "xlarge", "remat": "none"}, False),
        (large | {"card": "A100"}, False),
        (large | {"card": "RTX 4090"}, False),
        (large | {"accumulate": 4}, False),
        (large | {"remat": "names", "accumulate": 2}, False),
        (large | {"batch": 256}, False),
        (large, True),
    ]


def line(row: dict) -> str:
    gigabytes = (row["temporaries"] / 1e9, row["arguments"] / 1e9)
    batch = f"{row['batch']}/{row['accumulate']}" if "accumulate" in row else row["batch"]
    start = (
        f"{row['variant']:>7} {row['remat']:>6} {batch:>5} {gigabytes[0]:>7.1f} "
        f"{gigabytes[1]:>6.1f} {row['flops'] / 1e12:>7.1f} {row['bytes'] / 1e9:>7.0f}"
    )
    cards = (
        f"{card['images_per_second']:>8.0f}{'' if card['fits'] else '*'} {card['mfu']:>6.1%}"
        for card in row["cards"].values()
    )
    return start + " " + " ".join(cards)


def main() -> None:
    args = parse()
    rows = [] if args.again else compiled_rows(args.out) or []

    def kept(case: dict, whole: bool) -> dict | None:
        found = (row for row in rows if case_of(row) == case and is_planned(row) != whole)
        return next(found, None)

    def table(variants: Sequence[str], remat: Sequence[str], batches: Sequence[int]) -> list[dict]:
        plans = Plans(rows)
        of_sisma = [name for name in variants if name != CA2SIS]
        every = itertools.product(of_sisma, remat, batches)
        found = [row for case in every if (row := plans.at(*case)) is not None]
        if CA2SIS in variants:
            found += [row for row in plans.exact() if row["remat"] in remat]
        return found

    def write() -> None:
        content = {"cards": {card: vars(CHIPS[chip]) for card, chip in CARDS.items()}}
        plans = Plans(rows)
        content |= {"share_of_memory": SHARE, "defaults": plans.defaults()}
        content |= {
            "checks": plans.checked(rows),
            "planned": table(VARIANTS, REMAT_POLICIES, sorted({*BATCHES, *args.batches})),
            "compiled": rows,
        }
        report.write(args.out, ("jax", "jaxlib", "flax", "optax", "jax-cuda12-plugin"), content)

    wanted = [(case, False) for case in cases(args.variants, args.remat)]
    if args.checks:
        wanted += checks()
    for case, whole in wanted:
        if kept(case, whole) is None:
            print(f"compiling {case}" + (" to the end" if whole else ""), flush=True)
            rows.append(compiled(case, whole))
            write()
    write()
    heads = " ".join(f"{card[:8]:>8} {'MFU':>6}" for card in CARDS)
    print(f"variant  remat batch temp GB arg GB   TFLOP      GB {heads}")
    for row in table(args.variants, args.remat, args.batches):
        print(line(row))
    print("images/s by the roofline, an upper bound; * does not fit the card; 16/2: in two parts")


if __name__ == "__main__":
    cli.run(main)
