"""Checkpoints: the one module that talks to Orbax.

A step holds three items, so that synthesis restores the averaged weights alone:

    state      step, weights and optimizer state
    ema        averaged weights
    position   JSON: the number of the next global batch
"""

import dataclasses
from typing import Any

import jax
import orbax.checkpoint as ocp

from sisma_jax.errors import InputError
from sisma_jax.models.weights import load_tree, read_metadata
from sisma_jax.training.run_folder import RunFolder
from sisma_jax.training.state import Params, TrainState


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
        """Return the newest state, placed as `abstract` (shapes with shardings) says, or None.

        Raises:
          InputError: if the newest checkpoint cannot be read or does not fit.
        """
        step = self.latest_step()
        if step is None:
            return None
        items = self._restore(
            step,
            state=ocp.args.StandardRestore(_without_ema(abstract)),
            ema=ocp.args.StandardRestore(abstract.ema),
            position=ocp.args.JsonRestore(),
        )
        if items.position["batch"] != step:
            raise InputError(
                f"checkpoint {self._path / str(step)} says that {items.position['batch']} batches "
                "were read: delete this folder to continue from the step before it"
            )
        return TrainState(ema=items.ema, **items.state)

    def restore_ema(self, abstract: Params) -> tuple[int, Params]:
        """Return the newest step and its averaged weights.

        Raises:
          InputError: if there is no finished checkpoint, or it cannot be read or does not fit.
        """
        step = self.latest_step()
        if step is None:
            raise InputError(
                f"{self._path.parent} holds no finished checkpoint: "
                "train until the first one is saved (checkpoint.every)"
            )
        return step, self._restore(step, ema=ocp.args.StandardRestore(abstract)).ema

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise InputError(
                f"checkpoint {self._path / str(step)} cannot be restored ({reason}): if it was cut "
                "short, delete this folder to continue from the step before it"
            ) from error


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
