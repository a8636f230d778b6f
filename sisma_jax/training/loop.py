"""The loop that trains any of the project's models: restore, step, log, evaluate, sample, save.

A run is continued by running it again: state and data position come from the newest checkpoint, and
what follows equals an undisturbed run. SIGTERM, Ctrl-C and a closed terminal (SIGHUP) finish the
step at hand, save and return.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
from sisma_jax.errors import RunError
from sisma_jax.files import NO_ROOM, write_atomically
from sisma_jax.training.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    abstract_like,
    averaged_weights,
)
from sisma_jax.training.divergence import keep_diverged
from sisma_jax.training.hosts import all_true, is_first, many, say, stop_requests
from sisma_jax.training.logging import Log, Logs, MetricsLog, Progress, evaluated_at
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.setup import Feed
from sisma_jax.training.sharding import (
    jit_step,
    local_copy,
    on_devices,
    replicated,
    state_shardings,
)
from sisma_jax.training.state import (
    Draw,
    LossFn,
    Metrics,
    Params,
    TrainConfig,
    TrainState,
    init_state,
    make_step,
)
from sisma_jax.training.throughput import matmul_peak

SHOWN = ("loss", "images_per_second", "mfu", "data_wait", "skipped")
"""Metrics of the line on the screen, beside those that are the model's own."""
UNREAD = 2
"""Steps whose metrics are not waited for, so that accelerators have the next step at hand."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, and what is looked at meanwhile."""

    init_params: Callable[[], Params]
    """Makes new weights; traced."""
    optimizer: optax.GradientTransformation
    """By `make_optimizer`."""
    draw: Draw
    loss_fn: LossFn
    constants: tuple[Any, ...] = ()
    """Arrays that the loss needs beside the batch (the frozen autoencoder)."""
    feed: Feed
    sample_grid: Callable[[Params], UInt8[np.ndarray, "h w 3"]]
    """Averaged weights -> a picture for samples/ and TensorBoard; called by one process, with
    weights that are whole and its own."""
    evaluate: Callable[[Params], Mapping[str, float]] | None = None
    """Averaged weights -> metrics; called by all processes."""
    evaluate_every: int = 0
    """Steps between two evaluations; 0 for none."""
    macs: int | None = None
    """Of one image, forward, for the MFU."""
    dtype: str = "float32"
    """That the model computes in, for the MFU."""


def train(
    *,
    run: RunFolder,
    config: TrainConfig,
    checkpoint: CheckpointConfig,
    mesh: Mesh,
    record: Mapping[str, Any],
    task: Task,
    watch: Sequence[Log] = (),
) -> TrainState:
    """Train until `config.steps`, or until told to stop; return the last state, which is saved.

    Args:
      run: the folder, already claimed.
      config, checkpoint: the sections of the config.
      mesh: all devices of all processes.
      record: what the run is, for its checkpoints; its "seed" decides all that is random.
      task: what is trained.
      watch: whom else to tell of metrics and samples, while they are made.

    Raises:
      InputError: if there are checkpoints and none can be restored.
      RunError: if steps are skipped too many times in a row, a disk is full, or a process is lost.
    """
    with _in_words(run, config), Checkpoints(run.checkpoints, checkpoint, record) as checkpoints:
        state = _restore_or_init(run, checkpoints, config, task, mesh)
        start = int(state.step)
        # It was saved before it was looked at, and may have been stopped in between.
        looked_at = not start or _looked_at(run, config, task, start)
        if start >= config.steps and looked_at:
            say(f"{run.path} is trained: step {start} of {config.steps}")
            return state
        if start:
            say(f"continuing {run.path} at step {start}")
        step_fn = make_step(task.loss_fn, task.draw, task.optimizer, config, record["seed"])
        step_fn = jit_step(step_fn, jax.tree.map(lambda x: x.sharding, state), mesh)
        constants = jax.device_put(task.constants, replicated(mesh))
        # One peak stands for all: JAX's processes have devices of one kind.
        peak = matmul_peak(task.dtype) * jax.process_count() if task.macs else None
        progress = Progress(start, config.steps, config.batch_size, task.macs, peak)
        log = Logs([MetricsLog(run, start), *watch] if is_first() else [])
        batches = task.feed.open(start)
        try:
            with stop_requests() as stop_requested, closing(on_devices(batches, mesh)) as placed:
                loop = _Loop(run, config, checkpoints, task, mesh, log, progress)
                if not looked_at:
                    loop.look(start, state, last=start >= config.steps)
                return loop.run(state, start, placed, step_fn, constants, stop_requested)
        finally:
            batches.close()
            log.close()


