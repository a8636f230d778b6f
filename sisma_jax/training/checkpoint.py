"""Checkpoints: the one module that talks to Orbax.

A step holds three items, so that synthesis restores the averaged weights alone:

    state   step, weights and optimizer state
    ema     averaged weights
    run     JSON: the number of the next global batch, and what the run is: seed, config, data

Saves go on in the background, from all processes, and appear when they are whole. A state is
restored onto whatever mesh it is asked for.
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

from sisma_jax.data.checksums import differ
from sisma_jax.errors import InputError, RunError
from sisma_jax.files import refuse_lfs_pointer
from sisma_jax.models.weights import load_tree, read_metadata
from sisma_jax.training.hosts import all_true, is_first, many, wait_for_all
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.state import Params, TrainState

ITEMS = ("state", "ema", "run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The config's section `checkpoint`."""

    every: int
    """Steps between two saves; the last step is always saved."""
    keep: int
    """How many of the newest steps stay on disk."""
    keep_every: int
    """Steps that are a multiple of this stay for good; 0 for none."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise InputError(
                f"checkpoint.every is {self.every} and checkpoint.keep {self.keep}: "
                "both have to be at least 1"
            )
        if self.keep_every < 0 or self.keep_every % self.every:
            raise InputError(
                f"checkpoint.keep_every is {self.keep_every}: choose a multiple of "
                f"checkpoint.every {self.every}, or 0 to keep none for good"
            )


class Checkpoints:
    """The checkpoints of a run that is trained; every process has to make the same calls."""

    def __init__(self, folder: Path, config: CheckpointConfig, record: Mapping[str, Any]) -> None:
        """Open for writing.

        Args:
          folder: of the steps.
          config: how many of them are kept.
          record: what the run is; saved with every step. The seed and the data's checksum in it
            have to be those of a step that is restored.
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
        elif not many() or getattr(error, "shared", False):
            with contextlib.suppress(Exception):  # it would hide what went wrong
                self._manager.close()
        # Else it would wait for processes that know nothing of the error.

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether `step` is one of those saved on the way."""
        return step % self._config.every == 0

    def save(self, step: int, state: TrainState) -> None:
        """Begin to save; a step already there stays.

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
                force=True,  # Orbax would save the first step too
            )

    def wait(self) -> None:
        """Return once what is being saved is whole.

        Raises:
          RunError: if it failed.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises RunError if a save in the background has failed."""
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
                "see that there is room, then the same command continues"
            ) from error

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Return the newest intact state, placed as `abstract` (shapes, shardings) says, or None.

        Newer steps that cannot be read are moved to the run folder's `damaged/`, with a warning, so
        that training can save these steps anew.

        Raises:
          InputError: if there are checkpoints, but none that can be read and fits, or they are of
            another seed or other data.
        """
        with _Reader(self._path) as reader:
            found = reader.newest_intact(
                state=ocp.args.StandardRestore(_without_ema(abstract)),
                ema=ocp.args.StandardRestore(abstract.ema),
                run=ocp.args.JsonRestore(),
            )
        if found is None:
            return None
        step, items, damaged = found
        for name, other in (("seed", operator.ne), ("data", differ)):
            now, then = self.record.get(name), items.run.get(name)
            if None not in (now, then) and other(then, now):
                raise InputError(
                    f"checkpoint {self._path / str(step)} is of {name} {then!r} where this run has "
                    f"{now!r}: continue with that, or give --workdir a new folder",
                    shared=True,
                )
        if damaged:
            self._put_aside(damaged)
        return TrainState(ema=items.ema, **items.state)

    def _put_aside(self, steps: list[int]) -> None:
        if is_first():
            aside = self._path.parent / "damaged"
            aside.mkdir(exist_ok=True)
            for step in steps:
                shutil.rmtree(aside / str(step), ignore_errors=True)
                os.replace(self._path / str(step), aside / str(step))
        wait_for_all()  # and see the folder as the first process leaves it
        self._manager.reload()


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """Orbax warns of what `read_only` means whenever it is asked for."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _Reader:
    """Reads steps, each process by itself: what one cannot read must not let the others wait."""

    def __init__(self, path: Path) -> None:
        alone = jax.process_index()
        self._path = path.absolute()
        with _unsaid():
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
        """The newest step whose items every process can read, them, and the newer steps.

        Warns of the latter. None where there are no checkpoints.

        Raises:
          InputError: if there are, but none can be read.
        """
        failures: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, failure = None, None
            try:
                # Orbax reports a pointer by many lines, from threads of its own.
                for file in (self._path / str(step)).rglob("*"):
                    refuse_lfs_pointer(file)
                restored = self._manager.restore(step, args=ocp.args.Composite(**items))
                if "run" in items and restored.run["batch"] != step:
                    failure = f"it says that {restored.run['batch']} batches were read"
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
            f"checkpoint {self._path / str(newest)} cannot be restored ({reason}){others}: if this "
            "is not the software or the config it was saved with, take that; otherwise delete "
            f"{self._path} to begin again",
            shared=True,
        )


def averaged_weights(run: RunFolder, abstract: Params) -> tuple[int, Params]:
    """Return step and averaged weights of a run's newest checkpoint, or of an exported folder.

    Args:
      run: either.
      abstract: shapes with shardings.

    Raises:
      InputError: if there are none, or they cannot be read or do not fit.
    """
    if run.weights_file.exists():
        params = load_tree(run.weights_file, abstract)
        step = int(read_metadata(run.weights_file).get("step", 0))
        return step, jax.device_put(params, jax.tree.map(lambda x: x.sharding, abstract))
    with _Reader(run.checkpoints) as reader:
        found = reader.newest_intact(ema=ocp.args.StandardRestore(abstract))
    if found is None:
        raise InputError(
            f"{run.path} holds no finished checkpoint: train until the first one is saved "
            "(checkpoint.every)"
        )
    step, items, _ = found
    return step, items.ema


def _reason(error: BaseException) -> str:
    """One line of what Orbax or TensorStore say of the first cause, or its end where it is long."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    line = re.sub(r"\.? See full TensorStore details.*| \[\w+='[^']*'\]$", "", line)
    return line if len(line) <= 200 else "... " + line[-200:]


def _without_ema(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name != "ema"}


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Return shapes and dtypes of `tree` with shardings, for restoring."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
