"""Saving and restoring of checkpoints; the only module that uses Orbax.

A step has three items, so that synthesis can restore the averaged weights alone:

    state   step, weights and optimizer state, also those of opponents if there are any
    ema     averaged weights
    run     JSON: number of the next global batch, and the run's record (seed, config, data)

All processes save in the background, and a step appears once it is complete. A state can be
restored onto any mesh.
"""

import contextlib
import dataclasses
import operator
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from sisma_jax.common.errors import InputError, RunError
from sisma_jax.common.files import refuse_lfs_pointer
from sisma_jax.data.checksums import differ
from sisma_jax.devices.hosts import all_true, is_first, is_multiprocess, wait_for_all
from sisma_jax.models.weights import load_tree, read_metadata
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params, TrainState

ITEMS = ("state", "ema", "run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The config's section `checkpoint`."""

    every: int
    """Steps between two saves; the last step is always saved."""
    keep: int
    """Number of newest steps kept on disk."""
    keep_every: int
    """Steps that are a multiple of this are never deleted; 0 for none."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise InputError(
                f"checkpoint.every is {self.every} and checkpoint.keep {self.keep}: "
                "both must be at least 1"
            )
        if self.keep_every < 0 or self.keep_every % self.every:
            raise InputError(
                f"checkpoint.keep_every is {self.keep_every}: choose a multiple of "
                f"checkpoint.every {self.every}, or 0 to keep none permanently"
            )


class Checkpoints:
    """The checkpoints of a run in training; every process must make the same calls."""

    def __init__(self, folder: Path, config: CheckpointConfig, record: Mapping[str, Any]) -> None:
        """Open for writing.

        Args:
          folder: folder of the steps.
          config: how often to save and what to keep.
          record: description of the run, saved with every step. Its seed and data checksum must
            match those of a restored step.
        """
        self._config, self.record = config, record
        self._path = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                keep_period=config.keep_every or None,
                cleanup_tmp_directories=True,
            ),
            item_names=ITEMS,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            with self._saving():
                self._manager.close()
        elif not is_multiprocess() or getattr(error, "shared", False):
            with contextlib.suppress(Exception):  # it would hide the original error
                self._manager.close()
        # Otherwise closing would wait for processes that are not aware of the error.

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether `step` is to be saved during training."""
        return step % self._config.every == 0

    def save(self, step: int, state: TrainState) -> None:
        """Start saving; does nothing if the step exists already.

        Raises:
          RunError: if an earlier save failed.
        """
        if step == self.latest_step():
            return
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_without_ema(state)),
                    ema=ocp.args.StandardSave(state.ema),
                    run=ocp.args.JsonSave({"batch": step, **self.record}),
                ),
                force=True,  # otherwise Orbax also saves the first step
            )

    def wait(self) -> None:
        """Wait until saving is complete.

        Raises:
          RunError: if saving failed.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raise RunError if a save in the background has failed."""
        with self._saving():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            steps = [int(path.name) for path in self._path.glob("*") if path.name.isdigit()]
            kept = f"step {max(steps)} is kept" if steps else "no step is saved yet"
            raise RunError(
                f"a checkpoint could not be written to {self._path} ({_reason(error)}): {kept}; "
                "make room on the disk, then run the same command to continue"
            ) from error

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Return the newest intact state, or None; `abstract` has its shapes and shardings.

        Newer steps that cannot be read are moved to the run folder's `damaged/`, with a warning, so
        that training can save them again.

        Raises:
          InputError: if there are checkpoints, but none is readable and fits, or they have another
            seed or other data.
        """
        with _Reader(self._path, f"delete {self._path} to start again") as reader:
            result = reader.newest_intact(
                state=ocp.args.StandardRestore(_without_ema(abstract)),
                ema=ocp.args.StandardRestore(abstract.ema),
                run=ocp.args.JsonRestore(),
            )
        if result is None:
            return None
        step, items, damaged = result
        for name, other in (("seed", operator.ne), ("data", differ)):
            now, then = self.record.get(name), items.run.get(name)
            if None not in (now, then) and other(then, now):
                raise InputError(
                    f"checkpoint {self._path / str(step)} has {name} {then!r}, but this run has "
                    f"{now!r}: continue with the former, or give --workdir a new folder",
                    shared=True,
                )
        if damaged:
            self._put_aside(damaged)
        return TrainState(ema=items.ema, **items.state)

    def _put_aside(self, steps: list[int]) -> None:
        if is_first():
            aside = RunFolder(self._path.parent).damaged
            aside.mkdir(exist_ok=True)
            for step in steps:
                shutil.rmtree(aside / str(step), ignore_errors=True)
                os.replace(self._path / str(step), aside / str(step))
        wait_for_all()  # so that all see the changed folder
        self._manager.reload()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppresses Orbax's warning about `read_only`."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _Reader:
    """Reads steps separately in each process, so that a failure in one does not block others."""

    def __init__(self, path: Path, remedy: str) -> None:
        """Open the folder of a run's steps; `remedy` ends the error if none can be read."""
        alone = jax.process_index()
        self._path, self._remedy = path.absolute(), remedy
        with _without_warnings():
            self._manager = ocp.CheckpointManager(
                self._path,
                options=ocp.CheckpointManagerOptions(
                    read_only=True,
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=alone,
                        active_processes={alone},
                        barrier_sync_key_prefix=f"process_{alone}",
                    ),
                ),
                item_names=ITEMS,
            )

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def newest_intact(self, **items: ocp.args.CheckpointArgs) -> tuple[int, Any, list[int]] | None:
        """The newest step whose items every process can read, these items, and all newer steps.

        Warns about the newer steps. Returns None if there are no checkpoints.

        Raises:
          InputError: if there are checkpoints, but none can be read.
        """
        failures: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, failure = None, None
            try:
                # Orbax would report git-lfs pointers by many lines from its threads.
                for file in (self._path / str(step)).rglob("*"):
                    refuse_lfs_pointer(file)
                restored = self._manager.restore(step, args=ocp.args.Composite(**items))
                if "run" in items and restored.run["batch"] != step:
                    failure = f"it records {restored.run['batch']} batches instead of {step}"
            except Exception as error:  # Orbax and TensorStore raise many kinds
                failure = _reason(error)
            if not all_true(failure is None):
                failures[step] = failure or "another process cannot read its part"
                continue
            for damaged, reason in failures.items() if is_first() else ():
                warnings.warn(
                    f"checkpoint {self._path / str(damaged)} cannot be restored ({reason}): going "
                    f"back to {self._path / str(step)}",
                    stacklevel=3,
                )
            return step, restored, [*failures]
        if not failures:
            return None
        newest, reason = next(iter(failures.items()))
        others = f", nor can {len(failures) - 1} before it" if len(failures) > 1 else ""
        raise InputError(
            f"checkpoint {self._path / str(newest)} cannot be restored ({reason}){others}: use the "
            f"software and the config that it was saved with, or {self._remedy}",
            shared=True,
        )


