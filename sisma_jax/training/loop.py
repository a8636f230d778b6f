"""The training loop of all models: restore, step, log, evaluate, sample, save.

Running the same command again continues a run: state and data position come from the newest
checkpoint, and the result equals that of an uninterrupted run. After SIGTERM, Ctrl-C or a closed
terminal (SIGHUP) the loop finishes the current step, saves and returns.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common.errors import RunError
from sisma_jax.common.files import NO_ROOM, write_atomically
from sisma_jax.data.config import Feed
from sisma_jax.data.image_files import save_png
from sisma_jax.devices.hosts import all_true, is_first, is_multiprocess, print_once, stop_requests
from sisma_jax.devices.sharding import local_copy, on_devices, replicated
from sisma_jax.devices.throughput import matmul_peak
from sisma_jax.runs.checkpoint import CheckpointConfig, Checkpoints, averaged_weights
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params, TrainState
from sisma_jax.training.divergence import keep_diverged
from sisma_jax.training.logging import Log, Logs, MetricsLog, Progress, evaluated_at
from sisma_jax.training.program import Trainable, TrainingProgram, assemble
from sisma_jax.training.state import Metrics, TrainConfig

SHOWN = ("loss", "images_per_second", "mfu", "data_wait", "skipped")
"""Metrics printed in progress lines, after those of the model."""
UNREAD = 2
"""Steps in flight before the loop waits for metrics, so that accelerators do not idle."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, evaluated and sampled."""

    trainable: Trainable
    constants: tuple[Any, ...] = ()
    """Further arguments of the loss (the frozen autoencoder)."""
    feed: Feed
    sample_grid: Callable[[Params], UInt8[np.ndarray, "h w 3"]]
    """Averaged weights -> a picture for samples/ and TensorBoard; called in one process, with
    unsharded local weights."""
    evaluate: Callable[[Params], Mapping[str, float]] | None = None
    """Averaged weights -> metrics; called in all processes."""
    evaluate_every: int = 0
    """Steps between two evaluations; 0 for none."""
    macs: int | None = None
    """Multiply-accumulates of the forward pass of one image, for the MFU; None if unknown."""
    dtype: str = "float32"
    """Compute type of the model, for the MFU."""


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
    """Train until `config.steps` or a stop request; return the last state, which is saved.

    Args:
      run: the run folder, already claimed.
      config, checkpoint: sections of the config.
      mesh: all devices of all processes.
      record: description of the run, for its checkpoints; its "seed" determines all randomness.
      task: what is trained.
      watch: further logs that receive metrics and samples.

    Raises:
      InputError: if there are checkpoints and none can be restored.
      RunError: if too many steps in a row are skipped, a disk is full, or a process is lost.
    """
    with _run_errors(run, config), Checkpoints(run.checkpoints, checkpoint, record) as checkpoints:
        program = assemble(task.trainable, config=config, seed=record["seed"], mesh=mesh)
        state = _restore_or_init(run, checkpoints, config, program)
        start = int(state.step)
        # Steps are saved before evaluation and sampling, which a stop may have prevented.
        evaluated = not start or _evaluated_and_sampled(run, config, task, start)
        if start >= config.steps and evaluated:
            of = f" of {start}" if start == config.steps else f", beyond train.steps {config.steps}"
            print_once(f"{run.path} is trained: step {start}{of}")
            return state
        if start:
            print_once(f"continuing {run.path} at step {start}")
        constants = jax.device_put(task.constants, replicated(mesh))
        # All processes of JAX have devices of the same kind.
        peak = matmul_peak(task.dtype) * jax.process_count() if task.macs else None
        progress = Progress(start, config.steps, config.batch_size, task.macs, peak)
        log = Logs([MetricsLog(run, start), *watch] if is_first() else [])
        batches = task.feed.open(start)
        try:
            with stop_requests() as stop_requested, closing(on_devices(batches, mesh)) as placed:
                loop = _Loop(run, config, checkpoints, task, mesh, log, progress)
                if not evaluated:
                    loop.evaluate_and_sample(start, state, last=start >= config.steps)
                return loop.run(state, start, placed, program.step, constants, stop_requested)
        finally:
            batches.close()
            log.close()


