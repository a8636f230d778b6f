"""Overhead of the training loop over the step: reading, placing, logging, saving.

    python benchmarks/loop_bench.py

The step is replaced by a sleep of the host, during which the machine is free for the loop's
threads, as while an accelerator computes. The loop reads cached latents in batches of 64, logs and
saves; its time per step is compared with that of such steps alone on one batch. The two alternate.
Prints the overhead and writes JSON.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from data_bench import latent_cache, prepare
from jax.sharding import Mesh
from train_case import train_config

from sisma_jax.common import cli
from sisma_jax.common.processes import cores
from sisma_jax.data import layouts, synthetic
from sisma_jax.data.config import DataConfig
from sisma_jax.data.input_pipeline import fixed_batch
from sisma_jax.data.latents import LatentCache
from sisma_jax.devices.sharding import MeshConfig, make_mesh, put_batch
from sisma_jax.runs.checkpoint import CheckpointConfig
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import TrainState
from sisma_jax.training import loop
from sisma_jax.training.program import Trainable, assemble
from sisma_jax.training.state import make_optimizer

FACES, SIZE = 256, 256


def parse() -> argparse.Namespace:
    parser = report.parser("loop_bench.py", __doc__)
    add = parser.add_argument
    add("--milliseconds", type=float, default=50.0, help="duration of the sleep (default: 50)")
    add("--batch-size", type=int, default=64, help="(default: 64)")
    add("--steps", type=int, default=400, help="steps per measurement (default: 400)")
    add("--repeats", type=int, default=3, help="measurements per median (default: 3)")
    add("--parameters", type=int, default=10_000_000,
        help="of the model; the state has four times as many (default: 10 million)")  # fmt: skip
    add("--threads", type=int, default=1, help="threads that read ahead (default: 1)")
    add("--log-every", type=int, default=50, help="in steps (default: 50)")
    add("--save-every", type=int, default=200, help="in steps (default: 200)")
    add("--out", type=cli.path, default=report.RESULTS / "loop_cpu.json", help="JSON file")
    return parser.parse_args()


def sleeping_step(seconds: float) -> Callable[..., tuple[Any, dict]]:
    """A step that sleeps and then only counts."""

    @jax.jit
    def count(state, batch):
        read = jnp.sum(batch["labels"][:, 0, 0].astype(jnp.float32))
        zero = jnp.zeros((), jnp.int32)
        metrics = {"loss": read, "gradient_norm": read, "learning_rate": read}
        return state + 1, metrics | {"skipped": zero, "skipped_in_a_row": zero}

    def step(state, batch):
        time.sleep(seconds)
        number, metrics = count(state.step, batch)
        return state.replace(step=number), metrics

    return step


def cached_faces(folder: Path) -> LatentCache:
    synthetic.write_dataset(folder / "raw", count=FACES, size=SIZE, seed=0)
    layout = layouts.survey(folder / "raw", test_from=10**9)
    prepare(layout, folder / "shards", SIZE, cores())
    return latent_cache(folder / "shards", folder / "latents")


def main() -> None:
    args = parse()
    step = sleeping_step(args.milliseconds / 1e3)
    config = train_config(steps=args.steps, batch_size=args.batch_size, log_every=args.log_every)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    times: dict[str, list[float]] = {"step": [], "loop": []}
    with tempfile.TemporaryDirectory() as folder:
        source = cached_faces(Path(folder))
        data = DataConfig(
            path="",
            size=SIZE,
            test_from=0,
            flip="exchange",
            threads=args.threads,
            synthetic_count=0,
        )
        task = loop.Task(
            trainable=Trainable(
                init_params=lambda: {"w": jnp.zeros((args.parameters // 1000, 1000))},
                optimizer=make_optimizer(config, lambda path, leaf: ((0,), (1,))),
                draw=lambda key, batch: {},
                loss_fn=lambda params, batch: (jnp.sum(params["w"]), {}),
            ),
            feed=data.feed(source, mesh, batch_size=args.batch_size, seed=0),
            sample_grid=lambda ema: np.zeros((4, 4, 3), np.uint8),
            macs=10**9,
        )
        for repeat in range(args.repeats):
            times["step"].append(alone(step, source, mesh, args))
            run = RunFolder(Path(folder) / f"run_{repeat}")
            run.path.mkdir()
            marks = Marks(step)
            # The sleep in place of the compiled step.
            loop.assemble = lambda trainable, marks=marks, **settings: dataclasses.replace(
                assemble(trainable, **settings), jitted_step=marks
            )
            loop.train(
                run=run,
                config=config,
                checkpoint=CheckpointConfig(every=args.save_every, keep=2, keep_every=0),
                mesh=mesh,
                record={"seed": 0, "config": {}, "data": None},
                task=task,
            )
            times["loop"].append(marks.per_step())
    medians = {name: statistics.median(values) for name, values in times.items()}
    overhead = medians["loop"] / medians["step"] - 1
    print(f"step {1e3 * medians['step']:.2f} ms, in the loop {1e3 * medians['loop']:.2f} ms")
    print(f"overhead {overhead:.2%}")
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    content = {"settings": settings, "seconds_per_step": times, "overhead": overhead}
    report.write(args.out, ("jax", "grain", "orbax-checkpoint"), content)


def alone(step: Callable[..., tuple[Any, dict]], source: LatentCache, mesh: Mesh, args) -> float:
    """Seconds per step, on one batch that is already on the devices."""
    batch = put_batch(fixed_batch(source, args.batch_size), mesh)
    state = TrainState(jnp.zeros((), jnp.int32), None, None, None, None, None)
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for _ in range(args.steps):
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
    return (time.perf_counter() - began) / args.steps


class Marks:
    """A step that records its start times; saves and logs lie between the second and the last."""

    def __init__(self, step: Callable[..., tuple[Any, dict]]) -> None:
        self.step, self.times = step, []

    def __call__(self, *arguments: Any) -> tuple[Any, dict]:
        self.times.append(time.perf_counter())
        return self.step(*arguments)

    def per_step(self) -> float:
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


if __name__ == "__main__":
    cli.run(main)
