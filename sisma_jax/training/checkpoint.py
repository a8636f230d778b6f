"""Checkpoints: the one module that talks to Orbax.

A step holds three items, so that synthesis restores the averaged weights alone:

    state      step, weights and optimizer state
    ema        averaged weights
    position   JSON: the number of the next global batch
"""

import dataclasses
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from sisma_jax.errors import InputError
from sisma_jax.models.weights import load_tree, read_metadata
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.state import Params, TrainState

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The config's section `checkpoint`."""

    every: int
    """Steps between two saves; the last step is always saved."""
    keep: int
    """How many of the newest steps stay on disk."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise InputError(
                f"checkpoint.every is {self.every} and checkpoint.keep {self.keep}: "
                "both have to be at least 1"
            )


class Checkpoints:
    """The checkpoints of one run. Saves run in the background and appear when they are whole."""

    def __init__(self, run: RunFolder, config: CheckpointConfig | None = None) -> None:
        """Open for reading, or with `config` for writing too."""
        options = (
            ocp.CheckpointManagerOptions(read_only=True)
            if config is None
            else ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                cleanup_tmp_directories=True,
            )
        )
        self._config = config
        self._path = run.checkpoints.absolute()
        self._manager = ocp.CheckpointManager(
            self._path, options=options, item_names=("state", "ema", "position")
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether `step` is one of those saved on the way."""
        return step % self._config.every == 0

    def save(self, step: int, state: TrainState) -> None:
        """Save; a step already there stays."""
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_without_ema(state)),
                ema=ocp.args.StandardSave(state.ema),
                position=ocp.args.JsonSave({"batch": step}),
            ),
            force=True,  # Orbax would save the first step too
        )

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Return the newest intact state, placed as `abstract` (shapes, shardings) says, or None.

        Newer steps that cannot be read are moved to the run folder's `damaged/`, with a warning, so
        that training can save these steps anew.

        Raises:
          InputError: if there are checkpoints, but none that can be read and fits.
        """

        def read(step: int) -> TrainState:
            items = self._restore(
                step,
                state=ocp.args.StandardRestore(_without_ema(abstract)),
                ema=ocp.args.StandardRestore(abstract.ema),
                position=ocp.args.JsonRestore(),
            )
            if items.position["batch"] != step:
                raise _Unreadable(f"it says that {items.position['batch']} batches were read")
            return TrainState(ema=items.ema, **items.state)

        found = self._newest_intact(read)
        if found is None:
            return None
        _, state, damaged = found
        if damaged:
            aside = self._path.parent / "damaged"
            aside.mkdir(exist_ok=True)
            for step in damaged:
                shutil.rmtree(aside / str(step), ignore_errors=True)
                os.replace(self._path / str(step), aside / str(step))
            self._manager.reload()
        return state

    def restore_ema(self, abstract: Params) -> tuple[int, Params]:
        """Return the newest intact step and its averaged weights.

        Raises:
          InputError: if there is no finished checkpoint, or none that can be read and fits.
        """
        found = self._newest_intact(
            lambda step: self._restore(step, ema=ocp.args.StandardRestore(abstract)).ema
        )
        if found is None:
            raise InputError(
                f"{self._path.parent} holds no finished checkpoint: "
                "train until the first one is saved (checkpoint.every)"
            )
        return found[:2]

    def _newest_intact(self, read: Callable[[int], T]) -> tuple[int, T, list[int]] | None:
        """The newest step that `read` takes, what it makes of it, and the newer ones it did not.

        Warns of the latter. None where there are no checkpoints.
        """
        failures: dict[int, _Unreadable] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                result = read(step)
            except _Unreadable as error:
                failures[step] = error
                continue
            for damaged, error in failures.items():
                warnings.warn(
                    f"checkpoint {self._path / str(damaged)} cannot be restored ({error}): going "
                    f"back to {self._path / str(step)}",
                    stacklevel=3,
                )
            return step, result, [*failures]
        if not failures:
            return None
        newest, error = next(iter(failures.items()))
        others = f", nor can {len(failures) - 1} before it" if len(failures) > 1 else ""
        raise InputError(
            f"checkpoint {self._path / str(newest)} cannot be restored ({error}){others}: if this "
            "is not the software or the config it was saved with, take that; otherwise delete "
            f"{self._path} to begin again"
        ) from error

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise _Unreadable(reason) from error


class _Unreadable(Exception):
    """Why a checkpoint cannot be restored."""


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
    with Checkpoints(run) as checkpoints:
        return checkpoints.restore_ema(abstract)


def _without_ema(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Return shapes and dtypes of `tree` with shardings, for restoring."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