@contextmanager
def _run_errors(run: RunFolder, config: TrainConfig) -> Iterator[None]:
    """Turns errors of disks, devices and processes into a RunError of one sentence."""
    try:
        yield
    except OSError as error:
        of_this_folder = str(error.filename or "").startswith(str(run.path))
        if error.errno not in NO_ROOM and not of_this_folder:
            raise  # such as an error of the data
        raise RunError(
            f"run folder {run.path} cannot be written ({error.strerror}): the last checkpoint is "
            "kept; fix this, then run the same command to continue"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise RunError(
                f"the devices' memory is too small for a step of train.batch_size "
                f"{config.batch_size} ({str(error).splitlines()[0][:200]}): raise "
                "train.accumulate, set model.remat, or use more devices"
            ) from error
        if not is_multiprocess():
            raise
        raise RunError(
            f"process {jax.process_index()} lost another process ({str(error).splitlines()[0]}): "
            "start all of them again to continue from the last checkpoint"
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
            # Forbids accidental transfers between host and device, which would stall every step.
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
            if not requested:  # a stop request may leave little time
                self.evaluate_and_sample(step, state, last)
            if last:
                break
        self._profile(None, state)
        self.checkpoints.wait()  # while signals are still handled
        return state

    def _read(self, unread: int, state: TrainState) -> None:
        """Wait for the metrics of all but the last `unread` steps; raise if training diverged."""
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
        print_once(self.progress.line(step, shown))

    def evaluate_and_sample(self, step: int, state: TrainState, last: bool) -> None:
        """Evaluate and sample if due at `step`, after the checkpoint of `step` was started."""
        every = self.task.evaluate_every
        evaluate = every and (step % every == 0 or last)
        sample = step % self.config.sample_every == 0 or last
        if not evaluate and not sample:
            return
        self._read(0, state)  # so that no step runs during the pause
        with self.progress.paused():
            if evaluate:
                metrics = dict(self.task.evaluate(state.ema))
                self.log.write(step, metrics)
                print_once(self.progress.line(step, metrics))
            if sample:
                ema = local_copy(state.ema, self.mesh)
                if is_first():
                    image = self.task.sample_grid(ema)
                    self.folder.samples.mkdir(exist_ok=True)
                    save_png(Image.fromarray(image), self.folder.sample_file(step))
                    self.log.image(step, "samples", image)

    def _profile(self, step: int | None, state: TrainState) -> None:
        """Start or stop the first process's trace before `step`, or at the end (None)."""
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
            print_once(
                f"traced {self.folder.profile}: open it with TensorBoard's profile plugin or xprof"
            )


def _evaluated_and_sampled(run: RunFolder, config: TrainConfig, task: Task, step: int) -> bool:
    """Whether evaluation and samples that were due at `step` exist."""
    if not is_first():
        return all_true(True)
    last, every = step >= config.steps, task.evaluate_every
    due = every and (step % every == 0 or last)
    evaluated = not due or evaluated_at(run.metrics_file, step)
    sampled = not (step % config.sample_every == 0 or last) or run.sample_file(step).exists()
    return all_true(evaluated and sampled)


def _unread() -> int:
    """The most steps in flight."""
    # Several devices of one CPU share its threads: two steps in flight could deadlock in
    # collectives, each holding some of the threads.
    return 0 if jax.default_backend() == "cpu" else UNREAD


def _restore_or_init(
    run: RunFolder, checkpoints: Checkpoints, config: TrainConfig, program: TrainingProgram
) -> TrainState:
    abstract = program.abstract
    overview = parameter_overview.get_parameter_overview(abstract.params, include_stats="sharding")
    print_once(overview)
    if is_first():
        write_atomically(run.parameters_file, (overview + "\n").encode())
    state = checkpoints.restore(abstract)
    if state is not None:
        # With a lower limit than before, the streak would block every step.
        streak_is_over = int(state.skipped_in_a_row) >= config.skip_limit
        return state.replace(skipped_in_a_row=state.step * 0) if streak_is_over else state
    if config.init_from:
        params = _weights_of(config.init_from, abstract.params)
        print_once(f"starting from the weights of {config.init_from}")
        return program.init_from(params)
    return program.init()


def _weights_of(path: str, abstract: Params) -> Params:
    run = RunFolder(Path(path))
    run.config()  # raises if the folder holds no run
    return averaged_weights(run, abstract)[1]
