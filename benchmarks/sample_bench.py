"""Synthesis: seconds per image, arithmetic and memory, with --peers also of other models.

    python benchmarks/sample_bench.py --workdir runs/demo
    python benchmarks/sample_bench.py --size large --batches 1 16 --guidance 1 1.5 --peers

Measures the same as `python -m sisma_jax.evaluate --metrics speed,peers`: synthesis with and
without the decoder, of a trained run or of random weights, which take the same time; with --peers
also an attention twin over the number of tokens, and an image of SISMA `large`, SCA-DM, CA2-SIS and
an SDM-shaped U-Net. Prints tables and writes JSON.
"""

import argparse
import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import report
from train_bench import SIZES
from train_case import TINY, model_config

from sisma_jax import Synthesizer
from sisma_jax.common import cli
from sisma_jax.devices.sharding import local_mesh, replicated
from sisma_jax.evaluation import peers
from sisma_jax.evaluation.speed import measure_speed, speed_tables
from sisma_jax.evaluation.tables import Table
from sisma_jax.flows import rectified
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig, parameter_shapes
from sisma_jax.models.sisma.model import init_params

SDM = "sdm"


def parse() -> argparse.Namespace:
    on_cpu = jax.default_backend() == "cpu"
    size, dtype = ("tiny", "float32") if on_cpu else ("large", "bfloat16")
    parser = report.parser("sample_bench.py", __doc__)
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--workdir", type=cli.path, metavar="RUN", help="run folder of a trained model"
    )
    model.add_argument("--size", choices=SIZES, default=size,
        help=f"or random weights of this size (default: {size})")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16"),
        help=f"compute type (default: the run's, else {dtype})")  # fmt: skip
    add("--steps", nargs="+", type=int, default=[25], metavar="N", help="(default: 25)")
    add("--solvers", nargs="+", choices=rectified.SOLVERS, default=["euler"], metavar="NAME",
        help=f"some of {', '.join(rectified.SOLVERS)} (default: euler)")  # fmt: skip
    add("--guidance", nargs="+", type=float, default=[1.0], metavar="S", help="(default: 1)")
    add("--batches", nargs="+", type=int, default=[1, 16], metavar="N",
        help="masks per call (default: 1 16)")  # fmt: skip
    add("--seconds", type=float, default=2.0, help="seconds per measurement (default: 2)")
    add("--peers", action="store_true", help="time an attention twin and other systems, too")
    add("--tokens", nargs="*", type=int, default=list(peers.TOKENS), metavar="N",
        help="tokens of the twins, square numbers (default: 256 1024 4096 16384)")  # fmt: skip
    systems = [*peers.SYSTEMS, SDM]
    add("--systems", nargs="*", choices=systems, default=systems, metavar="NAME",
        help=f"systems at their full size (default: {' '.join(systems)})")  # fmt: skip
    add("--patience", type=float, default=60.0,
        help="limit in seconds for the steps of a system (default: 60)")  # fmt: skip
    add("--out", type=cli.path, help="JSON file (default: results/sample_<device>.json)")
    args = parser.parse_args()
    args.dtype = args.dtype or (None if args.workdir else dtype)
    report.check_positive(parser, args, "steps", "batches", "tokens", "seconds", "patience")
    if not all(0 <= guidance < math.inf for guidance in args.guidance):
        parser.error(f"--guidance {args.guidance}: give 0 or more (1 is the plain model)")
    if any(math.isqrt(tokens) ** 2 != tokens for tokens in args.tokens):
        parser.error(f"--tokens {args.tokens}: give square numbers")
    return args


def trained(workdir: Path, dtype: str | None) -> Synthesizer:
    synthesizer = Synthesizer.load(workdir)
    if dtype is None:
        return synthesizer
    autoencoder = synthesizer.autoencoder
    sizes = dataclasses.replace(autoencoder.config, dtype=dtype)
    return dataclasses.replace(
        synthesizer,
        config=dataclasses.replace(synthesizer.config, dtype=dtype),
        autoencoder=dataclasses.replace(autoencoder, config=sizes),
    )


def random(size: str, dtype: str) -> Synthesizer:
    """A synthesizer with random weights, and an autoencoder of the factor it needs."""
    config = model_config(size, dtype=dtype)
    is_tiny = config.factor == TINY["factor"]
    sizes = (AutoencoderConfig.tiny if is_tiny else AutoencoderConfig.stable_diffusion)(dtype=dtype)
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    weights = peers.random_weights((shapes, Autoencoder(sizes, parameter_shapes(sizes))))
    return Synthesizer(config, *jax.device_put(weights, replicated(local_mesh())))


def show(tables: list[Table]) -> None:
    for table in tables:
        print(table.markdown(), flush=True)


def main() -> None:
    args = parse()
    synthesizer = (
        trained(args.workdir, args.dtype) if args.workdir else random(args.size, args.dtype)
    )
    speed = measure_speed(
        synthesizer,
        steps=args.steps,
        solvers=args.solvers,
        guidances=args.guidance,
        batches=args.batches,
        seconds=args.seconds,
    )
    show(speed_tables(speed))
    results = {
        "weights": str(args.workdir) if args.workdir else "random",
        "model": dataclasses.asdict(synthesizer.config),
        "speed": speed,
    }
    if args.peers:
        results["peers"] = peers.measure_peers(
            synthesizer.config,
            tokens=args.tokens,
            systems=[peers.SYSTEMS[name] for name in args.systems if name != SDM],
            sdm=peers.PUBLISHED_SDM if SDM in args.systems else None,
            dtype=args.dtype,
            patience=args.patience,
        )
        show(peers.peer_tables(results["peers"]))
    out = args.out or report.RESULTS / f"sample_{report.slug(speed['device'])}.json"
    report.write(out, ("jax", "jaxlib", "flax"), results)


if __name__ == "__main__":
    cli.run(main)
