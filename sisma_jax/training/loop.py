"""The loop that trains any of the project's models: restore, step, log, sample, save.

A run is continued by running it again: state and data position come from the newest checkpoint, and
what follows equals an undisturbed run. SIGTERM and Ctrl-C finish the step at hand, save and return.
"""

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.data.image_files import save_png
from sisma_jax.files import write_atomically
from sisma_jax.training.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    abstract_like,
    averaged_weights,
)
from sisma_jax.training.logging import MetricsLog, Progress
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.sharding import (
    on_devices,
    replicated,
    state_shardings,
    under_mesh,
)
from sisma_jax.training.state import (
    LossFn,
    Metrics,
    Params,
    TrainConfig,
    TrainState,
    init_state,
    make_step,
)

Batches = Iterator[dict[str, np.ndarray]]
SampleGrid = Callable[[Params], UInt8[np.ndarray, "h w 3"]]


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a flag; a second one of either acts as it always does."""
    received = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])
        print(f"{signal.Signals(number).name}: saving after this step", flush=True)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    *,
    run: RunFolder,
    config: TrainConfig,
    checkpoint: CheckpointConfig,
    mesh: Mesh,
    seed: int,
    init_params: Callable[[], Params],
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    constants: tuple[Any, ...] = (),
    open_stream: Callable[..., Batches],
    sample_grid: SampleGrid,
) -> TrainState:
    """Train until `config.steps`, or until told to stop; return the last state, which is saved.

    Args:
      run: the folder, already claimed.
      config, checkpoint, mesh, seed: the sections of the config.
      init_params: makes new weights; traced.
      optimizer: made by `make_optimizer`.
      loss_fn: (params, batch, key, *constants) -> (loss, metrics).
      constants: arrays that the loss needs beside the batch (the frozen autoencoder).
      open_stream: (start: first batch number) -> closable iterator of this process's rows.
      sample_grid: averaged weights -> a picture for samples/ and TensorBoard.

    Raises:
      InputError: if there are checkpoints and none can be restored.
      FloatingPointError: if a loss or a gradient is not finite; that step is not saved.
    """
    with Checkpoints(run, checkpoint) as checkpoints:
        state = _restore_or_init(run, checkpoints, config, init_params, optimizer, mesh)
        start = int(state.step)
        if start >= config.steps:
            print(f"{run.path} is trained: step {start} of {config.steps}")
            return state
        if start:
            print(f"continuing {run.path} at step {start}")
        step_fn = _compile(make_step(loss_fn, optimizer, config, seed), state, mesh)
        constants = jax.device_put(constants, replicated(mesh))
        log = MetricsLog(run, start)
        batches = open_stream(start=start)
        try:
            with stop_requests() as stop_requested:
                placed = on_devices(batches, mesh)
                return _steps(
                    state, start, config, run, checkpoints, log, sample_grid, stop_requested,
                    lambda state: step_fn(state, next(placed), *constants),
                )  # fmt: skip
        finally:
            batches.close()
            log.close()


def _steps(
    state: TrainState,
    start: int,
    config: TrainConfig,
    run: RunFolder,
    checkpoints: Checkpoints,
    log: MetricsLog,
    sample_grid: SampleGrid,
    stop_requested: Callable[[], bool],
    advance: Callable[[TrainState], tuple[TrainState, Metrics]],
) -> TrainState:
    progress = Progress(start, config.steps, config.batch_size)
    pending: list[Metrics] = []
    for step in range(start + 1, config.steps + 1):
        state, metrics = advance(state)
        pending.append(metrics)
        if jax.default_backend() == "cpu":
            # Several devices of one CPU share its threads: two steps in flight could each hold some
            # and wait for the rest in a collective.
            jax.block_until_ready(metrics)
        if step == start + 1:
            jax.block_until_ready(state)
            progress.compiled(step)
        stopping = stop_requested() or step == config.steps
        if step % config.log_every == 0 or stopping:
            means = _means(pending)
            _check_finite(means, step)
            pending = []
            rate = progress.images_per_second(step)
            if rate:
                means |= {"images_per_second": rate}
            log.write(step, means)
            print(progress.line(step, means), flush=True)
        if step % config.sample_every == 0 or step == config.steps:
            image = sample_grid(state.ema)
            run.samples.mkdir(exist_ok=True)
            save_png(Image.fromarray(image), run.samples / f"step_{step:07d}.png")
            log.image(step, "samples", image)
        if stopping or checkpoints.due(step):
            _check_finite(_means([metrics]), step)
            checkpoints.save(step, state)
        if stopping:
            break
    return state


def _means(pending: list[Metrics]) -> dict[str, float]:
    rows = jax.device_get(pending)
    return {name: float(np.mean([row[name] for row in rows])) for name in sorted(rows[0])}


def _check_finite(metrics: Mapping[str, float], step: int) -> None:
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics[name]):
            raise FloatingPointError(
                f"{name} is {metrics[name]} by step {step}: lower train.learning_rate and continue "
                "from the last checkpoint"
            )


def _restore_or_init(
    run: RunFolder,
    checkpoints: Checkpoints,
    config: TrainConfig,
    init_params: Callable[[], Params],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    init = lambda: init_state(init_params(), optimizer)
    abstract = jax.eval_shape(init)
    shardings = state_shardings(abstract, mesh)
    abstract = abstract_like(abstract, shardings)
    state = checkpoints.restore(abstract)
    if state is not None:
        return state
    overview = parameter_overview.get_parameter_overview(abstract.params, include_stats=False)
    write_atomically(run.parameters_file, (overview + "\n").encode())
    print(f"{parameter_overview.count_parameters(abstract.params):,} parameters")
    if config.init_from:
        params = _weights_of(config.init_from, abstract.params)
        print(f"starting from the weights of {config.init_from}")
        init = lambda: init_state(params, optimizer)
    return jax.jit(init, out_shardings=shardings)()


def _compile(
    step: Callable[..., tuple[TrainState, Metrics]], state: TrainState, mesh: Mesh
) -> Callable[..., tuple[TrainState, Metrics]]:
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    return under_mesh(mesh, step)


def _weights_of(path: str, abstract: Params) -> Params:
    run = RunFolder(Path(path))
    run.config()  # a folder without one is no run
    return averaged_weights(run, abstract)[1]