@contextmanager
def _in_words(run: RunFolder, config: TrainConfig) -> Iterator[None]:
    """What the machine says in the middle of a run, in one sentence."""
    try:
        yield
    except OSError as error:
        of_this_folder = str(error.filename or "").startswith(str(run.path))
        if error.errno not in NO_ROOM and not of_this_folder:
            raise  # of the data, say
        raise RunError(
            f"run folder {run.path} cannot be written ({error.strerror}): the last checkpoint is "
            "kept; mend that, then the same command continues"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise RunError(
                f"the devices' memory does not hold a step of train.batch_size "
                f"{config.batch_size} ({str(error).splitlines()[0][:200]}): raise "
                "train.accumulate, set model.remat, or use more devices"
            ) from error
        if not many():
            raise
        raise RunError(
            f"process {jax.process_index()} has lost another one ({str(error).splitlines()[0]}): "
            "start all of them again, they continue from the last checkpoint"
        ) from error


class _Loop:
    """The steps of one call of `train`."""

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        checkpoints: Checkpoints,
        task: Task,
        mesh: Mesh,
        log: Log,
        progress: Progress,
    ) -> None:
        self.folder, self.config, self.checkpoints = run, config, checkpoints
        self.task, self.mesh, self.log, self.progress = task, mesh, log, progress
        self.unread = _unread()
        self.pending: deque[tuple[int, Metrics]] = deque()
        self.rows: list[dict[str, np.ndarray]] = []
        self.tracing = False

    def run(
        self,
        state: TrainState,
        start: int,
        placed: Iterator[dict[str, jax.Array]],
        step_fn: Callable[..., tuple[TrainState, Metrics]],
        constants: tuple[Any, ...],
        stop_requested: Callable[[int], bool],
    ) -> TrainState:
        config = self.config
        for step in range(start + 1, config.steps + 1):
            self._profile(step, state)
            with self.progress.waiting():
                batch = next(placed)
            # Nothing may move between host and device by accident: it would stall every step.
            with jax.transfer_guard("disallow"):
                state, metrics = step_fn(state, batch, *constants)
            self.pending.append((step, metrics))
            if step == start + 1:
                jax.block_until_ready(state)
                self.progress.compiled(step)
            self._read(self.unread, state)
            requested = stop_requested(step)
            last = requested or step == config.steps
            if step % config.log_every == 0 or last:
                self._read(0, state)
                self._log(step)
                self.checkpoints.check()
            if last or self.checkpoints.due(step):
                self._read(0, state)
                self.checkpoints.save(step, state)
            if not requested:  # what is left of the time may be short
                self.look(step, state, last)
            if last:
                break
        self._profile(None, state)
        self.checkpoints.wait()  # while signals are still heard
        return state

    def _read(self, unread: int, state: TrainState) -> None:
        """Wait for the metrics of all but the last `unread` steps; stop where they diverge."""
        while len(self.pending) > unread:
            step, metrics = self.pending.popleft()
            row = jax.device_get(metrics)
            self.rows.append(row)
            if row["skipped_in_a_row"] >= self.config.skip_limit:
                self.checkpoints.wait()
                raise keep_diverged(
                    self.folder, step, self.config.skip_limit, state,
                    self.checkpoints.record, self.task.feed.ids,
                )  # fmt: skip

    def _log(self, step: int) -> None:
        taken = [row for row in self.rows if not row["skipped"]] or self.rows
        means = {name: float(np.mean([row[name] for row in taken])) for name in sorted(taken[0])}
        del means["skipped_in_a_row"]
        means["learning_rate"] = float(taken[-1]["learning_rate"])
        means["skipped"] = sum(int(row["skipped"]) for row in self.rows)
        self.rows = []
        means |= self.progress.speed(step)
        self.log.write(step, means)
        own = means.keys() - {"learning_rate", "gradient_norm", "memory_gib", *SHOWN}
        shown = {name: means[name] for name in (*sorted(own), *SHOWN) if means.get(name)}
        say(self.progress.line(step, shown))

    def look(self, step: int, state: TrainState, last: bool) -> None:
        """Evaluate and sample where it is time. What was to be saved is being saved."""
        every = self.task.evaluate_every
        evaluate = every and (step % every == 0 or last)
        sample = step % self.config.sample_every == 0 or last
        if not evaluate and not sample:
            return
        self._read(0, state)  # no step is in flight whose time would not count
        with self.progress.paused():
            if evaluate:
                metrics = dict(self.task.evaluate(state.ema))
                self.log.write(step, metrics)
                say(self.progress.line(step, metrics))
            if sample:
                ema = local_copy(state.ema, self.mesh)
                if is_first():
                    image = self.task.sample_grid(ema)
                    self.folder.samples.mkdir(exist_ok=True)
                    save_png(Image.fromarray(image), self.folder.sample_file(step))
                    self.log.image(step, "samples", image)

    def _profile(self, step: int | None, state: TrainState) -> None:
        """Begin or end the trace before `step`, or at the end; of one process."""
        first = self.config.profile_at
        end = first + self.config.profile_steps
        if not is_first():
            return
        if first and step == first:
            self._read(0, state)
            jax.profiler.start_trace(str(self.folder.profile))
            self.tracing = True
        elif self.tracing and step in (None, end):
            self._read(0, state)
            jax.profiler.stop_trace()
            self.tracing = False
            say(f"traced {self.folder.profile}: open it with TensorBoard's profile plugin or xprof")


