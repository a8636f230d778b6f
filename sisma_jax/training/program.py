"""The compiled parts of a training on a mesh: how its state begins, and the step.

Arrays of the state are sharded by `devices.sharding.state_shardings`, and constants of the loss are
replicated by the caller.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jax.stages import Compiled

from sisma_jax.devices.sharding import replicated, state_shardings, under_mesh
from sisma_jax.runs.checkpoint import abstract_like
from sisma_jax.runs.state import Params, TrainState
from sisma_jax.training.state import (
    Batch,
    Draw,
    LossFn,
    Metrics,
    Opponents,
    TrainConfig,
    init_state,
    make_step,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """A model with its objective and optimizer."""

    init_params: Callable[[], Params]
    """Returns new weights; traced."""
    optimizer: optax.GradientTransformation
    """Result of `make_optimizer`."""
    draw: Draw
    loss_fn: LossFn
    opponents: Opponents = dataclasses.field(default_factory=dict)
    """Networks that are trained against the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingProgram:
    """Result of `assemble`; each part is compiled when it is first called."""

    mesh: Mesh
    abstract: TrainState
    """Shapes, dtypes and shardings of the state."""
    init: Callable[[], TrainState]
    """Returns the state at step 0 with new weights."""
    init_from: Callable[[Params], TrainState]
    """Returns the state at step 0 with the given weights."""
    jitted_step: Callable[..., tuple[TrainState, Metrics]]

    @property
    def step(self) -> Callable[..., tuple[TrainState, Metrics]]:
        """(state, batch, *constants) -> (next state, metrics); the given state is donated."""
        return under_mesh(self.mesh, self.jitted_step)

    def compile_step(self, batch: Batch, *constants: Any) -> Compiled:
        """Compile the step for arguments like these ahead of its first call, and return it."""
        lowered = under_mesh(self.mesh, self.jitted_step.lower)(self.abstract, batch, *constants)
        return lowered.compile()


def assemble(
    trainable: Trainable, *, config: TrainConfig, seed: int, mesh: Mesh
) -> TrainingProgram:
    """Assemble a training from its parts.

    Args:
      trainable: what is trained.
      config: the config's section `train`.
      seed: determines the random numbers of all steps.
      mesh: all devices of all processes.
    """
    init_from = lambda params: init_state(params, trainable.optimizer, trainable.opponents)
    init = lambda: init_from(trainable.init_params())
    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, mesh)
    return TrainingProgram(
        mesh=mesh,
        abstract=abstract_like(shapes, shardings),
        init=jax.jit(init, out_shardings=shardings),
        init_from=jax.jit(init_from, out_shardings=shardings),
        jitted_step=jax.jit(
            make_step(
                trainable.loss_fn,
                trainable.draw,
                trainable.optimizer,
                config,
                seed,
                trainable.opponents,
            ),
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
        ),
    )