def averaged_weights(run: RunFolder, abstract: Params) -> tuple[int, Params]:
    """Return step and averaged weights of a run's newest checkpoint or of an exported folder.

    Args:
      run: run folder or exported folder.
      abstract: shapes, dtypes and shardings of the weights.

    Raises:
      InputError: if there are no weights, or they cannot be read or do not fit.
    """
    if run.weights_file.exists():
        params = load_tree(run.weights_file, abstract)
        step = int(read_metadata(run.weights_file).get("step", 0))
        return step, jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract))
    with _Reader(run.checkpoints, "give another run") as reader:
        result = reader.newest_intact(ema=ocp.args.StandardRestore(abstract))
    if result is None:
        raise InputError(
            f"{run.path} holds no finished checkpoint: train until the first one is saved "
            "(checkpoint.every)"
        )
    step, items, _ = result
    return step, items.ema


def _reason(error: BaseException) -> str:
    """One line of Orbax' or TensorStore's message about the root cause; its end if it is long."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    line = re.sub(r"\.? See full TensorStore details.*| \[\w+='[^']*'\]$", "", line)
    return line if len(line) <= 200 else "... " + line[-200:]


def _without_ema(state: TrainState) -> dict[str, Any]:
    """The fields of the item "state". A training without opponents has no such field."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {
        name: value
        for name, value in fields.items()
        if name != "ema" and (name != "opponents" or value)
    }


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Return the shapes and dtypes of `tree` with `shardings`, for restoring."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