def _looked_at(run: RunFolder, config: TrainConfig, task: Task, step: int) -> bool:
    """Whether what was due at `step` was evaluated and sampled before the run ended."""
    if not is_first():
        return all_true(True)
    last, every = step >= config.steps, task.evaluate_every
    due = every and (step % every == 0 or last)
    evaluated = not due or evaluated_at(run.metrics_file, step)
    sampled = not (step % config.sample_every == 0 or last) or run.sample_file(step).exists()
    return all_true(evaluated and sampled)


def _unread() -> int:
    """How many steps may be in flight."""
    # Several devices of one CPU share its threads: two steps in flight could each hold some and
    # wait for the rest in a collective.
    return 0 if jax.default_backend() == "cpu" else UNREAD


def _restore_or_init(
    run: RunFolder, checkpoints: Checkpoints, config: TrainConfig, task: Task, mesh: Mesh
) -> TrainState:
    init = lambda: init_state(task.init_params(), task.optimizer)
    abstract = jax.eval_shape(init)
    shardings = state_shardings(abstract, mesh)
    abstract = abstract_like(abstract, shardings)
    overview = parameter_overview.get_parameter_overview(abstract.params, include_stats="sharding")
    say(overview)
    if is_first():
        write_atomically(run.parameters_file, (overview + "\n").encode())
    state = checkpoints.restore(abstract)
    if state is not None:
        # With another limit a streak that goes on could forbid every step.
        streak_is_over = int(state.skipped_in_a_row) >= config.skip_limit
        return state.replace(skipped_in_a_row=state.step * 0) if streak_is_over else state
    if config.init_from:
        params = _weights_of(config.init_from, abstract.params)
        say(f"starting from the weights of {config.init_from}")
        start = lambda params: init_state(params, task.optimizer)
        return jax.jit(start, out_shardings=shardings)(params)
    return jax.jit(init, out_shardings=shardings)()


def _weights_of(path: str, abstract: Params) -> Params:
    run = RunFolder(Path(path))
    run.config()  # a folder without one is no run
    return averaged_weights(run, abstract)[1]
